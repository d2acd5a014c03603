"""The closed-form start of the forecaster's linear part."""

from collections.abc import Iterable

import torch
from torch import Tensor

from domains.timeseries.model import TitansForecaster

PENALTY = 1e-3
"""Of the squared weights, as a share of the mean squared input: enough for windows that overlap."""


@torch.no_grad()
def start_from_ridge(model: TitansForecaster, batches: Iterable[dict[str, Tensor]], penalty: float = PENALTY) -> None:
    """Set `model.linear` to the ridge regression of the future on the latest values, one map for all series and channels.

    It is the strongest simple forecaster of long horizons; training then starts from it instead of having to find it. Inputs and targets
    are in the units of each context, and windows count with the square of those units in units of their series, as the squared error of
    the forecasts in series units does. Windows with a missing future value are left out.

    Args:
        model: with an output that has a location.
        batches: as of `TitansForecaster.loss`.
        penalty: of the squared weights, relative to the inputs' mean square; the intercept is free.
    """
    K, H = model.linear.in_features, model.linear.out_features
    products = torch.zeros(K + 1, K + 1 + H, dtype=torch.float64)
    for batch in batches:
        inputs, targets, weight = model.linear_problem(batch)
        row = torch.cat([inputs, torch.ones_like(inputs[:, :1]), targets], 1)
        products += ((row[:, : K + 1] * weight.unsqueeze(1)).T @ row).cpu()
    gram, moments = products.split([K + 1, H], dim=1)
    ridge = penalty * gram.diagonal()[:K].mean()
    if ridge <= 0:
        return  # nothing ever moves
    gram.diagonal()[:K] += ridge
    solution = torch.linalg.solve(gram, moments)  # (K + 1, H)
    model.linear.weight.copy_(solution[:K].T)
    model.linear.bias.copy_(solution[K])
