"""DLinear and PatchTST: GluonTS's modules, channels apart, trained on the mean squared error of the protocol as in their papers."""

import torch
from gluonts.torch.distributions import NormalOutput
from gluonts.torch.model.d_linear.module import DLinearModel
from gluonts.torch.model.patch_tst.module import PatchTSTModel
from torch import Tensor, nn

from benchmarks.timeseries.protocol import Windows


class ChannelsApart(nn.Module):
    """A univariate GluonTS module as a forecaster of all channels: each is a series of its own, and what is forecast is the mean."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, past_BLC: Tensor, phase_B: Tensor | None = None) -> Tensor:
        past_NL = past_BLC.transpose(1, 2).flatten(0, 1)
        distr_args, loc, scale = self.model(past_NL, torch.ones_like(past_NL))
        mean_NH = distr_args[0] * scale + loc
        return mean_NH.unflatten(0, (len(past_BLC), -1)).transpose(1, 2)

    def loss(self, past_BLC: Tensor, future_BHC: Tensor, phase_B: Tensor) -> Tensor:
        return nn.functional.mse_loss(self(past_BLC), future_BHC)


def dlinear(train: Windows, validation: Windows) -> nn.Module:
    """Moving average of 25 and two linear maps, as in the paper; the window is normalised first, without which it does worse on ETTh2."""
    model = DLinearModel(train.horizon, train.look_back, hidden_dimension=1, distr_output=NormalOutput(), scaling="std")
    return ChannelsApart(model)


def patchtst(train: Windows, validation: Windows) -> nn.Module:
    """Patches of 16 at stride 8, two layers of width 32: GluonTS's sizes."""
    model = PatchTSTModel(
        prediction_length=train.horizon,
        context_length=train.look_back,
        patch_len=16,
        stride=8,
        padding_patch="end",
        d_model=32,
        nhead=4,
        dim_feedforward=128,
        num_feat_dynamic_real=0,
        dropout=0.1,
        activation="relu",
        norm_first=False,
        num_encoder_layers=2,
        scaling="std",
        distr_output=NormalOutput(),
    )
    return ChannelsApart(model)
