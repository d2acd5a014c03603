"""`titans-seq text score`: bits per byte that a model needs for files, and where in documents it needs them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.text.cli.options import Cache, Field, Joined, Model, Quiet, ScaleForgetting, Texts, load, warn_of_losses
from titans_seq.progress import progress

if TYPE_CHECKING:
    from domains.text.score import FileScore, RangeScore

FILES, POSITIONS, PICTURE = "files.csv", "positions.csv", "positions.png"
"""Into --output."""


def score(
    model: Model,
    files: Texts,
    /,
    *,
    segment_length: Annotated[
        int, Parameter(help="Tokens read at a time: speed and memory, not the score.", validator=Number(gte=1))
    ] = 1024,
    scale_forgetting: ScaleForgetting = None,
    output: Annotated[
        Path | None,
        Parameter(name=("--output", "-o"), help=f"Folder for {FILES}, {POSITIONS} and {PICTURE}. Default: nothing is written."),
    ] = None,
    field: Field = "text",
    joined: Joined = False,
    cache: Cache = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object a file.", negative="")] = False,
    quiet: Quiet = False,
) -> None:
    """Say how many bits a byte a model needs for each file; lower is better, 8 is what a file takes as it is.

    Exact for any tokeniser: the bits of all its tokens, over the bytes of the file's text. Beside it the perplexity of a token, which
    depends on the tokeniser: 2 to the power of the bits per token. With --output also by position in the document.
    """
    from domains.text.data import read_texts
    from domains.text.data.sources import find_all
    from domains.text.plots import plot_positions
    from domains.text.score import by_file, by_position
    from domains.text.score import score as score_documents
    from titans_seq.outputs import check_folder, write_all

    if output is not None:
        check_folder("--output", output, (FILES, POSITIONS, PICTURE), find_all(files))
    language_model = load(model, scale_forgetting)
    warn_of_losses(language_model.tokenizer, model)
    documents = read_texts(files, language_model.tokenizer, field=field, joined=joined, cache=cache, progress=not quiet)
    with progress("reading", int(documents.lengths.sum()) - len(documents), quiet) as on_read:
        scores = list(score_documents(language_model, documents, segment_length, on_read))
    found, ranges = by_file(scores), by_position(scores)
    rows = [_row(one) | ({} if scale_forgetting is None else {"scale_forgetting": scale_forgetting}) for one in found]
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print(found)
    if output is not None:
        writers: dict[str, Callable[[Path], object]] = {
            FILES: partial(_write, rows),
            POSITIONS: partial(_write, [_range_row(one) for one in ranges]),
            PICTURE: partial(plot_positions, ranges, documents.unit),
        }
        write_all(output, writers)


def _row(one: "FileScore") -> dict[str, str | int | float | None]:
    return {
        "file": str(one.path),
        "documents": one.documents,
        "bytes": one.bytes,
        "tokens": one.tokens,
        "bits_per_byte": one.bits_per_byte,
        "bits_per_token": _finite(one.bits_per_token),
        "perplexity": _finite(one.perplexity),
    }


def _finite(value: float) -> float | None:
    """None of what JSON has no number for: the perplexity of a model that knows nothing, or a file without a token."""
    return value if math.isfinite(value) else None


def _range_row(one: "RangeScore") -> dict[str, int | float]:
    return {"start": one.start, "stop": one.stop, "tokens": one.tokens, "bits_per_token": one.bits_per_token}


def _write(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    import polars as pl

    pl.DataFrame(rows).write_csv(path)


def _print(found: list["FileScore"]) -> None:
    """The files as lines, and if they are several all of them together."""
    from domains.text.score import FileScore

    rows = found
    if len(found) > 1:
        documents, size, tokens = (sum(getattr(one, name) for one in found) for name in ("documents", "bytes", "tokens"))
        rows = [*found, FileScore(Path("all"), documents, size, tokens, sum(one.bits for one in found))]
    print("bits per byte          bytes  perplexity per token         tokens  file")
    for one in rows:
        print(f"{one.bits_per_byte:13.4f}  {one.bytes:13,}  {one.perplexity:20.5g}  {one.tokens:13,}  {one.path}")
