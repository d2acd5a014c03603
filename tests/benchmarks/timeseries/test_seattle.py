"""The forecast benchmark runs, scores every forecaster on the same windows, and its own parts of the scores agree with evaluate's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.machine import ROOT
from benchmarks.timeseries import seattle as forecast
from domains.timeseries.data import load_example
from domains.timeseries.metrics import evaluate, seasonal_naive

CHANNELS = ("temp_max", "temp_min", "precipitation", "wind")


@pytest.fixture(scope="module")
def task() -> forecast.Task:
    return forecast.Task(load_example(), prediction_length=28, windows=3, season_length=365, epochs=1)


def test_quick_run_writes_what_it_scored(tmp_path: Path) -> None:
    output = tmp_path / "new" / "forecast.json"
    command = [sys.executable, "-m", "benchmarks.timeseries.seattle", "--quick", "--windows", "2", "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert "titans mag" in run.stdout
    assert "titans mag, seed 0" in run.stderr
    found = json.loads(output.read_text())

    assert found["command"].startswith("python -m benchmarks.timeseries.seattle --quick")
    assert {"date", "revision", "python", "versions", "cpu", "device", "threads", "elapsed_seconds", "training"} <= set(found)
    expected = {"series": 1, "channels": list(CHANNELS), "training_steps": 1461 - 56, "test_windows": 2, "context_length": 112}
    assert expected.items() <= found["split"].items()
    assert found["split"]["last_training_step"] == "2015-11-05 00:00:00"
    assert found["split"]["season_length_of_mase"] == 365

    rows = {row["name"]: row for row in found["forecasters"]}
    assert list(rows) == ["seasonal naive 1", "seasonal naive 7", "seasonal naive 365", "titans mag"]
    assert sum(row["crps_above_best"] is None for row in rows.values()) == 1
    for name, row in rows.items():
        (one,) = row["runs"]
        for metric in ("CRPS", "MASE", "coverage_80"):
            assert set(one[metric]) == {*CHANNELS, "mean"}
            assert one[metric]["mean"] == pytest.approx(np.mean([one[metric][channel] for channel in CHANNELS]))
            assert row["mean"][metric] == one[metric]["mean"]
            assert row["standard_deviation"][metric] is None
        assert np.mean(one["crps_by_window"]) == pytest.approx(one["CRPS"]["mean"], rel=1e-5)
        assert (one["seed"] is None) == (row["parameters"] == 0) == ("naive" in name)
    assert rows["titans mag"]["runs"][0]["training_cpu_seconds"] > 0


def test_naives_and_crps_by_window_are_those_of_the_metrics(task: forecast.Task) -> None:
    test = task.split()[1]
    scored = forecast.score(task, forecast.naive(7).make(task, 0), None)
    expected = evaluate(seasonal_naive(test.input, 28, 7), test, 365, CHANNELS)
    assert list(scored.CRPS.values()) == expected["CRPS"].to_list()
    assert list(scored.MASE.values()) == expected["MASE"].to_list()
    assert len(scored.crps_by_window) == 3
    assert np.mean(scored.crps_by_window) == pytest.approx(expected["CRPS"][-1], rel=1e-5)


def test_climatology_takes_near_days_of_the_training_part(task: forecast.Task) -> None:
    training, test = task.split()
    found = forecast.climatology(task, 0).forecasts
    past = training[0]["target"]
    middle = next(iter(test.label))["start"]  # 9 October 2015
    rows = [past[:, t] for t in range(past.shape[1]) if abs((training[0]["start"] + t).day_of_year - middle.day_of_year) <= 15]
    assert len(rows) == 3 * 31 + 15  # of 2015, the 15 days before
    assert found[0].quantile(0.5)[0] == pytest.approx(np.median(rows, axis=0), rel=1e-6)
    assert found[0].mean[0] == pytest.approx(np.mean(rows, axis=0), rel=1e-5)
    assert [one.start_date for one in found] == [entry["start"] for entry in test.label]


def test_a_peer_forecasts_every_channel_in_its_own_unit(task: forecast.Task) -> None:
    made = forecast.peer("DLinear", forecast.dlinear).make(task, 0)
    assert [one.start_date for one in made.forecasts] == [entry["start"] for entry in task.split()[1].label]
    assert made.forecasts[0].forecast_array.shape == (9, 28, 4)
    assert (np.diff(made.forecasts[0].forecast_array, axis=0) >= 0).all()
    assert made.chosen["lr"] in forecast.PEER_LEARNING_RATES
    scored = forecast.score(task, made, 0)
    assert all(0.1 < scored.MASE[channel] < 3 for channel in CHANNELS), scored.MASE


def test_calendar_is_the_one_titans_sees(task: forecast.Task) -> None:
    start = task.split()[0][0]["start"]
    features = forecast.calendar("D", start, 366)
    assert features.shape == (task.estimator("mag", 0).config.num_time_features * 4, 366)
    assert np.abs(features).max() <= 1


def test_unusable_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"error: .*1461 steps"):
        forecast.main(["--quick", "--windows", "60"])
