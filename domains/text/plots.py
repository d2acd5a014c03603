"""Pictures of how text is predicted."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import EngFormatter

from domains.text.score import RangeScore
from titans_seq.figure import Figure

_BLUE, _GREY = "#0969da", "#8c959f"


def plot_positions(ranges: Sequence[RangeScore], unit: str = "byte", path: str | Path | None = None) -> Figure:
    """Draw bits per token over the position in the document, which doubles from range to range.

    Args:
        ranges: as `by_position` gives them.
        unit: what a token is called.
        path: where to write a PNG, if anywhere.

    Returns:
        The figure. It belongs to no pyplot state, so there is nothing to close.
    """
    figure = Figure(figsize=(7, 3.4), dpi=150, layout="constrained")
    ax = figure.subplots()
    edges = [max(1, ranges[0].start), *(one.stop for one in ranges)]
    ax.stairs([one.bits_per_token for one in ranges], edges, baseline=None, color=_BLUE, lw=1.4)
    ax.set_xscale("log", base=2)
    ax.set_xlim(edges[0], edges[-1])
    ax.xaxis.set_major_formatter(EngFormatter())
    ax.set_xlabel(f"position in the document, {unit}s")
    ax.set_ylabel(f"bits per {unit}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, color=_GREY)
    figure.suptitle(f"What a {unit} needs, early and late in a document", x=0.01, ha="left", fontsize=11)
    if path is not None:
        figure.savefig(path, format="png")
    return figure
