"""`titans-seq text tokenizer`: byte-level BPE from files."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.text.cli.options import Field, Quiet, Texts


def tokenizer(
    files: Texts,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="The file that is written, tokenizer.json or another .json.")],
    vocab_size: Annotated[int, Parameter(help="Tokens: 256 bytes, the end of a document, and merges.", validator=Number(gte=257))] = 4096,
    field: Field = "text",
    quiet: Quiet = False,
) -> None:
    """Learn a byte-level BPE from texts, for `text train --tokenizer`. Any text goes through it unchanged."""
    from domains.text.data.sources import find_all, read_files
    from domains.text.tokenizers import train_tokenizer
    from titans_seq.outputs import check_file, write_all

    found = find_all(files)
    check_file("--output", output, "tokenizer.json", found)
    texts = (block.text for block in read_files(found, field))
    learned = train_tokenizer(texts, vocab_size, progress=not quiet and sys.stdout.isatty())  # its bar is of blank lines elsewhere
    write_all(output.parent, {output.name: lambda path: path.write_text(learned.text, encoding="utf-8")})
    if not quiet:
        print(f"{output}: {learned.vocabulary:,} tokens.")
