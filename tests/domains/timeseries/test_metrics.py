import math
from datetime import datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest
from gluonts.model.forecast import QuantileForecast, SampleForecast
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.timeseries.data import load_example, read_table, split
from domains.timeseries.metrics import (
    METRICS,
    QUANTILES,
    default_season_length,
    evaluate,
    forecast_table,
    seasonal_naive,
)
from titans_seq.errors import UserError


def entry(values_CT, item_id="x", freq="D"):
    return {"item_id": item_id, "start": pd.Period("2020-01-01", freq), "target": np.asarray(values_CT, np.float32)}


def levels_forecast(arrays_KPC, start="2020-01-09"):
    keys = ["mean", *map(str, QUANTILES)]
    return QuantileForecast(np.asarray(arrays_KPC, float), pd.Period(start, "D"), keys, item_id="x")


def pinball(label, quantile, level):
    return 2 * abs((label - quantile) * ((label <= quantile) - level))


def by_hand(label_T, array_KT, past_T, season):
    """The scores of one channel from their definitions, in plain Python."""
    steps = [t for t in range(len(label_T)) if not math.isnan(label_T[t])]
    mean, *levels = array_KT
    total = sum(abs(label_T[t]) for t in steps)
    losses = [sum(pinball(label_T[t], q[t], level) for t in steps) for q, level in zip(levels, QUANTILES, strict=True)]
    mae = sum(abs(label_T[t] - levels[4][t]) for t in steps) / len(steps)
    errors = [abs(past_T[t] - past_T[t - season]) for t in range(season, len(past_T))]
    errors = [error for error in errors if not math.isnan(error)]
    return {
        "CRPS": sum(losses) / len(losses) / total,
        "MASE": mae * len(errors) / sum(errors),
        "MAE": mae,
        "RMSE": math.sqrt(sum((label_T[t] - mean[t]) ** 2 for t in steps) / len(steps)),
        "coverage_80": sum(levels[0][t] <= label_T[t] <= levels[-1][t] for t in steps) / len(steps),
    }


def test_evaluate_equals_the_definitions_and_leaves_missing_steps_out():
    generator = np.random.default_rng(0)
    values_CT = generator.normal(5, 3, (2, 11)).astype(np.float32)
    values_CT[1, 9] = values_CT[0, 3] = np.nan
    _, test = split([entry(values_CT)], prediction_length=3, windows=1)
    array_KPC = np.sort(generator.normal(5, 3, (10, 3, 2)), axis=0)
    array_KPC[1, 0, 0] = values_CT[0, 8]  # a label on the lower bound counts as covered
    scores = evaluate([levels_forecast(array_KPC)], test, 2, ["a", "b"])
    assert scores["channel"].to_list() == ["a", "b", "mean"]
    for channel in range(2):
        expected = by_hand(values_CT[channel, 8:], array_KPC[:, :, channel], values_CT[channel, :8], season=2)
        assert scores[channel].select(METRICS).row(0, named=True) == pytest.approx(expected, rel=1e-5)
    assert scores.row(2)[1:] == pytest.approx(scores[:2].select(METRICS).mean().row(0))


def test_units_do_not_mix():
    """Rescaling one channel leaves the relative scores of every channel as they were."""
    table = load_example()
    plain = table.to_gluonts()
    scaled = [{**plain[0], "target": plain[0]["target"] * np.float32([[1], [1], [64], [1]])}]
    rows = []
    for entries in (plain, scaled):
        _, test = split(entries, 14, 2)
        rows.append(evaluate(seasonal_naive(test.input, 14, 7), test, 7, table.targets))
    for metric in ("CRPS", "MASE", "coverage_80"):
        assert rows[0][metric].to_list() == pytest.approx(rows[1][metric].to_list())


def test_undefined_scores_are_null_and_left_out_of_the_mean():
    values_CT = np.stack([np.zeros(20), np.arange(20) % 5 + 1.0])
    _, test = split([entry(values_CT)], 4, 1)
    scores = evaluate(seasonal_naive(test.input, 4, 2), test, 2, ["zero", "saw"])
    assert scores["CRPS"][0] is None
    assert scores["MASE"][0] is None
    assert scores["CRPS"][2] == scores["CRPS"][1]


def test_season_longer_than_history_is_refused():
    _, test = split([entry(np.ones((1, 11)))], 3, 1)
    with pytest.raises(UserError, match="season of 8 steps, but that of 'x' has 8"):
        evaluate(seasonal_naive(test.input, 3, 2), test, 8, ["a"])


def test_evaluate_prints_nothing(capfd):
    _, test = split([entry(np.arange(22.0).reshape(2, 11))], 3, 1)
    evaluate(seasonal_naive(test.input, 3, 2), test, 2, ["a", "b"])
    assert capfd.readouterr() == ("", "")


def test_seasonal_naive_by_hand():
    past_CT = [[1, 2, 3, 5, 9, 8], [0, 0, 0, 0, 4, 6]]
    (forecast,) = seasonal_naive([entry(past_CT)], prediction_length=5, season_length=2)
    assert forecast.start_date == pd.Period("2020-01-07", "D")
    assert forecast.item_id == "x"
    point = np.array([[9, 4], [8, 6], [9, 4], [8, 6], [9, 4]], float)
    np.testing.assert_allclose(forecast.mean, point)
    np.testing.assert_allclose(forecast.median, point)
    one_season = np.array([3 - 1, 5 - 2, 9 - 3, 8 - 5])  # the errors of channel 0 at lag 2, then at lag 4
    two_seasons = np.array([9 - 1, 8 - 2])
    for level in QUANTILES:
        for errors, steps in ((one_season, [0, 1]), (two_seasons, [2, 3])):
            expected = point[steps, 0] + np.quantile(errors, level) - np.median(errors)
            np.testing.assert_allclose(forecast.quantile(level)[steps, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(  # lag 6 has no pair: as at lag 4
        (forecast.quantile(0.9) - point)[4], (forecast.quantile(0.9) - point)[3]
    )


def test_seasonal_naive_skips_missing_steps():
    (forecast,) = seasonal_naive([entry([[np.nan, 1, 2, np.nan, 4, 5, np.nan, 7]])], 3, 2)
    assert np.isfinite(forecast.forecast_array).all()
    np.testing.assert_allclose(forecast.median[:, 0], [5, 7, 5])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_seasonal_naive_knows_what_repeats(prediction_length, season, seed):
    pattern = np.random.default_rng(seed).normal(size=(2, season)).astype(np.float32)
    series = np.tile(pattern, 10)
    (forecast,) = seasonal_naive([entry(series)], prediction_length, season)
    expected = np.tile(pattern, 20)[:, :prediction_length].T
    np.testing.assert_array_equal(forecast.forecast_array, np.broadcast_to(expected, (10, *expected.shape)))


def test_intervals_of_the_naive_cover_what_they_say():
    series = np.random.default_rng(1).normal(size=(3, 1200))
    _, test = split([entry(series)], 10, 40)
    scores = evaluate(seasonal_naive(test.input, 10, 7), test, 7, "abc")
    assert scores["coverage_80"][3] == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("freq", "season"),
    [
        *(("s", 3600), ("min", 1440), ("15min", 96), ("h", 24), ("2h", 12), ("D", 7), ("B", 5), ("W-SUN", 52)),
        *(("M", 12), ("MS", 12), ("Q-DEC", 4), ("QS-OCT", 4), ("Y-DEC", 1)),
    ],
)
def test_default_season(freq, season):
    assert default_season_length(freq) == season


def test_forecast_table():
    array_KPC = np.arange(10 * 3 * 2).reshape(10, 3, 2)
    rows = forecast_table([levels_forecast(array_KPC)], ["a", "b"])
    assert rows.columns == ["item_id", "timestamp", "channel", "mean", *(f"q{level}" for level in QUANTILES)]
    assert rows.schema["timestamp"] == pl.Datetime("us")
    assert rows.height == 6
    row = rows.filter((pl.col("channel") == "b") & (pl.col("timestamp") == datetime(2020, 1, 10))).row(0)
    assert row[3:] == tuple(array_KPC[:, 1, 1])


def test_forecast_table_of_univariate_samples():
    forecast = SampleForecast(np.arange(12.0).reshape(4, 3), pd.Period("2020-01-01 05:00", "h"))
    rows = forecast_table([forecast], ["a"], quantiles=[0.5])
    assert rows["mean"].to_list() == [4.5, 5.5, 6.5]
    assert rows["timestamp"][2] == datetime(2020, 1, 1, 7)


@pytest.mark.parametrize("step", ["W-TUE", "ME", "QE-DEC"])
def test_forecast_table_goes_on_as_the_file_does(tmp_path, step):
    stamps = pd.date_range("2018-01-02", periods=30, freq=step)
    pl.DataFrame({"date": stamps[:26].to_list(), "a": range(26)}).write_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    rows = forecast_table(seasonal_naive(table.to_gluonts(), 4, 2), ["a"], table=table)
    assert rows["timestamp"].to_list() == list(stamps[26:].to_pydatetime())
