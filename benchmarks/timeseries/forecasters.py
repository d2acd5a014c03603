"""What every forecaster is to the harness, and those that are not trained: the seasonal naive and ridge regression in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.timeseries.protocol import Predict, Windows


@dataclass(frozen=True)
class Epoch:
    """A part of training before a look at validation, the first of no batch. seconds: of the wall; cpu_seconds: of the process."""

    batches: int
    train_loss: float | None
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
        return Fitted(lambda past_BLC, phase_B: past_BLC[:, index], chosen={"season": season})


CENTRES = {"last": lambda past_BLC: past_BLC[:, -1:], "mean": lambda past_BLC: past_BLC.mean(1, keepdim=True)}
"""What is taken from a window before it is multiplied, and added to its forecast."""


@dataclass(frozen=True)
class Moments:
    """Sums over windows and channels of what least squares needs, float64; K = L + 1, as a last column of ones gives the intercept.

    Attributes:
        xx_KK, xy_KH: X'X and X'Y.
        yy: sum of Y squared.
        rows: of X.
    """

    xx_KK: Tensor
    xy_KH: Tensor
    yy: float
    rows: float

    def mse(self, weight_KH: Tensor) -> float:
        """Mean squared error of X W, without another look at the windows."""
        total = self.yy - 2 * (weight_KH * self.xy_KH).sum() + (weight_KH * (self.xx_KK @ weight_KH)).sum()
        return float(total) / (self.rows * weight_KH.shape[1])


def moments(windows: Windows, centre: str) -> Moments:
    size = windows.look_back + 1
    xx_KK = torch.zeros(size, size, dtype=torch.float64)
    xy_KH = torch.zeros(size, windows.horizon, dtype=torch.float64)
    yy = 0.0
    for past_BLC, future_BHC, _ in windows.batches():
        level_B1C = CENTRES[centre](past_BLC)
        x_NL, y_NH = ((part - level_B1C).transpose(1, 2).flatten(0, 1) for part in (past_BLC, future_BHC))
        x_NK = torch.cat([x_NL, torch.ones_like(x_NL[:, :1])], 1)
        xx_KK += x_NK.T @ x_NK  # float32 products of a few thousand rows, summed in float64
        xy_KH += x_NK.T @ y_NH
        yy += float(y_NH.double().square().sum())
    return Moments(xx_KK, xy_KH, yy, float(xx_KK[-1, -1]))


def solve(found: Moments, penalties: Sequence[float], intercept: bool) -> list[Tensor]:
    """Ridge weights (L + 1, H) of each penalty, the intercept (or zeros) last and not penalised; one factorisation serves all."""
    xx_LL, xy_LH = found.xx_KK[:-1, :-1], found.xy_KH[:-1]
    mean_1L, mean_1H = (found.xx_KK[-1:, :-1] / found.rows, found.xy_KH[-1:] / found.rows)
    if intercept:
        xx_LL = xx_LL - found.rows * mean_1L.T @ mean_1L
        xy_LH = xy_LH - found.rows * mean_1L.T @ mean_1H
    values_L, vectors_LL = torch.linalg.eigh(xx_LL)
    turned_LH = vectors_LL.T @ xy_LH
    weights = [vectors_LL @ (turned_LH / (values_L.clamp(min=0) + penalty).unsqueeze(1)) for penalty in penalties]
    return [torch.cat([w, (mean_1H - mean_1L @ w) * float(intercept)]) for w in weights]


class Candidate(NamedTuple):
    """A ridge regression and its validation error."""

    mse: float
    centre: str
    penalty: float
    intercept: bool
    weight_KH: Tensor


@dataclass(frozen=True)
class Ridge:
    """One matrix from look-back to horizon shared by all channels; what centres the window, the penalty and whether there is an intercept
    are chosen on validation."""

    penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)
    centres: tuple[str, ...] = tuple(CENTRES)
    intercepts: tuple[bool, ...] = (False, True)

    def candidates(self, train: Windows, validation: Windows) -> list[Candidate]:
        """Every combination."""
        found = []
        for centre in self.centres:
            learned, seen = moments(train, centre), moments(validation, centre)
            for intercept in self.intercepts:
                weights = solve(learned, self.penalties, intercept)
                found += [Candidate(seen.mse(w), centre, p, intercept, w) for p, w in zip(self.penalties, weights, strict=True)]
        return found

    def fit(self, train: Windows, validation: Windows, seed: int) -> Fitted:
        best = min(self.candidates(train, validation), key=lambda candidate: candidate.mse)
        chosen = {"centre": best.centre, "penalty": best.penalty, "intercept": best.intercept}
        return Fitted(linear(best.weight_KH.float(), best.centre), best.weight_KH.numel(), chosen)


def linear(weight_KH: Tensor, centre: str) -> Predict:
    def predict(past_BLC: Tensor, phase_B: Tensor) -> Tensor:
        level_B1C = CENTRES[centre](past_BLC)
        return torch.einsum("blc,lh->bhc", past_BLC - level_B1C, weight_KH[:-1]) + weight_KH[-1].unsqueeze(1) + level_B1C

    return predict
