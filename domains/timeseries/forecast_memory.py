"""The linear part goes on learning as it reads: a linear Titans memory whose surprise is the error of the forecast.

After each patch the linear part forecasts H steps. They arrive patch by patch, and so do its errors, which are what the memory learns:

    key      k_n, the latest values after patch n: their whitened principal components over the training data, and 1 for the level
    value    of head j, the error in the patch that has just arrived of the forecast made j + 1 patches ago, over its |k|
    rule     arXiv 2501.00663, equations 9 to 14, of a linear memory without momentum: the delta rule with forgetting, from W^0 = 0; the
             step is smaller by the square of how much less the series moved when the forecast was made, as in a weighted regression
    read     |k_n| M_j(k_n / |k_n|) is added to the linear forecast of the j-th patch after patch n

A head is written as soon as its patch is there: nothing looks ahead, and nothing waits for the whole horizon. Keys are whitened, since a
gradient step learns what is strong in a series long before what tells its future. Step and forgetting of each head are chosen on the
training series, as the linear part is: nothing here is trained by gradients from outside. Shapes: R rows, N patches, P steps of a patch,
H prediction length, J = ceil(H / P) heads, D width of keys, K steps that the linear part sees.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from domains.timeseries.scaling import SMALLEST
from titans_seq.memory import Gates, MemoryState, MemoryWeights, neural_memory
from titans_seq.memory.layer import Learner
from titans_seq.state import State

if TYPE_CHECKING:
    from domains.timeseries.model import TitansForecaster

CHUNK_SIZE = 16
"""Of the operator: its gradients are at the freshest state, so that the size changes cost alone."""
SMALLEST_VARIANCE = 1e-8
"""Of a principal component over the first's, for it to be a part of keys."""
WINDOWS = (1, 2, 4, 16)
"""Keys are of one of these parts of what the linear part sees, the latest: all of it, half, a quarter or a sixteenth."""
STEPS = (0.0, 0.0015, 0.005, 0.015, 0.05, 0.15, 0.5)
"""Theta that are tried. A step takes a share 2 theta of the error of its key."""
FORGETTING = (0.001, 0.0, 0.01)
"""Alpha that are tried, the first with every theta."""


@dataclass(frozen=True)
class ForecastMemoryState(State):
    """What is carried from patch to patch.

    memory:     of every head.
    keys:       (R, J, D) of the last J patches, of unit length.
    lengths:    (R, J) of those keys before.
    scales:     (R, J) float64, spread after those patches; 0 where there is nothing to learn from.
    expected:   (R, J, H) float64, what the linear part forecast after them.
    correction: (R, H), what the memory adds to a forecast after the last patch, in its units.
    """

    memory: MemoryState
    keys: Tensor
    lengths: Tensor
    scales: Tensor
    expected: Tensor
    correction: Tensor


class Patches(NamedTuple):
    """What a forecast memory reads: x, seen (R, N, P) float64; loc, scale (R, N) float64; of the linear part after each patch latest
    (R, N, K) without their season, whether they are enough to learn from (R, N) bool, and its forecast (R, N, H) in units of loc and scale.
    """

    x: Tensor
    seen: Tensor
    loc: Tensor
    scale: Tensor
    latest: Tensor
    enough: Tensor
    forecast: Tensor


class ForecastMemory(Learner):
    """What has been learned of the linear part's errors so far: nothing before `start_forecast_memory` has set the buffers.

    Attributes:
        components: (K, D - 1), from the latest values to their whitened principal components.
        step, forgetting: (J,) theta and alpha of each head.
    """

    components: Tensor
    step: Tensor
    forgetting: Tensor

    def __init__(self, linear_steps: int, prediction_length: int, patch_length: int, width: int) -> None:
        super().__init__()
        self.horizon, self.patch, self.width = prediction_length, patch_length, width
        self.heads = -(-prediction_length // patch_length)
        self.register_buffer("components", torch.zeros(linear_steps, width - 1))
        for name in ("step", "forgetting"):
            self.register_buffer(name, torch.zeros(self.heads))

    @property
    def key_steps(self) -> int:
        """Latest steps that keys are made of."""
        return int(self.components.any(1).sum())

    @property
    def _weights(self) -> MemoryWeights:
        return MemoryWeights(layers=[self.components.new_zeros(self.heads, self.width, self.width)], residual=False)

    def init_state(self, rows: int) -> ForecastMemoryState:
        """Before the first patch."""
        one, J = self.components, self.heads
        return ForecastMemoryState(
            memory=MemoryState.initial(self._weights, rows, CHUNK_SIZE),
            keys=one.new_zeros(rows, J, self.width),
            lengths=one.new_ones(rows, J),
            scales=one.new_zeros(rows, J, dtype=torch.float64),
            expected=one.new_zeros(rows, J, self.horizon, dtype=torch.float64),
            correction=one.new_zeros(rows, self.horizon),
        )

    @torch.no_grad()
    def forward(self, new: Patches, state: ForecastMemoryState) -> tuple[Tensor, ForecastMemoryState]:
        """Learn from each patch, then correct the forecast after it: corrections (R, N, H) in its units, and the state after the last."""
        key = torch.cat([new.latest @ self.components, torch.ones_like(new.latest[..., :1])], -1)  # (R, N, D)
        length = key.norm(dim=-1)
        query = key / length.unsqueeze(-1)
        seen = ForecastMemoryState(  # up to each patch
            state.memory,
            torch.cat([state.keys, query], 1),  # (R, J + N, D)
            torch.cat([state.lengths, length], 1),
            torch.cat([state.scales, torch.where(new.enough, new.scale, 0.0)], 1),
            torch.cat([state.expected, new.forecast * new.scale.unsqueeze(-1) + new.loc.unsqueeze(-1)], 1),
            state.correction,
        )
        k, v, share = self._pairs(seen, new)
        learns = torch.zeros_like(share) if self.frozen else share
        forgets = (learns > 0) * self.forgetting.view(-1, 1)
        gates = [Gates(forgets, torch.zeros_like(learns), learns * self.step.view(-1, 1))]
        q = query.unsqueeze(1).expand_as(k)
        y, memory = neural_memory(q, k, v, gates, self._weights, state.memory, CHUNK_SIZE, gradient="token")
        correction = y[..., : self.patch].transpose(1, 2).flatten(2)[..., : self.horizon] * length.unsqueeze(-1)
        keys, lengths, scales, expected = (part[:, -self.heads :] for part in (seen.keys, seen.lengths, seen.scales, seen.expected))
        return correction, ForecastMemoryState(memory, keys, lengths, scales, expected, correction[:, -1])

    def _pairs(self, seen: ForecastMemoryState, new: Patches) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (R, J, N, D) that each patch writes, and the share of a step that it takes, (R, J, N), 0 for none."""
        N, P, J = new.x.shape[1], self.patch, self.heads
        whole = (new.seen > 0).all(-1)
        k, v, shares = [], [], []
        for j in range(J):
            made = slice(J - 1 - j, J - 1 - j + N)  # j + 1 patches ago
            steps = slice(j * P, min((j + 1) * P, self.horizon))
            key, scale = seen.keys[:, made], seen.scales[:, made]
            there = whole & (scale > 0)
            unit = scale * seen.lengths[:, made]
            error = (new.x[..., : steps.stop - steps.start] - seen.expected[:, made, steps]) / unit.clamp(min=SMALLEST).unsqueeze(-1)
            error = torch.where(there.unsqueeze(-1), error, 0.0).to(key.dtype)
            k.append(key)
            v.append(nn.functional.pad(error, (0, self.width - error.shape[-1])))
            shares.append(torch.where(there, (scale / new.scale).clamp(max=1).square(), 0.0).to(key.dtype))
        return torch.stack(k, 1), torch.stack(v, 1), torch.stack(shares, 1)


@torch.no_grad()
def start_forecast_memory(model: "TitansForecaster", batches: Iterable[dict[str, Tensor]], streams: Iterable[dict[str, Tensor]]) -> None:
    """Set the keys of `model.linear_memory`, and the step and forgetting of each head: those with which streams are forecast best.

    Args:
        model: with a linear memory, and a linear part that was fitted on the beginnings of the streams alone: what it knows already shows
            no use of learning.
        batches: as of `TitansForecaster.loss`: the keys' principal components are of the latest values in their contexts.
        streams: series as `TitansForecaster.linear_patches` takes them, target, observed_values and phases; series_spread (B, C); and
            counted, the share of their steps, at the end, in which errors count.
    """
    memory = model.linear_memory
    assert memory is not None
    moments = _second_moments(model, batches)
    streams = list(streams)
    starts = [_fit(model, _whitened(moments, max(1, len(moments) // part), memory.width - 1), streams) for part in WINDOWS]
    memory.load_state_dict(min(starts, key=lambda start: start[0])[1])


def _fit(model: "TitansForecaster", components: Tensor, streams: Sequence[dict[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    """Squared error over the streams with these keys, and the buffers: the best step of each head, then its best forgetting."""
    memory = model.linear_memory
    assert memory is not None
    memory.components.copy_(components)
    memory.forgetting.fill_(FORGETTING[0])
    _choose(model, "step", [torch.full_like(memory.step, step) for step in STEPS], streams)
    least = _choose(model, "forgetting", [torch.full_like(memory.step, forgetting) for forgetting in FORGETTING], streams)
    return least, {name: x.clone() for name, x in memory.state_dict().items()}


def _choose(model: "TitansForecaster", name: str, values: list[Tensor], streams: Sequence[dict[str, Tensor]]) -> float:
    """Set a buffer to the best of these values for each head; the squared error with it."""
    memory = model.linear_memory
    assert memory is not None
    squared = torch.zeros(len(values), memory.heads, dtype=torch.float64)
    for stream in streams:
        patches = model.linear_patches(stream["target"], stream["observed_values"], stream["phases"])
        weight = (patches.scale / stream["series_spread"].double().clamp(min=SMALLEST).reshape(-1, 1)).square()
        weight[:, : round((1 - float(stream["counted"])) * weight.shape[1])] = 0
        for errors, value in zip(squared, values, strict=True):
            getattr(memory, name).copy_(value)
            errors += _squared_errors(memory, patches, weight)
    least, best = squared.min(0)
    getattr(memory, name).copy_(torch.stack(values).gather(0, best.unsqueeze(0))[0])
    return float(least.sum())


def _second_moments(model: "TitansForecaster", batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """Weighted mean of x x^T over the inputs of linear problems without their season, (K, K) float64."""
    parts = []
    for batch in batches:
        problem = model.linear_problem(batch)
        inputs = model.linear.without_season(problem.inputs, problem.seen, problem.phase, problem.channel)
        parts.append(((inputs * problem.weight.unsqueeze(1)).T @ inputs, problem.weight.sum()))
    products, weights = zip(*parts, strict=True)
    return sum(products) / sum(weights).clamp(min=1e-300)


def _whitened(moments_KK: Tensor, steps: int, components: int) -> Tensor:
    """Maps (K, components) to the first principal components of the latest `steps`, each with a mean square of 1; zeros beyond them."""
    variance, directions = torch.linalg.eigh(moments_KK[-steps:, -steps:])
    variance, directions = variance.flip(0)[:components], directions.flip(1)[:, :components]
    smallest = SMALLEST_VARIANCE * variance[0]
    found = directions * torch.where(variance > smallest, variance.clamp(min=smallest).rsqrt(), 0.0)
    return nn.functional.pad(found, (0, components - found.shape[1], len(moments_KK) - steps, 0))


def _squared_errors(memory: ForecastMemory, patches: Patches, weight_RN: Tensor) -> Tensor:
    """Sum of squared errors of each head's corrected forecasts over a stream, (J,) float64; weight of the units of each patch."""
    correction, _ = memory(patches, memory.init_state(len(patches.x)))
    forecast = patches.forecast.double() + correction
    whole = (patches.seen > 0).all(-1)
    found = []
    for j in range(memory.heads):
        steps = slice(j * memory.patch, min((j + 1) * memory.patch, memory.horizon))
        lag = j + 1
        truth = (patches.x[:, lag:, : steps.stop - steps.start] - patches.loc[:, :-lag, None]) / patches.scale[:, :-lag, None]
        error = (truth - forecast[:, :-lag, steps]).square().sum(-1) * weight_RN[:, :-lag]
        found.append(error[whole[:, lag:] & patches.enough[:, :-lag]].sum())
    return torch.stack(found)
