"""The forecaster: instance normalisation, patches, the Titans backbone over patches, a head for the whole horizon.

Shape suffixes: B batch, L context length, H prediction length, C channels, F time features, N patches, P patch length, E model width.
"""

import math

import torch
from gluonts.torch.distributions import LaplaceOutput, NormalOutput, Output, QuantileOutput, StudentTOutput
from torch import Tensor, nn

from domains.timeseries.config import ForecasterConfig, OutputConfig
from titans_seq import Titans
from titans_seq.checkpoint import Pretrained

HARMONICS = 2
FLAT_CONTEXT = 0.1
"""A context with less than this share of its series' spread has less weight in training."""


OUTPUTS: dict[str, type[Output]] = {
    "quantile": QuantileOutput,
    "normal": NormalOutput,
    "student_t": StudentTOutput,
    "laplace": LaplaceOutput,
}


def make_output(config: OutputConfig) -> Output:
    """The GluonTS output that `config` describes."""
    return QuantileOutput(list(config.quantiles)) if config.kind == "quantile" else OUTPUTS[config.kind](beta=config.beta)


def describe_output(output: Output) -> OutputConfig:
    """Inverse of `make_output`.

    Raises:
        ValueError: an output that the forecaster cannot serve.
    """
    for kind, output_class in OUTPUTS.items():
        if type(output) is output_class:
            levels = {"quantiles": tuple(map(float, output.quantiles))} if isinstance(output, QuantileOutput) else {"beta": output.beta}
            return OutputConfig.from_dict({"kind": kind, **levels})
    names = ", ".join(output_class.__name__ for output_class in OUTPUTS.values())
    raise ValueError(f"distr_output must be one of {names}, got {type(output).__name__}")


def instance_scale(x_BLC: Tensor, observed_BLC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over the observed steps, (B, 1, C) each, in float64.

    A channel without variation gets the smallest scale that float32 tells from its level, so that its forecast is its level.
    """
    x, seen = x_BLC.double(), observed_BLC.double()
    count = seen.sum(1, keepdim=True).clamp(min=1)
    loc = (x * seen).sum(1, keepdim=True) / count
    variance = ((x - loc).square() * seen).sum(1, keepdim=True) / count
    return loc, variance.sqrt().clamp(min=1e-12).maximum(1e-6 * loc.abs())


def fourier_features(time_features: Tensor) -> Tensor:
    """Sine and cosine of calendar features in [-0.5, 0.5]: (B, T, F) -> (B, T, 2 * HARMONICS * F), periodic without a jump."""
    angles = torch.cat([2 * math.pi * n * time_features for n in range(1, HARMONICS + 1)], dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TitansForecaster(Pretrained):
    """Probabilistic forecasts of C channels, each read by the same backbone with an embedding that tells it apart.

    The context is normalised per channel and cut into patches of values, observed flags and calendar; the backbone reads them in order,
    and what it knows after the last one, with the normalised context itself (a linear map, as in DLinear) and the calendar of each step
    ahead, gives the parameters of `distr_output`, a GluonTS output, for every step and channel.
    """

    model_type = "titans_forecaster"
    config_class = ForecasterConfig

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = c = config
        self.distr_output = make_output(c.output)
        width = c.titans.dim
        self.num_patches = -(-c.context_length // c.patch_length)
        self.calendar_dim = 2 * HARMONICS * c.num_time_features
        self.embed = nn.Linear(c.patch_length * 2 + self.calendar_dim, width)
        self.channel_embedding = nn.Parameter(torch.zeros(c.num_channels, width))
        self.titans = Titans(c.titans)
        self.to_horizon = nn.Linear(width, c.prediction_length * c.horizon_dim)
        self.linear = nn.Linear(c.context_length, c.prediction_length)
        self.calendar = nn.Linear(self.calendar_dim + width, c.horizon_dim) if self.calendar_dim else None
        self.args_proj = self.distr_output.get_args_proj(c.horizon_dim + 1)
        nn.init.constant_(self.linear.weight, 0.0)
        nn.init.constant_(self.linear.bias, 0.0)

    def forward(
        self,
        past_target: Tensor,
        past_observed_values: Tensor,
        past_time_feat: Tensor | None = None,
        future_time_feat: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Parameters of the output and the scale that they are in.

        Args:
            past_target: (B, L, C), or (B, L) of a univariate series; unobserved values are ignored.
            past_observed_values: the same shape, 1 where observed, else 0.
            past_time_feat, future_time_feat: (B, L, F) and (B, H, F); None without time features.

        Returns:
            distr_args, each (B, H, C, ..), loc and scale (B, 1, C); without the dimension C for a univariate series. Nothing is
            known of a channel without any observed value: its loc, and so its forecast, is NaN.
        """
        distr_args, loc, scale = self._arguments(past_target, past_observed_values, past_time_feat, future_time_feat)
        known = past_observed_values.sum(1, keepdim=True) > 0
        return distr_args, torch.where(known, loc, torch.nan), scale

    def _arguments(
        self, past_target: Tensor, past_observed_values: Tensor, past_time_feat: Tensor | None, future_time_feat: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """As `forward`, with finite values everywhere: what the loss is of."""
        univariate = past_target.dim() == 2
        if univariate:
            past_target, past_observed_values = past_target.unsqueeze(-1), past_observed_values.unsqueeze(-1)
        loc, scale = instance_scale(past_target, past_observed_values)
        x_BLC = torch.where(past_observed_values > 0, (past_target - loc) / scale, 0.0).to(self.embed.weight.dtype)
        observed = past_observed_values.to(x_BLC.dtype)
        hidden_BCE = self._read(x_BLC, observed, past_time_feat)
        features = self._horizon(x_BLC, hidden_BCE, future_time_feat)  # (B, H, C, horizon_dim + 1)
        loc, scale = loc.to(x_BLC.dtype), scale.to(x_BLC.dtype)
        if univariate:
            features, loc, scale = features.squeeze(2), loc.squeeze(-1), scale.squeeze(-1)
        distr_args = self.args_proj(features)
        if isinstance(self.distr_output, QuantileOutput) and not self.training:
            distr_args = (distr_args[0].sort(dim=-1).values,)  # quantiles that cross are put in order (Chernozhukov et al. 2010)
        return distr_args, loc, scale

    def _read(self, x_BLC: Tensor, observed_BLC: Tensor, time_feat: Tensor | None) -> Tensor:
        """What the backbone knows of each channel after the last patch, (B, C, E)."""
        c = self.config
        patches = torch.cat([self._patches(x_BLC), self._patches(observed_BLC)], dim=-1)  # (B, C, N, 2 P)
        if self.calendar_dim and time_feat is not None:
            last = fourier_features(time_feat)[:, c.patch_length - 1 - self._padding :: c.patch_length]  # of each patch's last step
            patches = torch.cat([patches, last.unsqueeze(1).expand(-1, patches.shape[1], -1, -1)], dim=-1)
        tokens = self.embed(patches) + self.channel_embedding.unsqueeze(1)  # (B, C, N, E)
        y, _ = self.titans(tokens.flatten(0, 1))
        return y[:, -1].unflatten(0, (-1, c.num_channels))

    @property
    def _padding(self) -> int:
        return self.num_patches * self.config.patch_length - self.config.context_length

    def _patches(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) -> (B, C, N, P); zeros in front fill the first patch."""
        x = nn.functional.pad(x_BLC.transpose(1, 2), (self._padding, 0))
        return x.unflatten(-1, (self.num_patches, self.config.patch_length))

    def _horizon(self, x_BLC: Tensor, hidden_BCE: Tensor, time_feat: Tensor | None) -> Tensor:
        c = self.config
        h = self.to_horizon(hidden_BCE).unflatten(-1, (c.prediction_length, c.horizon_dim)).transpose(1, 2)  # (B, H, C, .)
        if self.calendar is not None and time_feat is not None:
            ahead = fourier_features(time_feat).unsqueeze(2).expand(-1, -1, c.num_channels, -1)
            known = hidden_BCE.unsqueeze(1).expand(-1, c.prediction_length, -1, -1)
            h = h + self.calendar(torch.cat([ahead, known], dim=-1))
        linear = self.linear(x_BLC.transpose(1, 2)).transpose(1, 2).unsqueeze(-1)  # (B, H, C, 1)
        return torch.cat([nn.functional.gelu(h), linear], dim=-1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss over observed future values, in units of each context's spread (a scalar).

        A context that hardly moves, against its whole series, counts less: what follows it is large in its units. The weight is known
        before the future is, so the loss stays proper.

        batch: the arguments of `forward`; future_target, future_observed_values (B, H, C) or (B, H); series_spread (B, C) or (B,), the
        standard deviation of the whole training series.
        """
        past, observed = batch["past_target"], batch["past_observed_values"]
        distr_args, loc, scale = self._arguments(past, observed, batch.get("past_time_feat"), batch.get("future_time_feat"))
        future, seen = batch["future_target"], batch["future_observed_values"]
        target = ((future - loc) / scale).clamp(-1e4, 1e4).to(loc.dtype)
        weight = scale / scale.maximum(FLAT_CONTEXT * batch["series_spread"].to(scale.dtype).unsqueeze(1))
        loss = self.distr_output.loss(target, distr_args)
        return (loss * weight * seen).sum() / seen.sum().clamp(min=1)
