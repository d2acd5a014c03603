"""Level and spread of a series as it is read: exponentially weighted moments, carried from piece to piece.

A forecaster that reads a stream cannot look ahead for its units, as instance normalisation over a window does. Here each patch is expressed
in the level and spread of all that was observed up to its end, the older with less weight, so that reading a series at once, in pieces or
step by step gives the same numbers. Shapes: R rows (series times channels), N patches, P steps a patch.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from titans_seq.state import State

SMALLEST = 1e-12
FLOAT32_RELATIVE = 1e-6
"""A series that does not move gets the smallest spread that float32 tells from its level, so that its forecast is its level."""
SMALLEST_COUNT = 1e-2
"""Unit of a count series that has been zero so far."""


@dataclass(frozen=True)
class Moments(State):
    """Weighted moments of the observed values so far, (R,) float64 each.

    weight: sum of the weights; a value observed now has 1.
    mean:   weighted mean, 0 before the first value.
    square: weighted sum of squared distances from the mean.
    """

    weight: Tensor
    mean: Tensor
    square: Tensor

    @classmethod
    def initial(cls, rows: int, device: torch.device | None = None) -> "Moments":
        """Before the first value."""
        return cls(*(torch.zeros(rows, dtype=torch.float64, device=device) for _ in range(3)))


def scan(x_RNP: Tensor, seen_RNP: Tensor, length: float, moments: Moments) -> tuple[Moments, Moments]:
    """Moments after every patch, and after the last.

    The weights of what was before shrink by exp(-P / length) with each patch of P steps; within a patch they are equal. Patches are merged
    by the parallel formula of Chan, Golub and LeVeque (1979), which does not cancel.

    Args:
        x_RNP: (R, N, P), any values where not seen.
        seen_RNP: (R, N, P), above 0 where observed.
        length: steps after which a weight is 1/e.
        moments: before the first patch, (R,) each.

    Returns:
        moments (R, N) each, and those after the last patch, (R,) each; float64.
    """
    seen = (seen_RNP > 0).double()
    x = torch.where(seen_RNP > 0, x_RNP, 0.0).double()
    count = seen.sum(-1)  # (R, N)
    mean = x.sum(-1) / count.clamp(min=1)
    square = ((x - mean.unsqueeze(-1)).square() * seen).sum(-1)
    keep = math.exp(-x.shape[-1] / length)
    weight, level, spread = moments.weight, moments.mean, moments.square
    after = []
    for n in range(x.shape[1]):
        old, new = keep * weight, count[:, n]
        weight = old + new
        distance = mean[:, n] - level
        share = torch.where(new > 0, new / weight.clamp(min=SMALLEST), 0.0)
        level = level + distance * share
        spread = keep * spread + square[:, n] + distance.square() * old * share
        after.append((weight, level, spread))
    each = Moments(*(torch.stack(parts, dim=1) for parts in zip(*after, strict=True)))
    return each, Moments(weight, level, spread)


def real_units(moments: Moments) -> tuple[Tensor, Tensor]:
    """loc and scale of real values: mean and standard deviation, of the shape of the moments."""
    deviation = (moments.square / moments.weight.clamp(min=SMALLEST)).sqrt()
    return moments.mean, deviation.clamp(min=SMALLEST).maximum(FLOAT32_RELATIVE * moments.mean.abs())


def count_units(moments: Moments) -> tuple[Tensor, Tensor]:
    """loc and scale of counts: 0 and the mean."""
    return torch.zeros_like(moments.mean), moments.mean.clamp(min=SMALLEST_COUNT)
