"""Series that are made so that a long memory must help: what to remember is in a series' own past, out of a window's reach."""

import math

import torch
from torch import Tensor

EVENT, CUE, ANSWER = 96, 8, 8
"""Steps from cue to cue, and of each."""
CUES = 12
"""Each returns after 12 x 96 = 1,152 steps, so that a window of 1,024 never holds the last time."""
REGIME = 2_500
PERIODS = (6.0, 11.0, 20.0)


def recurring(steps: int = 12_000, channels: int = 8, seed: int = 0) -> Tensor:
    """Cues, the same always and for all channels, in turn; each is followed by an answer that every channel has of its own. Float64 (T, C).

    What follows a cue cannot be learned from other channels or another seed, and in the noise between there is nothing to learn.
    """
    cues = 0.3 * torch.randn(CUES, CUE, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed + 1)
    x_TC = 0.03 * torch.randn(steps, channels, generator=draw, dtype=torch.float64)
    answers = torch.randn(CUES, ANSWER, channels, generator=draw, dtype=torch.float64)
    answers -= answers.mean(2, keepdim=True)
    for event, start in enumerate(range(EVENT - CUE - ANSWER, steps - EVENT + 1, EVENT)):
        cue = event % CUES
        x_TC[start : start + CUE] += cues[cue]
        x_TC[start + CUE : start + CUE + ANSWER] += answers[cue]
    return x_TC


def cue_ends(steps: int) -> range:
    """Steps of `recurring` before which a cue has just been read."""
    return range(EVENT - ANSWER, steps - EVENT + 1, EVENT)


def regimes(steps: int = 12_000, channels: int = 8, seed: int = 0) -> Tensor:
    """Autoregressions of order two whose period switches between three values, at other times in each channel. Float64 (T, C)."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, channels, generator=draw, dtype=torch.float64)
    shift = torch.randint(REGIME, (channels,), generator=draw)
    order = torch.randint(len(PERIODS), (steps // REGIME + 2, channels), generator=draw)
    regime = order.gather(0, (torch.arange(steps).unsqueeze(1) + shift) // REGIME)
    first = 2 * 0.97 * (2 * math.pi / torch.tensor(PERIODS, dtype=torch.float64)[regime]).cos()  # (T, C)
    x_TC = torch.zeros(steps, channels, dtype=torch.float64)
    for t in range(2, steps):
        x_TC[t] = first[t] * x_TC[t - 1] - 0.97**2 * x_TC[t - 2] + noise[t]
    return x_TC
