"""`titans-seq info`: what a saved model is, without reading its weights."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from titans_seq.commands.report import show


def info(
    model: Annotated[str, Parameter(help="Folder of a saved model, or its name on the Hugging Face hub, owner/name.")],
    /,
    *,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit on the hub. Default: the newest.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object; sizes are in bytes.", negative="")] = False,
) -> None:
    """Say what a saved model is: type, version, parameters by part, dtype, sizes of files and state, configuration."""
    from titans_seq.checkpoint import ALL_FILES, load_model, locate, read_header
    from titans_seq.display import size
    from titans_seq.outline import parts, state_bytes

    folder = locate(model, ALL_FILES, revision=revision)
    header = read_header(folder)
    outline = load_model(folder, device="meta")
    files = {name: (folder / name).stat().st_size for name in ALL_FILES if (folder / name).is_file()}
    state = state_bytes(outline)
    found = {
        "folder": str(Path(folder).resolve()),
        "model_type": header.model_type,
        **({"class": f"{type(outline).__module__}.{type(outline).__qualname__}"} if as_json else {}),
        "titans_seq_version": header.version,
        "parameters": sum(x.numel() for x in outline.parameters()),
        "parameters_by_part": parts(outline),
        "dtype": sorted({str(x.dtype).removeprefix("torch.") for x in outline.parameters()}),
        "bytes_on_disk": files if as_json else {name: size(count) for name, count in files.items()},
        "state_bytes_per_stream": state if as_json or state is None else size(state),
        "config": outline.config.to_dict(),
    }
    show(found, as_json)
