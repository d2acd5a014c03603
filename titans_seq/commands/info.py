"""`titans-seq info`: what a saved model is, without reading its weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from titans_seq.commands.report import show

if TYPE_CHECKING:
    from torch import nn


def info(
    model: Annotated[str, Parameter(help="Folder of a saved model, or its name on the Hugging Face hub, owner/name.")],
    /,
    *,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit on the hub. Default: the newest.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object; sizes are in bytes.", negative="")] = False,
) -> None:
    """Say what a saved model is: type, version, parameters by part, dtype, sizes of files and state, configuration."""
    from titans_seq.checkpoint import ALL_FILES, load_model, locate, read_header

    folder = locate(model, ALL_FILES, revision=revision)
    header = read_header(folder)
    outline = load_model(folder, device="meta")
    files = {name: (folder / name).stat().st_size for name in ALL_FILES if (folder / name).is_file()}
    state = _state_bytes(outline)
    found = {
        "folder": str(Path(folder).resolve()),
        "model_type": header.model_type,
        "class": f"{type(outline).__module__}.{type(outline).__qualname__}",
        "titans_seq_version": header.version,
        "parameters": sum(x.numel() for x in outline.parameters()),
        "parameters_by_part": _parts(outline),
        "dtype": sorted({str(x.dtype).removeprefix("torch.") for x in outline.parameters()}),
        "bytes_on_disk": files if as_json else {name: _size(count) for name, count in files.items()},
        "state_bytes_per_stream": state if as_json or state is None else _size(state),
        "config": outline.config.to_dict(),
    }
    show(found, as_json)


def _parts(model: "nn.Module") -> dict[str, int]:
    """Parameters of each part at the top, and of the kinds of parts in the blocks of a backbone; a shared one counts once."""
    from titans_seq import Titans

    parts: dict[str, int] = {}
    for name, x in model.named_parameters():
        path = name.split(".")
        if "blocks" in path and any(isinstance(module, Titans) for module in model.modules()):
            start = path.index("blocks")
            kind = path[start + 2 : start + 4] if path[start + 2] == "mixer" and len(path) > start + 4 else path[start + 2 : start + 3]
            path = [*path[:start], "blocks", *kind]
        else:
            path = path[:1]
        parts[".".join(path)] = parts.get(".".join(path), 0) + x.numel()
    return parts


def _state_bytes(model: "nn.Module") -> int | None:
    """Bytes that the backbones in a model carry for one stream; None for a model without any."""
    from titans_seq import Titans

    sizes = [module.initial_state(1).nbytes for module in model.modules() if isinstance(module, Titans)]
    return sum(sizes) if sizes else None


def _size(count: float) -> Any:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
