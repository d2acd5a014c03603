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
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

MAX_PANELS = 8
_INK, _BLUE, _ORANGE, _GREY = "#24292f", "#0969da", "#d4600a", "#8c959f"
_FORECASTERS = {"titans": ("Titans", _BLUE, "-"), "seasonal_naive": ("seasonal naive", _ORANGE, (0, (4, 2)))}
_BANDS = ((0.1, 0.9, "80 %", "#d3e5fa"), (0.25, 0.75, "50 %", "#a3c9f5"))
"""Lower and upper level, name, colour. Levels that a forecast does not store are interpolated by GluonTS."""


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
            ax.plot(mean[x], mean[y], color=colour, lw=1.8, ls=style, marker="o", ms=3.5, label=name)
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
    ax.plot(_dates(index), shown, color=_INK, lw=1.1, label="history")


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
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))


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
