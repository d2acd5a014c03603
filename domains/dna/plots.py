"""Pictures of genomes."""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.ticker import EngFormatter

from titans_seq.figure import Figure

_BLUE, _GREY, _RULE = "#0969da", "#8c959f", "#d0d7de"
MOST_NAMES = 12
"""Records whose names stand in the picture."""


def plot_bits(windows: pl.DataFrame, path: str | Path | None = None) -> Figure:
    """Draw bits per base along the records of all files, end to end.

    Args:
        windows: file, record, start, end and bits_per_base of each window (null where all is N).
        path: where to write a PNG, if anywhere.

    Returns:
        The figure. It belongs to no pyplot state, so there is nothing to close.
    """
    size = (windows["end"] - windows["start"]).to_numpy()
    begin = np.concatenate([[0], np.cumsum(size)])
    bits = windows["bits_per_base"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    figure = Figure(figsize=(10, 3.4), dpi=150, layout="constrained")
    ax = figure.subplots()
    ax.stairs(bits, begin, baseline=None, color=_BLUE, lw=0.9)
    ax.axhline(2, color=_GREY, lw=0.8, ls=(0, (4, 2)))
    first = (windows["start"] == 0).to_numpy()
    borders = begin[:-1][first]
    for border in borders[1:]:
        ax.axvline(border, color=_RULE, lw=0.6)
    if len(borders) <= MOST_NAMES:
        for border, name in zip(borders, windows["record"].to_numpy()[first], strict=True):
            ax.annotate(name, (border, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -9), textcoords="offset points", fontsize=7)
    ax.set_xlim(0, begin[-1])
    lowest, highest = float(np.nanmin(bits, initial=2)), float(np.nanmax(bits, initial=2))
    room = max(0.05, 0.15 * (highest - lowest))
    ax.set_ylim(max(0.0, lowest - room), highest + room)
    ax.xaxis.set_major_formatter(EngFormatter("b"))
    ax.set_ylabel("bits per base")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, color=_GREY)
    figure.suptitle("What the model needs for a base; the dashed line is no model", x=0.01, ha="left", fontsize=11)
    if path is not None:
        figure.savefig(path, format="png")
    return figure
