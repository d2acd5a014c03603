"""Pictures of how text is predicted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
    ax.xaxis.set_major_formatter(lambda position, _: _tokens(round(position)))
    ax.set_xlabel(f"position in the document, {unit}s")
    ax.set_ylabel(f"bits per {unit}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, color=_GREY)
    figure.suptitle(f"What a {unit} needs, early and late in a document", x=0.01, ha="left", fontsize=11)
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def plot_lengths(lengths: Sequence[int], answers: Sequence[float], name: str, path: str | Path | None = None) -> Figure:
    """Draw the share of answers found over the length of the examples; returns as `plot_positions`."""
    figure = Figure(figsize=(7, 3.4), dpi=150, layout="constrained")
    ax = figure.subplots()
    ax.plot(lengths, answers, color=_BLUE, lw=1.4, marker="o", ms=4)
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [_tokens(length) for length in lengths])
    ax.minorticks_off()
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("length, tokens")
    ax.set_ylabel("answers found")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, color=_GREY)
    figure.suptitle(f"{name} by length", x=0.01, ha="left", fontsize=11)
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def plot_depths(lengths: Sequence[int], shares: np.ndarray, name: str, path: str | Path | None = None) -> Figure:
    """Draw the share of answers found by length and depth of what they depend on.

    Args:
        lengths: (L,) tokens.
        shares: (D, L), of equal parts of the depth, the begin of the text first; NaN where there was no example.
        name: of the task.
        path: where to write a PNG, if anywhere.

    Returns:
        As `plot_positions`.
    """
    figure = Figure(figsize=(1.6 + 0.75 * max(4, len(lengths)), 3.4), dpi=150, layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_facecolor("#eaeef2")
    for (row, column), share in np.ndenumerate(shares):
        if np.isfinite(share):
            ax.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=8, color="white" if share > 0.6 else "black")
    parts = len(shares)
    ax.set_yticks(range(parts), [f"{k / parts:.0%} to {(k + 1) / parts:.0%}" for k in range(parts)])
    ax.set_xticks(range(len(lengths)), [_tokens(length) for length in lengths])
    ax.tick_params(labelsize=8, length=0)
    ax.set_xlabel("length, tokens")
    ax.set_ylabel("depth of the needle")
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, label="answers found").outline.set_visible(False)
    figure.suptitle(f"{name} by length and depth", x=0.01, ha="left", fontsize=11)
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def _tokens(count: int) -> str:
    """With K for 1,024 and M for its square where it is a multiple of them."""
    unit, letter = next(((unit, letter) for unit, letter in ((1 << 20, "M"), (1 << 10, "K")) if count % unit == 0), (1, ""))
    return f"{count // unit:,}{letter}"
