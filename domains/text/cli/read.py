"""`titans-seq text read`: read a long text once, and keep what the memory holds then."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from domains.text.cli.options import Field, Model, Quiet, ScaleForgetting, Texts, files_of, load
from titans_seq.progress import progress


def read(
    model: Model,
    files: Texts,
    /,
    *,
    state: Annotated[Path, Parameter(help="The .safetensors file that is written: `text generate --state` goes on from it.")],
    after: Annotated[Path | None, Parameter(help="State to go on from, of an earlier `text read`. Default: the begin.")] = None,
    scale_forgetting: ScaleForgetting = None,
    field: Field = "text",
    quiet: Quiet = False,
) -> None:
    """Read texts once, in order; the state that is kept has the same size however long they are, and can be asked many times."""
    from domains.text.context import load_context, read_documents
    from domains.text.data.sources import find_all, read_files
    from titans_seq.outputs import check_file

    found = find_all(files)
    check_file("--state", state, "state.safetensors", [*files_of(model), *found])
    language_model = load(model, scale_forgetting)
    context = None if after is None else load_context(language_model, after)
    with progress("reading", None, quiet) as on_read:
        context = read_documents(language_model, read_files(found, field), context, on_read)
    state.parent.mkdir(parents=True, exist_ok=True)
    context.save_for(language_model, state)
    if not quiet:
        print(f"{state}: {int(context.length) - 1:,} tokens read, {context.nbytes:,} bytes of state.")
