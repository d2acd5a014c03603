"""A stream that is carried on: how it is cut does not matter, time is checked, and it survives the disk in another process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.online import OnlineForecaster
from domains.timeseries.predictor import TitansPredictor, load_predictor
from tests.work import Work
from titans_seq.errors import UserError

START = pd.Period("2024-01-01 00:00", freq="h")
SETTINGS: dict[str, Any] = {"prediction_length": 6, "freq": "h", "context_length": 48, "patch_length": 8, "progress": False}


def series(steps: int, channels: int = 2) -> np.ndarray:
    t = np.arange(steps)
    noise = np.random.default_rng(0).normal(size=(steps, channels))
    return 10 + 3 * np.sin(2 * np.pi * t / 24)[:, None] + 0.3 * noise


@pytest.fixture(scope="module")
def predictor() -> TitansPredictor:
    estimator = TitansEstimator(
        **SETTINGS,
        num_channels=2,
        num_feat_dynamic_real=1,
        num_past_feat_dynamic_real=1,
        num_feat_static_real=1,
        cardinality=[2],
        unfinished_patches=True,
        max_epochs=2,
        num_batches_per_epoch=10,
    )
    entry = {"item_id": "a", "start": START, "target": series(300).T, "feat_dynamic_real": np.ones((1, 400))}
    entry |= {"past_feat_dynamic_real": np.ones((1, 300)), "feat_static_real": [1.0], "feat_static_cat": [1]}
    return estimator.train([entry])


def stream(predictor: TitansPredictor, **arguments: Any) -> OnlineForecaster:
    return predictor.online(START, item_id="a", feat_static_real=[2.0], feat_static_cat=[0], **arguments)


def features(steps: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {"feat_dynamic_real": random.normal(size=(steps, 1)), "past_feat_dynamic_real": random.normal(size=(steps, 1))}


def forecast_of(forecaster: OnlineForecaster) -> np.ndarray:
    return forecaster.predict(feat_dynamic_real=np.zeros((6, 1))).forecast_array


@given(cuts=st.lists(st.integers(0, 53), max_size=5))
def test_one_by_one_in_blocks_or_all_at_once(predictor: TitansPredictor, cuts: list[int]) -> None:
    x, extra = series(53), features(53)
    whole, pieces = stream(predictor), stream(predictor)
    whole.observe(x, **extra)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 53], strict=True):
        pieces.observe(x[start:stop], **{name: values[start:stop] for name, values in extra.items()})
    assert pieces.steps == whole.steps == 53
    np.testing.assert_allclose(forecast_of(pieces), forecast_of(whole), rtol=1e-4, atol=1e-4)
    assert whole.predict(feat_dynamic_real=np.zeros((6, 1))).start_date == START + 53


def test_a_full_context_gives_the_forecast_of_the_predictor() -> None:
    estimator = TitansEstimator(**SETTINGS, max_epochs=1, num_batches_per_epoch=5)
    predictor = estimator.train([{"start": START, "target": series(200, 1)[:, 0]}])
    x = series(48, 1)[:, 0]
    (cold,) = predictor.predict([{"start": START, "target": x}])
    online = predictor.online(START)
    online.observe(x[:20])
    online.observe(x[20:])
    warm = online.predict()
    assert warm.start_date == cold.start_date
    np.testing.assert_allclose(warm.forecast_array, cold.forecast_array, rtol=1e-4, atol=1e-4)


def test_missing_steps_are_masked_and_counted(predictor: TitansPredictor) -> None:
    """A timestamp that leaves steps out is the same as observing NaN for them."""
    x = series(40)
    with_gap, with_nan = stream(predictor), stream(predictor)
    keep = np.r_[0:20, 25:40]
    ones = {name: np.ones((40, 1)) for name in ("feat_dynamic_real", "past_feat_dynamic_real")}
    ones_kept = {name: values[keep] for name, values in ones.items()}
    with_gap.observe(x[keep], [str(START + int(i)) for i in keep], **ones_kept)
    hole = x.copy()
    hole[20:25] = np.nan
    for values in ones.values():
        values[20:25] = np.nan
    with_nan.observe(hole, **ones)
    assert with_gap.steps == with_nan.steps == 40
    assert with_gap.missing == with_nan.missing == 5
    np.testing.assert_array_equal(forecast_of(with_gap), forecast_of(with_nan))


def test_late_and_double_timestamps_are_refused_and_nothing_is_observed(predictor: TitansPredictor) -> None:
    forecaster = stream(predictor)
    forecaster.observe(series(10), **features(10))
    before = forecast_of(forecaster)
    for stamps in (["2024-01-01 09:00"], ["2024-01-01 10:00", "2024-01-01 10:59"]):
        with pytest.raises(ValueError, match=r"is late or comes twice: the next step is 2024-01-01 1[01]:00"):
            forecaster.observe(series(len(stamps)), stamps, **features(len(stamps)))
    assert forecaster.steps == 10
    np.testing.assert_array_equal(forecast_of(forecaster), before)


def test_late_rows_can_be_dropped(predictor: TitansPredictor) -> None:
    forecaster, other = stream(predictor, late="drop"), stream(predictor)
    forecaster.observe(series(10), **features(10))
    extra = features(4)
    forecaster.observe(series(4), ["2024-01-01 03:00", "2024-01-01 10:00", "2024-01-01 10:00", "2024-01-01 11:00"], **extra)
    other.observe(series(10), **features(10))
    other.observe(series(4)[[1, 3]], **{name: values[[1, 3]] for name, values in extra.items()})
    assert (forecaster.steps, forecaster.dropped) == (12, 2)
    np.testing.assert_array_equal(forecast_of(forecaster), forecast_of(other))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.observe(np.zeros((3, 5)), **features(3)), r"values must be \(n, 2\), got shape \(3, 5\)"),
        (lambda f: f.observe(np.full((1, 2), np.inf), **features(1)), "infinite value; write NaN"),
        (lambda f: f.observe(np.zeros((2, 2)), ["2024-01-01"], **features(2)), "1 timestamps for 2 observations"),
        (lambda f: f.observe(np.zeros((1, 2)), ["yesterdayish"], **features(1)), "'yesterdayish' is no time"),
        (lambda f: f.observe(np.zeros((1, 2)), ["2190-01-01"], **features(1)), "leaves a gap of 1,455,1"),
        (lambda f: f.observe(np.zeros((1, 2))), "the model needs feat_dynamic_real with 1 columns"),
        (lambda f: f.predict(), "nothing has been observed yet"),
    ],
)
def test_what_cannot_be_observed(predictor: TitansPredictor, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(stream(predictor))


def test_a_stream_goes_on_in_another_process(predictor: TitansPredictor, tmp_path: Path) -> None:
    forecaster = stream(predictor)
    forecaster.observe(series(29), **features(29))
    forecaster.save(tmp_path / "stream.safetensors")
    predictor.model.save_pretrained(tmp_path / "model")
    program = f"""
import numpy as np
from domains.timeseries.predictor import load_predictor
from domains.timeseries.online import OnlineForecaster
predictor = load_predictor({str(tmp_path / "model")!r})
forecaster = OnlineForecaster.load({str(tmp_path / "stream.safetensors")!r}, predictor, feat_static_real=[2.0], feat_static_cat=[0])
ones = np.ones((1, 1))
forecaster.observe(np.full((1, 2), 9.0), feat_dynamic_real=ones, past_feat_dynamic_real=ones)
np.save({str(tmp_path / "there.npy")!r}, forecaster.predict(feat_dynamic_real=np.zeros((6, 1))).forecast_array)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    forecaster.observe(np.full((1, 2), 9.0), feat_dynamic_real=np.ones((1, 1)), past_feat_dynamic_real=np.ones((1, 1)))
    np.testing.assert_allclose(np.load(tmp_path / "there.npy"), forecast_of(forecaster), rtol=1e-5, atol=1e-5)


def test_a_stream_of_another_model_is_refused(predictor: TitansPredictor, tmp_path: Path) -> None:
    forecaster = stream(predictor)
    forecaster.observe(series(9), **features(9))
    forecaster.save(tmp_path / "stream.safetensors")
    predictor.model.save_pretrained(tmp_path / "model")
    other = load_predictor(tmp_path / "model")
    other.model.linear.bias.data += 1
    with pytest.raises(UserError, match="of a stream of another model"):
        OnlineForecaster.load(tmp_path / "stream.safetensors", other, feat_static_real=[2.0], feat_static_cat=[0])


def test_streams_of_one_model_read_its_weights_once_to_be_saved(
    predictor: TitansPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor.model.save_pretrained(tmp_path / "model")
    loaded = load_predictor(tmp_path / "model")
    read, read_weights = [], loaded.model.state_dict
    monkeypatch.setattr(loaded.model, "state_dict", lambda: read.append(1) or read_weights())
    for i in range(3):
        forecaster = stream(loaded)
        forecaster.observe(series(9), **features(9))
        forecaster.save(tmp_path / f"{i}.safetensors")
        forecaster.save(tmp_path / f"{i}.safetensors")
    assert len(read) == 1


def test_ten_years_of_hours_cost_the_same_every_year(predictor: TitansPredictor, tmp_path: Path) -> None:
    """The state's size, and the numbers that are computed while a year is read and for the forecast after it."""
    forecaster, path, hours = stream(predictor), tmp_path / "stream.safetensors", 365 * 24
    extra = {name: np.zeros((hours, 1)) for name in ("feat_dynamic_real", "past_feat_dynamic_real")}
    year, reading, forecasting, sizes = series(hours), [], [], []
    for _ in range(10):
        with Work() as read:
            forecaster.observe(year, **extra)
        with Work() as made:
            assert np.isfinite(forecast_of(forecaster)).all()
        forecaster.save(path)
        for counts, count in ((reading, read.elements), (forecasting, made.elements), (sizes, path.stat().st_size)):
            counts.append(count)
    assert forecaster.steps == 10 * hours
    assert len(set(sizes)) == len(set(forecasting)) == 1
    assert reading[0] < max(reading) < 1.005 * min(reading[1:])  # a year begins at another place of a chunk, the first cold
