"""What training begins with: series with windows held out of them, units, and the linear part in closed form."""

from collections.abc import Sequence

import numpy as np
import torch

from domains.timeseries.config import ForecasterConfig
from domains.timeseries.forecast_memory import start_forecast_memory
from domains.timeseries.model import TitansForecaster
from domains.timeseries.ridge import Batches, start_from_ridge
from domains.timeseries.windows import DYNAMIC, RandomWindows, Series, Units, first_negative, last_windows

RIDGE_EPOCHS = 4
"""Epochs' worth of windows that the closed-form start looks at."""
COUNTED = 0.4
"""Of each training series, at its end: where the linear memory shows what it can do."""
STREAMS = 64
"""Training series, evenly apart, on which it does so, at most."""


def check_lengths(series: Sequence[Series], config: ForecasterConfig, min_past: int) -> None:
    """Raise ValueError unless one series at least holds a training window."""
    needed = min_past + config.prediction_length
    longest = max((one.length for one in series), default=0)
    if longest < needed:
        raise ValueError(
            f"the longest training series has {longest} steps; prediction_length={config.prediction_length} "
            f"with context_length={config.context_length} needs at least {needed}"
        )


def check_nonnegative(series: Sequence[Series], channels: Sequence[int]) -> None:
    """Raise ValueError where one of these channels has a negative value."""
    for one in series:
        found = first_negative(one.target, channels)
        if found is not None:
            channel, step = found
            raise ValueError(
                f"item {one.item!r}: channel {channel} is {one.target[channel, step]:g} at {one.start + step}, but nonnegative says that "
                "it has no negative value"
            )


def hold_out(series: Sequence[Series], config: ForecasterConfig, windows: int | None) -> tuple[list[Series], list[Series]]:
    """Series without their last windows, and one for each of those windows, ending with it; a series that is too short has none.

    windows: of each series; None for about a tenth of it.

    Raises:
        ValueError: no series has room for one, and a number was asked for.
    """
    steps, training, validation = config.prediction_length, [], []
    for one in series:
        room = (one.length - config.context_length) // (2 * steps)
        wanted = max(1, one.length // (10 * steps)) if windows is None else windows
        held = max(0, min(wanted, room))
        trained = one.without_last(held * steps)
        training.append(trained)
        for n in range(held):
            window = one.without_last(n * steps)
            window.units = trained.units  # known from training; to go through a long series for each window would take hours
            validation.append(window)
    if windows and not validation:
        raise ValueError(
            f"no series is long enough to hold out a validation window: context_length={config.context_length} and twice "
            f"prediction_length={steps} are needed, the longest has {max(one.length for one in series)} steps; or give "
            "validation_windows=0"
        )
    return training, validation


@torch.no_grad()
def fit_units(model: TitansForecaster, series: Sequence[Series]) -> None:
    """Level and spread of channels and features in the training data."""
    c = model.config
    channels = Units.none(c.num_channels)
    features = [Units.none(n) for n in (c.num_feat_dynamic_real, c.num_past_feat_dynamic_real, c.num_feat_static_real)]
    for one in series:
        channels = channels.merged(one.units)
        parts = [*(one.dynamic[name] for name in DYNAMIC), one.static_real[:, None]]
        features = [units.merged(Units.of(part)) for units, part in zip(features, parts, strict=True)]
    for name, of_rows in (("channel", [channels]), ("feature", features)):
        spread = np.concatenate([units.spread for units in of_rows])
        getattr(model, f"{name}_loc").copy_(torch.from_numpy(np.concatenate([units.mean for units in of_rows])))
        getattr(model, f"{name}_scale").copy_(torch.from_numpy(np.where(spread > 0, spread, 1.0)))


def start_linear(model: TitansForecaster, windows: RandomWindows, training: Sequence[Series], validation: Sequence[Series]) -> None:
    """The closed-form linear part, and the memory of its errors, which is chosen for one that has not seen the ends of the series.

    windows: of `training`, which go on from where this leaves them.

    Raises:
        ValueError: the series are too short for a memory to be chosen on their ends.
    """
    c = model.config
    held_out = (lambda: last_windows(validation, c, windows.batch_size)) if validation else None
    if c.linear_memory:
        early = [one.without_last(round(COUNTED * one.length)) for one in training]
        longest, needed = max(one.length for one in early), windows.min_past + c.prediction_length
        if longest < needed:
            raise ValueError(
                f"linear_memory is chosen on the last {COUNTED:.0%} of each series: before that the longest has {longest} steps, "
                f"prediction_length={c.prediction_length} needs {needed}"
            )
        start_from_ridge(model, _epochs(windows.of(early)))
        streams = [one.stream(COUNTED) for one in training[:: -(-len(training) // STREAMS)]]
        start_forecast_memory(model, _epochs(windows)(), streams)
    start_from_ridge(model, _epochs(windows), held_out)


def _epochs(windows: RandomWindows) -> Batches:
    """Batches of RIDGE_EPOCHS epochs."""
    return lambda: (batch for _ in range(RIDGE_EPOCHS) for batch in windows)
