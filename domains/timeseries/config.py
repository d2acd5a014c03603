"""Configuration of the forecaster."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from titans_seq.config import Config, TitansConfig

CALIBRATION_NAME = "calibration.safetensors"
"""Beside the model, where it is calibrated."""
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Config):
    """What the forecaster predicts of each step: quantiles, or the parameters of a distribution.

    Attributes:
        kind: the GluonTS output.
        quantiles: levels strictly between 0 and 1 in rising order (kind="quantile" only).
        beta: weight of the variance in the loss of a distribution (Seitzer et al. 2022); 0 is its likelihood.
    """

    kind: Literal["quantile", "normal", "student_t", "laplace", "negative_binomial"] = "quantile"
    quantiles: tuple[float, ...] = QUANTILES
    beta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = (0.0, *self.quantiles, 1.0)
        rising = len(levels) > 2 and all(a < b for a, b in pairwise(levels))
        self._require("quantiles", rising, "levels strictly between 0 and 1 in rising order")
        self._require("beta", 0 <= self.beta <= 1, "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class ForecasterConfig(Config):
    """Architecture of the forecaster.

    Attributes:
        prediction_length: steps ahead.
        context_length: steps seen by a forecast that begins cold; a stream that is carried on has seen all of it.
        titans: the backbone.
        num_channels: series that are forecast together.
        channel_mixing: whether channels see one another (attention between the tokens of the same steps); else each is read on its own.
        absolute_level: whether tokens say where level and spread stand in those of the channel in the training data. Without it, a forecast
            in other units or at another level is the same forecast.
        freq: pandas frequency of the series that it was trained on ("h", "D", ..); None if unknown.
        num_time_features: calendar features a step, each in [-0.5, 0.5] as GluonTS makes them.
        num_feat_dynamic_real: features of a step that are known ahead.
        num_past_feat_dynamic_real: features of a step that are known once it is past.
        num_feat_static_real: numbers that belong to a series as a whole.
        cardinality: number of categories of each static category of a series.
        patch_length: steps a token.
        horizon_dim: features of each step ahead in the head.
        linear_length: steps that the linear part sees, the latest; None for context_length, at most 512.
        scale_length: steps over which the running level and spread forget what was by 1 - 1/e; None for context_length.
        spread_prior: share of the channel's spread in the training data that is always part of the running spread (its square is added),
            so that a channel which stood still may move again. Above 0, a forecast depends on units.
        season_length: steps of a season whose profile, one a channel, is taken out of the series and added to forecasts; None for none.
        channel_maps: whether the linear part has a map for each channel; else one serves all.
        nonnegative: numbers of the channels whose quantiles are never below 0.
        linear_memory: width of the keys of the memory by which the linear part goes on learning as it reads (`forecast_memory`), at least
            patch_length; 0 for a linear part that stays as it was trained.
        output: what is predicted of each step.
    """

    prediction_length: int
    context_length: int
    titans: TitansConfig
    num_channels: int = 1
    channel_mixing: bool = False
    absolute_level: bool = False
    freq: str | None = None
    num_time_features: int = 0
    num_feat_dynamic_real: int = 0
    num_past_feat_dynamic_real: int = 0
    num_feat_static_real: int = 0
    cardinality: tuple[int, ...] = ()
    patch_length: int = 8
    horizon_dim: int = 16
    linear_length: int | None = None
    scale_length: int | None = None
    spread_prior: float = 0.0
    season_length: int | None = None
    channel_maps: bool = False
    linear_memory: int = 0
    nonnegative: tuple[int, ...] = ()
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prediction_length", "context_length", "num_channels", "patch_length", "horizon_dim"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("num_time_features", "num_feat_dynamic_real", "num_past_feat_dynamic_real", "num_feat_static_real"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("linear_length", "scale_length"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1 or None")
        self._require("spread_prior", 0 <= self.spread_prior < math.inf, "at least 0")
        has_location = self.output.kind != "negative_binomial"
        fits = self.season_length is None or (self.season_length >= 2 and has_location)
        self._require("season_length", fits, "at least 2 or None, and None for an output of counts")
        fits = self.linear_memory == 0 or self.linear_memory >= max(2, self.patch_length)
        self._require("linear_memory", fits, f"0, or at least 2 and patch_length={self.patch_length}")
        countable = self.linear_memory == 0 or self.output.kind != "negative_binomial"
        self._require("linear_memory", countable, "0 for counts, whose linear part is no forecast")
        rising = all(a < b for a, b in pairwise((-1, *self.nonnegative, self.num_channels)))
        self._require("nonnegative", rising, f"numbers of channels below {self.num_channels} in rising order")
        fits = not self.nonnegative or self.output.kind == "quantile"
        self._require("nonnegative", fits, "() for another output than quantiles; that of counts needs none")
        self._require("cardinality", all(n >= 1 for n in self.cardinality), "numbers of categories, each at least 1")

    @property
    def num_phase_feat(self) -> int:
        """1 where there is a season: the phase of each step, 0 to season_length - 1, is the first feature."""
        return int(self.season_length is not None)

    @property
    def num_future_feat(self) -> int:
        """Columns of `future_feat`: the phase of a season, the calendar, features known ahead, and whether each of those is there."""
        return self.num_phase_feat + self.num_time_features + 2 * self.num_feat_dynamic_real

    @property
    def num_past_feat(self) -> int:
        """Columns of `past_feat`: those of `future_feat`, past features, and whether each of those is there."""
        return self.num_future_feat + 2 * self.num_past_feat_dynamic_real

    @property
    def linear_steps(self) -> int:
        """Steps that the linear part sees."""
        return min(self.context_length, 512) if self.linear_length is None else self.linear_length

    @property
    def scale_steps(self) -> int:
        """Steps over which the running level and spread forget."""
        return self.context_length if self.scale_length is None else self.scale_length
