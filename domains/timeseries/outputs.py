"""What the forecaster predicts of a step: GluonTS outputs, and how the forecaster uses them."""

from statistics import NormalDist
from typing import Any

from titans_seq.quiet import quiet_import

with quiet_import():
    from gluonts.torch.distributions import LaplaceOutput, NegativeBinomialOutput, NormalOutput, Output, QuantileOutput, StudentTOutput

import numpy as np
import torch
from torch import Tensor, nn

from domains.timeseries.config import ForecasterConfig, OutputConfig

OUTPUTS: dict[str, type[Output]] = {
    "quantile": QuantileOutput,
    "normal": NormalOutput,
    "student_t": StudentTOutput,
    "laplace": LaplaceOutput,
    "negative_binomial": NegativeBinomialOutput,
}
LOCATION = {"quantile": 0, "normal": 0, "student_t": 1, "laplace": 0}
"""Which argument of an output is a location, that a shift of the series shifts; counts have none."""


def smallest_values(config: ForecasterConfig) -> np.ndarray:
    """The least value that is predicted of each channel, (C,) float64: 0 of counts and where it is to be nonnegative, -inf else."""
    counts = config.output.kind not in LOCATION
    return np.array([0.0 if counts or channel in config.nonnegative else -np.inf for channel in range(config.num_channels)])


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


def start_neutral(projection: Any, config: OutputConfig) -> None:
    """Let the layer that makes an output's arguments begin at a standard one: zero weights, and quantiles of the normal distribution."""
    for parameter in projection.parameters():
        nn.init.zeros_(parameter)
    if config.kind == "quantile":
        with torch.no_grad():
            projection.proj[0].bias.copy_(torch.tensor([NormalDist().inv_cdf(level) for level in config.quantiles]))


def shifted(distr_args: tuple[Tensor, ...], shift: Tensor, config: OutputConfig) -> tuple[Tensor, ...]:
    """The output's arguments with its location moved by `shift`, which has no dimension of quantiles."""
    place = LOCATION[config.kind]
    by = shift.unsqueeze(-1) if config.kind == "quantile" else shift
    return tuple(argument + by if i == place else argument for i, argument in enumerate(distr_args))


def in_series_units(loss: Tensor, scale: Tensor, spread: Tensor, config: OutputConfig) -> Tensor:
    """A loss in units of each context's scale, put into units of each series' spread, so that quiet contexts do not outweigh others.

    The quantile loss is linear in the values; a likelihood has no unit, times its variance to the power of beta it has that of beta squares
    (Seitzer et al. 2022). The factor is known before the future is, so the loss stays proper.
    """
    power = 1.0 if config.kind == "quantile" else 2 * config.beta
    return loss * (scale / spread).clamp(max=100.0) ** power if power else loss
