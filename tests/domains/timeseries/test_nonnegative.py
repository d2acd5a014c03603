"""Forecasts of series that are never negative."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from gluonts.model.forecast import QuantileForecast
from gluonts.torch.distributions import NormalOutput

from domains.timeseries.conformal import calibrate, load_calibrated
from domains.timeseries.data import split
from domains.timeseries.predictor import load_predictor
from domains.timeseries.quantiles import bounded
from tests.domains.timeseries.test_estimator import entries, small_estimator


def counts(seed: int = 0) -> np.ndarray:
    """(2, 160): one channel that is mostly 0 and never below it, one around 0."""
    random = np.random.default_rng(seed)
    return np.stack([random.poisson(0.3, 160), random.normal(size=160)])


def trained(**settings: Any) -> Any:
    return small_estimator(num_channels=2, **settings).train(entries(counts()))


def test_quantiles_and_samples_of_the_named_channels_alone_are_clipped() -> None:
    data = entries(counts())
    (free,), (clipped,) = trained().predict(data), trained(nonnegative=[0]).predict(data)
    for level in (0.1, 0.3, 0.5, 0.9):
        expected = free.quantile(level) * 1.0
        expected[:, 0] = np.maximum(expected[:, 0], 0)
        np.testing.assert_array_equal(clipped.quantile(level), expected)
    assert free.quantile(0.1)[:, 0].min() < 0
    assert clipped.quantile(0.01)[:, 0].min() == 0  # beyond the stored levels too
    assert clipped.quantile(0.01)[:, 1].min() < 0
    (paths,) = trained(nonnegative=[0]).predict(data, num_samples=50)
    assert paths.samples[..., 0].min() == 0
    assert paths.samples[..., 1].min() < 0


def test_it_is_kept_with_the_model_for_streams_and_calibration(tmp_path: Path) -> None:
    before, test = split(entries(counts()), prediction_length=7, windows=12, distance=4)
    calibrated = calibrate(small_estimator(num_channels=2, nonnegative=[0]).train(list(before)), test, progress=False)
    calibrated.save_pretrained(tmp_path)
    for predictor in (load_predictor(tmp_path), load_calibrated(tmp_path)):
        stream = predictor.online(pd.Period("2020-01-01", freq="D"))
        stream.observe(counts().T)
        (cold,) = predictor.predict(entries(counts()))
        for forecast in (cold, stream.predict()):
            assert forecast.quantile(0.1)[:, 0].min() == 0
            assert forecast.quantile(0.1)[:, 1].min() < 0


def test_univariate_and_all_channels() -> None:
    (forecast,) = small_estimator(nonnegative=True).train(entries(counts()[0])).predict(entries(counts()[0]))
    assert forecast.quantile(0.1).shape == (7,)
    assert forecast.quantile(0.1).min() == 0
    assert small_estimator(num_channels=2, nonnegative=True).config.nonnegative == (0, 1)


def test_negative_training_values_are_refused() -> None:
    target = counts()
    target[0, 31] = -2
    with pytest.raises(ValueError, match=r"item 's0': channel 0 is -2 at 2020-02-01"):
        small_estimator(num_channels=2, nonnegative=[0]).train(entries(target))


@pytest.mark.parametrize("channels", [(2,), (-1,), (1, 0), (0, 0)])
def test_channels_must_exist(channels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="nonnegative"):
        replace(small_estimator(num_channels=2).config, nonnegative=channels)


def test_only_quantiles_are_clipped() -> None:
    with pytest.raises(ValueError, match="nonnegative"):
        small_estimator(distr_output=NormalOutput(), nonnegative=True)


def test_what_is_missing_stays_missing() -> None:
    forecast = QuantileForecast(np.full((2, 3), np.nan), pd.Period("2020-01-01", freq="D"), ["0.1", "0.9"])
    assert np.isnan(bounded(forecast, 0.0).quantile(0.1)).all()
