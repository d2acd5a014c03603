"""A region that was mutated, as a picture: which bases the model would have, as a logo, and each change's score, as a heat map."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D, Bbox, BboxTransform

from domains.dna.data.alphabet import BASES, N
from titans_seq.figure import Figure

MOST_BASES = 1000
"""Bases that are drawn at most."""
_COLOURS = {"A": "#1a7f37", "C": "#0969da", "G": "#bf8700", "T": "#cf222e"}
_GREY, _NONE = "#8c959f", "#eaeef2"
_WIDTH = 100
"""Bases side by side."""
_LOWEST_TOP = 0.01
"""Bits that an axis of letters reaches at least: below them is noise."""


def information(scores: np.ndarray) -> np.ndarray:
    """Heights (T, 4) of letters, in bits, from scores (T, 4) in nats: each base's chance, softmax of the scores, times what is known of
    the place, 2 minus the entropy. Zero where a score is NaN.
    """
    chances = np.exp(scores - np.max(scores, axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    entropy = -(chances * np.log2(np.maximum(chances, 1e-300))).sum(axis=1, keepdims=True)
    return np.nan_to_num(chances * np.maximum(2 - entropy, 0))


def plot_mutagenesis(
    letters: str,
    scores: np.ndarray,
    name: str,
    first: int,
    path: str | Path | None = None,
    *,
    title: str = "",
    compared: Sequence[np.ndarray] = (),
) -> Figure:
    """Draw a logo (`information`) above a heat map of the scores, a hundred bases a line; the title says if some are left out.

    Args:
        letters: T letters, A C G T or N.
        scores: (T, 4) in nats, of A C G T at each base; 0 for its own, NaN for none.
        name: of the record.
        first: position of the first base, counted from 1.
        path: where to write a PNG, if anywhere.
        title: a line above the one that says which bases these are.
        compared: scores of the pictures that this one is compared with: heights and colours mean the same in all of them.

    Returns:
        The figure. It belongs to no pyplot state, so there is nothing to close.
    """
    shown = min(len(letters), MOST_BASES)
    starts = range(0, shown, _WIDTH)
    across = min(shown, _WIDTH)
    high = (1.15 if title else 0.9) + 1.9 * len(starts)
    figure = Figure(figsize=(max(5.0, 1.4 + 0.13 * across), high), dpi=150, layout="constrained")
    axes = figure.subplots(2 * len(starts), 1, height_ratios=[1.2, 1] * len(starts), squeeze=False)[:, 0]
    heights = information(scores)
    drawn = [matrix[:shown] for matrix in (scores, *compared)]
    top = max(_LOWEST_TOP, *(float(information(matrix).sum(axis=1).max()) for matrix in drawn))
    largest = max(1e-3, *(float(np.nanmax(np.abs(matrix), initial=0)) for matrix in drawn))
    for logo, heat, start in zip(axes[::2], axes[1::2], starts, strict=True):
        part = slice(start, min(start + _WIDTH, shown))
        _draw_logo(logo, heights[part], top)
        image = _draw_heat(heat, letters[part], scores[part], largest, first + start)
        for ax in (logo, heat):
            ax.set_xlim(-0.5, across - 0.5)
    axes[-1].set_xlabel("position; a dot is the base that is there", fontsize=7)
    bar = figure.colorbar(image, ax=list(axes[1::2]), fraction=0.05, pad=0.01, aspect=10 * len(starts))
    bar.set_label("log p(alt)/p(ref)", fontsize=7)
    bar.ax.tick_params(labelsize=7, color=_GREY)
    left_out = f", {len(letters) - shown:,} more bases not drawn" if shown < len(letters) else ""
    place = f"{name}:{first:,}-{first + shown - 1:,}{left_out}. Above, what the model would have there; below, each change"
    figure.suptitle(f"{title}\n{place}" if title else place, x=0.01, ha="left", fontsize=9 if across > 60 else 7)
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def _draw_logo(ax: Axes, heights: np.ndarray, top: float) -> None:
    """Letters of each place on top of one another, the highest above."""
    for letter, colour in _COLOURS.items():
        patches = list(_letters(letter, heights))
        if patches:
            ax.add_collection(PatchCollection(patches, facecolor=colour, edgecolor="none"))
    ax.set_ylim(0, top)
    ax.set_ylabel("bits, of 2", fontsize=8)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.tick_params(labelsize=7, color=_GREY)
    ax.set_xticks([])
    ax.spines[["top", "right", "bottom"]].set_visible(False)


def _letters(letter: str, heights: np.ndarray) -> Iterator[PathPatch]:
    """The letter at each place, stretched to its height."""
    glyph = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    column = BASES.index(letter)
    below = np.where(heights < heights[:, column, None], heights, 0).sum(axis=1)
    ties = np.where(heights == heights[:, column, None], heights, 0)[:, :column].sum(axis=1)
    for place, (height, foot) in enumerate(zip(heights[:, column], below + ties, strict=True)):
        if height > 0:
            box = Bbox.from_bounds(place - 0.45, foot, 0.9, height)
            yield PathPatch(Affine2D(BboxTransform(glyph.get_extents(), box).get_matrix()).transform_path(glyph))


def _draw_heat(ax: Axes, letters: str, scores: np.ndarray, largest: float, first: int) -> AxesImage:
    """Red where the model finds a change likelier, blue where less likely, grey where there is no score; a dot at the own base."""
    colours = colormaps["RdBu_r"].with_extremes(bad=_NONE)
    image = ax.imshow(scores.T, cmap=colours, norm=Normalize(-largest, largest), aspect="auto", interpolation="nearest")
    own = [(place, BASES.index(letter)) for place, letter in enumerate(letters) if letter in BASES[:N]]
    if own:
        ax.plot(*zip(*own, strict=True), ls="", marker=".", ms=3, color="#24292f")
    ax.set_yticks(range(N), list(BASES[:N]), fontsize=7)
    step = 10 if len(letters) > 30 else 5 if len(letters) > 10 else 1
    places = [place for place in range(len(letters)) if (first + place) % step == 0]
    ax.set_xticks(places, [f"{first + place:,}" for place in places])
    ax.tick_params(labelsize=7, color=_GREY)
    ax.spines[:].set_visible(False)
    return image
