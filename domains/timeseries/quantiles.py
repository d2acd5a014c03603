"""A forecast's quantiles as an array, and how they are scored and moved.

Shapes: Q levels, H steps ahead, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from gluonts.model.forecast import Forecast, QuantileForecast

SMALLEST = 1e-12
RELATIVE = 1e-6
SHARE = 1e-2
"""Of a forecast's mean spread: the least that a step's spread may be."""


@dataclass(frozen=True)
class Levels:
    """Levels of quantiles, strictly between 0 and 1 in rising order, at least 2.

    Raises:
        ValueError: other levels.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or not all(a < b for a, b in pairwise((0.0, *self.values, 1.0))):
            raise ValueError(f"quantiles must be two levels or more, strictly between 0 and 1 in rising order, got {list(self.values)}")

    @cached_property
    def outward(self) -> np.ndarray:
        """(Q,): -1 for levels below the median, whose quantiles are missed by values under them; 1 for the others."""
        return np.where(np.array(self.values) < 0.5, -1.0, 1.0)

    @cached_property
    def tails(self) -> np.ndarray:
        """(Q,): how often a value is to lie beyond each quantile, outward."""
        values = np.array(self.values)
        return np.where(values < 0.5, values, 1 - values)

    @property
    def fewest_scores(self) -> int:
        """How many scores the outermost level needs to be calibrated: 9 for 0.1, 19 for 0.05, 99 for 0.01."""
        return int(np.ceil(1 / self.tails.min() - 1 - 1e-9))

    def scores(self, quantiles: np.ndarray, actual: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """How far values (..) lie beyond quantiles (Q, ..), in units of the spread (..); negative where they do not."""
        return self._by_level(self.outward, quantiles) * (actual - quantiles) / spread

    def corrected(self, quantiles: np.ndarray, corrections: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Quantiles (Q, ..) moved outward by corrections (Q, ..) in units of the spread (..), and put in order where they cross.

        So the outermost are at least as far out as their own corrections say, and the others no worse on average (Chernozhukov,
        Fernández-Val and Galichon 2010).
        """
        return np.sort(quantiles + self._by_level(self.outward, quantiles) * spread * corrections, axis=0)

    @staticmethod
    def _by_level(x: np.ndarray, like: np.ndarray) -> np.ndarray:
        """(Q,) with the dimensions of (Q, ..)."""
        return x.reshape(-1, *[1] * (like.ndim - 1))


def spread_of(quantiles: np.ndarray) -> np.ndarray:
    """The unit of each step and channel, (Q, H, C) -> (H, C): the distance of the outermost quantiles, never zero."""
    spread = quantiles[-1] - quantiles[0]
    level = RELATIVE * np.abs(quantiles).max(0)
    return np.maximum(np.maximum(spread, SHARE * spread.mean(0)), np.maximum(level, SMALLEST))


def quantiles_of(forecast: Forecast, levels: Sequence[float]) -> np.ndarray:
    """(Q, H, C) float64; levels that a QuantileForecast does not store are interpolated by GluonTS."""
    steps = forecast.prediction_length
    return np.stack([np.reshape(forecast.quantile(level), (steps, -1)) for level in levels]).astype(np.float64)


class BoundedForecast(QuantileForecast):
    """Quantiles of which none is below `smallest`, (C,) or a number: those between and beyond the stored levels too."""

    def __init__(self, forecast_arrays: np.ndarray, *args: Any, smallest: np.ndarray | float, **kwargs: Any) -> None:
        self.smallest = np.asarray(smallest, dtype=forecast_arrays.dtype)
        super().__init__(np.maximum(forecast_arrays, self.smallest), *args, **kwargs)

    def quantile(self, inference_quantile: float | str) -> np.ndarray:
        """As of GluonTS, which goes on beyond the outermost levels."""
        return np.maximum(super().quantile(inference_quantile), self.smallest)


def bounded(forecast: Forecast, smallest: np.ndarray | float) -> Forecast:
    """The forecast with quantiles none of which is below `smallest`; one that stores no quantiles has its own bounds, and stays."""
    if not isinstance(forecast, QuantileForecast) or np.all(np.isneginf(smallest)):
        return forecast
    named = {name: getattr(forecast, name) for name in ("start_date", "forecast_keys", "item_id", "info")}
    return BoundedForecast(forecast.forecast_array, **named, smallest=smallest)


def forecast_of(like: Forecast, levels: Levels, quantiles: np.ndarray, smallest: np.ndarray | float) -> QuantileForecast:
    """A forecast of quantiles (Q, H, C), none below `smallest`; its item, start, shape and mean, if stored, are those of `like`."""
    keys = list(map(str, levels.values))
    arrays = quantiles.reshape(len(keys), *np.shape(like.quantile(levels.values[0])))
    if not isinstance(like, QuantileForecast) or "mean" in like.forecast_keys:
        keys, arrays = ["mean", *keys], np.concatenate([np.reshape(like.mean, (1, *arrays.shape[1:])), arrays])
    return BoundedForecast(arrays, like.start_date, keys, like.item_id, like.info, smallest=smallest)
