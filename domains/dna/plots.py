"""Pictures of genomes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from domains.dna.track import GENES, Layout, draw_genes
from titans_seq.figure import Figure

_COLOURS, _GREY, _RULE = ("#0969da", "#d4600a", "#1a7f37", "#8250df"), "#8c959f", "#d0d7de"
_INCHES = 10.0
_PLACE = ["file", "record", "start", "end"]
MOST_NAMES = 12
"""Records whose names stand in the picture."""


def plot_bits(
    windows: pl.DataFrame | Mapping[str, pl.DataFrame],
    path: str | Path | None = None,
    *,
    annotation: pl.DataFrame | None = None,
    features: Sequence[str] = GENES,
) -> Figure:
    """Draw bits per base along the records of all files, end to end, and below them what lies there.

    Args:
        windows: file, record, start, end and bits_per_base of each window (null where all is N); some of a record's windows, side by side,
            are that stretch of it. Or up to four such tables of the same windows, each with a name: a curve each.
        path: where to write a PNG, if anywhere.
        annotation: regions with a column `feature` (`read_annotation`), drawn as arrows, a row a strand. Their records are known by name
            (`match_names`), and those of other records are left out.
        features: the kinds of regions that are drawn.

    Returns:
        The figure. It belongs to no pyplot state, so there is nothing to close.

    Raises:
        UserError: no region of these kinds is on what is drawn.
        ValueError: there are more than four tables, or their windows are not the same.
    """
    curves = {"": windows} if isinstance(windows, pl.DataFrame) else windows
    _check_curves(curves)
    layout = Layout(next(iter(curves.values())))
    figure = Figure(figsize=(_INCHES, 3.4 if annotation is None else 4.2), dpi=150, layout="constrained")
    if annotation is None:
        ax = lowest = figure.subplots()
    else:
        ax, lowest = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _draw_bits(ax, curves, layout.edges)
    ax.set_xlim(layout.edges[0], layout.edges[-1])
    if annotation is not None:
        draw_genes(lowest, layout.place(annotation, features), features, width=72 * (_INCHES - 0.7))
        figure.legend(*lowest.get_legend_handles_labels(), loc="upper right", frameon=False, fontsize=7, ncols=len(features))
    for border in layout.borders[1:]:
        for each in figure.axes:
            each.axvline(border, color=_RULE, lw=0.6)
    if len(layout.names) <= MOST_NAMES:
        for border, name in zip(layout.borders, layout.names, strict=True):
            ax.annotate(name, (border, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -9), textcoords="offset points", fontsize=7)
    lowest.xaxis.set_major_formatter(EngFormatter("b"))
    figure.suptitle("What the model needs for a base; the dashed line is no model", x=0.01, ha="left", fontsize=11)
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def _check_curves(curves: Mapping[str, pl.DataFrame]) -> None:
    if not 1 <= len(curves) <= len(_COLOURS):
        raise ValueError(f"expected one to {len(_COLOURS)} tables of windows, got {len(curves)}")
    (first, table), *others = curves.items()
    for name, other in others:
        if not other.select(_PLACE).equals(table.select(_PLACE)):
            raise ValueError(f"{name!r} has other windows than {first!r}: {', '.join(_PLACE)} must be the same in all tables")


def _draw_bits(ax: Axes, curves: Mapping[str, pl.DataFrame], edges: np.ndarray) -> None:
    lowest = highest = 2.0
    for colour, (name, table) in zip(_COLOURS[: len(curves)], curves.items(), strict=True):
        bits = table["bits_per_base"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        ax.stairs(bits, edges, baseline=None, color=colour, lw=0.9, label=name)
        lowest, highest = float(np.nanmin(bits, initial=lowest)), float(np.nanmax(bits, initial=highest))
    ax.axhline(2, color=_GREY, lw=0.8, ls=(0, (4, 2)))
    room = max(0.05, 0.15 * (highest - lowest))
    ax.set_ylim(max(-0.04, lowest - room), highest + room)
    ax.set_ylabel("bits per base")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, color=_GREY)
    if len(curves) > 1:
        ax.legend(frameon=False, fontsize=8, loc="lower left")
