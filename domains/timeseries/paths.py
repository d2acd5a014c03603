"""Sample paths: the quantiles of a forecast, tied together over steps and channels as the series' own past was.

The Schaake shuffle (Clark, Gangopadhyay, Hay, Rajagopalan and Wilby 2004): each step's samples are those of its forecast, and path i has
the rank at each step that window i of the past had there. Shapes: n paths, T steps of history, H steps ahead, C channels.
"""

from collections.abc import Callable, Iterator
from itertools import tee

import numpy as np
from gluonts.dataset.common import Dataset
from gluonts.model.forecast import Forecast, SampleForecast

from domains.timeseries.metrics import default_season_length
from domains.timeseries.quantiles import quantiles_of

LONGEST_HISTORY = 1 << 17
"""Latest steps that windows are taken from."""


def with_paths(predict: Callable[[Dataset], Iterator[Forecast]], dataset: Dataset, num_samples: int) -> Iterator[SampleForecast]:
    """The forecasts that `predict` makes of `dataset`, each as `sample_paths` of its entry."""
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    entries, given = tee(dataset)
    for entry, forecast in zip(entries, predict(given), strict=True):
        yield sample_paths(forecast, entry["target"], num_samples, default_season_length(entry["start"].freqstr))


def sample_paths(forecast: Forecast, target: np.ndarray, num_samples: int, season_length: int) -> SampleForecast:
    """n paths whose marginals are those of `forecast`, at the levels (i + 1/2) / n, and whose dependence is that of past windows.

    Windows are taken at the forecast's own phase of the season as far as they reach, then at the phases next to it, the latest first, and
    relative to the mean of the season before them, as a forecast knows its level. With fewer windows than paths each is used for several.
    The same arguments give the same paths.

    Args:
        forecast: of H steps, with quantiles.
        target: the history before it, (C, T) or (T,); windows with a missing value are left out.
        num_samples: n.
        season_length: steps in a season.

    Raises:
        ValueError: fewer than 2 whole windows.
    """
    history = np.atleast_2d(np.asarray(target)[..., -LONGEST_HISTORY:].astype(np.float64)).T  # (T, C)
    windows = past_windows(history, forecast.prediction_length, season_length, max(2, num_samples))
    if len(windows) < 2:
        raise ValueError(
            f"item {forecast.item_id!r}: sample paths take the dependence between steps from past windows of {forecast.prediction_length} "
            f"steps, and its history of {len(history)} steps has {len(windows)} without a missing value; at least 2 are needed. "
            "Forecast without num_samples, or give a longer history"
        )
    levels = (np.arange(num_samples) + 0.5) / num_samples
    samples = quantiles_of(forecast, levels.tolist())  # (n, H, C), rising along n
    groups, random = -(-num_samples // len(windows)), np.random.default_rng(0)
    paths = np.empty_like(samples)
    for first in range(groups):
        group = samples[first::groups]
        paths[first::groups] = np.take_along_axis(group, ranks(windows[: len(group)], random), axis=0)
    shape = (num_samples, *np.shape(forecast.quantile(0.5)))
    return SampleForecast(paths.reshape(shape), start_date=forecast.start_date, item_id=forecast.item_id, info=forecast.info)


def past_windows(history: np.ndarray, steps: int, season_length: int, limit: int) -> np.ndarray:
    """At most `limit` windows of H steps of a history (T, C), as `sample_paths` says, each less the mean of the steps before: (m, H, C)."""
    before = max(1, min(season_length, (len(history) - steps) // 2))
    observed = np.isfinite(history)
    seen = observed.any(0)
    missing = np.concatenate([[0], (~observed[:, seen]).any(1).cumsum()])
    origins = np.arange(before, len(history) - steps + 1)
    origins = origins[missing[origins + steps] == missing[origins - before]]
    age = len(history) - origins
    phase = np.minimum(age % season_length, -age % season_length)
    chosen = origins[np.lexsort((age, phase))][:limit, None]
    windows = history[chosen + np.arange(steps)] - history[chosen - 1 - np.arange(before)].mean(1, keepdims=True)
    return np.where(seen, windows, 0.0)


def ranks(windows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rank of each window among all at each step and channel, (m, H, C) -> (m, H, C) integers; ties are broken at random."""
    order = np.lexsort((random.random(windows.shape), windows), axis=0)
    return order.argsort(axis=0)
