"""Recordings as pictures. Each function returns a matplotlib figure that belongs to no pyplot state."""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from titans_seq.figure import Figure
from titans_seq.inspect.recording import QUANTITIES

MAX_POINTS = 1_000
"""Along the tokens; longer streams are drawn as means over bins."""
_COLOURS = ("#0969da", "#d4600a", "#1a7f37", "#8250df", "#bf3989", "#6e7781")
_PANELS = (
    ("surprise", ("surprise",), "norm of the\ninner gradient"),
    ("gates", ("alpha", "eta", "theta"), "alpha,\neta, theta"),
    ("size", ("weight_norm", "momentum_norm"), "norm of\nW and S"),
    ("answers", ("read", "learned"), "norm of the\nanswer"),
)
_STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))


def plot_memory(frame: pl.DataFrame, *, stream: int = 0, row: int = 0, title: str = "", path: str | Path | None = None) -> Figure:
    """Surprise, gates, size and answers along one stream: a line a block, the mean over heads and layers of the memory.

    Args:
        frame: of `Recording.frame`.
        stream, row: which one.
        title: of the figure.
        path: where to write a PNG, if anywhere.

    Raises:
        ValueError: the frame has no such stream or row.
    """
    means = _binned(_chosen(frame, stream, row), ["block"])
    figure = Figure(figsize=(10, 8), dpi=150, layout="constrained")
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for ax, (name, columns, label) in zip(panels, _PANELS, strict=True):
        for (block,), part in means.group_by("block", maintain_order=True):
            for column, style in zip(columns, _STYLES, strict=False):
                legend = f"block {block}" if len(columns) == 1 else f"{column}, block {block}"
                ax.plot(part["token"], part[column], color=_COLOURS[int(block) % len(_COLOURS)], ls=style, lw=1.1, label=legend)
        if name in ("gates", "size") and (means.select(columns).to_numpy() > 0).all():
            ax.set_yscale("log")
        ax.set_ylabel(label)
        ax.set_title(name, loc="left", fontsize="medium")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("token")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    return _saved(figure, path)


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
