"""TitansForecaster in the harness: its own loss, the protocol's windows, no calendar, as the peers have none."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.timeseries.protocol import BATCH, Windows
from domains.timeseries.config import ForecasterConfig, OutputConfig
from domains.timeseries.forecast_memory import start_forecast_memory
from domains.timeseries.model import TitansForecaster
from domains.timeseries.ridge import start_from_ridge
from titans_seq.config import AttentionConfig, MemoryConfig, TitansConfig

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.0
RIDGE_WINDOWS = 10_000
"""Training windows, evenly apart, of the closed-form start."""
COUNTED = 0.4
"""Of the training steps, at their end, those in which the linear memory shows what it can do for a linear part that has not seen them."""
LATEST = 12_000
"""Training steps at most of that."""


@dataclass(frozen=True)
class Settings:
    """What was chosen on validation windows; `memory` and what follows are for ablations.

    Attributes:
        patch_length: steps a token.
        dim, num_layers, dropout: of the backbone.
        variant: of the backbone.
        output: "normal" is trained by the squared error (beta 1) and forecasts the mean, "quantile" forecasts the median.
        absolute_level: of the ForecasterConfig.
        ridge: begin from the closed-form linear forecaster.
        ridge_windows: training windows, evenly apart, of that.
        linear_length, linear_memory: of the ForecasterConfig.
        chunk_size, max_step: of the memory.
        memory: False lets the memory learn nothing while it reads.
        momentum, forgetting, convolution, depth: of the memory.
    """

    patch_length: int = 16
    dim: int = 32
    num_layers: int = 1
    dropout: float = 0.1
    variant: str = "mag"
    output: str = "normal"
    absolute_level: bool = False
    ridge: bool = True
    ridge_windows: int = RIDGE_WINDOWS
    linear_length: int | None = None
    linear_memory: int = 0
    chunk_size: int = 16
    max_step: float = MemoryConfig.max_step
    memory: bool = True
    momentum: bool = True
    forgetting: bool = True
    convolution: bool = True
    depth: int = 2

    def config(self, windows: Windows) -> ForecasterConfig:
        memory = MemoryConfig(
            num_heads=2,
            expansion=2,
            depth=self.depth,
            chunk_size=self.chunk_size,
            max_step=self.max_step,
            momentum=self.momentum,
            forgetting="head" if self.forgetting else "none",
            convolution_width=4 if self.convolution else 1,
        )
        if not self.memory:
            memory = replace(memory, max_step=1e-12)
        return ForecasterConfig(
            prediction_length=windows.horizon,
            context_length=windows.look_back,
            num_channels=windows.series_TC.shape[1],
            patch_length=self.patch_length,
            absolute_level=self.absolute_level,
            linear_length=self.linear_length,
            linear_memory=self.linear_memory,
            output=OutputConfig(kind="normal", beta=1.0) if self.output == "normal" else OutputConfig(kind="quantile"),
            titans=TitansConfig(
                dim=self.dim,
                num_layers=self.num_layers,
                variant=self.variant,
                dropout=self.dropout,
                memory=memory,
                attention=AttentionConfig(num_heads=2, sliding_window=64),
            ),
        )


class OurNetwork(nn.Module):
    """Point forecasts of a TitansForecaster: the mean, or the median of quantiles."""

    def __init__(self, model: TitansForecaster) -> None:
        super().__init__()
        self.model = model

    def forward(self, past_BLC: Tensor) -> Tensor:
        (location, *_), loc, scale = self.model(past_BLC, torch.ones_like(past_BLC))
        if self.model.config.output.kind == "quantile":
            location = location[..., location.shape[-1] // 2]
        return location * scale + loc

    def loss(self, past_BLC: Tensor, future_BHC: Tensor) -> Tensor:
        return self.model.loss(batch(past_BLC, future_BHC))


def batch(past_BLC: Tensor, future_BHC: Tensor) -> dict[str, Tensor]:
    """As `TitansForecaster.loss` takes it; the protocol's series have spread 1."""
    return {
        "past_target": past_BLC,
        "past_observed_values": torch.ones_like(past_BLC),
        "future_target": future_BHC,
        "future_observed_values": torch.ones_like(future_BHC),
        "series_spread": torch.ones_like(past_BLC[:, 0]),
    }


def titans(settings: Settings) -> Callable[[Windows], nn.Module]:
    """Builds a network with these settings, its linear part begun in closed form on the training windows."""

    def build(train: Windows) -> nn.Module:
        model = TitansForecaster(settings.config(train))
        sample = train.sample(settings.ridge_windows)
        if settings.linear_memory:
            counted = round(COUNTED * min(LATEST, len(train.series_TC)))
            early = Windows(train.series_TC[:-counted], train.look_back, train.horizon, sample.stride)
            start_from_ridge(model, batches(early))
            start_forecast_memory(model, batches(sample), [stream(train.series_TC[-LATEST:])])
        if settings.ridge:
            start_from_ridge(model, batches(sample))
        return OurNetwork(model)

    return build


def stream(series_TC: Tensor) -> dict[str, Tensor]:
    """A series as `start_forecast_memory` takes it."""
    one = series_TC.unsqueeze(0)
    spread = torch.ones_like(one[:, 0])
    return {"target": one, "observed_values": torch.ones_like(one), "series_spread": spread, "counted": torch.tensor(COUNTED)}


def batches(windows: Windows) -> Iterator[dict[str, Tensor]]:
    return (batch(past_BLC, future_BHC) for past_BLC, future_BHC in windows.batches(BATCH))
