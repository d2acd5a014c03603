"""Recordings as pictures. Each function returns a matplotlib figure that belongs to no pyplot state."""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from titans_seq.figure import Figure
from titans_seq.inspect.recording import QUANTITIES

MAX_POINTS = 1_000
"""Along the tokens; longer streams are drawn as means over bins."""
_COLOURS = ("#0969da", "#d4600a", "#1a7f37", "#8250df", "#bf3989", "#6e7781")
_PANELS = {
    "surprise": "norm of the inner gradient",
    "theta": "step size",
    "momentum_norm": "norm of the momentum S",
    "eta": "share of S that stays",
    "weight_norm": "norm of the weights W",
    "alpha": "share of W that is forgotten",
    "read": "norm of the answer",
    "learned": "how far the stream has moved it",
}
"""Quantities and what they are, in rows of two: what is written, and how."""
_SMOOTH = 40
"""Parts of a stream over each of which a thick line is the mean."""
_LOG = 100
"""Times the median that the largest value is where a scale is logarithmic."""


def plot_memory(frame: pl.DataFrame, *, stream: int = 0, row: int = 0, title: str = "", path: str | Path | None = None) -> Figure:
    """What the memories do along one stream, a panel a quantity and a line a block: the mean over heads and layers of the memory.

    Scales begin at 0, so that what hardly changes looks so; a panel in which one value is far above the others is logarithmic. Thin lines
    are tokens, thick ones running means; of a few blocks the first has the widest, as the others' may lie on it.

    Args:
        frame: of `Recording.frame`.
        stream, row: which one.
        title: of the figure.
        path: where to write a PNG, if anywhere.

    Raises:
        ValueError: the frame has no such stream or row.
    """
    means = _binned(_chosen(frame, stream, row), ["block"])
    blocks = means.partition_by("block", maintain_order=True)
    few = len(blocks) <= len(_COLOURS)
    colours = _COLOURS[: len(blocks)] if few else colormaps["viridis"](np.linspace(0, 0.95, len(blocks)))
    widths = np.linspace(2.8 if few else 1.0, 1.2 if few else 1.0, len(blocks))
    figure = Figure(figsize=(10, 8), dpi=150, layout="constrained")
    panels = figure.subplots(len(_PANELS) // 2, 2, sharex=True)
    for ax, (quantity, meaning) in zip(panels.flat, _PANELS.items(), strict=True):
        for part, colour, width in zip(blocks, colours, widths, strict=True):
            window = max(1, len(part) // _SMOOTH)
            smooth = part[quantity].rolling_mean(window, min_samples=1, center=True)
            ax.plot(part["token"], part[quantity], color=colour, lw=0.6, alpha=0.35)
            ax.plot(part["token"], smooth, color=colour, lw=width, label=f"block {part['block'][0]}")
        _scale(ax, means[quantity].to_numpy())
        ax.set_title(f"{quantity}: {meaning}", loc="left", fontsize="medium")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in panels[-1]:
        ax.set_xlabel("token")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=min(len(names), 8), frameon=False)
    figure.suptitle(title)
    return _saved(figure, path)


def _scale(ax: Axes, values: np.ndarray) -> None:
    """From 0 to a little above the largest value, or logarithmic. A memory that has diverged may have values that are no numbers."""
    finite = values[np.isfinite(values)]
    highest = float(finite.max(initial=0))
    if highest > 0 and finite.min() > 0 and highest > _LOG * np.median(finite):
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.1 * highest or 1)


def plot_heads(
    frame: pl.DataFrame, quantity: str = "surprise", *, stream: int = 0, row: int = 0, title: str = "", path: str | Path | None = None
) -> Figure:
    """One quantity as a heat map: a line of it for each block and head, tokens to the right, the mean over layers of the memory.

    Args:
        frame: of `Recording.frame`.
        quantity: one of `QUANTITIES`.
        stream, row, title, path: as `plot_memory`.

    Raises:
        ValueError: no such quantity, stream or row.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, got {quantity!r}")
    means = _binned(_chosen(frame, stream, row), ["block", "head"]).select("block", "head", "token", quantity)
    wide = means.pivot("token", index=["block", "head"], values=quantity, maintain_order=True)
    values = wide.drop("block", "head").to_numpy()
    figure = Figure(figsize=(10, 1.6 + 0.22 * len(values)), dpi=150, layout="constrained")
    ax: Axes = figure.subplots()
    positive = bool((values > 0).all()) and values.max() > 20 * values.min()
    last = means["token"].max()
    assert isinstance(last, int | float)
    image = ax.imshow(
        values,
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        norm=LogNorm() if positive else None,
        extent=(0, float(last) + 1, len(values) - 0.5, -0.5),
    )
    ax.set_yticks(range(len(values)), [f"block {block}, head {head}" for block, head in wide.select("block", "head").iter_rows()])
    ax.tick_params(axis="y", labelsize="small")
    ax.set_xlabel("token")
    figure.colorbar(image, ax=ax, label=quantity)
    figure.suptitle(title or quantity)
    return _saved(figure, path)


def _chosen(frame: pl.DataFrame, stream: int, row: int) -> pl.DataFrame:
    found = frame.filter((pl.col("stream") == stream) & (pl.col("row") == row))
    if found.is_empty():
        known = frame.select("stream", "row").unique().sort("stream", "row").rows()
        raise ValueError(f"the recording has no stream {stream}, row {row}; it has (stream, row) {', '.join(map(str, known[:8]))}")
    return found


def _binned(frame: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Means of the quantities over what is not in `by`, and over bins of tokens, `MAX_POINTS` at most."""
    tokens = frame["token"].max()
    assert isinstance(tokens, int)
    width = int(np.ceil((tokens + 1) / MAX_POINTS))
    bins = (pl.col("token") // width * width).alias("token")
    return frame.group_by(*by, bins).agg(pl.col(QUANTITIES).mean()).sort(*by, "token")


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(path)
    return figure
