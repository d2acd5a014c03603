"""Ridge regression that is fitted again as its series goes on: how much there is to learn on the way.

A window is used from the step on at which its whole future has been observed. Shapes: T steps, L look-back, H horizon, C channels, G groups
of channels that share a map: one, or each channel.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

PENALTIES = (1.0, 30.0, 1_000.0)
BLOCK = 2048


@dataclass(frozen=True)
class Kind:
    """A way to fit. memory: steps after which a window counts 1/e, None for all alike; refit: at every origin, else once at the first."""

    look_back: int
    per_channel: bool
    memory: int | None = None
    refit: bool = True


def kinds(refit: bool) -> list[Kind]:
    """Those that are chosen from."""
    shapes = [(96, False), (96, True), (336, False)]
    return [Kind(*shape, memory, refit) for shape, memory in product(shapes, (None, 4_000) if refit else (None,))]


class Sums:
    """Sums over windows of what least squares needs, the older with less weight; windows and targets are less their last value."""

    def __init__(self, series_TC: Tensor, kind: Kind, horizon: int) -> None:
        self.kind, self.horizon, self.read = kind, horizon, 0
        size = kind.look_back + 1
        self.windows = series_TC.unfold(0, kind.look_back + horizon, 1)  # (W, C, L + H)
        self.sums = torch.zeros(series_TC.shape[1] if kind.per_channel else 1, size, size + horizon, dtype=torch.float64)  # (G, L + 1, ..)

    def add(self, origin: int) -> None:
        """Windows whose future ends before `origin`."""
        L, last = self.kind.look_back, origin - self.kind.look_back - self.horizon + 1
        keep = 1.0 if self.kind.memory is None else math.exp(-1 / self.kind.memory)
        while self.read < last:
            block = self.windows[self.read : min(last, self.read + BLOCK)]
            self.read += len(block)
            weight = keep ** torch.arange(len(block) - 1, -1, -1.0)
            level = block[..., L - 1 : L]
            rows = torch.cat([block[..., :L] - level, torch.ones_like(level), block[..., L:] - level], -1)  # (n, C, L + 1 + H)
            rows = (rows * weight.sqrt().view(-1, 1, 1)).transpose(0, 1)
            rows = rows if self.kind.per_channel else rows.reshape(1, -1, rows.shape[-1])
            self.sums = self.sums * keep ** len(block) + (rows[..., : L + 1].transpose(1, 2) @ rows).double()

    def solve(self, penalty: float) -> Tensor:
        """Weights (G, L + 1, H), the intercept last."""
        L = self.kind.look_back
        ridge = torch.full((L + 1,), penalty, dtype=torch.float64)
        ridge[L] = 1e-6
        return torch.linalg.solve(self.sums[..., : L + 1] + ridge.diag(), self.sums[..., L + 1 :]).float()


def forecasts(series_TC: Tensor, origins: Sequence[int], horizon: int, kind: Kind, penalties: Sequence[float]) -> Iterator[Tensor]:
    """At each origin the forecast of every penalty, (penalties, H, C)."""
    sums, weights = Sums(series_TC, kind, horizon), None
    for origin in origins:
        if weights is None or kind.refit:
            sums.add(origin)
            weights = torch.stack([sums.solve(penalty) for penalty in penalties])  # (penalties, G, L + 1, H)
        past_CL = series_TC[origin - kind.look_back : origin].T
        level_C1 = past_CL[:, -1:]
        x_CL = torch.cat([past_CL - level_C1, torch.ones_like(level_C1)], 1)
        yield ((x_CL.unsqueeze(1) @ weights).squeeze(-2) + level_C1).transpose(1, 2)


def choose(series_TC: Tensor, origins: Sequence[int], horizon: int, refit: bool) -> tuple[Kind, float]:
    """The kind and penalty with the least squared error at these origins."""
    found = []
    for kind in kinds(refit):
        errors = [
            (forecast - series_TC[origin : origin + horizon]).square().mean((1, 2))
            for origin, forecast in zip(origins, forecasts(series_TC, origins, horizon, kind, PENALTIES), strict=True)
        ]
        found += [(float(error), kind, penalty) for error, penalty in zip(torch.stack(errors).mean(0), PENALTIES, strict=True)]
    _, kind, penalty = min(found, key=lambda one: one[0])
    return kind, penalty
