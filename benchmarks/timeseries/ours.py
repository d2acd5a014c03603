"""TitansForecaster in the harness: its own loss, the protocol's windows, and the time of day where the data has a season."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timeseries.forecasters import Fitted
from benchmarks.timeseries.protocol import BATCH, Windows
from domains.timeseries.config import ForecasterConfig, OutputConfig
from domains.timeseries.forecast_memory import start_forecast_memory
from domains.timeseries.model import TitansForecaster
from domains.timeseries.ridge import start_from_ridge
from domains.timeseries.start import COUNTED
from domains.timeseries.windows import STREAM_STEPS
from titans_seq.config import AttentionConfig, MemoryConfig, TitansConfig

LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.0
RIDGE_WINDOWS = 10_000
"""Training windows, evenly apart, of the closed-form start."""


@dataclass(frozen=True)
class Settings:
    """What was chosen on validation windows; `memory` and what follows are for ablations.

    Attributes:
        patch_length: steps a token.
        dim, num_layers, dropout: of the backbone.
        variant: of the backbone.
        output: "normal" is trained by the squared error (beta 1) and forecasts the mean, "quantile" forecasts the median.
        absolute_level, spread_prior, channel_maps: of the ForecasterConfig.
        season: take out the profile of the day, where the data set has one.
        ridge: begin from the closed-form linear forecaster.
        train_linear: train it as well; else it stays as it began.
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
    season: bool = True
    spread_prior: float = 0.3
    channel_maps: bool = True
    train_linear: bool = False
    scale_length: int | None = 100_000
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

    def config(self, windows: Windows, season: int) -> ForecasterConfig:
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
            spread_prior=self.spread_prior,
            season_length=season if self.season and season > 1 else None,
            num_time_features=int(self.season and season > 1),
            channel_maps=self.channel_maps,
            scale_length=self.scale_length,
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

    def __init__(self, model: TitansForecaster, chosen: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.chosen = model, chosen

    def forward(self, past_BLC: Tensor, phase_B: Tensor) -> Tensor:
        features = times(self.model.config, phase_B, past_BLC.shape[1])
        (location, *_), loc, scale = self.model(past_BLC, torch.ones_like(past_BLC), *features)
        if self.model.config.output.kind == "quantile":
            location = location[..., location.shape[-1] // 2]
        return location * scale + loc

    def loss(self, past_BLC: Tensor, future_BHC: Tensor, phase_B: Tensor) -> Tensor:
        return self.model.loss(batch(self.model.config, past_BLC, future_BHC, phase_B))


def times(config: ForecasterConfig, phase_B: Tensor, look_back: int) -> tuple[Tensor | None, Tensor | None]:
    """past_feat (B, L, 2) and future_feat (B, H, 2): the phase of the day, and as a calendar feature; None where there is no season."""
    season = config.season_length
    if season is None:
        return None, None
    steps_BT = phase_B.unsqueeze(1) + torch.arange(-look_back, config.prediction_length, device=phase_B.device)
    feat_BTF = torch.stack([steps_BT % season, steps_BT % season / season - 0.5], -1)
    return feat_BTF[:, :look_back], feat_BTF[:, look_back:]


def batch(config: ForecasterConfig, past_BLC: Tensor, future_BHC: Tensor, phase_B: Tensor) -> dict[str, Tensor]:
    """As `TitansForecaster.loss` takes it; the protocol's series have spread 1."""
    past_feat, future_feat = times(config, phase_B, past_BLC.shape[1])
    features = {} if past_feat is None or future_feat is None else {"past_feat": past_feat, "future_feat": future_feat}
    return {
        **features,
        "past_target": past_BLC,
        "past_observed_values": torch.ones_like(past_BLC),
        "future_target": future_BHC,
        "future_observed_values": torch.ones_like(future_BHC),
        "series_spread": torch.ones_like(past_BLC[:, 0]),
    }


def titans(settings: Settings, season: int) -> Callable[[Windows, Windows], OurNetwork]:
    """Builds a network with these settings for a data set of this season, its linear part begun in closed form on the training windows."""

    def build(train: Windows, validation: Windows) -> OurNetwork:
        model = TitansForecaster(settings.config(train, season))
        of_train, of_validation = (batches(model, windows.sample(settings.ridge_windows)) for windows in (train, validation))
        if settings.linear_memory:
            counted = round(COUNTED * min(STREAM_STEPS, len(train.series_TC)))
            early = replace(train.sample(settings.ridge_windows), series_TC=train.series_TC[:-counted])
            start_from_ridge(model, batches(model, early))
            start_forecast_memory(model, of_train(), [stream(train, STREAM_STEPS)])
        chosen = {}
        if settings.ridge:
            start = start_from_ridge(model, of_train, of_validation)
            chosen = {} if start is None else {**asdict(start.shrinkage), "season": start.season, "channel_maps": start.apart is not None}
            model.linear.requires_grad_(settings.train_linear)
        return OurNetwork(model, chosen)

    return build


def stream(windows: Windows, most: int) -> dict[str, Tensor]:
    """The latest steps of a series as `start_forecast_memory` takes them."""
    one = windows.series_TC[-most:].unsqueeze(0)
    phase_T = torch.zeros(len(windows.series_TC), dtype=torch.int64) if windows.phase_T is None else windows.phase_T
    return {
        "target": one,
        "observed_values": torch.ones_like(one),
        "phases": phase_T[-most:].unsqueeze(0),
        "series_spread": torch.ones_like(one[:, 0]),
        "counted": torch.tensor(COUNTED),
    }


def batches(model: TitansForecaster, windows: Windows) -> Callable[[], Iterator[dict[str, Tensor]]]:
    return lambda: (batch(model.config, *window) for window in windows.batches(BATCH))


@dataclass(frozen=True)
class ClosedForm:
    """The forecaster before any training: its linear part in closed form."""

    settings: Settings
    season: int

    def fit(self, train: Windows, validation: Windows, seed: int) -> Fitted:
        torch.manual_seed(seed)
        net = titans(self.settings, self.season)(train, validation).eval()

        def predict(past_BLC: Tensor, phase_B: Tensor) -> Tensor:
            return net.model.linear_forecast(past_BLC, torch.ones_like(past_BLC), times(net.model.config, phase_B, past_BLC.shape[1])[1])

        return Fitted(predict, sum(p.numel() for p in net.model.linear.parameters()), net.chosen)
