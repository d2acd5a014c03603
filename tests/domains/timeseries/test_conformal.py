"""Intervals that hold: calibrated ones on exchangeable windows, adaptive ones on a stream that shifts."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.split import split
from gluonts.ev.metrics import MeanWeightedSumQuantileLoss
from gluonts.model.evaluation import evaluate_model
from gluonts.model.forecast import Forecast, QuantileForecast
from gluonts.model.predictor import Predictor
from gluonts.torch.distributions import NegativeBinomialOutput
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from polars.testing import assert_frame_equal
from scipy.stats import norm

from domains.timeseries.adaptive import RATE, AdaptiveForecaster, QuantileTracker
from domains.timeseries.config import QUANTILES
from domains.timeseries.conformal import CalibratedPredictor, Calibration, calibrate, load_calibrated, split_conformal
from domains.timeseries.coverage import coverage
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.plots import plot_coverage_by_horizon
from domains.timeseries.predictor import TitansPredictor, load_predictor
from domains.timeseries.quantiles import Levels, spread_of
from titans_seq.errors import UserError

LEVELS = Levels(QUANTILES)
START = pd.Period("2024-01-01 00:00", freq="h")


class Gaussian(Predictor):
    """Quantiles of a normal distribution with a wrong spread and a wrong level, in units that the entry says."""

    def predict(self, dataset: Any, **kwargs: Any) -> Iterator[Forecast]:
        for entry in dataset:
            channels = len(np.atleast_2d(entry["target"]))
            one = entry["unit"] * (0.4 + 0.5 * norm.ppf(QUANTILES))
            quantiles = np.tile(one[:, None, None], (1, self.prediction_length, channels))
            start = entry["start"] + np.shape(entry["target"])[-1]
            yield QuantileForecast(quantiles, start_date=start, forecast_keys=list(map(str, QUANTILES)), item_id=entry["item_id"])


def noise(steps: int, channels: int, items: int = 1) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    units = 10.0 ** np.arange(items)
    return [{"item_id": str(unit), "start": START, "unit": unit, "target": unit * random.normal(size=(channels, steps))} for unit in units]


def test_calibrated_quantiles_hold_on_exchangeable_data() -> None:
    """400 independent calibrations of 57 windows each, of three series of unlike scale: as often as the theorem says, to four sigma."""
    steps, channels, windows = 4, 100, 19
    entries = noise((windows + 400) * steps, channels, items=3)
    _, before = split(list(split(entries, offset=-400 * steps)[0]), offset=-windows * steps)
    calibrated = calibrate(Gaussian(steps), before.generate_instances(steps, windows=windows))
    n = 3 * windows
    assert (calibrated.calibration.counts == n).all()
    _, after = split(entries, offset=-400 * steps)
    test_data = after.generate_instances(steps, windows=400)
    intervals = (0.8, 0.6)
    plain = coverage(Gaussian(steps).predict(test_data.input), test_data, intervals=intervals)
    table = coverage(calibrated.predict(test_data.input), test_data, intervals=intervals)
    for interval in intervals:
        tail = (1 - interval) / 2
        expected = 1 - np.ceil((1 - tail) * (n + 1) - 1e-9) / (n + 1)  # in each tail, at most its share
        shares = table.filter(interval=interval).select("below", "above").to_numpy()
        sigma = np.sqrt(tail * (1 - tail) * (1 / n + 1 / 1200) / shares.size)
        assert expected <= tail
        assert abs(shares.mean() - expected) < 4 * sigma
        assert plain.filter(interval=interval)["coverage"].mean() < interval - 0.2


def test_each_tail_is_adjusted_by_itself() -> None:
    """Scores that are large on one side widen that side alone."""
    scores = np.random.default_rng(0).normal(size=(2000, 9, 1, 1))
    scores[:, :4] *= 3
    calibration = split_conformal(scores, LEVELS)
    np.testing.assert_allclose(calibration.corrections[[0, -1], 0, 0], [3 * norm.ppf(0.9), norm.ppf(0.9)], atol=0.2)


@given(
    quantiles=arrays(np.float64, (9, 2, 1), elements=st.floats(-1e6, 1e6)),
    corrections=arrays(np.float64, (9, 2, 1), elements=st.floats(-5, 5)),
)
def test_corrected_quantiles_do_not_cross_and_the_outermost_hold(quantiles: np.ndarray, corrections: np.ndarray) -> None:
    quantiles, spread = np.sort(quantiles, axis=0), spread_of(quantiles)
    made = LEVELS.corrected(quantiles, corrections, spread)
    own = quantiles + LEVELS.outward[:, None, None] * spread * corrections
    assert (np.diff(made, axis=0) >= 0).all()
    assert (made[0] <= own[0]).all()
    assert (made[-1] >= own[-1]).all()
    same = LEVELS.corrected(quantiles, np.zeros_like(corrections), spread)
    np.testing.assert_array_equal(same, quantiles)


@pytest.mark.parametrize(("level", "needed"), [(0.1, 9), (0.05, 19), (0.01, 99)])
def test_too_few_windows_are_refused_with_the_number_that_is_needed(level: float, needed: int) -> None:
    levels = Levels((level, 0.5, 1 - level))
    split_conformal(np.zeros((needed, 3, 1, 1)), levels)
    with pytest.raises(
        ValueError, match=f"at least {needed} windows in which a step is observed, but step 1 of channel 0 has {needed - 1}"
    ):
        split_conformal(np.zeros((needed - 1, 3, 1, 1)), levels)
    scores = np.zeros((needed, 3, 2, 2))
    scores[0, :, 1, 1] = np.nan
    with pytest.raises(ValueError, match=f"step 2 of channel 1 has {needed - 1}: give more windows"):
        split_conformal(scores, levels)


@pytest.mark.parametrize("levels", [(0.5,), (0.9, 0.1), (0.0, 0.5), (0.1, 0.1, 0.9)])
def test_levels_out_of_order_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1 in rising order"):
        Levels(levels)


def test_coverage_counts_what_is_there() -> None:
    """Against counting by hand; missing labels are left out, a value on the bound is inside."""
    entries = noise(40, 2)
    entries[0]["target"][0, 20:25] = np.nan
    entries[0]["target"][1, 39] = entries[0]["unit"] * (0.4 + 0.5 * norm.ppf(0.9))
    _, template = split(entries, offset=-20)
    test_data = template.generate_instances(5, windows=4)
    table = coverage(Gaussian(5).predict(test_data.input), test_data, ["a", "b"], intervals=(0.8,))
    x = entries[0]["target"][:, 20:].reshape(2, 4, 5)
    low, high = 0.4 + 0.5 * norm.ppf([0.1, 0.9])
    for c, name in enumerate("ab"):
        rows = table.filter(channel=name)
        assert rows["count"].to_list() == np.isfinite(x[c]).sum(0).tolist()
        np.testing.assert_allclose(rows["below"], (x[c] < low).sum(0) / rows["count"].to_numpy())
        np.testing.assert_allclose(rows["above"], (x[c] > high).sum(0) / rows["count"].to_numpy())
        np.testing.assert_allclose(rows["coverage"] + rows["below"] + rows["above"], 1)
        assert ((rows["low"] <= rows["coverage"]) & (rows["coverage"] <= rows["high"])).all()


# ---- streams


def run(rate: float = RATE, steps: int = 2400, horizon: int = 6) -> np.ndarray:
    """Whether each value was inside the 80 % interval, (steps, horizon), on noise whose spread triples in the middle."""
    random = np.random.default_rng(1)
    y = random.normal(size=(steps, 1))
    y[steps // 2 :] *= 3
    base = np.tile(norm.ppf(QUANTILES)[:, None, None], (1, horizon, 1))
    tracker = QuantileTracker(LEVELS, np.zeros_like(base), rate)
    inside = np.full((steps, horizon), np.nan)
    for step in range(steps):
        issued = tracker.issue(step, base)[:, :, 0]
        for h in range(min(horizon, steps - step)):
            inside[step + h, h] = issued[0, h] <= y[step + h, 0] <= issued[-1, h]
        tracker.arrive(step, y[step])
    counted = tracker.coverage().filter(interval=0.8)
    np.testing.assert_allclose(counted["coverage"], np.nanmean(inside, 0))
    return inside


def test_adaptive_coverage_returns_after_a_shift_and_the_fixed_does_not() -> None:
    adaptive, fixed = run(), run(0.0)
    sigma = np.sqrt(0.8 * 0.2 / 900)
    for made in (adaptive, fixed):
        assert (abs(np.nanmean(made[200:1200], 0) - 0.8) < 4 * sigma).all()
    assert (abs(np.nanmean(adaptive[1500:], 0) - 0.8) < 4 * sigma).all()
    assert (np.nanmean(fixed[1500:], 0) < 0.4).all()


def test_one_forecast_that_was_certain_and_wrong_does_not_spoil_those_to_come() -> None:
    base = np.tile(norm.ppf(QUANTILES)[:, None, None], (1, 1, 1))
    tracker = QuantileTracker(LEVELS, np.zeros_like(base))
    for step, value in enumerate(np.random.default_rng(0).normal(size=1000)):
        stuck = step in (400, 500, 600)  # a sensor stood still, then jumped
        issued = tracker.issue(step, np.full_like(base, 5.0) if stuck else base)
        tracker.arrive(step, np.array([value + 50 * stuck]))
        assert issued[-1, 0, 0] - issued[0, 0, 0] < 8
    assert abs(tracker.coverage().filter(interval=0.8)["coverage"][0] - 0.8) < 0.03


def test_forecasts_wait_in_constant_room_and_each_is_scored_once() -> None:
    """A horizon longer than the room: forecasts that follow one another too soon are left out, so none waits for ever."""
    horizon = 100
    base = np.tile(norm.ppf(QUANTILES)[:, None, None], (1, horizon, 2))
    tracker = QuantileTracker(LEVELS, np.zeros_like(base))
    size = sum(getattr(tracker, name).nbytes for name in ("base", "added", "units", "origins"))
    for step in range(500):
        tracker.issue(step, base)
        tracker.issue(step, base)  # asking twice counts once
        tracker.arrive(step, np.array([0.0, np.nan]))
    assert sum(getattr(tracker, name).nbytes for name in ("base", "added", "units", "origins")) == size
    scored = np.array([len(range(0, 500 - h, 4)) for h in range(horizon)])  # one forecast in ceil(100 / 32) = 4 steps
    np.testing.assert_array_equal(tracker.scored[:, 0], scored)
    assert (tracker.scored[:, 1] == 0).all()


# ---- with the forecaster


def series(steps: int, channels: int = 2) -> np.ndarray:
    random = np.random.default_rng(0)
    return 10 + 3 * np.sin(2 * np.pi * np.arange(steps) / 24)[:, None] + 0.3 * random.normal(size=(steps, channels))


@pytest.fixture(scope="module")
def predictor() -> TitansPredictor:
    settings: dict[str, Any] = {"prediction_length": 6, "freq": "h", "context_length": 48, "patch_length": 8, "progress": False}
    estimator = TitansEstimator(**settings, num_channels=2, unfinished_patches=True, max_epochs=2, num_batches_per_epoch=10)
    return estimator.train([{"item_id": "a", "start": START, "target": series(300).T}])


@pytest.fixture(scope="module")
def calibrated(predictor: TitansPredictor) -> CalibratedPredictor:
    _, template = split([{"item_id": "a", "start": START, "target": series(400).T}], offset=300)
    return calibrate(predictor, template.generate_instances(6, windows=40, distance=2))


def test_a_calibrated_predictor_is_a_gluonts_predictor(calibrated: CalibratedPredictor) -> None:
    _, template = split([{"item_id": "a", "start": START, "target": series(500).T}], offset=400)
    test_data = template.generate_instances(6, windows=10)
    scores = evaluate_model(calibrated, test_data=test_data, metrics=[MeanWeightedSumQuantileLoss(QUANTILES)])
    assert np.isfinite(scores.to_numpy()).all()
    assert len(scores) == 1
    (forecast,) = calibrated.predict(list(test_data.input)[:1])
    assert isinstance(forecast, QuantileForecast)
    assert forecast.item_id == "a"
    assert forecast.forecast_array.shape == (9, 6, 2)
    (plain,) = calibrated.predictor.predict(list(test_data.input)[:1])
    assert not np.allclose(forecast.forecast_array, plain.forecast_array)


def test_serialised_and_saved_calibrations_come_back_in_another_process(calibrated: CalibratedPredictor, tmp_path: Path) -> None:
    entry = {"item_id": "a", "start": START, "target": series(64).T}
    (tmp_path / "serialised").mkdir()
    calibrated.serialize(tmp_path / "serialised")
    calibrated.save_pretrained(tmp_path / "saved")
    np.save(tmp_path / "target.npy", entry["target"])
    program = f"""
import numpy as np, pandas as pd
from pathlib import Path
from gluonts.model.predictor import Predictor
from gluonts.torch.distributions import NegativeBinomialOutput
from domains.timeseries.conformal import load_calibrated
folder = Path({str(tmp_path)!r})
entry = {{"item_id": "a", "start": pd.Period("2024-01-01 00:00", freq="h"), "target": np.load(folder / "target.npy")}}
for name, predictor in (("serialised", Predictor.deserialize(folder / "serialised")), ("saved", load_calibrated(folder / "saved"))):
    (forecast,) = predictor.predict([entry])
    np.save(folder / f"{{name}}.npy", forecast.forecast_array)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
    (here,) = calibrated.predict([entry])
    for name in ("serialised", "saved"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), here.forecast_array, rtol=1e-5)


def test_files_that_are_no_calibration_are_refused(calibrated: CalibratedPredictor, tmp_path: Path) -> None:
    calibrated.save_pretrained(tmp_path)
    other = Calibration(LEVELS, np.zeros((9, 5, 2)), np.ones((5, 2), np.int64))
    other.save(tmp_path / "calibration.safetensors")
    with pytest.raises(UserError, match=r"is of 5 steps and 2 channels, the model of 6 and 2\. Calibrate the model again"):
        load_calibrated(tmp_path)
    calibrated.save_pretrained(tmp_path)
    retrained = load_predictor(tmp_path)
    with torch.no_grad():
        retrained.model.linear.bias[0] += 0.5
    retrained.model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is of a model with other weights\. Calibrate this one"):
        load_calibrated(tmp_path)
    with pytest.raises(ValueError, match="other weights"):
        CalibratedPredictor(retrained, calibrated.calibration)
    (tmp_path / "calibration.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="is no calibration"):
        load_calibrated(tmp_path)
    (tmp_path / "calibration.safetensors").write_bytes(pickle.dumps(1))
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        load_calibrated(tmp_path)
    (tmp_path / "calibration.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        load_calibrated(tmp_path)


def test_an_adaptive_stream_begins_with_the_calibration_and_goes_on_from_the_disk(calibrated: CalibratedPredictor, tmp_path: Path) -> None:
    assert isinstance(calibrated.predictor, TitansPredictor)
    x = series(150)
    forecaster = calibrated.online(START, item_id="a")
    forecaster.observe(x[:48])
    plain = calibrated.predictor.online(START)
    plain.observe(x[:48])
    first = forecaster.predict()
    np.testing.assert_array_equal(first.forecast_array, calibrated.calibration.apply(plain.predict()).forecast_array)
    for step in range(48, 100):
        forecaster.observe(x[step : step + 1])
        forecaster.predict()
    forecaster.save(tmp_path / "stream.safetensors")
    there = AdaptiveForecaster.load(tmp_path / "stream.safetensors", calibrated.predictor, item_id="a")
    for stream in (forecaster, there):
        stream.observe(x[100:103])
    np.testing.assert_array_equal(there.predict().forecast_array, forecaster.predict().forecast_array)
    assert_frame_equal(there.coverage(["a", "b"]), forecaster.coverage(["a", "b"]))
    assert forecaster.coverage()["count"].to_list()[:6] == [53, 53, 53, 52, 51, 50]  # step 102 was the last to arrive
    sizes = []
    for stop in (110, 150):
        forecaster.observe(x[forecaster.steps : stop])
        forecaster.save(tmp_path / "stream.safetensors")
        sizes.append((tmp_path / "stream.safetensors").stat().st_size)
    assert sizes[0] == sizes[1]


def test_intervals_of_counts_stay_counts() -> None:
    """A distribution is calibrated as well, keeps its mean, and no quantile of counts falls below zero."""
    counts = np.random.default_rng(0).poisson(0.5, size=300).astype(np.float32)
    settings: dict[str, Any] = {"prediction_length": 4, "freq": "h", "context_length": 32, "progress": False}
    estimator = TitansEstimator(**settings, distr_output=NegativeBinomialOutput(), max_epochs=1, num_batches_per_epoch=5)
    predictor = estimator.train([{"start": START, "target": counts[:200]}])
    _, template = split([{"item_id": "a", "start": START, "target": counts}], offset=-80)
    test_data = template.generate_instances(4, windows=20)
    calibrated = calibrate(predictor, test_data, quantiles=(0.1, 0.5, 0.9))
    calibrated.calibration.corrections[:] = 3.0
    for forecast, plain in zip(calibrated.predict(test_data.input), predictor.predict(test_data.input), strict=True):
        assert forecast.quantile(0.1).min() == 0
        np.testing.assert_array_equal(forecast.mean, plain.mean)
    stream = calibrated.online(START)
    stream.observe(counts)
    forecast = stream.predict()
    assert forecast.forecast_array.shape == (4, 4)
    assert forecast.quantile(0.1).min() == 0


def test_the_plot_of_coverage_shows_each_interval_where_it_was_and_where_it_should_be() -> None:
    _, template = split(noise(100, 2), offset=-60)
    test_data = template.generate_instances(5, windows=12)
    table = coverage(Gaussian(5).predict(test_data.input), test_data, ["a", "b"])
    figure = plot_coverage_by_horizon({"as trained": table})
    assert [ax.get_ylabel().split("\n")[0] for ax in figure.axes] == ["a", "b"]
    drawn = [np.asarray(line.get_ydata()) for line in figure.axes[1].lines if line.get_label() == "as trained"]
    expected = [table.filter(channel="b", interval=interval)["coverage"].to_numpy() for interval in (0.4, 0.6, 0.8)]
    np.testing.assert_array_equal(drawn, expected)
    assert figure.get_suptitle() == "Coverage of the central intervals, 12 windows a step"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["as trained"]
