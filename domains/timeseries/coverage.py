"""How often what came true lay inside the intervals of forecasts. Shapes: I intervals, H steps ahead, C channels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from gluonts.dataset.split import TestData
from gluonts.model.forecast import Forecast
from scipy.stats import beta

from domains.timeseries.quantiles import quantiles_of

if TYPE_CHECKING:
    from domains.timeseries.metrics import Windows

INTERVALS = (0.4, 0.6, 0.8)


def actual_of(label: Mapping[str, Any]) -> np.ndarray:
    """What came true: the target of a GluonTS entry, (C, H) or (H,), as (H, C) float64."""
    return np.atleast_2d(label["target"]).T.astype(np.float64)


def outside(actual: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether values lie under and over an interval, bool; one on a bound lies inside."""
    return actual < lower, actual > upper


def coverage(
    forecasts: Iterable[Forecast],
    test_data: "TestData | Windows",
    channel_names: Sequence[str] | None = None,
    intervals: Sequence[float] = INTERVALS,
) -> pl.DataFrame:
    """How often what came true lay inside the central intervals, for each channel and step ahead.

    Args:
        forecasts: of `test_data`, in its order.
        test_data: the windows; labels that are NaN are left out.
        channel_names: C names; None for channel_0, ..
        intervals: nominal coverages, 0.8 for the interval between the quantiles 0.1 and 0.9.

    Returns:
        One row a channel, step (1 .. H) and interval: channel, step, interval, coverage, below and above (shares under the lower and over
        the upper bound; on a bound is inside), count of values, and low and high: coverages that the count leaves open (Clopper and
        Pearson's exact 95 % interval, of independent windows; that of overlapping ones is wider).
    """
    pairs = [_bounds(interval) for interval in intervals]
    below: Any = 0
    above: Any = 0
    count: Any = 0
    for forecast, label in zip(forecasts, test_data.label, strict=True):
        actual = actual_of(label)
        lower, upper = (quantiles_of(forecast, levels) for levels in zip(*pairs, strict=True))
        under, over = outside(actual, lower, upper)
        below, above = below + under, above + over
        count = count + np.isfinite(actual)
    if not np.size(count) or not np.ndim(count):
        raise ValueError("there is no forecast to score")
    return coverage_table(below, above, count, intervals, channel_names)


def _bounds(interval: float) -> tuple[float, float]:
    """Levels of a central interval."""
    if not 0 < interval < 1:
        raise ValueError(f"intervals must be strictly between 0 and 1, got {interval}")
    return round((1 - interval) / 2, 6), round((1 + interval) / 2, 6)


def coverage_table(
    below: np.ndarray, above: np.ndarray, count: np.ndarray, intervals: Sequence[float], channel_names: Sequence[str] | None = None
) -> pl.DataFrame:
    """The table of `coverage` from numbers of values under and over each interval, (I, H, C), and of all values, (H, C)."""
    _, steps, channels = below.shape
    names = [f"channel_{i}" for i in range(channels)] if channel_names is None else list(channel_names)
    if len(names) != channels:
        raise ValueError(f"{len(names)} channel names for {channels} channels")
    rows = []
    for i, interval in enumerate(intervals):
        for c, name in enumerate(names):
            n = count[:, c]
            inside = n - below[i, :, c] - above[i, :, c]
            with np.errstate(invalid="ignore"):
                share = {"coverage": inside / n, "below": below[i, :, c] / n, "above": above[i, :, c] / n}
            bounds = {
                "low": np.where(inside > 0, beta.ppf(0.025, np.maximum(inside, 1), n - inside + 1), 0.0),
                "high": np.where(inside < n, beta.ppf(0.975, inside + 1, np.maximum(n - inside, 1)), 1.0),
            }
            head = {"channel": name, "step": np.arange(1, steps + 1), "interval": float(interval)}
            rows.append(pl.DataFrame({**head, **share, "count": n.astype(np.int64), **bounds}))
    return pl.concat(rows).with_columns(pl.col("coverage", "below", "above").fill_nan(None))
