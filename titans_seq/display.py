"""HTML tables, made from plain rows: how configurations, states, models and results show themselves in a notebook."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

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
