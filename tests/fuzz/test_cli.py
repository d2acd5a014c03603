"""`titans-seq` with arguments and files of options of every kind: it ends with 0, 1 or 2 and a message, never with an error from inside."""

import contextlib
import io
import json
import logging
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
import yaml
from cyclopts.validators import Number
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.strategies import FEWER, dumps, mutated_bytes, mutated_text, mutated_values
from titans_seq import Titans, cli, presets
from titans_seq.cli import build_app, main
from titans_seq.config import Config
from titans_seq.options import ConfigFile, configured

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
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")  # as it is from a shell
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
            "--max-steps",
            "--validate-every",
            "--seed",
            "--threads",
        ),
        NUMBERS,
    ),
    "--output": ["out", "good.csv", "good.csv/out", "", "\0", "x" * 300, "deep/er/out"],
    "--save-model": ["model", "good.csv", "", "\0", "x" * 300],
    "--config": ["none.toml", "good.csv", "folder", "", "\0.toml", "x" * 300 + ".json", "run.toml"],
    **dict.fromkeys(
        ("--backbone", "--backbone.dim", "--backbone.memory.depth", "--backbone.memory.local.shard-length"), (*NUMBERS, "none")
    ),
    **dict.fromkeys(("--backbone.memory.max-step", "--backbone.attention.rope-base"), (*NUMBERS, "1e400", "1e-400", "inf")),
    **dict.fromkeys(("--backbone.memory.local.chunk-sizes", "--backbone.memory.head-dim", "--backbone.variant"), (*NUMBERS, "none", "mac")),
}


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    command = ["forecast", draw(st.sampled_from(["backtest", "train", "predict", "watch"])), draw(st.sampled_from(FILES))]
    words = command if draw(st.integers(0, 9)) else [draw(st.sampled_from(WORDS))]
    for name in draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=4)):
        words += [name, draw(st.sampled_from(OPTIONS[name]) | st.text(max_size=5))]
    if words[1:2] in (["train"], ["backtest"]):  # what fits trains: not for long
        words += [word for name in ("--max-steps", "--validate-every") if name not in words for word in (name, "1")]
    words += draw(
        st.lists(st.sampled_from(["--quiet", "--help", "--version", "--no-such", "-x", "extra", "--max-steps", "--target="]), max_size=1)
    )
    return words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a table too short for most forecasts, so that few examples train."""
    days = [date(2024, 1, 1) + timedelta(days=i) for i in range(12)]
    (tmp_path / "good.csv").write_text("date,a,b\n" + "".join(f"{day},{i},{i % 3}\n" for i, day in enumerate(days)))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "folder").mkdir()
    Titans(presets.debug()).save_pretrained(tmp_path / "model")
    (tmp_path / "run.toml").write_text("max-steps = 1\n[backbone]\ndim = 16\n")
    monkeypatch.chdir(tmp_path)
    app = build_app()
    app.command(use)
    monkeypatch.setattr(cli, "build_app", lambda: app)
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


def check(words: list[str]) -> None:
    status, printed = run(words)
    assert status in (0, 1, 2)
    assert "Traceback" not in printed
    assert "TITANS_SEQ_DEBUG=1 shows where" not in printed, "an error that nobody foresaw"
    assert status == 0 or printed.strip()


@FEWER
@given(words=arguments())
def test_forecast(words: list[str], folder: Path) -> None:
    """With all its flags a case takes a tenth of a second."""
    check(words)


OTHER_WORDS = [*WORDS, "good.csv", "folder", "x" * 300, "bad\0", "model", "--json", "--revision", "--help", "bash", "--install-not"]


@FEWER
@given(words=st.lists(st.sampled_from(OTHER_WORDS), max_size=3), command=st.sampled_from(["info", "completion", "no-such"]))
def test_other_commands(words: list[str], command: str, folder: Path) -> None:
    check([command, *words])


@dataclass(frozen=True, kw_only=True)
class PartConfig(Config):
    """A part."""

    size: int | None = None
    share: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class SmallConfig(Config):
    """A field of every type that configurations have."""

    kind: Literal["a", "b"] = "a"
    name: str = "x"
    flag: bool = False
    part: PartConfig = field(default_factory=PartConfig)
    other: PartConfig | None = None


taken: list[tuple[SmallConfig, int]] = []


@configured(model=SmallConfig)
def use(file: Path | None = None, /, *, model: SmallConfig, seed: Annotated[int, Number(gte=0)] = 0, config: ConfigFile = None) -> None:
    """A command with few flags, quickly parsed."""
    taken.append((model, seed))


FLAGS = ["--seed", "--config", *(f"--model{name}" for name in ("", ".kind", ".name", ".flag", ".part", ".part.size", ".part.share"))]
FLAGS += ["--model.no-flag", "--model.part.sizes", "--model.other", "--model.other.size", "--model.other.sizes", "--model.none"]


@given(
    given=st.lists(st.tuples(st.sampled_from(FLAGS), st.sampled_from([*NUMBERS, *WORDS, "none", "true"]) | st.text(max_size=5)), max_size=4)
)
def test_flags(given: list[tuple[str, str]], folder: Path) -> None:
    """What is taken is what was typed."""
    taken.clear()
    check(["use", *(word for flag in given for word in flag)])
    typed = {flag: value for flag, value in given if not value.startswith("-")}
    if taken and len(typed) == len(given):
        ((model, seed),) = taken
        assert seed == int(typed.get("--seed", "0"), 0)
        assert model.name == typed.get("--model.name", "x")
        assert model.part.share == float(typed.get("--model.part.share", "0.5"))


TOML = """seed = 3
model.name = "D"
[model]
flag = true
other = {size = 4}
[model.part]
share = 1
sizes = [4, 8]
"""
YAML = """model: &a
  name: D
  kind: b
  part:
    size: null
    share: 0.25
    sizes: [4, 8]
  other: {size: 3}
seed: 2
"""
VALUES_OF_FILES = yaml.safe_load(YAML)
BOMB = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{p: *{a}, q: *{a}}}\n" for a, b in pairwise("abcdefghijklmnopqrstuvw"))
PARTS_OF_FILES = [
    *(
        "name: *a",
        "<<: *a",
        "x: !!python/object/apply:os.system [ls]",
        "? [1, 2]\n: 3",
        "1: 2",
        "2020-01-01: 1",
        "seed: .nan",
        "- a",
        "---",
    ),
    *("seed = 1979-05-27T07:32:00Z", "seed = nan", "a.b.c.d = 1", "[[model]]", "seed = [[[]]]", '"seed" = 0x10', "[model", '"""', "model:"),
    *("!!set {a, b}", "!!binary aGk=", "%YAML 9.9", "seed: 0o17", "seed: 1:30", "&a [*a]", "a: &b {c: *b}", "!!int x", "!!omap x", BOMB),
]


@st.composite
def files_of_options(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name of a file and what is in it."""
    suffix, valid = draw(st.sampled_from([("toml", TOML), ("json", json.dumps(VALUES_OF_FILES)), ("yaml", YAML), ("yml", YAML)]))
    text = mutated_text(valid)
    if suffix == "json":
        text |= mutated_values(VALUES_OF_FILES).map(dumps)
    else:
        text |= st.lists(st.sampled_from([*PARTS_OF_FILES, *valid.splitlines()]), max_size=5).map("\n".join)
    content = text.map(lambda text: text.encode("utf-8", "surrogatepass")) | mutated_bytes(valid.encode()) | st.just(valid.encode("utf-16"))
    return f"options.{suffix}", draw(content)


@given(file=files_of_options())
def test_files_of_options(file: tuple[str, bytes], folder: Path) -> None:
    """What is taken is what the file says."""
    name, content = file
    (folder / name).write_bytes(content)
    taken.clear()
    check(["use", "--config", name])
    if taken:
        said = PARSERS[name.partition(".")[2]](content.decode("utf-8-sig"))
        ((model, seed),) = taken
        assert_says({"model": {"part": {}}, "seed": 0} | (said or {}), {"model": model, "seed": seed})


def _number(value: Any) -> float:
    """A number of a file, or one as it may be typed: 0o17 is 15."""
    if not isinstance(value, str):
        return value
    try:
        return int(value, 0)
    except ValueError:
        return float(value)


PARSERS: dict[str, Callable[[str], Any]] = {"toml": tomllib.loads, "json": json.loads, "yaml": yaml.safe_load, "yml": yaml.safe_load}


def assert_says(said: dict[str, Any], taken: Any) -> None:
    """Numbers and words as such; null as None."""
    for name, value in said.items():
        own = taken[name] if isinstance(taken, dict) else getattr(taken, name.replace("-", "_"))
        if isinstance(value, dict) and not isinstance(own, str):
            assert own is not None or not value
            assert_says(value, own)
        elif isinstance(own, tuple):
            assert [_number(x) for x in (value if isinstance(value, list) else [value])] == list(own)
        elif isinstance(own, bool):
            assert str(value).lower() in (("true", "yes", "y", "1") if own else ("false", "no", "n", "0"))
        elif isinstance(own, float):
            assert own == float(_number(value))  # the nearest to an integer of many digits
        elif isinstance(own, int):
            assert own == _number(value)
        else:
            assert str(own).lower() == str(value).lower()
