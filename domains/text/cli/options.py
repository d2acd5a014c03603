"""Options that several commands have, and what they share."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from titans_seq.errors import UserError

if TYPE_CHECKING:
    from domains.text.model import TitansForCausalLM
    from domains.text.tokenizers import Tokenizer

Texts = Annotated[
    list[Path],
    Parameter(
        help="Files in UTF-8: text, JSON lines (.jsonl, .ndjson) and Parquet, the first two also as .gz and .zst; and folders: all such "
        "files below them."
    ),
]
Model = Annotated[str, Parameter(help="Folder of a trained model, or its name on the Hugging Face hub, owner/name.")]
Field = Annotated[str, Parameter(help="Field of JSON lines, and column of a Parquet, that holds the text.")]
Joined = Annotated[bool, Parameter(help="Read the documents of a file as one, in order, with the memory carried on.", negative="")]
Cache = Annotated[Path | None, Parameter(help="Folder for the tokens of the files. Default: .titans_seq beside each.")]
ScaleForgetting = Annotated[
    float | None,
    Parameter(
        help="Multiply what memories forget by this: 0.01 where texts are far longer than those of the training. Default: as trained.",
        validator=Number(gt=0, lte=1e6),
    ),
]
Quiet = Annotated[bool, Parameter(help="Show no progress.", negative="")]
TokenizerFile = Annotated[
    Path | None,
    Parameter(
        name="--tokenizer",
        help="JSON of the tokenizers library, as `titans-seq text tokenizer` writes it. Default: bytes, or that of --start.",
    ),
]
EndToken = Annotated[
    str | None, Parameter(help="Token of --tokenizer that begins and ends documents. Default: a usual one that it has, or a new one.")
]


def read_tokenizer(path: Path | None, end: str | None) -> "Tokenizer | None":
    """That of --tokenizer and --end-token, None without."""
    from domains.text.tokenizers import load_tokenizer

    if path is None and end is not None:
        raise UserError("--end-token names a token of --tokenizer, which was not given.")
    if path is None:
        return None
    found = load_tokenizer(path, end)
    warn_of_losses(found, str(path))
    return found


def warn_of_losses(tokenizer: "Tokenizer", whose: str) -> None:
    """Say on stderr that bits of tokens are not those of the text, where the tokeniser loses something of it."""
    from domains.text.tokenizers import keeps_texts

    if not keeps_texts(tokenizer):
        print(
            f"warning: {whose}: its tokens do not give every text back as it was (capitals, spaces, lines or rare characters). Bits per "
            "byte, and texts that are made, are of what is left.",
            file=sys.stderr,
        )


def files_of(model: str) -> list[Path]:
    """Of a model's folder, which nothing is to be written over; of a name on the hub they are not there."""
    from titans_seq.checkpoint import ALL_FILES

    return [Path(model) / name for name in ALL_FILES]


def load(model: str, forgetting: float | None = None) -> "TitansForCausalLM":
    """A trained model, on the GPU if there is one; forgetting: of --scale-forgetting."""
    import torch

    from domains.text.model import TitansForCausalLM

    found = TitansForCausalLM.from_pretrained(model, device="cuda" if torch.cuda.is_available() else "cpu")
    scale(found, model, forgetting)
    return found


def scale(model: "TitansForCausalLM", name: str, forgetting: float | None) -> None:
    """Do what --scale-forgetting asks for, if it was given. name: of the model."""
    from titans_seq.memory import scale_forgetting

    if forgetting is None:
        return
    try:
        scale_forgetting(model, forgetting)
    except ValueError as error:
        raise UserError(f"--scale-forgetting {forgetting:g}: no memory of {name} forgets. Leave it out.") from error
