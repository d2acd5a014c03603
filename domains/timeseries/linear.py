"""The linear part of a forecast: each channel's season taken out of the latest values, a linear map, the season put back.

Shapes: R = B * C rows with the channel running fastest, K latest values, H steps ahead, S steps of a season.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from domains.timeseries.config import ForecasterConfig


class LinearProblem(NamedTuple):
    """What a linear forecast would have to map to what, n rows in units of their contexts.

    inputs (n, K), 0 where nothing was observed; seen (n, K); targets (n, H); weight (n,), by which a squared error counts; float64 all.
    channel (n,); phase (n,) of the first step ahead.
    """

    inputs: Tensor
    seen: Tensor
    targets: Tensor
    weight: Tensor
    channel: Tensor
    phase: Tensor


class LinearForecast(nn.Module):
    """y = season + W (x - season) + b, in the units of the context, with W = weight + channel_weight of the channel; all zero at first.

    The season is that of CycleNet (Lin et al. 2024, arXiv 2409.18479), in units of the spread of each context.

    Attributes:
        weight, bias: (H, K), (H,).
        channel_weight: (C, H, K), or None.
        season: (C, S), or None.
    """

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        K, H, C = config.linear_steps, config.prediction_length, config.num_channels
        self.num_channels = C
        self.weight = nn.Parameter(torch.zeros(H, K))
        self.bias = nn.Parameter(torch.zeros(H))
        self.channel_weight = nn.Parameter(torch.zeros(C, H, K)) if config.channel_maps else None
        self.season = None if config.season_length is None else nn.Parameter(torch.zeros(C, config.season_length))

    def forward(self, latest: Tensor, seen: Tensor, phase: Tensor) -> Tensor:
        """(R, H) from the latest values (R, K), 0 where `seen` (R, K) is 0, and the phase (R,) of the first step ahead."""
        return self.from_rest(self.without_season(latest, seen, phase, self.channels(len(latest))), phase)

    def from_rest(self, x: Tensor, phase: Tensor) -> Tensor:
        """As `forward`, from the latest values without their season."""
        y = nn.functional.linear(x, self.weight, self.bias)
        if self.channel_weight is not None:
            by_channel = torch.einsum("bck,chk->bch", x.unflatten(0, (-1, len(self.channel_weight))), self.channel_weight)
            y = y + by_channel.flatten(0, 1)
        return y + self.season_ahead(phase, self.channels(len(x)))

    def channels(self, rows: int) -> Tensor:
        """The channel of each row, (R,)."""
        return torch.arange(rows, device=self.weight.device) % self.num_channels

    def without_season(self, latest: Tensor, seen: Tensor, phase: Tensor, channel: Tensor) -> Tensor:
        """(n, K) of any rows, given their channel (n,); still 0 where nothing was observed."""
        before = torch.arange(-latest.shape[1], 0, device=phase.device)
        return latest - seen * self.seasonal(phase.unsqueeze(1) + before, channel)

    def season_ahead(self, phase: Tensor, channel: Tensor) -> Tensor:
        """Of the H steps from `phase` (n,) on, (n, H)."""
        return self.seasonal(phase.unsqueeze(1) + torch.arange(len(self.bias), device=phase.device), channel)

    def seasonal(self, phases: Tensor, channel: Tensor) -> Tensor:
        """The season of each row's channel (n,) at integers (n, T), taken modulo S; zeros where there is none."""
        if self.season is None:
            return self.weight.new_zeros(phases.shape)
        return self.season[channel.unsqueeze(1), phases % self.season.shape[1]]
