"""Panels are the published ones, their scores GluonTS's, and AutoETS's intervals are the quantiles they are taken for."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.split import split
from gluonts.model.forecast import QuantileForecast

from benchmarks.machine import ROOT, installed
from benchmarks.timeseries import probabilistic
from benchmarks.timeseries.panels import PANELS, Panel, load
from domains.timeseries.config import QUANTILES
from domains.timeseries.data import quiet_pandas

SERIES = {"tourism_monthly": 366, "electricity_weekly": 321, "traffic_weekly": 862, "m4_weekly": 359, "m4_hourly": 414}


@pytest.fixture(autouse=True)
def _data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "data_folder" in request.fixturenames:
        monkeypatch.setenv("TITANS_SEQ_DATA", str(request.getfixturevalue("data_folder")))


@pytest.mark.parametrize("name", ["tourism_monthly", "m4_weekly"])
def test_labels_are_the_last_horizon_and_not_trained_on(name: str, data_folder: Path) -> None:
    panel = load(name)
    assert len(panel.train) == SERIES[name]
    for entry, past, label in zip(panel.train, panel.test.input, panel.test.label, strict=True):
        assert np.array_equal(entry["target"], past["target"])
        assert label["target"].shape == (PANELS[name].horizon,)
        assert label["start"] == entry["start"] + len(entry["target"])
    if name == "m4_weekly":  # W1 of the published test file
        assert next(iter(panel.test.label))["target"][:2] == pytest.approx([35397.16, 35808.59])


def panel() -> Panel:
    """Two noisy yearly series of 20 years, (T,) each."""
    rng = np.random.default_rng(0)
    months = np.arange(240)
    entries = [
        {
            "item_id": str(i),
            "start": pd.Period("2000-01", "M"),
            "target": (50 + 10 * np.sin(months * np.pi / 6) + rng.normal(size=240)).astype(np.float32),
        }
        for i in range(2)
    ]
    train, template = split(entries, offset=-24)
    return Panel("tourism_monthly", PANELS["tourism_monthly"], list(train), template.generate_instances(24))


def test_scores_are_those_of_the_definitions() -> None:
    given = panel()
    labels = np.stack([entry["target"] for entry in given.test.label])
    perfect = [
        QuantileForecast(np.tile(entry["target"], (9, 1)), entry["start"], list(map(str, QUANTILES)), item_id=entry["item_id"])
        for entry in given.test.label
    ]
    assert probabilistic.score(given, perfect)["CRPS"] == 0
    made = probabilistic.naive(given, probabilistic.Budget(), 0)
    found = probabilistic.score(given, made.forecasts)
    losses = [
        2 * np.maximum(level * (labels - q), (level - 1) * (labels - q))
        for level in QUANTILES
        for q in [np.stack([forecast.quantile(level) for forecast in made.forecasts])]
    ]
    assert found["CRPS"] == pytest.approx(np.sum(losses) / 9 / np.abs(labels).sum(), rel=1e-5)
    low, high = (np.stack([forecast.quantile(level) for forecast in made.forecasts]) for level in (0.1, 0.9))
    assert found["coverage_80"] == pytest.approx(((low < labels) & (labels < high)).mean(), abs=0.02)
    assert 0.6 < found["coverage_80"] < 1


@pytest.mark.skipif(installed("statsforecast") is None, reason="statsforecast is not installed")
def test_auto_ets_knows_the_season_and_its_quantiles_rise() -> None:
    given = panel()
    made = probabilistic.auto_ets(given, probabilistic.Budget(), 0)
    for forecast in made.forecasts:
        arrays = [forecast.quantile(level) for level in QUANTILES]
        assert all((low < high).all() for low, high in pairwise(arrays))
        assert np.allclose(forecast.mean, forecast.quantile(0.5))
    ours = probabilistic.score(given, made.forecasts)
    assert ours["CRPS"] < probabilistic.score(given, probabilistic.naive(given, probabilistic.Budget(), 0).forecasts)["CRPS"]
    assert 0.6 < ours["coverage_80"] <= 1


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # GluonTS's DeepAR
@pytest.mark.parametrize("model", ["titans", "deepar", "patchtst"])
def test_trained_models_forecast_every_series(model: str) -> None:
    given = panel()
    with quiet_pandas():
        made = probabilistic.MODELS[model].make(given, probabilistic.Budget(epochs=1, batches=5, batch_size=8), 0)
    assert [forecast.item_id for forecast in made.forecasts] == ["0", "1"]
    assert [forecast.start_date for forecast in made.forecasts] == [entry["start"] for entry in given.test.label]
    found = probabilistic.score(given, made.forecasts)
    assert 0 < found["CRPS"] < 1
    assert made.parameters > 0


@pytest.mark.slow
def test_quick_run_writes_what_it_measured(data_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.timeseries.probabilistic", "--quick", "--models", "naive", "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    (cell,) = json.loads(output.read_text())["cells"]
    assert cell["windows"] == 366
    assert cell["scores"]["MASE"] == pytest.approx(1.63, abs=0.01)
    assert "| tourism_monthly | seasonal naive |" in run.stdout
