"""The closed-form start of the forecaster's linear part: the season of each channel, then ridge regressions.

Shapes: n rows of a problem, C channels, K latest values, H steps ahead, S steps of a season.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from domains.timeseries.linear import LinearProblem
from domains.timeseries.model import TitansForecaster

Batches = Callable[[], Iterable[dict[str, Tensor]]]
"""Makes batches as of `TitansForecaster.loss`, anew at every call."""

Towards = Literal["level", "last"]
TOWARDS: tuple[Towards, ...] = ("level", "last")
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
CHANNEL_PENALTIES = (1e-1, 1.0, 10.0, 100.0)
SEASON_PENALTY = 1e-3
SEASON_ROUNDS = 3
"""Of least squares for the map given the season, and for the season given the map; more change nothing."""


@dataclass(frozen=True)
class Shrinkage:
    """How the maps are held back; penalties are shares of the mean squared input.

    Attributes:
        penalty: of the squared distance of the shared map from `towards`: the level of the context, or its last value.
        towards: see there.
        channel_penalty: of the squared distance of each channel's map from the shared one.
        intercept: whether there is one, shared and free.
    """

    penalty: float = 1e-2
    towards: Towards = "level"
    channel_penalty: float = 1.0
    intercept: bool = True


@dataclass(frozen=True)
class Start:
    """What a linear part may begin with: its shrinkage, whether it has a season, and its error on validation.

    shared: (K + 1, H), the intercept last; apart: (C, K, H), what each channel's map adds to it, or None.
    """

    shrinkage: Shrinkage
    season: bool
    shared: Tensor
    apart: Tensor | None
    validation_error: float | None


@torch.no_grad()
def start_from_ridge(model: TitansForecaster, batches: Batches, validation: Batches | None = None) -> Start | None:
    """Set `model.linear` in closed form: seasons, then the ridge regression of the future on the latest values, and that of each channel.

    It is the strongest simple forecaster of long horizons; training then starts from it instead of having to find it. Inputs and targets
    are in the units of each context, and windows count with the square of those units in units of their series, as the squared error of
    the forecasts in series units does. Windows with a missing future value are left out.

    Args:
        model: with an output that has a location.
        batches: of training windows.
        validation: of windows that choose the shrinkage, and whether the season is worth having; without them, the default one and yes.

    Returns:
        what was taken; None where nothing ever moves, which leaves everything at zero.
    """
    linear = model.linear
    for parameter in linear.parameters():
        parameter.zero_()
    starts = []
    if linear.season is None or validation is not None:
        starts.append(_start(model, batches, validation, season=False))
    if linear.season is not None:
        fit_season(model, batches)
        starts.append(_start(model, batches, validation, season=True))
    found = [start for start in starts if start is not None]
    if not found:
        return None
    best = found[-1] if validation is None else min(found, key=lambda start: start.validation_error or 0.0)
    if linear.season is not None and not best.season:
        linear.season.zero_()
    linear.weight.copy_(best.shared[:-1].T)
    linear.bias.copy_(best.shared[-1])
    if linear.channel_weight is not None and best.apart is not None:
        linear.channel_weight.copy_(best.apart.transpose(1, 2))
    return best


def _start(model: TitansForecaster, batches: Batches, validation: Batches | None, season: bool) -> Start | None:
    """With the season that the model has by now."""
    sums = Sums.of(model, batches)
    if sums.mean_square <= 0:
        return None
    if validation is None:
        shared = sums.shared(default := Shrinkage())
        return Start(default, season, shared, sums.apart(default, shared), None)
    seen = Sums.of(model, validation)
    shared_ones = [Shrinkage(*choice) for choice in product(PENALTIES, TOWARDS, (1.0,), (False, True))]
    error, best = min(((seen.squared_error(sums.shared(one)), one) for one in shared_ones), key=lambda found: found[0])
    shared, apart = sums.shared(best), None
    for penalty in CHANNEL_PENALTIES if len(sums.gram) > 1 else ():
        candidate = replace(best, channel_penalty=penalty)
        own = sums.apart(candidate, shared)
        assert own is not None
        if (own_error := seen.squared_error(shared + nn.functional.pad(own, (0, 0, 0, 1)))) < error:
            error, best, apart = own_error, candidate, own
    return Start(best, season, shared, apart, error)


@dataclass(frozen=True)
class Sums:
    """What least squares needs, weighted sums over rows for each channel, or for all together as one; float64.

    gram: (C, K + 1, K + 1) of the inputs without season and a one; moments: (C, K + 1, H) of them with the targets; square: of the targets.
    """

    gram: Tensor
    moments: Tensor
    square: float

    @classmethod
    def of(cls, model: TitansForecaster, batches: Batches) -> "Sums":
        """Of the rows of all batches, with the model's season taken out."""
        linear = model.linear
        H, K = linear.weight.shape
        channels = 1 if linear.channel_weight is None else model.config.num_channels
        products = torch.zeros(channels, K + 1, K + 1 + H, dtype=torch.float64)
        square = 0.0
        for batch in batches():
            problem = model.linear_problem(batch)
            inputs = linear.without_season(problem.inputs, problem.seen, problem.phase, problem.channel)
            targets = problem.targets - linear.season_ahead(problem.phase, problem.channel)
            row = torch.cat([inputs, torch.ones_like(inputs[:, :1]), targets], 1)
            weighted = row * problem.weight.unsqueeze(1)
            for channel in range(channels):
                of_channel = slice(None) if channels == 1 else problem.channel == channel
                products[channel] += (weighted[of_channel, : K + 1].T @ row[of_channel]).cpu()
            square += float((weighted[:, K + 1 :] * row[:, K + 1 :]).sum())
        gram, cross = products.split([K + 1, H], dim=2)
        return cls(gram, cross, square)

    @property
    def mean_square(self) -> float:
        """Mean over the inputs of their summed squares, all channels together."""
        return float(self.gram.sum(0).diagonal()[:-1].mean())

    def shared(self, shrinkage: Shrinkage) -> Tensor:
        """(K + 1, H), the intercept last."""
        gram, moments = self.gram.sum(0), self.moments.sum(0)
        ridge = torch.full((len(gram),), shrinkage.penalty * self.mean_square, dtype=torch.float64)
        prior = torch.zeros_like(moments)
        if shrinkage.towards == "last":
            prior[-2] = 1.0
        if shrinkage.intercept:
            ridge[-1] = 0.0
            return torch.linalg.solve(gram + ridge.diag(), moments + ridge.unsqueeze(1) * prior)
        found = torch.linalg.solve((gram + ridge.diag())[:-1, :-1], (moments + ridge.unsqueeze(1) * prior)[:-1])
        return nn.functional.pad(found, (0, 0, 0, 1))

    def apart(self, shrinkage: Shrinkage, shared: Tensor) -> Tensor | None:
        """What the map of each channel adds to the shared one, (C, K, H), the intercept staying as it is; None where all are one."""
        if len(self.gram) == 1:
            return None
        gram = self.gram[:, :-1, :-1]
        rest = (self.moments - self.gram @ shared)[:, :-1]
        least = 1e-6 * self.mean_square / len(gram)  # of a channel that stands still
        ridge = (shrinkage.channel_penalty * gram.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=least)
        return torch.linalg.solve(gram + torch.diag_embed(ridge.unsqueeze(1).expand(-1, gram.shape[1])), rest)

    def squared_error(self, maps: Tensor) -> float:
        """Of one map (K + 1, H) or of one for each channel."""
        return self.square + float((maps * (self.gram @ maps - 2 * self.moments)).sum())


def fit_season(model: TitansForecaster, batches: Batches) -> None:
    """Set the season of each channel by least squares, in turn with one map for all channels, from windows without a missing value."""
    linear, channels = model.linear, model.config.num_channels
    assert linear.season is not None
    H, K = linear.weight.shape
    S = linear.season.shape[1]
    products = torch.zeros(K, K + H, dtype=torch.float64)
    weight = torch.zeros(S * channels, dtype=torch.float64)
    means = torch.zeros(S * channels, K + H, dtype=torch.float64)  # weighted sums of the rows that begin alike
    for batch in batches():
        problem = LinearProblem(*(part.cpu() for part in model.linear_problem(batch)))
        whole = problem.seen.all(1)
        row = torch.cat([problem.inputs, problem.targets], 1)[whole]
        weighted = row * problem.weight[whole].unsqueeze(1)
        group = (problem.phase * channels + problem.channel)[whole]
        products += weighted[:, :K].T @ row
        weight.index_add_(0, group, problem.weight[whole])
        means.index_add_(0, group, weighted)
    if weight.sum() <= 0 or products.diagonal().mean() <= 0:
        return  # no whole window, or nothing ever moves
    weight, means = weight.view(S, channels, 1), means.view(S, channels, K + H)
    at = torch.arange(S).unsqueeze(1) + torch.arange(-K, H)  # (S, K + H): steps of windows by the phase of their first step ahead
    ridge = Shrinkage().penalty * products.diagonal().mean() * torch.eye(K, dtype=torch.float64)
    season = torch.zeros(channels, S, dtype=torch.float64)
    for _ in range(SEASON_ROUNDS):
        shape = season[:, at % S].transpose(0, 1)  # (S, C, K + H)
        cross = torch.einsum("scj,sck->jk", shape[..., :K], means)
        back = torch.einsum("scj,sck->jk", means[..., :K], shape)
        left = products - cross - back + torch.einsum("scj,sck->jk", shape[..., :K] * weight, shape)
        map_KH = torch.linalg.solve(left[:, :K] + ridge, left[:, K:])
        season = _season_given(map_KH, weight, means, at % S)
    linear.season.copy_(season)


def _season_given(map_KH: Tensor, weight: Tensor, means: Tensor, at: Tensor) -> Tensor:
    """(C, S) that minimises the squared error of targets less season from the map of inputs less season."""
    S, channels, _ = weight.shape
    K = len(map_KH)
    rest = means[..., K:] - means[..., :K] @ map_KH  # (S, C, H)
    steps = torch.eye(S, dtype=torch.float64)
    gram = torch.zeros(channels, S, S, dtype=torch.float64)
    moments = torch.zeros(channels, S, dtype=torch.float64)
    for phase in range(S):
        design = steps[at[phase, K:]] - map_KH.T @ steps[at[phase, :K]]  # (H, S)
        gram += weight[phase].unsqueeze(1) * (design.T @ design)
        moments += rest[phase] @ design
    ridge = SEASON_PENALTY * gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp(min=1e-12)
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    return torch.linalg.solve(gram, moments.unsqueeze(2)).squeeze(2)
