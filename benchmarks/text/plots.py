"""Pictures of the text benchmarks."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from domains.text.score import FIRST

_COLOURS = ("#0969da", "#cf222e", "#8c959f", "#bf8700", "#1a7f37", "#8250df", "#1f2328", "#e377c2")


def plot_books(ranges: Mapping[str, Sequence[float]], parts: Mapping[str, Sequence[float]], against: str, path: Path) -> Figure:
    """Draw what a byte needs by its position, one line a model, on two axes, and write a PNG.

    Args:
        ranges: bits per byte in [0, 64), [64, 128), [128, 256) .., by the model's name.
        parts: bits per byte in equal parts of a book, likewise.
        against: the model whose parts are taken from the others'.
        path: of the PNG.
    """
    figure = Figure(figsize=(10, 3.8), dpi=150, layout="constrained")
    early, late = figure.subplots(1, 2)
    for colour, (name, bits) in zip(cycle(_COLOURS), ranges.items(), strict=False):
        edges = [FIRST >> 1, *(FIRST << k for k in range(len(bits)))]
        early.stairs(bits, edges, baseline=None, color=colour, lw=1.4, label=name)
        share = [100 * n / len(parts[name]) for n in range(len(parts[name]) + 1)]
        late.stairs([a - b for a, b in zip(parts[name], parts[against], strict=True)], share, baseline=None, color=colour, lw=1.4)
    early.set_xscale("log", base=2)
    early.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
    early.set_xlabel("position in the book, bytes (the first range begins at 0)")
    early.set_ylabel("bits per byte")
    late.set_xlabel("part of the book, %")
    late.set_ylabel(f"bits per byte, less those of {against}", fontsize=8)
    return _write(figure, 3, path)


def plot_lengths(shares: Mapping[str, Mapping[int, Sequence[float]]], chance: float, trained: int, path: Path) -> Figure:
    """Draw shares of right answers by the length of the text, a point a seed and a line through their mean for each model, and write a PNG.

    Args:
        shares: by the model's name and the tokens of the text, of each seed.
        chance: share that a guess has.
        trained: tokens of the longest texts of the training.
        path: of the PNG.
    """
    figure = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    ax = figure.subplots()
    for colour, (name, found) in zip(cycle(_COLOURS), shares.items(), strict=False):
        lengths = sorted(found)
        ax.plot(lengths, [fmean(found[length]) for length in lengths], color=colour, lw=1.4, label=name)
        for length in lengths:
            ax.plot([length] * len(found[length]), found[length], "o", color=colour, ms=3.5)
    ax.axhline(chance, color="#1f2328", lw=0.8, ls=":")
    ax.annotate("a guess", (1, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    ax.axvline(trained, color="#1f2328", lw=0.8, ls=":")
    ax.annotate(" longest of the training", (trained, 1.06), fontsize=8)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
    ax.set_ylim(-0.03, 1.12)
    ax.set_xlabel("tokens of the text")
    ax.set_ylabel("share of questions answered")
    return _write(figure, 2, path)


def _write(figure: Figure, columns: int, path: Path) -> Figure:
    """As a PNG, with the first axes' legend, of so many columns, above all."""
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=columns, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return figure
