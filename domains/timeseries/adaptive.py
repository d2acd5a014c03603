"""Intervals that adapt while a stream runs: each quantile is moved by how often it was missed of late.

The quantile tracker of conformal PID control (Angelopoulos, Candès and Tibshirani 2023, arXiv 2307.16895, section 2.1): online gradient
steps on the quantile loss of the scores, of a size in proportion to the scores seen of late. Over the long run a quantile is missed as
often as its level says, whatever the series does. Shapes: Q levels, H steps ahead, C channels, K forecasts that wait for what comes true.
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
from domains.timeseries.outputs import smallest_values
from domains.timeseries.quantiles import Levels, forecast_of, quantiles_of, spread_of
from titans_seq.errors import UserError
from titans_seq.state import State

if TYPE_CHECKING:
    from domains.timeseries.predictor import TitansPredictor

RATE = 0.02
"""Of a gradient step, as a share of the largest score of late."""
MEMORY = 100
"""Scores after which the largest counts 1/e."""
LARGEST = 10.0
"""Scores beyond it do not make steps larger: a forecast that was all but certain and wrong must not widen those to come beyond measure."""
WAITING = 32
"""Most forecasts that wait to be scored."""


class QuantileTracker:
    """Corrections of quantiles that follow how often each was missed; of a size that does not grow.

    Args:
        levels: of the quantiles.
        corrections: (Q, H, C) to begin with, as of `Calibration`.
        rate: of a step, as a share of the largest score of late; 0 leaves the corrections as they are.

    Attributes:
        corrections: (Q, H, C) as they are now.
        largest: (Q, H, C), scores of late.
        missed, scored: (Q, H, C) and (H, C), how often each quantile was missed (outward), of how many values.
        origins: (K, C), number of the first step of each forecast that waits; -1 for none.
        base, added, units: (K, Q, H, C), (K, Q, H, C) and (K, H, C), its quantiles as the model made them, the corrections that were
            added to them, and its spread.
    """

    def __init__(self, levels: Levels, corrections: np.ndarray, rate: float = RATE) -> None:
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate must be at least 0 and finite, got {rate}")
        count, steps, channels = corrections.shape
        self.levels, self.rate = levels, rate
        self.corrections = corrections.astype(np.float64)
        self.largest = np.zeros_like(self.corrections)
        self.missed, self.scored = np.zeros((count, steps, channels), np.int64), np.zeros((steps, channels), np.int64)
        waiting = min(steps, WAITING)
        self.origins = np.full((waiting, channels), -1)
        self.base = np.zeros((waiting, count, steps, channels))
        self.added = np.zeros_like(self.base)
        self.units = np.ones((waiting, steps, channels))

    def issue(self, step: int, quantiles: np.ndarray) -> np.ndarray:
        """The quantiles (Q, H, C) of a forecast of the steps from number `step` on, corrected; it waits to be scored.

        Where the horizon is longer than `WAITING` steps, one that follows too soon after the last that waits will not be scored.
        """
        units, last = spread_of(quantiles), int(self.origins.max())
        if last < 0 or step >= last + -(-quantiles.shape[1] // len(self.origins)):
            slot, finite = int(self.origins.max(1).argmin()), np.isfinite(quantiles).all((0, 1))
            self.origins[slot] = np.where(finite, step, -1)
            self.base[slot], self.added[slot] = np.where(finite, quantiles, 0.0), self.corrections
            self.units[slot] = np.where(finite, units, 1.0)
        return self.levels.corrected(quantiles, self.corrections, units)

    @property
    def last_step(self) -> int:
        """The last step that a forecast waits for, -1 if none does."""
        return int(self.origins.max()) + self.base.shape[2] - 1 if self.origins.max() >= 0 else -1

    def arrive(self, step: int, values: np.ndarray) -> None:
        """Score the forecasts of step number `step` by its values (C,), NaN where missing, and take a gradient step."""
        ages = step - self.origins  # (K, C)
        slots, channels = np.nonzero((self.origins >= 0) & (ages < self.base.shape[2]) & np.isfinite(values))
        ahead, y = ages[slots, channels], values[channels]  # no two forecasts are of the same number of steps ahead
        base, added = (x[slots, :, ahead, channels].T for x in (self.base, self.added))  # (Q, n)
        units = self.units[slots, ahead, channels]
        scores, place = self.levels.scores(base, y, units), (slice(None), ahead, channels)
        self.largest[place] = np.maximum(np.abs(scores).clip(max=LARGEST), math.exp(-1 / MEMORY) * self.largest[place])
        self.corrections[place] += self.rate * self.largest[place] * ((scores > added) - self.levels.tails[:, None])
        self.missed[place] += self.levels.scores(self.levels.corrected(base, added, units), y, units) > 0
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
    added: Tensor
    units: Tensor


ARRAYS = ("corrections", "largest", "missed", "scored", "origins", "base", "added", "units")


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
        levels = self.tracker.levels
        issued = self.tracker.issue(self.steps, quantiles_of(forecast, levels.values))
        return forecast_of(forecast, levels, issued, smallest_values(self.model.config))

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
        try:
            levels = Levels(tuple(saved.levels[0].tolist()))
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}).") from error
        made = cls(predictor, levels=levels.values, **arguments)
        made._restore(saved.stream, path)
        for name in ARRAYS:
            array, fresh = np.moveaxis(getattr(saved, name).numpy(), 0, -1), getattr(made.tracker, name)
            if array.shape != fresh.shape or array.dtype != fresh.dtype:
                raise UserError(f"{path}: damaged, its {name} are {array.shape} {array.dtype}, not {fresh.shape} {fresh.dtype}.")
            setattr(made.tracker, name, array.copy())
        if (made.tracker.units <= 0).any() or (made.tracker.origins >= made.steps + 1).any():
            raise UserError(f"{path}: damaged, its forecasts are not of this stream.")
        return made
