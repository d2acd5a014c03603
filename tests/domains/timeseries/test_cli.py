"""`titans-seq forecast` as a user runs it: a real process, real files, and what is left behind."""

import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from domains.timeseries.data import read_table
from domains.timeseries.estimator import load_predictor
from domains.timeseries.model import TitansForecaster

COMMAND = [str(Path(sys.executable).parent / "titans-seq"), "forecast"]


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "160"}
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


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


QUICK = ("--prediction-length", 7, "--context-length", 14, "--windows", 2, "--epochs", 1)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_from_a_file_to_a_forecast_beyond_its_end(tmp_path: Path, suffix: str) -> None:
    file = write_table(tmp_path / f"mine{suffix}")
    done = run(file, "--target", "price,load", *QUICK, "--format", suffix[1:], "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seasonal naive" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"forecast{suffix}",
        "forecast.png",
        "held_out.png",
        "metrics.csv",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "out"]

    read = pl.read_csv if suffix == ".csv" else pl.read_parquet
    table = read(tmp_path / "out" / f"forecast{suffix}", **({"try_parse_dates": True} if suffix == ".csv" else {}))
    assert table["channel"].unique(maintain_order=True).to_list() == ["price", "load"]
    assert str(table["timestamp"].min())[:10] == "2023-05-01"  # the day after the file's last
    assert table.height == 14
    assert table.select(pl.col("q0.1", "q0.5", "q0.9", "mean").is_finite().all()).row(0) == (True,) * 4
    assert 3 < table.filter(pl.col("channel") == "load")["mean"].mean() < 25  # original units
    metrics = pl.read_csv(tmp_path / "out" / "metrics.csv")
    assert metrics["forecaster"].unique().sort().to_list() == ["seasonal_naive", "titans"]
    for picture in ("forecast.png", "held_out.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


BAD: dict[str, tuple[str, tuple, str]] = {
    "nan": ("date,load\n" + "\n".join(f"2023-01-{d:02},{'' if d == 9 else d}" for d in range(1, 32)), (), "--missing mask"),
    "unknown-column": ("date,load\n2023-01-01,1\n2023-01-02,2\n", ("--target", "laod"), "Did you mean 'load'?"),
    "ragged": ("date,load\n" + "\n".join(f"2023-01-{d:02},{d}" for d in (1, 2, 4, 5, 9, 11, 12, 20)), (), "2023-01-"),
    "text": ("date,load\n" + "\n".join(f"2023-01-{d:02},{'high' if d == 5 else d}" for d in range(1, 29)), (), "high"),
    "empty": ("", (), "empty"),
    "header-only": ("date,load\n", (), "no rows"),
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
    "too-short": ("date,load\n2023-01-01,1\n2023-01-02,2\n2023-01-03,1\n", ("--freq", "D"), "steps"),
}


@pytest.mark.parametrize(("text", "arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_clear_error(tmp_path: Path, text: str, arguments: tuple, message: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    done = run("bad.csv", *arguments, "--output", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]  # nothing left behind


def test_a_config_file_flags_and_a_saved_model(tmp_path: Path) -> None:
    """Flags change what the file says; the saved model is the one that was asked for, and forecasts as the command did."""
    write_table(tmp_path / "mine.csv")
    (tmp_path / "run.toml").write_text(
        "prediction-length = 7\ncontext-length = 14\nwindows = 2\nepochs = 9\n"
        '[backbone]\ndim = 24\nvariant = "lmm"\n[backbone.memory]\nchunk-size = 8\nnum-heads = 4\n'
    )
    flags = ("--config", "run.toml", "--epochs", 1, "--backbone.memory.num-heads", 2, "--save-model", "model", "--quiet")
    done = run("mine.csv", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "model"
    config = TitansForecaster.from_pretrained(tmp_path / "model").config
    assert (config.prediction_length, config.context_length, config.num_channels, config.freq) == (7, 14, 2, "D")
    assert (config.titans.dim, config.titans.variant, config.titans.dropout) == (24, "lmm", 0.1)
    assert (config.titans.memory.chunk_size, config.titans.memory.num_heads) == (8, 2)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "titans-seq forecast mine.csv --config run.toml --epochs 1" in card
    assert "| CRPS, titans |" in card

    entries = read_table(tmp_path / "mine.csv").to_gluonts()
    (forecast,) = load_predictor(tmp_path / "model").predict(entries)
    printed = pl.read_csv(tmp_path / "forecast" / "forecast.csv").filter(pl.col("channel") == "load")["q0.5"]
    np.testing.assert_allclose(forecast.quantile(0.5)[:, 0], printed, rtol=1e-5)


def test_a_refused_backbone_names_its_flag(tmp_path: Path) -> None:
    done = run("--backbone.memory.chunk-size", 0, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "Error: --backbone.memory.chunk-size must be at least 1, got 0\n"


def test_missing_values_are_masked_on_request(tmp_path: Path) -> None:
    load = [float("nan") if i % 11 == 0 else 10.0 + i % 7 for i in range(120)]
    write_table(tmp_path / "gaps.csv", load=load)
    done = run("gaps.csv", *QUICK, "--missing", "mask", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"forecast/{name}" for name in ("forecast.csv", "metrics.csv", "forecast.png", "held_out.png")]


def test_no_such_file_and_no_arguments(tmp_path: Path) -> None:
    done = run("nowhere.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.csv" in done.stderr
    helped = subprocess.run([COMMAND[0]], capture_output=True, text=True)
    assert "forecast" in helped.stdout + helped.stderr
