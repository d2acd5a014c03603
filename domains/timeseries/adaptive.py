"""Intervals that adapt while a stream runs: each quantile is moved by how often it was missed of late.

The quantile tracker of conformal PID control (Angelopoulos, Candès and Tibshirani 2023, arXiv 2307.16895, section 2.1): online gradient steps
on the quantile loss of the scores, of a size in proportion to the scores seen of late. Over the long run a quantile is missed as often as its
level says, whatever the series does. Shapes: Q levels, H steps ahead, C channels, K forecasts that wait for what comes true.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import torch
from gluonts.model.forecast import Forecast
from torch import Tensor

from domains.timeseries.config import QUANTILES
from domains.timeseries.coverage import coverage_table
from domains.timeseries.online import OnlineForecaster, StreamState
from domains.timeseries.quantiles import Levels, forecast_of, quantiles_of, spread_of
from titans_seq.state import State

if TYPE_CHECKING:
    from domains.timeseries.estimator import TitansPredictor

RATE = 0.05
"""Of a gradient step, as a share of the largest score of late."""
MEMORY = 100
"""Scores after which the largest counts 1/e."""
WAITING = 32
"""Most forecasts that wait to be scored."""


class QuantileTracker:
    """Corrections of quantiles that follow how often each was missed; of a size that does not grow.

    Args:
        levels: of the quantiles.
        corrections: (Q, H, C) to begin with, as of `Calibration`.
        rate: of a step, as a share of the largest score of late; 0 leaves the corrections as they are.

    Attributes:
        corrections: as they are now.
        missed, scored: (Q, H, C) and (H, C), how often each quantile was missed (outward), of how many values.
    """

    def __init__(self, levels: Levels, corrections: np.ndarray, rate: float = RATE) -> None:
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate must be at least 0 and finite, got {rate}")
        levels_, steps, channels = corrections.shape
        self.levels, self.rate = levels, rate
        self.corrections = corrections.astype(np.float64)
        self.largest = np.zeros_like(self.corrections)
        self.missed, self.scored = np.zeros((levels_, steps, channels), np.int64), np.zeros((steps, channels), np.int64)
        waiting = min(steps, WAITING)
        self.origins = np.full((waiting, channels), -1)
        self.base = np.zeros((waiting, levels_, steps, channels))
        self.issued = np.zeros_like(self.base)
        self.units = np.zeros((waiting, steps, channels))

    def correct(self, quantiles: np.ndarray) -> np.ndarray:
        """Quantiles (Q, H, C) of a forecast, corrected."""
        return self.levels.corrected(quantiles, self.corrections)

    def issue(self, step: int, quantiles: np.ndarray, issued: np.ndarray) -> None:
        """Keep a forecast of the steps from number `step` on: quantiles (Q, H, C) as the model made them, and as they were issued.

        Where the horizon is longer than `WAITING` steps, one that follows too soon after the last that is kept will not be scored.
        """
        steps = quantiles.shape[1]
        last = int(self.origins.max())
        if last >= 0 and step < last + -(-steps // len(self.origins)):
            return
        slot = int(self.origins.max(1).argmin())
        self.origins[slot] = np.where(np.isfinite(issued).all((0, 1)), step, -1)
        self.base[slot], self.issued[slot] = np.nan_to_num(quantiles), np.nan_to_num(issued)
        self.units[slot] = spread_of(self.base[slot])

    @property
    def last_step(self) -> int:
        """The last step that a forecast waits for, -1 if none does."""
        return int(self.origins.max()) + self.base.shape[2] - 1 if self.origins.max() >= 0 else -1

    def arrive(self, step: int, values: np.ndarray) -> None:
        """Score the forecasts of step number `step` by its values (C,), NaN where missing, and take a gradient step."""
        ages = step - self.origins  # (K, C)
        slots, channels = np.nonzero((self.origins >= 0) & (ages < self.base.shape[2]) & np.isfinite(values))
        if not len(slots):
            return
        ahead = ages[slots, channels]  # no two forecasts are of the same number of steps ahead
        outward, tails = self.levels.outward, self.levels.tails
        beyond = outward * (values[channels, None] - self.base[slots, :, ahead, channels]) / self.units[slots, ahead, channels, None]
        missed = outward * (values[channels, None] - self.issued[slots, :, ahead, channels]) > 0  # (n, Q)
        place = (slice(None), ahead, channels)
        largest = np.maximum(np.abs(beyond).T, math.exp(-1 / MEMORY) * self.largest[place])
        self.largest[place] = largest
        self.corrections[place] += self.rate * largest * (missed - tails).T
        self.missed[place] += missed.T
        self.scored[ahead, channels] += 1

    def coverage(self, channel_names: Sequence[str] | None = None) -> pl.DataFrame:
        """How often what came true lay inside the intervals that were issued, as the table of `coverage.coverage`."""
        values = self.levels.values
        pairs = [(i, values.index(round(1 - v, 6))) for i, v in enumerate(values) if v < 0.5 and round(1 - v, 6) in values][::-1]
        below, above = (self.missed[list(places)] for places in zip(*pairs, strict=True)) if pairs else 2 * (self.missed[:0],)
        return coverage_table(below, above, self.scored, [round(1 - 2 * values[i], 6) for i, _ in pairs], channel_names)


@dataclass(frozen=True)
class AdaptiveState(State):
    """A stream and its tracker: the arrays of `QuantileTracker`, the channel first (C, ..)."""

    stream: StreamState
    levels: Tensor
    corrections: Tensor
    largest: Tensor
    missed: Tensor
    scored: Tensor
    origins: Tensor
    base: Tensor
    issued: Tensor
    units: Tensor


ARRAYS = ("corrections", "largest", "missed", "scored", "origins", "base", "issued", "units")


class AdaptiveForecaster(OnlineForecaster):
    """A stream whose intervals adapt: every forecast that `predict` gives is scored when its steps arrive.

    Args:
        predictor, start, arguments: as of `OnlineForecaster`.
        levels: of the quantiles; None for those of the model's output, or 0.1 to 0.9.
        corrections: (Q, H, C) to begin with, as of `Calibration`; None for none.
        rate: of adaptation, see `QuantileTracker`.
    """

    def __init__(
        self,
        predictor: "TitansPredictor",
        start: pd.Period | None = None,
        *,
        levels: Sequence[float] | None = None,
        corrections: np.ndarray | None = None,
        rate: float = RATE,
        **arguments: Any,
    ) -> None:
        super().__init__(predictor, start, **arguments)
        c = self.model.config
        if levels is None:
            levels = c.output.quantiles if c.output.kind == "quantile" else QUANTILES
        shape = (len(levels), c.prediction_length, c.num_channels)
        corrections = np.zeros(shape) if corrections is None else np.asarray(corrections)
        if corrections.shape != shape:
            raise ValueError(f"corrections must be {shape} (levels, steps ahead, channels), got {corrections.shape}")
        self.tracker = QuantileTracker(Levels(tuple(levels)), corrections, rate)

    def predict(self, feat_dynamic_real: Any = None) -> Forecast:
        """As of `OnlineForecaster`, with quantiles corrected by what came true so far; it is kept to be scored."""
        forecast = super().predict(feat_dynamic_real)
        quantiles = quantiles_of(forecast, self.tracker.levels.values)
        issued = self.tracker.correct(quantiles)
        self.tracker.issue(self.steps, quantiles, issued)
        return forecast_of(forecast, self.tracker.levels, issued)

    def coverage(self, channel_names: Sequence[str] | None = None) -> pl.DataFrame:
        """How often what came true lay inside the intervals that `predict` gave, as the table of `coverage.coverage`."""
        return self.tracker.coverage(channel_names)

    def _read(self, block: np.ndarray) -> None:
        awaited = max(0, min(len(block), self.tracker.last_step - self.steps + 1))
        for i, values in enumerate(block[:awaited, : self.model.config.num_channels]):
            self.tracker.arrive(self.steps + i, values)
        super()._read(block)

    def save(self, path: str | Path) -> None:
        """Write stream and tracker to a safetensors file, whole or not at all; its size does not depend on what has been observed."""
        arrays = {name: torch.from_numpy(np.moveaxis(getattr(self.tracker, name), -1, 0).copy()) for name in ARRAYS}
        levels = torch.tensor(self.tracker.levels.values, dtype=torch.float64).expand(self.model.config.num_channels, -1)
        AdaptiveState(self._snapshot(), levels, **arrays).save(path)

    @classmethod
    def load(cls, path: str | Path, predictor: "TitansPredictor", **arguments: Any) -> "AdaptiveForecaster":
        """Go on with a saved stream; `arguments` as of the class, but for levels and corrections, which are in the file.

        Raises:
            UserError: the file is missing, damaged, or of a stream of another model.
        """
        saved = AdaptiveState.load(path)
        made = cls(predictor, levels=saved.levels[0].tolist(), **arguments)
        made._restore(saved.stream, path)
        for name in ARRAYS:
            setattr(made.tracker, name, np.moveaxis(getattr(saved, name).numpy(), 0, -1).copy())
        return made
