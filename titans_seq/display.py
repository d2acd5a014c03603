"""How configurations, states, models and results show themselves in a notebook: small HTML tables, made from plain rows."""

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_STYLE = "text-align: left; padding: 2px 12px 2px 0; vertical-align: top"


def html_table(title: str, rows: Iterable[Sequence[Any]], header: Sequence[str] = (), note: str = "") -> str:
    """A titled table; whatever stands in a cell is escaped.

    Args:
        title: above it.
        rows: cells of each row.
        header: names of the columns, if they need any.
        note: below it.
    """
    head = f"<thead>{_row(header, 'th')}</thead>" if header else ""
    body = "".join(_row(row, "td") for row in rows)
    foot = f"<div><small>{html.escape(note)}</small></div>" if note else ""
    return f"<div><strong>{html.escape(title)}</strong><table>{head}<tbody>{body}</tbody></table>{foot}</div>"


def folded(summary: str, content: str) -> str:
    """HTML that is shown when one opens it."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def _row(cells: Sequence[Any], tag: str) -> str:
    written = (f"<{tag} style='{_STYLE}'>{html.escape(str(cell))}</{tag}>" for cell in cells)
    return f"<tr>{''.join(written)}</tr>"


def size(count: float) -> str:
    """Bytes as one reads them."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def parts(model: "nn.Module") -> dict[str, int]:
    """Parameters of each part at the top, and of the kinds of parts in the blocks of a backbone; a shared one counts once."""
    from titans_seq import Titans

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
    from titans_seq import Titans

    sizes = [module.initial_state(1).nbytes for module in model.modules() if isinstance(module, Titans)]
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
