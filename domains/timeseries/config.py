"""Configuration of the forecaster."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from titans_seq.config import Config, TitansConfig

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Config):
    """What the forecaster predicts of each step: quantiles, or the parameters of a distribution.

    Attributes:
        kind: the GluonTS output.
        quantiles: levels strictly between 0 and 1 in rising order (kind="quantile" only).
        beta: weight of the variance in the loss of a distribution (Seitzer et al. 2022); 0 is its likelihood.
    """

    kind: Literal["quantile", "normal", "student_t", "laplace"] = "quantile"
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
        context_length: steps seen.
        titans: the backbone.
        num_channels: series that are forecast together.
        freq: pandas frequency of the series that it was trained on ("h", "D", ..); None if unknown.
        num_time_features: calendar features a step, each in [-0.5, 0.5] as GluonTS makes them.
        patch_length: steps a token.
        horizon_dim: features of each step ahead in the head.
        output: what is predicted of each step.
    """

    prediction_length: int
    context_length: int
    titans: TitansConfig
    num_channels: int = 1
    freq: str | None = None
    num_time_features: int = 0
    patch_length: int = 8
    horizon_dim: int = 16
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prediction_length", "context_length", "num_channels", "patch_length", "horizon_dim"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("num_time_features", self.num_time_features >= 0, "at least 0")
