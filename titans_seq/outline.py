"""What a model is made of: its parameters by part, and what a stream of it carries."""

from typing import TYPE_CHECKING, Any

from titans_seq.display import folded, html_table, size

if TYPE_CHECKING:
    from torch import nn


def parts(model: "nn.Module") -> dict[str, int]:
    """Parameters of each part at the top, and of the kinds of parts in the blocks of a backbone; a shared one counts once."""
    from titans_seq.backbone import Titans

    found: dict[str, int] = {}
    for name, x in model.named_parameters():
        path = name.split(".")
        if "blocks" in path and any(isinstance(module, Titans) for module in model.modules()):
            start = path.index("blocks")
            kind = path[start + 2 : start + 4] if path[start + 2] == "mixer" and len(path) > start + 4 else path[start + 2 : start + 3]
            path = [*path[:start], "blocks", *kind]
        else:
            path = path[:1]
        found[".".join(path)] = found.get(".".join(path), 0) + x.numel()
    return found


def state_bytes(model: "nn.Module") -> int | None:
    """Bytes that the backbones in a model carry for one stream; None for a model without any."""
    from titans_seq.backbone import Titans

    sizes = [module.init_state(1).nbytes for module in model.modules() if isinstance(module, Titans)]
    return sum(sizes) if sizes else None


def model_html(model: "nn.Module", config: Any) -> str:
    """Parameters by part, what a stream carries, and the configuration, folded."""
    total = sum(x.numel() for x in model.parameters())
    kinds = sorted({f"{str(x.dtype).removeprefix('torch.')} on {x.device}" for x in model.parameters()})
    carried = state_bytes(model)
    rows = [(name, f"{count:,}") for name, count in parts(model).items()]
    note = ", ".join(kinds) + ("" if carried is None else f"; a stream carries {size(carried)}")
    table = html_table(f"{type(model).__name__}, {total:,} parameters", rows, ("part", "parameters"), note)
    return table + folded("configuration", config._repr_html_())
