"""Sample paths keep the marginals of the forecast and take the dependence of the series' own past."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from gluonts.model.forecast import QuantileForecast, SampleForecast
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.stats import norm, spearmanr

from domains.timeseries.config import QUANTILES
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.paths import past_windows, ranks, sample_paths

START = pd.Period("2024-01-01 00:00", freq="h")
STEPS = 8


def gaussian(channels: int | None = None) -> QuantileForecast:
    """Standard normal at each of 8 steps."""
    shape = (len(QUANTILES), STEPS) if channels is None else (len(QUANTILES), STEPS, channels)
    quantiles = np.broadcast_to(norm.ppf(QUANTILES).reshape(-1, *[1] * (len(shape) - 1)), shape).copy()
    return QuantileForecast(quantiles, START, list(map(str, QUANTILES)), item_id="a")


def autoregressive(coefficient: float, steps: int = 4000, channels: int = 1) -> np.ndarray:
    return lfilter([1], [1, -coefficient], np.random.default_rng(0).normal(size=(channels, steps)))


@pytest.mark.parametrize("coefficient", [0.9, 0.0, -0.7])
def test_neighbouring_steps_of_a_path_are_as_dependent_as_those_of_the_history(coefficient: float) -> None:
    paths = sample_paths(gaussian(), autoregressive(coefficient)[0], 400, season_length=24).samples
    assert paths.shape == (400, STEPS)
    neighbours = [spearmanr(paths[:, h], paths[:, h + 1]).statistic for h in range(2, STEPS - 1)]
    # windows are relative to the mean of the season before, which ties their steps a little
    assert abs(np.mean(neighbours) - coefficient) < 0.15


def test_channels_of_a_path_go_together_as_in_the_history() -> None:
    common = autoregressive(0.5)[0]
    history = np.stack([common, -common, autoregressive(0.5, channels=2)[1]])
    paths = sample_paths(gaussian(3), history, 300, season_length=24).samples
    assert paths.shape == (300, STEPS, 3)
    for h in range(STEPS):
        assert spearmanr(paths[:, h, 0], paths[:, h, 1]).statistic < -0.999
        assert abs(spearmanr(paths[:, h, 0], paths[:, h, 2]).statistic) < 0.2


@given(num_samples=st.integers(1, 60), length=st.integers(14, 60))
def test_marginals_are_those_of_the_forecast_however_few_windows_there_are(num_samples: int, length: int) -> None:
    forecast = gaussian()
    paths = sample_paths(forecast, autoregressive(0.5, length)[0], num_samples, season_length=2)
    assert isinstance(paths, SampleForecast)
    levels = (np.arange(num_samples) + 0.5) / num_samples
    np.testing.assert_array_equal(np.sort(paths.samples, axis=0), np.stack([forecast.quantile(level) for level in levels]))
    assert (paths.start_date, paths.item_id) == (forecast.start_date, "a")
    np.testing.assert_array_equal(sample_paths(forecast, autoregressive(0.5, length)[0], num_samples, 2).samples, paths.samples)


def test_windows_are_of_the_same_phase_first_and_the_latest_of_those() -> None:
    history = np.arange(100.0)[:, None] + 1000 * (np.arange(100)[:, None] % 10 == 0)
    windows = past_windows(history, 4, season_length=10, limit=5)  # the forecast begins at step 100, phase 0: where the history jumps
    assert windows.shape == (5, 4, 1)
    assert (windows[:, 0, 0] > 900).all()
    assert (windows[:, 1:, 0] < 100).all()
    holes = history.copy()
    holes[91] = np.nan  # in the latest window of that phase
    np.testing.assert_array_equal(past_windows(holes, 4, 10, 4), windows[1:])


def test_ties_are_broken_and_each_rank_is_taken_once() -> None:
    made = ranks(np.zeros((20, 3, 2)), np.random.default_rng(0))
    assert (np.sort(made, axis=0) == np.arange(20)[:, None, None]).all()
    assert not (made[:, 0] == made[:, 1]).all()


def test_a_history_without_two_whole_windows_is_refused() -> None:
    history = np.full(40, np.nan)
    history[:16] = 1.0
    with pytest.raises(ValueError, match=r"item 'a': sample paths take .* windows of 8 steps, and its history of 40 steps has 1 without"):
        sample_paths(gaussian(), history, 10, season_length=8)


@pytest.mark.parametrize("channels", [None, 2])
def test_the_predictor_gives_paths_on_request_and_quantiles_else(channels: int | None) -> None:
    settings: dict[str, Any] = {"prediction_length": 8, "freq": "h", "context_length": 48, "progress": False}
    history = 10 + autoregressive(0.9, 400, channels or 1).astype(np.float32)
    entry = {"item_id": "a", "start": START, "target": history if channels else history[0]}
    predictor = TitansEstimator(**settings, num_channels=channels, max_epochs=1, num_batches_per_epoch=5).train([entry])
    (forecast,) = predictor.predict(iter([entry]), num_samples=50)
    (plain,) = predictor.predict([entry])
    assert isinstance(plain, QuantileForecast)
    assert isinstance(forecast, SampleForecast)
    assert forecast.samples.shape == ((50, 8, channels) if channels else (50, 8))
    np.testing.assert_allclose(np.sort(forecast.samples, 0)[25], plain.quantile(0.51), rtol=1e-5)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        list(predictor.predict([entry], num_samples=0))
