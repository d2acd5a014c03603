"""`titans-seq forecast` as a user runs it: real files, and what is left behind."""

import inspect
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import get_type_hints

import huggingface_hub
import numpy as np
import polars as pl
import pytest
import torch

from domains.timeseries.cli import folder, report
from domains.timeseries.cli.options import TrainingOptions
from domains.timeseries.conformal import CalibratedPredictor, Calibration, load_calibrated
from domains.timeseries.data import read_table
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.model import TitansForecaster
from domains.timeseries.predictor import TitansPredictor, load_predictor
from tests.hub import Hub
from tests.limits import HANG
from tests.serving import serving
from titans_seq.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")  # it is invoked by sys.argv


@dataclass(frozen=True)
class Done:
    """What a command ended with and printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Callable[..., Done]]:
    """The command, in this process (importing takes longer than most runs) and in the folder `tmp_path`."""

    def run(*arguments: object, columns: int = 160) -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["titans-seq", "forecast", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Done(status, *capsys.readouterr())

    yield run
    logging.disable(logging.NOTSET)
    torch.set_num_threads(1)


def write_table(path: Path, rows: int = 120, **columns: list) -> Path:
    start = datetime(2023, 1, 1)
    days = [start + timedelta(days=i) for i in range(rows)]
    rng = np.random.default_rng(0)
    week = np.arange(rows) % 7
    table = {"date": days, "load": 10 + week + rng.normal(size=rows), "price": 5 - week + rng.normal(size=rows), **columns}
    frame = pl.DataFrame(table)
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, datetime_format="%Y-%m-%d")
    return path


Run = Callable[..., Done]
SMALL = ("--validate-every", 2, "--batch-size", 4, "--backbone.dim", 8, "--backbone.num-layers", 1, "--backbone.variant", "lmm")
QUICK = ("--prediction-length", 7, "--context-length", 14, "--windows", 2, "--max-steps", 2, *SMALL)
BACKTEST = ["coverage", "forecasts", "scores", "scores_by_horizon", "scores_by_window"]
PICTURES = ["coverage.png", "errors_by_horizon.png", "last_window.png"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_backtest_writes_scores_forecasts_and_pictures(run: Run, tmp_path: Path, kind: str) -> None:
    file = write_table(tmp_path / f"mine.{kind}")
    done = run("backtest", file, "--target", "price,load", *QUICK, "--stride", 3, "--format", kind, "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "the seasonal naive: mean CRPS" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*(f"{name}.{kind}" for name in BACKTEST), *PICTURES])
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "out"]

    def read(name: str) -> pl.DataFrame:
        path = tmp_path / "out" / f"{name}.{kind}"
        return pl.read_csv(path, try_parse_dates=True) if kind == "csv" else pl.read_parquet(path)

    forecasts = read("forecasts")
    assert forecasts["channel"].unique(maintain_order=True).to_list() == ["price", "load"]
    assert forecasts.height == 2 * 2 * 7
    assert [str(start)[:10] for start in forecasts["start"].unique().sort()] == ["2023-04-21", "2023-04-24"]  # a stride of 3
    truth = pl.read_csv(file, try_parse_dates=True) if kind == "csv" else pl.read_parquet(file)
    own = forecasts.filter(pl.col("channel") == "load").tail(7)["actual"]
    np.testing.assert_allclose(own, truth["load"].tail(7), rtol=1e-4)
    assert 3 < forecasts.filter(pl.col("channel") == "load")["q0.5"].mean() < 25  # original units
    assert read("scores")["forecaster"].unique().sort().to_list() == ["seasonal_naive", "titans"]
    assert read("scores_by_horizon")["horizon"].unique().sort().to_list() == list(range(1, 8))
    assert read("scores_by_window")["window"].unique().sort().to_list() == [1, 2]
    for picture in PICTURES:
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("refit", ["yes", "warm"])
def test_refitted_windows_forecast_from_what_came_before_them(run: Run, tmp_path: Path, refit: str) -> None:
    file = write_table(tmp_path / "mine.csv")
    done = run("backtest", file, *QUICK, "--refit", refit)
    assert done.returncode == 0, done.stderr
    assert "Window 2 of 2" in done.stdout
    later = write_table(tmp_path / "later.csv", load=[*pl.read_csv(file)["load"].head(113), *[10_000.0] * 7])
    assert run("backtest", later, *QUICK, "--refit", refit, "-o", "changed").returncode == 0
    first, changed = (pl.read_csv(tmp_path / name / "forecasts.csv").drop("actual") for name in ("backtest", "changed"))
    assert first.equals(changed.with_columns(item_id=pl.lit("mine")))  # the last window's truth was seen by no training


def test_train_then_predict_needs_no_flags_again(run: Run, tmp_path: Path) -> None:
    """Features of all kinds, in a long table: what the second file has beyond its targets is what it is forecast with."""
    shops = [
        {
            "day": datetime(2023, 1, 1) + timedelta(days=i),
            "shop": shop,
            "type": kind,
            "price": i % 5,
            "visits": i % 7,
            "sold": float(n + i % 7),
        }
        for n, (shop, kind) in enumerate((("a", "big"), ("b", "small")))
        for i in range(127)
    ]
    frame = pl.DataFrame(shops)
    future = pl.col("day") >= datetime(2023, 5, 1)
    old = frame.filter(~future)
    new = frame.with_columns(pl.when(future).then(None).otherwise(pl.col(c)).alias(c) for c in ("sold", "visits"))
    old.write_csv(tmp_path / "old.csv", datetime_format="%Y-%m-%d")
    new.select(reversed(new.columns)).write_csv(tmp_path / "new.csv", datetime_format="%Y-%m-%d")
    flags = (
        "--item-id",
        "shop",
        "--target",
        "sold",
        "--past-features",
        "visits",
        "--future-features",
        "price",
        "--static-features",
        "type",
    )
    done = run("train", "old.csv", *flags, *QUICK, "-o", "model")
    assert done.returncode == 0, done.stderr
    assert "Features. Known up to now: visits; known ahead: price; constant: type." in done.stdout
    table = json.loads((tmp_path / "model" / "table.json").read_text())
    assert table["categories"] == {"type": ["big", "small"]}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "titans-seq forecast train old.csv --item-id shop" in card
    assert "| CRPS, titans |" in card

    done = run("predict", "model", "new.csv")
    assert done.returncode == 0, done.stderr
    rows = pl.read_csv(tmp_path / "forecast" / "forecast.csv", try_parse_dates=True)
    assert rows.select("item_id", "channel").unique().height == 2
    assert (str(rows["timestamp"].min()), str(rows["timestamp"].max())) == ("2023-05-01", "2023-05-07")
    assert (tmp_path / "forecast" / "forecast.png").read_bytes().startswith(b"\x89PNG")

    done = run("predict", "model", "old.csv")
    assert done.returncode == 2
    assert "price must be known 7 steps of D beyond 2023-04-30" in done.stderr
    new.drop("visits").write_csv(tmp_path / "less.csv", datetime_format="%Y-%m-%d")
    done = run("predict", "model", "less.csv")
    assert done.returncode == 2
    assert "there is no column 'visits'" in done.stderr
    assert "model/table.json" in done.stderr
    assert "--" not in done.stderr
    old.with_columns(type=pl.int_range(pl.len()).cast(pl.String)).write_csv(tmp_path / "changing.csv", datetime_format="%Y-%m-%d")
    done = run("predict", "model", "changing.csv")
    assert "A static feature has one value a series. Columns, step and context are those that the model was trained" in done.stderr


def test_predict_names_no_flag_that_it_lacks_and_says_where_there_is_little_to_read(run: Run, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", 60)
    assert run("train", "t.csv", "-o", "model", *QUICK, "--quiet").returncode == 0
    rows = pl.read_csv(tmp_path / "t.csv")
    files = {
        "no.csv": rows.rename({"load": "weight"}),
        "off.csv": rows.with_columns(date=pl.when(pl.int_range(pl.len()) == 9).then(pl.lit("2023-01-10 05:00")).otherwise("date")),
        "gap.csv": rows.filter(pl.int_range(pl.len()) != 9),
        "twice.csv": pl.concat([rows, rows[:1]]),
        "one.csv": rows[:1],
    }
    for name, frame in files.items():
        frame.write_csv(tmp_path / name)
        done = run("predict", "model", name)
        assert done.returncode == 2, name
        assert "trained with (model/table.json, config.json)" in " ".join(done.stderr.split()), done.stderr
        assert set(re.findall(r"--[a-z-]+", done.stderr)) <= {"--missing"}, done.stderr
    rows[:14].write_csv(tmp_path / "enough.csv")
    assert "warning" not in run("predict", "model", "enough.csv", "--quiet").stderr
    rows[:5].write_csv(tmp_path / "short.csv")
    done = run("predict", "model", "short.csv", "--quiet")
    assert done.returncode == 0
    assert "warning: series 'short' has fewer steps (5) than the 14 that the model reads (its context_length)" in done.stderr


def test_watch_forecasts_the_steps_that_predict_does_and_goes_on(run: Run, tmp_path: Path) -> None:
    """Its values are those of a stream that has read the same rows, which is not the cold context that predict sees."""
    file = write_table(tmp_path / "mine.csv")
    assert run("train", file, *QUICK, "-o", "model").returncode == 0
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:100]))
    watching = ("watch", "model", file, "--interval", 0.05, "--idle", 0.1, "--state", "state")
    done = run(*watching)
    assert done.returncode == 0, done.stderr
    assert "Watching mine.csv. It waits for rows; Ctrl-C, or 0.1 seconds without a new one, ends it.\n" in done.stdout.replace(
        str(file), file.name
    )
    assert re.search(r"Next: load \S+ \(80 %: \S+ to \S+\)", done.stdout)
    assert "mine up to 2023-04-09, 99 steps. Next: load " in done.stdout
    file.write_text("".join(lines))
    done = run(*watching)
    assert "mine up to 2023-04-30, 120 steps (99 read before). Next: load " in done.stdout
    assert done.stdout.count("read before: rows up to the last step that the state in --state had read") == 1
    assert done.stdout.split()[-2:] == ["watch/forecast.csv", "watch/forecast.png"]
    assert run("predict", "model", file).returncode == 0
    watched, predicted = (pl.read_csv(tmp_path / name / "forecast.csv") for name in ("watch", "forecast"))
    assert watched.select("item_id", "timestamp", "channel").equals(predicted.select("item_id", "timestamp", "channel"))
    (entry,) = read_table(file).to_gluonts()
    stream = load_predictor(tmp_path / "model").online(entry["start"])
    stream.observe(entry["target"].T)
    for level in (0.1, 0.5, 0.9):
        written = watched[f"q{level}"].to_numpy().reshape(len(entry["target"]), -1).T
        np.testing.assert_allclose(written, stream.predict().quantile(level), rtol=1e-4, atol=1e-5)
    done = run("watch", "model", "nowhere.csv")
    assert (done.returncode, "nowhere.csv: no such file" in done.stderr) == (2, True)


def test_marks_of_numbers_and_the_order_of_dates_are_those_of_training(run: Run, tmp_path: Path) -> None:
    """A file of twelve days from the first on tells no order by itself, and its commas would be no numbers."""
    days = [datetime(2023, 1, 1) + timedelta(days=i) for i in range(90)]
    lines = [f"{day:%d/%m/%Y};{i % 7},5\n" for i, day in enumerate(days)]
    (tmp_path / "t.csv").write_text("date;load\n" + "".join(lines))
    (tmp_path / "short.csv").write_text("date;load\n" + "".join(lines[31:43]))  # 1 to 12 February
    done = run("train", "t.csv", *QUICK, "-o", "model")
    assert "Or say --decimal , where a comma stands for the point." in done.stderr
    done = run("train", "t.csv", *QUICK, "--decimal", ",", "-o", "model")
    assert done.returncode == 0, done.stderr
    assert run("predict", "model", "short.csv").returncode == 0
    assert run("watch", "model", "short.csv", "--idle", 0.1).returncode == 0
    for folder_ in ("forecast", "watch"):
        rows = pl.read_csv(tmp_path / folder_ / "forecast.csv", try_parse_dates=True)
        assert [str(day) for day in rows["timestamp"]] == [f"2023-02-{day}" for day in range(13, 20)]
    (tmp_path / "points.csv").write_text("date;load\n" + "".join(lines[:20]).replace(",5", ".5"))
    done = run("predict", "model", "points.csv")
    assert "Write numbers with a decimal comma" in done.stderr
    assert "--decimal" not in done.stderr


def test_a_dash_is_standard_input_and_what_is_missing_is_explained(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_table(tmp_path / "mine.csv")
    assert run("train", file, *QUICK, "-o", "model", "--quiet").returncode == 0
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:50], *lines[52:60], f"{lines[60].partition(',')[0]},,\n", *lines[61:]]))
    for quiet in ((), ("--quiet",)):
        with file.open() as standard_input:
            monkeypatch.setattr(sys, "stdin", standard_input)
            done = run("watch", "model", "-", *quiet)
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["watch/forecast.csv", "watch/forecast.png"]
    with file.open() as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        first, update, note, *paths = run("watch", "model", "-").stdout.splitlines()
    assert first == "Watching standard input. It waits for rows; Ctrl-C ends it."
    assert update.startswith("standard input up to 2023-04-30, 120 steps (3 missing). Next: load ")
    assert note.startswith("missing: steps that have no value. They are masked")
    assert paths == ["watch/forecast.csv", "watch/forecast.png"]
    for typed in (("--intervall",), ("--intervall", 2), ("-x",)):
        done = run("watch", "model", *typed)
        assert (done.returncode, f"Unknown option: {typed[0]}." in done.stderr) == (2, True), done.stderr
    assert "Did you mean --interval?" in run("watch", "model", "--intervall", 2).stderr


def test_intervals_are_calibrated_on_request(run: Run, tmp_path: Path) -> None:
    """On windows that training does not see; predict and watch take the calibration from the model's folder."""
    file = write_table(tmp_path / "mine.csv", rows=160)
    for command in ("train", "backtest"):
        done = run(command, file, *QUICK, "--calibration-windows", 20, "-o", command)
        assert done.returncode == 0, done.stderr
        assert "Trained on all before the last 59 steps" in done.stdout
        assert "Intervals are calibrated on the next 45 steps: 20 windows of each series." in done.stdout
    calibration, model = Calibration.load(tmp_path / "train" / "calibration.safetensors"), tmp_path / "train"
    assert (calibration.counts == 20).all()
    card = " ".join((model / "README.md").read_text().split())
    assert "with calibrated quantiles (20 windows of each series that training did not see)" in card
    assert "the last 14 steps were held out and the 45 steps before them calibrated the intervals." in card

    assert run("predict", "train", file).returncode == 0
    rows = pl.read_csv(tmp_path / "forecast" / "forecast.csv")
    entries = read_table(file).to_gluonts()
    calibrated, plain = (next(load(model).predict(entries)) for load in (load_calibrated, load_predictor))
    written = rows.filter(channel="load")["q0.1"].to_numpy()
    np.testing.assert_allclose(written, calibrated.quantile(0.1)[:, 0], rtol=1e-5)
    assert np.abs(written - plain.quantile(0.1)[:, 0]).max() > 1e-3

    lines = file.read_text().splitlines(keepends=True)
    stream = load_calibrated(model).online(entries[0]["start"])
    for start, end in ((0, 100), (100, 103), (103, 110)):
        (tmp_path / "grows.csv").write_text("".join(lines[: end + 1]))
        done = run("watch", "train", "grows.csv", "--interval", 0.05, "--idle", 0.1, "--state", "state")
        assert done.returncode == 0, done.stderr
        stream.observe(entries[0]["target"][:, start:end].T)
        expected = stream.predict().quantile(0.1)[:, 0]
        written = pl.read_csv(tmp_path / "watch" / "forecast.csv").filter(channel="load")["q0.1"].to_numpy()
        np.testing.assert_allclose(written, expected, rtol=1e-5)
    assert "110 steps (103 read before). Next: load " in done.stdout
    assert stream.tracker.scored.sum() > 0  # of what the watches before this one forecast

    done = run("train", file, *QUICK, "--calibration-windows", 4)
    assert done.returncode == 2
    assert "column 'load' is observed 4 times 1 steps ahead; at least 9 are needed" in " ".join(done.stderr.split())
    done = run("train", file, *QUICK, "--calibration-windows", 80)
    assert "165 to calibrate on" in " ".join(done.stderr.split())
    done = run("train", file, *QUICK, "-o", "train")
    assert done.returncode == 2
    assert "train: already holds a run (checkpoints/*.ckpt, table.json). Add --resume to go on with it" in done.stderr
    done = run("train", file, *QUICK, "-o", "train", "--resume")
    assert (done.returncode, "of a run with other settings: training.data was" in done.stderr) == (2, True)
    shutil.rmtree(model / "checkpoints")
    assert run("train", file, *QUICK, "-o", "train", "--resume").returncode == 0
    assert not (model / "calibration.safetensors").exists()


def test_forecasts_of_what_is_never_negative_are_clipped_on_request(run: Run, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", load=[float(i % 7 == 0) for i in range(120)], price=[float(i % 5 - 2) for i in range(120)])

    def least(folder: str, file: str, column: str = "load") -> float:
        return pl.read_csv(tmp_path / folder / file).filter(pl.col("channel") == column)["q0.1"].min()

    assert run("train", "t.csv", *QUICK, "-o", "free", "--quiet").returncode == 0
    done = run("predict", "free", "t.csv")
    assert least("forecast", "forecast.csv") < 0
    assert "Forecasts of load go below 0, where no value of the table is: train or backtest with --nonnegative load to" in done.stdout

    done = run("backtest", "t.csv", *QUICK, "--nonnegative", "load")
    assert done.returncode == 0, done.stderr
    assert "go below 0" not in done.stdout
    assert least("backtest", "forecasts.csv") == 0
    assert least("backtest", "forecasts.csv", "price") < 0
    assert run("train", "t.csv", *QUICK, "--nonnegative", "load", "-o", "model").returncode == 0
    assert run("predict", "model", "t.csv").returncode == 0
    assert run("watch", "model", "t.csv", "--idle", 0.1).returncode == 0
    assert least("forecast", "forecast.csv") == least("watch", "forecast.csv") == 0

    done = run("train", "t.csv", *QUICK, "--nonnegative", "load,price", "-o", "refused")
    assert done.returncode == 2
    assert "--nonnegative price: it is -2 at 2023-01-01 in series 't'." in done.stderr
    done = run("train", "t.csv", *QUICK, "--nonnegative", "date", "-o", "refused")
    assert "--nonnegative date: is no target. The targets are: load, price." in done.stderr


def test_a_calibrated_model_comes_from_the_hub_at_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table and calibration of one commit; a model without a calibration needs none."""
    file = write_table(tmp_path / "mine.csv", rows=160)
    for name, windows in (("calibrated", 20), ("plain", 0)):
        assert run("train", file, *QUICK, "--calibration-windows", windows, "-o", name).returncode == 0
    with serving(Hub()) as hub:
        address = {"ENDPOINT": hub.address, "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}"}
        for name, value in (*address.items(), ("HF_HUB_CACHE", str(tmp_path / "cache"))):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        for name, kind in (("calibrated", CalibratedPredictor), ("plain", TitansPredictor)):
            commit = hub.put(f"owner/{name}", tmp_path / name)
            trained = folder.find(f"owner/{name}")
            assert trained.folder.name == commit
            assert type(trained.predictor()) is kind
            assert sum(line == f"GET /api/models/owner/{name}/revision/main" for line in hub.asked) == 1, hub.asked


BAD: dict[str, tuple[str, tuple, str]] = {
    "nan": ("date,load\n" + "\n".join(f"2023-01-{d:02},{'' if d == 9 else d}" for d in range(1, 32)), (), "--missing mask"),
    "unknown-column": ("date,load\n2023-01-01,1\n2023-01-02,2\n", ("--target", "laod"), "Did you mean 'load'?"),
    "empty": ("", (), "empty"),
    "too-long-a-horizon": (
        "date,load\n" + "\n".join(f"2023-01-{d:02},{d}" for d in range(1, 32)),
        ("--prediction-length", 60, "--context-length", 5, "--windows", 1),
        "60",
    ),
    "silent-channel": (
        "date,load\n" + "\n".join(f"2023-{1 + d // 28:02}-{1 + d % 28:02},{d if d < 200 else ''}" for d in range(336)),
        ("--missing", "mask", "--prediction-length", 7, "--windows", 1, "--freq", "D"),
        "observed values in the 28 steps up to",
    ),
    "no-target": ("date,load\n2023-01-01,1\n", ("--target", ","), "names no column"),
    "no-feature": (
        "date,load\n2023-01-01,1\n",
        ("--future-features", "holiday"),
        "It was asked for by --future-features",
    ),
}


@pytest.mark.parametrize(("text", "arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_clear_error(run: Run, tmp_path: Path, text: str, arguments: tuple, message: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    done = run("backtest", "bad.csv", *arguments, "--output", "out")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]  # nothing left behind


def test_a_config_file_flags_and_a_saved_model(run: Run, tmp_path: Path) -> None:
    """Flags change what the file says; the saved model is the one that was asked for, and forecasts as predict does."""
    write_table(tmp_path / "mine.csv")
    (tmp_path / "run.toml").write_text(
        "prediction-length = 7\ncontext-length = 14\nwindows = 0\nmax-steps = 9\nvalidate-every = 2\ntarget = 'load,price'\n"
        '[backbone]\ndim = 24\nvariant = "lmm"\n[backbone.memory]\nchunk-size = 8\nnum-heads = 4\n'
    )
    flags = ("--config", "run.toml", "--max-steps", 2, "--backbone.memory.num-heads", 2, "-o", "model", "--quiet")
    done = run("train", "mine.csv", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "model\n"
    config = TitansForecaster.from_pretrained(tmp_path / "model").config
    assert (config.prediction_length, config.context_length, config.num_channels, config.freq) == (7, 14, 2, "D")
    assert (config.titans.dim, config.titans.variant, config.titans.dropout) == (24, "lmm", 0.1)
    assert (config.titans.memory.chunk_size, config.titans.memory.num_heads) == (8, 2)
    assert "nothing was held out" in (tmp_path / "model" / "README.md").read_text()

    done = run("predict", "model", "mine.csv", "--quiet")
    assert done.stdout.split() == ["forecast/forecast.csv", "forecast/forecast.png"], done.stderr
    entries = read_table(tmp_path / "mine.csv").to_gluonts()
    (forecast,) = load_predictor(tmp_path / "model").predict(entries)
    printed = pl.read_csv(tmp_path / "forecast" / "forecast.csv").filter(pl.col("channel") == "load")["q0.5"]
    np.testing.assert_allclose(forecast.quantile(0.5)[:, 0], printed, rtol=1e-5)


def test_a_table_on_the_disk_trains_the_same_model(run: Run, tmp_path: Path) -> None:
    file = write_table(tmp_path / "mine.parquet")
    for name, flags in (("memory", ()), ("disk", ("--cache", "cache"))):
        done = run("train", file, *QUICK, *flags, "-o", name)
        assert done.returncode == 0, done.stderr
    memory, disk = (tmp_path / name for name in ("memory", "disk"))
    assert (memory / "table.json").read_text() == (disk / "table.json").read_text()
    one, other = (TitansForecaster.from_pretrained(folder).state_dict() for folder in (memory, disk))
    assert all(torch.equal(x, other[key]) for key, x in one.items())


def test_static_features_of_a_table_on_the_disk(run: Run, tmp_path: Path) -> None:
    """Trained on from the disk, predicted with from a table in memory: the same codes."""
    rows = pl.read_csv(write_table(tmp_path / "one.csv"), try_parse_dates=True)
    kinds = {"a": "small", "b": "big"}
    long = pl.concat([rows.with_columns(shop=pl.lit(shop), kind=pl.lit(kind)) for shop, kind in kinds.items()])
    long.write_parquet(tmp_path / "long.parquet")
    flags = ("--item-id", "shop", "--static-features", "kind")
    for name, cache in (("memory", ()), ("disk", ("--cache", "cache"))):
        done = run("train", "long.parquet", *flags, *QUICK, *cache, "-o", name)
        assert done.returncode == 0, done.stderr
    memory, disk = (tmp_path / name for name in ("memory", "disk"))
    assert json.loads((disk / "table.json").read_text())["categories"] == {"kind": ["big", "small"]}
    assert (memory / "table.json").read_text() == (disk / "table.json").read_text()
    written = []
    for cache in ((), ("--cache", "cache")):
        done = run("predict", "disk", "long.parquet", *cache)
        assert done.returncode == 0, done.stderr
        written.append((tmp_path / "forecast" / "forecast.csv").read_text())
    assert written[0] == written[1]
    done = run("predict", "disk", "--cache", "cache")
    assert (done.returncode, "name the FILE as well" in done.stderr) == (2, True)


def test_a_killed_training_goes_on(run: Run, tmp_path: Path) -> None:
    """Killed once it has a checkpoint, it ends with the weights and scores of one that was not, and says that it needs --resume."""
    file = write_table(tmp_path / "mine.csv")
    lengths = ("--prediction-length", 7, "--context-length", 14, "--windows", 2, "--max-steps", 16)
    flags = ("train", file, *lengths, *SMALL, "--quiet", "--calibration-windows", 9)
    command = [sys.executable, "-m", "titans_seq.cli", "forecast", *map(str, flags), "-o", "killed"]
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": root})
    while process.poll() is None and not list(tmp_path.glob("killed/checkpoints/*.ckpt")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = run(*flags, "-o", "killed")
    assert (done.returncode, "Add --resume to go on with it" in done.stderr) == (2, True)
    assert "killed: its training has not ended" in run("predict", "killed", file).stderr
    for arguments in (("-o", "killed", "--resume"), ("-o", "whole")):
        done = run(*flags, *arguments)
        assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "calibration.safetensors", "table.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_a_training_that_is_asked_to_end_goes_on(run: Run, tmp_path: Path, signum: int, status: int) -> None:
    """It says how, ends with the shell's status, and loses no step: model and metrics are those of a whole run."""
    file = write_table(tmp_path / "mine.csv")
    lengths = ("--prediction-length", 7, "--context-length", 14, "--windows", 0, "--max-steps", 80)
    flags = ("train", file, *lengths, *SMALL, "--quiet")
    command = [sys.executable, "-m", "titans_seq.cli", "forecast", *map(str, flags), "-o", "asked"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("asked/checkpoints/*.ckpt")):
        time.sleep(0.01)
    process.send_signal(signum)
    errors = process.communicate(timeout=HANG)[1]
    assert process.returncode == status, errors
    assert "The same command with --resume goes on from step " in errors
    for arguments in (("-o", "asked", "--resume"), ("-o", "whole")):
        done = run(*flags, *arguments)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    asked, whole = (pl.read_csv(tmp_path / name / "metrics.csv").drop("seconds", "windows_per_second") for name in ("asked", "whole"))
    assert asked.equals(whole)
    assert whole["epoch"].to_list()[:2] == [1, 1]


def test_a_row_that_cannot_be_used_stops_the_watch_after_those_before_it(run: Run, tmp_path: Path) -> None:
    file = write_table(tmp_path / "mine.csv")
    assert run("train", file, *QUICK, "-o", "model").returncode == 0
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:100], lines[100].replace("2023", "2O23"), *lines[101:]]))
    watching = ("watch", "model", file, "--interval", 0.05, "--idle", 0.1, "--state", "state")
    done = run(*watching)
    assert done.returncode == 2
    assert "mine up to 2023-04-09, 99 steps. Next: load " in done.stdout
    assert done.stdout.split()[-2:] == ["watch/forecast.csv", "watch/forecast.png"]
    message = " ".join(done.stderr.split())
    assert "line 101" in message
    assert "What came before it was read and is kept in state. Mend that row, or take it out, and watch again." in message
    file.write_text("".join(lines))
    done = run(*watching)
    assert (done.returncode, "mine up to 2023-04-30, 120 steps (99 read before). Next: load " in done.stdout) == (0, True), done.stderr


def test_every_channel_is_printed(run: Run, tmp_path: Path) -> None:
    file = write_table(tmp_path / "mine.csv")
    flags = ("--linear-memory", 32, "--ema-decay", 0.9, "--gradient-clip", "none", "--precision", "bf16", "--accumulate", 2)
    done = run("train", file, *QUICK, *flags, "-o", "model")
    assert done.returncode == 0, done.stderr
    assert TitansForecaster.from_pretrained(tmp_path / "model").config.linear_memory == 32
    done = run("predict", "model", file)
    for channel in ("load", "price"):
        assert sum(f" {channel} " in line and "2023-05-" in line for line in done.stdout.splitlines()) == 6, done.stdout
    assert "2 more rows are in the file." in done.stdout
    done = run("train", file, *QUICK, "--linear-memory", 1, "-o", "other")
    assert done.returncode == 2
    assert "ForecasterConfig.linear_memory must be 0, or at least 2" in " ".join(done.stderr.split())


def test_of_many_channels_the_first_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"timestamp": [datetime(2023, 1, 1), datetime(2023, 1, 2)], "q0.1": [1.0, 2.0], "q0.5": [2.0, 3.0], "q0.9": [3.0, 4.0]}
    rows = pl.concat([pl.DataFrame({"item_id": "a", "channel": f"c{n}", **columns}) for n in range(20)])
    report.print_forecast(rows)
    printed = capsys.readouterr().out
    assert "c11" in printed
    assert "c12" not in printed
    assert "28 more rows are in the file, those of 8 more channels among them." in printed


@pytest.mark.parametrize(("hours", "shown"), [(1, "2023-01-01 00:00:00"), (24, "2023-01-01")])
def test_times_of_one_table_are_in_one_form(capsys: pytest.CaptureFixture[str], hours: int, shown: str) -> None:
    times = [datetime(2023, 1, 1) + n * timedelta(hours=hours) for n in range(3)]
    report.print_forecast(pl.DataFrame({"item_id": "a", "timestamp": times, "channel": "c", "q0.1": 1.0, "q0.5": 2.0, "q0.9": 3.0}))
    cells = [line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert cells[0] == shown
    assert len({len(cell) for cell in cells}) == 1


@pytest.mark.parametrize("steps", [1, 14, 24, 25, 96])
def test_scores_by_steps_ahead_leave_out_no_step_without_a_word(capsys: pytest.CaptureFixture[str], steps: int) -> None:
    along = {"channel": "mean", "CRPS": 1.0, "MASE": 1.0, "coverage_80": 0.8}
    rows = [{"forecaster": name, "horizon": n + 1, **along} for name in ("titans", "seasonal_naive") for n in range(steps)]
    report.print_along(pl.DataFrame(rows), "horizon", "By steps ahead", Path("out/scores_by_horizon.csv"))
    printed = capsys.readouterr().out
    numbers = [int(cells[1]) for line in printed.splitlines() if (cells := line.split()) and cells[0] == "│"]
    assert len(numbers) == len(set(numbers)) == min(steps, 24)
    assert (numbers[0], numbers[-1]) == (1, steps)
    assert ("24 of" in printed) == (steps > 24)
    assert steps <= 24 or f"24 of {steps} steps; all are in out/scores_by_horizon.csv." in printed


def test_a_folder_that_holds_a_run_is_refused_before_the_table_is_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "table.json").touch()
    done = run("train", "none.csv", "-o", "model")
    assert (done.returncode, done.stdout) == (2, "")
    assert "model: already holds a run (table.json). Add --resume to go on with it, or name another folder." in " ".join(
        done.stderr.split()
    )
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["table.json"]


def test_a_folder_that_train_did_not_write(run: Run, tmp_path: Path) -> None:
    assert "model: no such folder. Give one that `titans-seq forecast train` wrote" in run("predict", "model").stderr
    (tmp_path / "model").mkdir()
    done = run("predict", "model")
    assert done.returncode == 2
    assert "model/table.json: no such file. Give a folder that `titans-seq forecast train` wrote." in done.stderr
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "titans_dna", "config": {}}')
    assert "model/table.json: no such file; model is a titans_dna. Give" in run("predict", "model").stderr
    shutil.copytree(tmp_path / "model", tmp_path / "run" / "model")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "step-9.ckpt").touch()
    said = "run/table.json: no such file; run is the folder of a run, and its model, run/model, is a titans_dna. Give"
    assert said in " ".join(run("predict", "run").stderr.split())
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".lock").touch()
    assert "begun: its training has not ended, so it holds no forecaster yet." in run("predict", "begun").stderr
    (tmp_path / "model" / "table.json").write_text('{"table": {"timestamp": 3}}')
    done = run("predict", "model")
    assert done.returncode == 2
    assert "table.json: damaged" in done.stderr


def test_a_refused_backbone_names_its_flag(run: Run, tmp_path: Path) -> None:
    done = run("train", "--backbone.memory.chunk-size", 0)
    assert done.returncode == 2
    assert done.stderr == "Error: --backbone.memory.chunk-size must be at least 1, got 0\n"


def test_missing_values_are_masked_on_request(run: Run, tmp_path: Path) -> None:
    file = write_table(tmp_path / "gaps.csv", load=[float("nan") if i % 11 == 0 else 10.0 + i % 7 for i in range(120)])
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for i, line in enumerate(lines) if i not in (20, 21)) + "\n")
    done = run("backtest", "gaps.csv", *QUICK, "--missing", "mask")
    assert done.returncode == 0, done.stderr
    assert "Values masked as missing: 13 of load, 2 of price; 2 steps of these the file has no row for." in done.stdout


def test_no_such_file_no_arguments_and_help(run: Run, tmp_path: Path) -> None:
    done = run("train", "nowhere.csv")
    assert done.returncode == 2
    assert "nowhere.csv" in done.stderr
    listed = run(columns=80)
    assert all(name in listed.stdout for name in ("train", "predict", "backtest", "watch"))
    for command in ("train", "predict", "backtest", "watch"):  # each in a process of its own: within one the first width is kept
        asked = [sys.executable, "-m", "titans_seq.cli", "forecast", command, "--help"]
        helped = subprocess.run(asked, env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, check=True, timeout=HANG)
        assert max(map(len, helped.stdout.splitlines())) <= 80
        assert "--output" in helped.stdout


def test_the_help_names_the_defaults_of_the_estimator() -> None:
    defaults = inspect.signature(TitansEstimator.__init__).parameters
    hints = get_type_hints(TrainingOptions, include_extras=True)
    names = {"batch_size": "batch_size", "learning_rate": "lr"}
    for option, argument in names.items():
        (about,) = hints[option].__metadata__
        assert about.help.endswith(f" Default: {defaults[argument].default}.")
    steps, epoch = TrainingOptions().max_steps, TrainingOptions().validate_every
    assert (steps / epoch, epoch) == (defaults["max_epochs"].default, defaults["num_batches_per_epoch"].default)
