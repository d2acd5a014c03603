"""What every forecaster is to the harness, and those that are not trained: the seasonal naive and ridge regression in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.timeseries.protocol import Predict, Windows


@dataclass(frozen=True)
class Epoch:
    """One pass of training. seconds: of the wall; cpu_seconds: of the process, validation apart."""

    train_loss: float
    validation_mse: float
    seconds: float
    cpu_seconds: float
    validation_cpu_seconds: float


@dataclass(frozen=True)
class Fitted:
    """A forecaster that is ready. chosen: on validation, or by what the window can hold."""

    predict: Predict
    parameters: int = 0
    chosen: dict[str, Any] = field(default_factory=dict)
    epochs: Sequence[Epoch] = ()


class Forecaster(Protocol):
    """Learns from training windows, chooses by validation windows, and never sees others before it is evaluated."""

    def fit(self, train: Windows, validation: Windows, seed: int) -> Fitted:
        """A forecaster of windows of the same look-back and horizon."""
        ...


@dataclass(frozen=True)
class SeasonalNaive:
    """The last season of the window repeated; the last value where the window holds no season."""

    season: int

    def fit(self, train: Windows, validation: Windows, seed: int) -> Fitted:
        season = self.season if self.season <= train.look_back else 1
        index = torch.arange(train.horizon) % season - season
        return Fitted(lambda past_BLC: past_BLC[:, index], chosen={"season": season})


CENTRES = {"last": lambda past_BLC: past_BLC[:, -1:], "mean": lambda past_BLC: past_BLC.mean(1, keepdim=True)}
"""What is taken from a window before it is multiplied, and added to its forecast."""


@dataclass(frozen=True)
class Moments:
    """Sums over windows and channels of what least squares needs, float64: X'X (L, L), X'Y (L, H), and the sum of Y squared."""

    xx_LL: Tensor
    xy_LH: Tensor
    yy: float
    count: int

    def mse(self, weight_LH: Tensor) -> float:
        """Mean squared error of X W, without another look at the windows."""
        total = self.yy - 2 * (weight_LH * self.xy_LH).sum() + (weight_LH * (self.xx_LL @ weight_LH)).sum()
        return float(total) / self.count


def moments(windows: Windows, centre: str) -> Moments:
    xx_LL = torch.zeros(windows.look_back, windows.look_back, dtype=torch.float64)
    xy_LH = torch.zeros(windows.look_back, windows.horizon, dtype=torch.float64)
    yy, count = 0.0, 0
    for past_BLC, future_BHC in windows.batches():
        level_B1C = CENTRES[centre](past_BLC)
        x_NL, y_NH = ((part - level_B1C).transpose(1, 2).flatten(0, 1) for part in (past_BLC, future_BHC))
        xx_LL += x_NL.T @ x_NL  # float32 products of a few thousand rows, summed in float64
        xy_LH += x_NL.T @ y_NH
        yy += float(y_NH.double().square().sum())
        count += y_NH.numel()
    return Moments(xx_LL, xy_LH, yy, count)


def solve(found: Moments, penalties: Sequence[float]) -> list[Tensor]:
    """Ridge weights (L, H) of each penalty: one factorisation serves all."""
    values_L, vectors_LL = torch.linalg.eigh(found.xx_LL)
    turned_LH = vectors_LL.T @ found.xy_LH
    return [vectors_LL @ (turned_LH / (values_L.clamp(min=0) + penalty).unsqueeze(1)) for penalty in penalties]


@dataclass(frozen=True)
class Ridge:
    """One matrix from look-back to horizon shared by all channels; what centres the window and the penalty are chosen on validation."""

    penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)
    centres: tuple[str, ...] = tuple(CENTRES)

    def candidates(self, train: Windows, validation: Windows) -> list[tuple[float, str, float, Tensor]]:
        """Validation error, centre, penalty and weights (L, H) of every combination."""
        found = []
        for centre in self.centres:
            seen = moments(validation, centre)
            weights = solve(moments(train, centre), self.penalties)
            found += [(seen.mse(w), centre, penalty, w) for penalty, w in zip(self.penalties, weights, strict=True)]
        return found

    def fit(self, train: Windows, validation: Windows, seed: int) -> Fitted:
        _, centre, penalty, weight_LH = min(self.candidates(train, validation), key=lambda candidate: candidate[0])
        chosen = {"centre": centre, "penalty": penalty}
        return Fitted(linear(weight_LH.float(), centre), weight_LH.numel(), chosen)


def linear(weight_LH: Tensor, centre: str) -> Predict:
    def predict(past_BLC: Tensor) -> Tensor:
        level_B1C = CENTRES[centre](past_BLC)
        return torch.einsum("blc,lh->bhc", past_BLC - level_B1C, weight_LH) + level_B1C

    return predict
