"""`titans-seq forecast` with arguments of every kind: it ends with 0, 1 or 2 and a message, never with a traceback."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.strategies import FEWER
from titans_seq.cli import main

NUMBERS = ["1", "2", "3", "0", "-1", "", "x", "1.5", "1e3", "nan", "9" * 30, "4294967296", "1_000", "0x1", "٣", " 1"]
WORDS = [
    "a",
    "date",
    "b,a",
    ",",
    "",
    "nothing",
    "D",
    "h",
    "M",
    "error",
    "mask",
    "csv",
    "parquet",
    "-",
    "--",
    "\ud800",
    "é",
    "a\nb",
    "x" * 5000,
    "%s",
]
FILES = ["good.csv", "empty.csv", "none.csv", "folder", ".", "", "\ud800.csv", "bad\0.csv", "good.csv/x.csv", "x" * 300 + ".csv"]
OPTIONS = {
    **dict.fromkeys(("--target", "--timestamp", "--item-id", "--freq", "--missing", "--format", "--refit"), WORDS),
    **dict.fromkeys(("--past-features", "--future-features", "--static-features"), WORDS),
    **dict.fromkeys(
        (
            "--prediction-length",
            "--context-length",
            "--season-length",
            "--windows",
            "--stride",
            "--epochs",
            "--batches",
            "--seed",
            "--threads",
        ),
        NUMBERS,
    ),
    "--output": ["out", "good.csv", "good.csv/out", "", "\0", "x" * 300, "deep/er/out"],
}


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    command = ["forecast", draw(st.sampled_from(["backtest", "train", "predict", "watch"])), draw(st.sampled_from(FILES))]
    words = command if draw(st.integers(0, 9)) else [draw(st.sampled_from(WORDS))]
    for name in draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=4)):
        words += [name, draw(st.sampled_from(OPTIONS[name]) | st.text(max_size=5))]
    words += draw(
        st.lists(st.sampled_from(["--quiet", "--help", "--version", "--no-such", "-x", "extra", "--epochs", "--target="]), max_size=1)
    )
    return words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a table too short for most forecasts, so that few examples train."""
    days = [date(2024, 1, 1) + timedelta(days=i) for i in range(12)]
    (tmp_path / "good.csv").write_text("date,a,b\n" + "".join(f"{day},{i},{i % 3}\n" for i, day in enumerate(days)))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    logging.disable(logging.NOTSET)
    torch.set_num_threads(1)


def run(words: list[str]) -> tuple[object, str]:
    """Exit status and what was printed."""
    before, printed = sys.argv, io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    sys.argv = ["titans-seq", *words]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main()
        status: object = 0
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        sys.argv = before
    printed.seek(0)
    return status, printed.read()


@FEWER
@given(words=arguments())
def test_arguments(words: list[str], folder: Path) -> None:
    status, printed = run(words)
    assert status in (0, 1, 2)
    assert "Traceback" not in printed
    assert status == 0 or printed.strip()
