"""The long-horizon benchmark keeps to the protocol, its evaluator is GluonTS's, its ridge is the published one, and its runs go on."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.common import ListDataset
from gluonts.dataset.split import split as gluonts_split
from gluonts.ev.metrics import MAE, MSE
from gluonts.model import evaluate_model
from gluonts.model.forecast import SampleForecast
from gluonts.model.predictor import RepresentablePredictor
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.machine import ROOT
from benchmarks.timeseries import __main__ as command
from benchmarks.timeseries.cells import MODELS, Cell, Result, plan
from benchmarks.timeseries.datasets import SOURCES, read
from benchmarks.timeseries.forecasters import Ridge, SeasonalNaive
from benchmarks.timeseries.measure import Results
from benchmarks.timeseries.protocol import HORIZONS, NotFinite, Windows, evaluate, split, standardise
from benchmarks.timeseries.report import MEANS, markdown
from benchmarks.timeseries.training import Budget
from titans_seq.errors import UserError

WINDOWS = {
    "ETTh1": (2785, 2689, 2545, 2161),
    "ETTh2": (2785, 2689, 2545, 2161),
    "ETTm1": (11425, 11329, 11185, 10801),
    "ETTm2": (11425, 11329, 11185, 10801),
    "Exchange": (1422, 1326, 1182, 798),
    "Weather": (10444, 10348, 10204, 9820),
}


@pytest.fixture(autouse=True)
def _data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "data_folder" in request.fixturenames:
        monkeypatch.setenv("TITANS_SEQ_DATA", str(request.getfixturevalue("data_folder")))


OFF = {"memory": False, "momentum": False, "forgetting": False, "convolution": False, "depth": 1}


def waves(steps: int = 600, season: int = 12) -> Tensor:
    """Two noisy seasonal channels, (T, 2)."""
    t = torch.arange(steps)
    clean = torch.stack([(2 * math.pi * t / season).sin(), (2 * math.pi * t / season).cos() + t / steps], 1)
    return clean + 0.1 * torch.randn(steps, 2, generator=torch.Generator().manual_seed(0))


# The protocol


@pytest.mark.parametrize("dataset", SOURCES)
def test_test_windows_are_those_of_the_papers(dataset: str, data_folder: Path) -> None:
    assert tuple(len(split(dataset, 96, horizon).test) for horizon in HORIZONS) == WINDOWS[dataset]
    assert tuple(len(split(dataset, 336, horizon).test) for horizon in HORIZONS) == WINDOWS[dataset]


@pytest.mark.parametrize("dataset", ["ETTh1", "Exchange"])
@pytest.mark.parametrize("look_back", [96, 512])
def test_first_labels_are_the_first_rows_after_the_borders(dataset: str, look_back: int, data_folder: Path) -> None:
    train_end, validation_end, test_end = SOURCES[dataset].borders()
    values, phases = read(dataset)
    rows = standardise(values, train_end)
    parts = split(dataset, look_back, 96)
    for windows, begin, end in ((parts.validation, train_end, validation_end), (parts.test, validation_end, test_end)):
        past, future, phase = windows.take(slice(0, 1))
        assert past.shape == (1, look_back, rows.shape[1])
        assert torch.equal(past[0], rows[begin - look_back : begin])
        assert torch.equal(future[0], rows[begin : begin + 96])
        assert phase.tolist() == phases[begin : begin + 1].tolist() == [0]  # ETTh: midnight; Exchange has no season
        assert torch.equal(windows.take(slice(len(windows) - 1, None))[1][0], rows[end - 96 : end])
    assert torch.equal(parts.train.take(slice(len(parts.train) - 1, None))[1][0], rows[train_end - 96 : train_end])
    assert torch.equal(parts.train.take(slice(0, 1))[0][0], rows[:look_back])


def test_scale_is_of_the_training_rows_alone() -> None:
    values = waves().double()
    other = torch.cat([values[:300], 50 + 9 * values[300:]])
    assert torch.equal(standardise(values, 300)[:300], standardise(other, 300)[:300])
    scaled = standardise(values, 300)[:300].double()
    assert torch.allclose(scaled.mean(0), torch.zeros(2).double(), atol=1e-6)
    assert torch.allclose(scaled.std(0, correction=0), torch.ones(2).double(), atol=1e-6)
    assert torch.equal(standardise(torch.full((9, 1), 7.0).double(), 5), torch.zeros(9, 1))


@given(steps=st.integers(9, 60), look_back=st.integers(1, 5), horizon=st.integers(1, 4), batch=st.integers(1, 70))
def test_evaluation_uses_every_window_once(steps: int, look_back: int, horizon: int, batch: int) -> None:
    series = waves(steps)
    found = evaluate(lambda past, phase: past[:, -1:].expand(-1, horizon, -1), Windows(series, look_back, horizon), batch)
    squared = [
        float((series[t + h] - series[t - 1]).square().mean()) for t in range(look_back, steps - horizon + 1) for h in range(horizon)
    ]
    assert found.windows == steps - look_back - horizon + 1 == len(squared) // horizon
    assert found.mse == pytest.approx(np.mean(squared), rel=1e-5)
    assert np.mean(found.mse_by_step) == pytest.approx(found.mse)


def test_evaluation_refuses_what_is_no_forecast() -> None:
    windows = Windows(waves(50), 8, 4)
    with pytest.raises(ValueError, match=r"shape \(39, 3, 2\), expected \(39, 4, 2\)"):
        evaluate(lambda past, phase: past[:, :3], windows)
    with pytest.raises(NotFinite):
        evaluate(lambda past, phase: past[:, :4] / 0, windows)
    with pytest.raises(ValueError, match="50 steps hold no window of 48 \\+ 4"):
        Windows(waves(50), 48, 4)


class AsGluonTS(RepresentablePredictor):
    """A forecaster of windows as a GluonTS predictor of univariate series."""

    def __init__(self, predict: Any, horizon: int, look_back: int) -> None:
        super().__init__(prediction_length=horizon)
        self.forecast, self.look_back = predict, look_back

    def predict_item(self, item: dict[str, Any]) -> SampleForecast:
        past = torch.from_numpy(item["target"][-self.look_back :])[None, :, None]
        return SampleForecast(
            self.forecast(past, torch.zeros(1, dtype=torch.int64))[0, :, 0].numpy()[None], item["start"] + len(item["target"])
        )


@pytest.mark.parametrize("forecaster", [SeasonalNaive(24), Ridge(penalties=(100.0,), centres=("last",))])
def test_evaluator_is_that_of_gluonts(forecaster: Any, data_folder: Path) -> None:
    parts = split("ETTh2", 96, 24)
    piece = Windows(parts.test.series_TC[: 96 + 24 + 30], 96, 24)
    fitted = forecaster.fit(parts.train.sample(500), parts.validation.sample(100), 0)
    found = evaluate(fitted.predict, piece)
    entries = [{"start": pd.Period("2017-10-20", "h"), "target": channel} for channel in piece.series_TC.T.numpy()]
    _, template = gluonts_split(ListDataset(entries, freq="h"), offset=96)
    test = template.generate_instances(24, windows=len(piece), distance=1)
    predictor = AsGluonTS(fitted.predict, 24, 96)
    expected = evaluate_model(predictor, test_data=test, metrics=[MSE(forecast_type=0.5), MAE()], axis=None)
    assert found.windows == 31
    assert found.mse == pytest.approx(float(expected.iloc[0, 0]), abs=5e-5)
    assert found.mae == pytest.approx(float(expected.iloc[0, 1]), abs=5e-5)


# The forecasters


def test_ridge_reaches_the_published_errors(data_folder: Path) -> None:
    found = []
    for horizon in HORIZONS:
        parts = split("ETTh1", 96, horizon)
        fitted = Ridge(penalties=(100.0,), centres=("last",), intercepts=(True,)).fit(parts.train, parts.validation, 0)
        found.append(evaluate(fitted.predict, parts.test))
    assert [round(errors.mse, 3) for errors in found] == [0.383, 0.434, 0.476, 0.470]
    assert round(np.mean([errors.mae for errors in found]), 3) == 0.429


def test_ridge_is_that_of_scikit_learn_and_chooses_by_validation() -> None:
    from sklearn.linear_model import Ridge as Reference

    train, validation = Windows(waves(), 12, 5), Windows(waves()[300:], 12, 5)
    ridge = Ridge(penalties=(0.1, 1000.0))
    for candidate in ridge.candidates(train, validation):
        past, future, _ = train.take(slice(None))
        level = past[:, -1:] if candidate.centre == "last" else past.mean(1, keepdim=True)
        x, y = ((part - level).transpose(1, 2).flatten(0, 1).double().numpy() for part in (past, future))
        reference = Reference(alpha=candidate.penalty, fit_intercept=candidate.intercept).fit(x, y)
        assert np.abs(reference.coef_.T - candidate.weight_KH[:-1].numpy()).max() < 1e-3  # its products are in float32
        assert np.abs(reference.intercept_ - candidate.weight_KH[-1].numpy()).max() < 1e-3  # its products are in float32
        alone = Ridge((candidate.penalty,), (candidate.centre,), (candidate.intercept,)).fit(train, validation, 0)
        assert evaluate(alone.predict, validation).mse == pytest.approx(candidate.mse, rel=1e-4)
    best = min(ridge.candidates(train, validation), key=lambda candidate: candidate.mse)
    assert ridge.fit(train, validation, 0).chosen == {"centre": best.centre, "penalty": best.penalty, "intercept": best.intercept}


def test_seasonal_naive_repeats_the_last_season_that_the_window_holds() -> None:
    past = torch.arange(10.0)[None, :, None]
    train = Windows(waves(), 10, 7)
    assert SeasonalNaive(4).fit(train, train, 0).predict(past, None)[0, :, 0].tolist() == [6, 7, 8, 9, 6, 7, 8]
    fallen_back = SeasonalNaive(24).fit(train, train, 0)
    assert fallen_back.predict(past, None)[0, :, 0].tolist() == [9] * 7
    assert fallen_back.chosen == {"season": 1}


@pytest.mark.parametrize(("model", "batches"), [("dlinear", 60), ("patchtst", 60), ("titans", 5), ("titans-no-memory", 5)])
def test_a_trained_model_beats_the_last_value_and_ends_with_its_best_epoch(model: str, batches: int) -> None:
    train, validation = Windows(waves(1200), 48, 12), Windows(waves(1200)[600:], 48, 12)
    budget = Budget(epochs=3, batches=batches, patience=2, validation_windows=200)
    fitted = MODELS[model].make("ETTh1", budget).fit(train, validation, 0)
    naive = SeasonalNaive(1).fit(train, validation, 0)
    assert [epoch.batches for epoch in fitted.epochs] == [0] + [fitted.chosen["batches"]] * (len(fitted.epochs) - 1)
    assert 2 <= len(fitted.epochs) <= 4
    best = min(epoch.validation_mse for epoch in fitted.epochs)
    assert evaluate(fitted.predict, validation.sample(budget.validation_windows)).mse == pytest.approx(best, rel=1e-4)
    assert fitted.epochs[fitted.chosen["best_epoch"]].validation_mse == best
    assert fitted.chosen["batches"] == min(batches, -(-len(train) // 32))
    assert best < 0.5 * evaluate(naive.predict, validation).mse


@pytest.mark.parametrize("output", ["normal", "quantile"])
def test_titans_begins_about_where_the_ridge_ends(output: str, data_folder: Path) -> None:
    from benchmarks.timeseries.ours import Settings, titans

    parts = split("ETTh1", 96, 96)
    validation = parts.validation.sample(200)
    net = titans(Settings(output=output), 24)(parts.train.sample(2000), validation).eval()
    begun = evaluate(net, validation)
    ridge = evaluate(Ridge().fit(parts.train.sample(2000), validation, 0).predict, validation)
    assert begun.mse < ridge.mse
    alone = MODELS["closed-form"].make("ETTh1", Budget()).fit(parts.train.sample(2000), validation, 0)
    assert evaluate(alone.predict, validation).mse == pytest.approx(begun.mse, rel=1e-4)


def test_windows_know_the_time_of_day(data_folder: Path) -> None:
    windows = split("ETTm1", 96, 24).train.sample(500)
    stride, (_, _, phase) = windows.stride, windows.take(slice(3, 5))
    assert phase.tolist() == [(96 + 3 * stride) % 96, (96 + 4 * stride) % 96]  # the data begin at midnight
    weather, phases = read("Weather")
    assert len(weather) == len(phases)
    assert phases[:2].tolist() == [1, 2]  # ten and twenty past midnight
    assert int(phases.max()) == 143


def test_ablations_switch_off_what_they_name() -> None:
    from benchmarks.timeseries.ours import Settings

    windows = Windows(waves(), 48, 12)
    usual = Settings().config(windows, 24).titans.memory
    changed = {name: Settings(**{name: value}).config(windows, 24).titans.memory for name, value in OFF.items()}
    assert changed["memory"].max_step < 1e-9 < usual.max_step
    assert (changed["momentum"].momentum, usual.momentum) == (False, True)
    assert (changed["forgetting"].forgetting, usual.forgetting) == ("none", "head")
    assert (changed["convolution"].convolution_width, usual.convolution_width) == (1, 4)
    assert (changed["depth"].depth, usual.depth) == (1, 2)


def test_the_same_seed_trains_the_same_model() -> None:
    train, validation = Windows(waves(), 48, 12), Windows(waves()[300:], 48, 12)
    budget = Budget(epochs=1, batches=5)
    a, b, c = (MODELS["dlinear"].make("ETTh1", budget).fit(train, validation, seed).epochs[1].validation_mse for seed in (0, 0, 1))
    assert a == b != c


# The command


def test_cells_begin_with_what_is_cheap() -> None:
    cells = plan(["Exchange", "ETTh1"], lambda dataset: [96, 336] if dataset == "ETTh1" else [96], [96, 192], ["dlinear", "ridge"], [0, 1])
    assert len(cells) == len(set(cells)) == 2 * 3 * (1 + 2)
    assert [cell.model for cell in cells[:6]] == ["ridge"] * 6
    assert cells[0] == Cell("ETTh1", 96, 96, "ridge")
    assert [(c.dataset, c.look_back) for c in cells[6:12]] == [("ETTh1", 96)] * 2 + [("Exchange", 96)] * 2 + [("ETTh1", 336)] * 2
    assert {cell.seed for cell in cells[6:12]} == {0}


def test_a_run_goes_on_where_the_last_one_ended(data_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "forecasting.json"
    arguments = ["--quick", "--models", "naive,ridge,dlinear", "--output", str(output)]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.timeseries", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "3 cells, 0 of them measured already" in run.stdout
    found = json.loads(output.read_text())
    assert found["runs"][0]["command"].startswith("python -m benchmarks.timeseries --quick")
    assert {"date", "revision", "versions", "cpu", "torch"} <= set(found["runs"][0])
    by_model = {cell["model"]: cell for cell in found["cells"]}
    assert {cell["windows"] for cell in by_model.values()} == {2785}
    assert by_model["ridge"]["mse"] == pytest.approx(0.383, abs=0.002)
    assert by_model["naive"]["mse"] == pytest.approx(0.512, abs=0.002)
    assert by_model["ridge"]["mse"] < by_model["dlinear"]["mse"] < 1.0
    _, epoch = by_model["dlinear"]["epochs"]
    assert epoch["cpu_seconds"] > 0
    assert np.mean(by_model["ridge"]["mse_by_step"]) == pytest.approx(by_model["ridge"]["mse"], abs=1e-4)

    del found["cells"][-1]
    output.write_text(json.dumps(found))
    command.main(arguments)
    again = json.loads(output.read_text())
    assert again["cells"][:2] == found["cells"]
    assert again["cells"][2]["mse"] == by_model["dlinear"]["mse"]
    assert [cell["run"] for cell in again["cells"]] == [0, 0, 1]


def results(path: Path | None = None) -> Results:
    found = Results(path, runs=[{"revision": "0123456789abc", "changes": False}], look_backs={"ETTh1": {"long": 336}})
    for i, horizon in enumerate(HORIZONS):
        for model, seeds, mse in (("naive", [None], 0.6), ("dlinear", [0, 1], 0.4)):
            for seed in seeds:
                cell = Cell("ETTh1", 96, horizon, model, seed)
                found.cells[cell] = Result(cell, 0, windows=9, mse=mse + 0.1 * i + 0.02 * (seed or 0), mae=mse, validation_mse=1.0)
    partly = Cell("ETTh2", 96, 96, "naive")
    found.cells[partly] = Result(partly, 0, windows=9, mse=0.1, mae=0.1)
    return found


def test_readme_table_holds_means_of_whole_sets_of_horizons() -> None:
    text = markdown(results())
    assert "| seasonal naive | 0.750 / 0.600 | - | - | - | - | - |" in text
    assert "| DLinear | **0.560 ± 0.014** / 0.400 | - | - | - | - | - |" in text
    assert "| *Titans LMM, its paper (table 3)* | 0.420 / 0.421 |" in text
    assert "| long look-back: MSE / MAE | ETTh1 (336) | ETTh2 |" in text
    assert text.endswith("| *TimeBridge (ICML 2025)* | 0.398 | 0.343 | - | 0.345 | 0.247 | 0.220 |")


def test_tables_are_put_between_the_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, readme = tmp_path / "found.json", tmp_path / "README.md"
    results(output).save()
    readme.write_text(f"before {MEANS.begin} old {MEANS.end} after")
    command.main(["--table", "--output", str(output), "--readme", str(readme)])
    assert readme.read_text().startswith("before ")
    assert readme.read_text().endswith(" after")
    assert MEANS.read(readme.read_text()) == markdown(Results.load(output))
    assert "| ETTh1 | 96 | 720 | 0.900 / 0.600 | **0.710 ± 0.014** / 0.400 |" in capsys.readouterr().out
    readme.write_text("no markers")
    with pytest.raises(SystemExit, match="has none of the markers <!-- forecasting:begin -->"):
        command.main(["--table", "--output", str(output), "--readme", str(readme)])


def test_readme_shows_the_shipped_results() -> None:
    shown = MEANS.read((ROOT / "README.md").read_text())
    if shown is None:
        pytest.skip("the README has no forecasting table between markers yet")
    assert shown == markdown(Results.load(command.OUTPUT))


def test_what_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, problem in (
        (["--datasets", "ETTh3"], "no data set is called 'ETTh3'; there are ETTh1"),
        (["--models", "ridge,gru"], "no model is called 'gru'"),
        (["--horizons", "0"], "must be positive"),
    ):
        with pytest.raises(SystemExit):
            command.parse_arguments(arguments)
        assert problem in capsys.readouterr().err
    monkeypatch.delenv("TITANS_SEQ_DATA", raising=False)
    with pytest.raises(SystemExit, match="TITANS_SEQ_DATA is not set"):
        command.main(["--quick", "--models", "naive"])
    (tmp_path / "timeseries" / "ett").mkdir(parents=True)
    monkeypatch.setenv("TITANS_SEQ_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"ETTh1.csv: no such file; it is the data set ETTh1"):
        read("ETTh1")
    (tmp_path / "timeseries" / "ett" / "ETTh1.csv").write_text("date,OT\n2016-07-01,1.0\n")
    with pytest.raises(UserError, match="1 rows of 1 channels, the published ETTh1 has 17420 of 7"):
        read("ETTh1")
    (tmp_path / "other.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="holds no results of this benchmark"):
        Results.load(tmp_path / "other.json")
