"""Forecasts as a picture (history, median, bands, and what came true), and how far they were off."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from gluonts.model.forecast import Forecast
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import MaxNLocator, PercentFormatter

from titans_seq.figure import Figure

MAX_PANELS = 8
_INK, _BLUE, _ORANGE, _GREY = "#24292f", "#0969da", "#d4600a", "#8c959f"
_FORECASTERS = {"titans": ("Titans", _BLUE, "-"), "seasonal_naive": ("seasonal naive", _ORANGE, (0, (4, 2)))}
_BANDS = ((0.1, 0.9, "80 %", "#d3e5fa"), (0.25, 0.75, "50 %", "#a3c9f5"))
"""Lower and upper level, name, colour. Levels that a forecast does not store are interpolated by GluonTS."""
_SERIES = ("#0969da", "#d4600a", "#1a7f37", "#8250df", "#bf3989", "#6e7781")


def plot_forecast(
    history: Sequence[dict[str, Any]],
    forecasts: Sequence[Forecast],
    channel_names: Sequence[str],
    path: str | Path | None = None,
    actuals: Sequence[dict[str, Any]] | None = None,
    baseline: Sequence[Forecast] | None = None,
    units: Mapping[str, str] | None = None,
) -> Figure:
    """Draw one panel a channel of the first items, `MAX_PANELS` at most; the title says what is left out.

    Args:
        history: GluonTS entries with target (C, T); the last 3 * P steps are drawn.
        forecasts: one forecast of P steps for each entry, in the same order.
        channel_names: the C names.
        path: where to write a PNG, if anywhere.
        actuals: entries with what came true, in the same order.
        baseline: forecasts of the seasonal naive, in the same order; a thin dashed line.
        units: unit of a channel, for its label.

    Returns:
        The figure. It belongs to no pyplot state, so there is nothing to close.
    """
    num_channels = min(len(channel_names), MAX_PANELS)
    num_items = min(len(history), MAX_PANELS // num_channels)
    num_panels = num_items * num_channels
    figure = Figure(figsize=(10, 1.1 + 1.9 * num_panels), dpi=150, layout="constrained")
    axes = figure.subplots(num_panels, 1, sharex=num_items == 1, squeeze=False)[:, 0]
    for panel, ax in enumerate(axes):
        item, channel = divmod(panel, num_channels)
        _draw_history(ax, history[item], channel, 3 * forecasts[item].prediction_length)
        _draw_forecast(ax, forecasts[item], channel)
        if baseline is not None:
            median = _channel(baseline[item].quantile(0.5), channel)
            ax.plot(_dates(baseline[item].index), median, color=_ORANGE, lw=1.1, ls=(0, (4, 2)), label="seasonal naive")
        if actuals is not None:
            values = np.atleast_2d(actuals[item]["target"])[channel]
            index = pd.period_range(actuals[item]["start"], periods=len(values))
            ax.plot(_dates(index), values, color=_INK, lw=0.7, marker="o", ms=2.6, label="came true")
        name = channel_names[channel]
        unit = f"\n({units[name]})" if units and name in units else ""
        _dress(ax, f"{name}{unit}", str(history[item].get("item_id", item)) if num_items > 1 else "")
    return _finish(figure, axes[0], _title(history, forecasts, num_items, num_channels, len(channel_names)), path)


def plot_errors_by_horizon(
    scores: pl.DataFrame, path: str | Path | None = None, units: Mapping[str, str] | None = None, metric: str = "MAE"
) -> Figure:
    """Draw how the error of each forecaster grows with the steps ahead, a panel a channel, `MAX_PANELS` at most.

    Args:
        scores: `evaluate_by_horizon` with a column `forecaster` ("titans", "seasonal_naive").
        path: where to write a PNG, if anywhere.
        units: unit of a channel, for its label.
        metric: the column that is drawn.
    """
    channels = [c for c in scores["channel"].unique(maintain_order=True) if c != "mean"]
    shown = channels[:MAX_PANELS]
    figure = Figure(figsize=(10, 1.1 + 1.9 * len(shown)), dpi=150, layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for ax, channel in zip(axes, shown, strict=True):
        for rows in scores.filter(pl.col("channel") == channel).partition_by("forecaster", maintain_order=True):
            name, colour, style = _FORECASTERS[rows["forecaster"][0]]
            ax.plot(rows["horizon"], rows[metric], color=colour, ls=style, lw=1.6, marker="o", ms=3, label=name)
        ax.set_ylim(bottom=0)
        unit = f"\n({units[channel]})" if units and channel in units else ""
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _frame(ax, f"{channel}{unit}")
    axes[-1].set_xlabel("steps ahead", fontsize=9)
    more = f"; first {len(shown)} of {len(channels)} channels" if len(shown) < len(channels) else ""
    return _finish(figure, axes[0], f"{metric} by steps ahead{more}", path)


def plot_coverage(coverage: pl.DataFrame, by_horizon: pl.DataFrame, path: str | Path | None = None) -> Figure:
    """Draw how often the truth lay inside the intervals: against their nominal share, and by steps ahead.

    Args:
        coverage: `interval_coverage` with a column `forecaster`.
        by_horizon: `evaluate_by_horizon` with a column `forecaster`.
        path: where to write a PNG, if anywhere.
    """
    figure = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=_GREY, lw=0.8, ls=":", label="as it should be")
    for ax, table, x, y in ((left, coverage, "nominal", "coverage"), (right, by_horizon, "horizon", "coverage_80")):
        for rows in table.partition_by("forecaster", maintain_order=True):
            name, colour, style = _FORECASTERS[rows["forecaster"][0]]
            for channel in rows.filter(pl.col("channel") != "mean").partition_by("channel") if ax is left else []:
                ax.plot(channel[x], channel[y], color=colour, lw=0.7, alpha=0.35, ls=style)
            mean = rows.filter(pl.col("channel") == "mean")
            ax.plot(mean[x], mean[y], color=colour, lw=1.8, ls=style, marker="o", ms=3.5, label=name, clip_on=False)
        ax.set_ylim(0, 1)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        _frame(ax, "observations inside")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.axhline(0.8, color=_GREY, lw=0.8, ls=":")
    left.set_xlim(0, 1)
    left.xaxis.set_major_formatter(PercentFormatter(1))
    left.set_xlabel("central interval; thin lines: channels", fontsize=9)
    right.set_xlabel("steps ahead; 80 % interval, mean over channels", fontsize=9)
    return _finish(figure, left, "Coverage of the intervals", path)


def _finish(figure: Figure, ax: Axes, title: str, path: str | Path | None) -> Figure:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.align_ylabels()
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def _draw_history(ax: Axes, entry: dict[str, Any], channel: int, length: int) -> None:
    values = np.atleast_2d(entry["target"])[channel]
    shown = values[-length:]
    index = pd.period_range(entry["start"] + (len(values) - len(shown)), periods=len(shown))
    seen = np.pad(np.isfinite(shown), 1)
    alone = np.flatnonzero(seen[1:-1] & ~seen[:-2] & ~seen[2:])  # between two gaps a line would not show them
    dot = "o" if len(alone) else ""
    ax.plot(_dates(index), shown, color=_INK, lw=1.1, marker=dot, ms=2, markevery=alone.tolist(), label="history")


def _draw_forecast(ax: Axes, forecast: Forecast, channel: int) -> None:
    dates = _dates(forecast.index)
    for low, high, name, colour in _BANDS:
        lower, upper = (_channel(forecast.quantile(level), channel) for level in (low, high))
        ax.fill_between(dates, lower, upper, color=colour, lw=0, label=f"{name} interval")
    ax.plot(dates, _channel(forecast.quantile(0.5), channel), color=_BLUE, lw=1.7, label="median forecast")
    ax.axvline(dates[0], color=_GREY, lw=0.8, ls=":", zorder=0)


def _channel(values: np.ndarray, channel: int) -> np.ndarray:
    """One channel (P,) of values (P, C), or of (P,) where there is one channel."""
    return values.reshape(len(values), -1)[:, channel]


def _dates(index: pd.PeriodIndex) -> np.ndarray:
    return index.to_timestamp().to_numpy()


def _dress(ax: Axes, label: str, title: str) -> None:
    _frame(ax, label)
    ax.set_title(title, loc="left", fontsize=9, color=_INK)
    ax.margins(x=0.01)
    locator = AutoDateLocator(minticks=4, maxticks=10)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    ax.xaxis.get_offset_text().set_fontsize(8)


def _frame(ax: Axes, label: str) -> None:
    ax.set_ylabel(label, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#d0d7de", lw=0.6)
    ax.tick_params(labelsize=8, color=_GREY)


def _title(
    history: Sequence[dict[str, Any]],
    forecasts: Sequence[Forecast],
    num_items: int,
    num_channels: int,
    all_channels: int,
) -> str:
    first = forecasts[0]
    name = f"{history[0]['item_id']}: " if num_items == 1 and history[0].get("item_id") is not None else ""
    alike = all(forecast.start_date == first.start_date for forecast in forecasts[:num_items])
    title = f"{name}{first.prediction_length} steps ahead" + (f", {first.index[0]} to {first.index[-1]}" if alike else "")
    if num_channels < all_channels:
        title += f"; first {num_channels} of {all_channels} channels"
    if num_items < len(history):
        title += f"; first {num_items} of {len(history)} series"
    return title


def plot_coverage_by_horizon(tables: Mapping[str, pl.DataFrame], path: str | Path | None = None) -> Figure:
    """Draw how often intervals held against the steps ahead, a panel a channel (`MAX_PANELS` at most), a dashed line where they should.

    Args:
        tables: those of `coverage` by what made the forecasts, such as {"before": .., "after calibration": ..}, of the same channels.
        path: where to write a PNG, if anywhere.

    Returns:
        The figure. Shaded is what the number of windows leaves open, if they were independent.
    """
    first = next(iter(tables.values()))
    channels = first["channel"].unique(maintain_order=True).to_list()
    shown = channels[:MAX_PANELS]
    figure = Figure(figsize=(10, 1.1 + 2.3 * len(shown)), dpi=150, layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for ax, channel in zip(axes, shown, strict=True):
        for (name, table), colour in zip(tables.items(), _SERIES, strict=False):
            for interval in table["interval"].unique(maintain_order=True).to_list():
                rows = table.filter(channel=channel, interval=interval)
                ax.axhline(interval, color=_GREY, lw=0.8, ls=(0, (4, 3)), zorder=0)
                ax.fill_between(rows["step"], rows["low"], rows["high"], color=colour, alpha=0.12, lw=0)
                ax.plot(rows["step"], rows["coverage"], color=colour, lw=1.4, marker="o", ms=2.2, label=name)
                ax.annotate(
                    f"{100 * interval:g} %", (1, interval), xycoords=("axes fraction", "data"), fontsize=8, color=_GREY, va="center"
                )
        ax.set_ylim(0, 1)
        ax.set_ylabel(f"{channel}\nshare inside", fontsize=9)
        _plain(ax)
    axes[-1].set_xlabel("steps ahead", fontsize=9)
    counts = sorted({count for table in tables.values() for count in table["count"].to_list()})
    number = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    left_out = f"; first {len(shown)} of {len(channels)} channels" if len(shown) < len(channels) else ""
    _head(figure, axes[0], f"Coverage of the central intervals, {number} windows a step{left_out}")
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def plot_surprise(entry: Mapping[str, Any], surprise: pl.DataFrame, path: str | Path | None = None) -> Figure:
    """Draw a series and below it how much its steps surprised the memory, two panels a channel (`MAX_PANELS` channels at most).

    Args:
        entry: the GluonTS entry, target (C, T) or (T,).
        surprise: the table of `explain.surprise` of it.
        path: where to write a PNG, if anywhere.

    Returns:
        The figure: the mean over blocks and heads, each over its mean (grey) and over what was usual just before (blue, `relative`), by
        which the five most surprising patches are marked.
    """
    channels = surprise["channel"].unique(maintain_order=True).to_list()
    shown = channels[:MAX_PANELS]
    figure = Figure(figsize=(10, 1.1 + 2.7 * len(shown)), dpi=150, layout="constrained")
    axes = figure.subplots(2 * len(shown), 1, sharex=True, squeeze=False, height_ratios=[2, 1] * len(shown))[:, 0]
    target = np.atleast_2d(entry["target"])
    dates = _dates(pd.period_range(entry["start"], periods=target.shape[1]))
    for i, channel in enumerate(shown):
        series, below = axes[2 * i], axes[2 * i + 1]
        patches = (
            surprise.filter(channel=channel)
            .with_columns(level=pl.col("surprise") / pl.col("surprise").mean().over("block", "head"))
            .group_by("patch", maintain_order=True)
            .agg(pl.col("level", "relative").mean(), pl.col("timestamp").n_unique().alias("steps"))
        )
        series.plot(dates, target[i], color=_INK, lw=0.9, label="series")
        length = patches["steps"][0]
        edges = dates[: len(patches) * length : length]
        below.step(edges, patches["level"], where="post", color=_GREY, lw=0.9)
        below.step(edges, patches["relative"].cast(pl.Float64), where="post", color=_BLUE, lw=1.3)
        series.plot([], [], color=_GREY, lw=0.9, label="surprise, over its mean")
        series.plot([], [], color=_BLUE, lw=1.3, label="surprise, over what was usual before")
        for patch in patches.drop_nulls("relative").top_k(5, by="relative")["patch"]:
            last = min((patch + 1) * length, len(dates) - 1)
            series.axvspan(dates[patch * length], dates[last], color=_ORANGE, alpha=0.25, lw=0, label="most surprising")
        below.axhline(1, color=_GREY, lw=0.8, ls=(0, (4, 3)), zorder=0)
        below.set_ylim(bottom=0)
        _dress(series, channel, "")
        _dress(below, "surprise", "")
    left_out = f"; first {len(shown)} of {len(channels)} channels" if len(shown) < len(channels) else ""
    name = f"{entry['item_id']}: " if entry.get("item_id") is not None else ""
    _head(figure, axes[0], f"{name}what the memory found surprising{left_out}")
    figure.align_ylabels(axes)
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def plot_memory_effect(
    history: Sequence[Mapping[str, Any]],
    effect: pl.DataFrame,
    path: str | Path | None = None,
    actuals: Sequence[Mapping[str, Any]] | None = None,
) -> Figure:
    """Draw forecasts with what the memory learned and without, a panel a channel of the first items (`MAX_PANELS` at most).

    Args:
        history: the GluonTS entries that were forecast.
        effect: the table of `explain.memory_effect` of them.
        path: where to write a PNG, if anywhere.
        actuals: entries with what came true, in the same order.

    Returns:
        The figure: median and 80 % interval each way.
    """
    channels = effect["channel"].unique(maintain_order=True).to_list()
    num_channels = min(len(channels), MAX_PANELS)
    num_items = min(len(history), MAX_PANELS // num_channels)
    figure = Figure(figsize=(10, 1.1 + 1.9 * num_items * num_channels), dpi=150, layout="constrained")
    axes = figure.subplots(num_items * num_channels, 1, sharex=num_items == 1, squeeze=False)[:, 0]
    of_entry = effect.height // (2 * len(history) * len(channels))
    for panel, ax in enumerate(axes):
        item, channel = divmod(panel, num_channels)
        _draw_history(ax, dict(history[item]), channel, 3 * of_entry)
        place = (item * len(channels) + channel) * of_entry
        for memory, colour in (("on", _BLUE), ("off", _ORANGE)):
            rows = effect.filter(memory=memory)[place : place + of_entry]
            dates = rows["timestamp"].to_numpy()
            style = "-" if memory == "on" else (0, (4, 2))
            ax.plot(dates, rows["q0.5"], color=colour, lw=1.6, ls=style, label=f"memory {memory}")
            for bound in ("q0.1", "q0.9"):
                ax.plot(dates, rows[bound], color=colour, lw=0.8, ls=style)
            if memory == "on":
                ax.fill_between(dates, rows["q0.1"], rows["q0.9"], color=_BANDS[0][3], lw=0)
        if actuals is not None:
            values = np.atleast_2d(actuals[item]["target"])[channel]
            index = pd.period_range(actuals[item]["start"], periods=len(values))
            ax.plot(_dates(index), values, color=_INK, lw=0.7, marker="o", ms=2.6, label="came true")
        _dress(ax, channels[channel], str(history[item].get("item_id", item)) if num_items > 1 else "")
    left_out = [f"first {num_channels} of {len(channels)} channels"] if num_channels < len(channels) else []
    left_out += [f"first {num_items} of {len(history)} series"] if num_items < len(history) else []
    _head(figure, axes[0], "; ".join(["What the forecast owes to memory: median and 80 % interval", *left_out]))
    figure.align_ylabels(axes)
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#d0d7de", lw=0.6)
    ax.tick_params(labelsize=8, color=_GREY)


def _head(figure: Figure, ax: Axes, title: str) -> None:
    """Title, and a legend of the names in the first panel, each once."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
