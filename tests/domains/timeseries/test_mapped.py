"""Tables on the disk: the same series as in memory, errors with their row, and no more memory than a part of them."""

import os
import pickle
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from domains.timeseries.data import check_contexts, check_length, files, map_table, read_table, split
from domains.timeseries.data import mapped as module
from titans_seq.errors import UserError

START = datetime(2020, 1, 31)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 7)
    monkeypatch.setattr(files, "_read_parquet", pl.read_parquet)  # without a process of its own for each whole file


def shuffled(step="1h", rows=40, shops=3) -> pl.DataFrame:
    """Items of different lengths with all kinds of columns, three steps of the future, rows in no order."""
    rng = np.random.default_rng(0)
    parts = []
    for n in range(shops):
        times = pl.datetime_range(
            START, pl.lit(START).dt.offset_by(f"{(rows + n) * int(step[:-1])}{step[-1:]}"), step, closed="left", eager=True
        )
        length = len(times)
        sold = pl.Series([*rng.normal(size=length - 3), *[None] * 3], dtype=pl.Float64)
        parts.append(pl.DataFrame({"when": times, "shop": f"s{n}", "price": rng.normal(size=length), "sold": sold, "visits": sold * 2 + n}))
    return pl.concat(parts).sample(fraction=1, shuffle=True, seed=1)


COLUMNS = {"item_id": "shop", "target": ["sold"], "past_features": ["visits"], "future_features": ["price"]}


def same(mapped, read, ahead):
    for one, other in zip(mapped.to_gluonts(ahead), read.to_gluonts(ahead), strict=True):
        assert set(one) == set(other)
        for name, value in other.items():
            np.testing.assert_array_equal(one[name], value)
        assert mapped.stamps(one["item_id"], one["start"] + 5, 3) == read.stamps(one["item_id"], one["start"] + 5, 3)
    assert mapped.items.select(read.items.columns).equals(read.items)
    assert (mapped.freq, mapped.step, mapped.roles, mapped.filled) == (read.freq, read.step, read.roles, read.filled)
    assert mapped.masked == read.masked


@pytest.mark.parametrize("step", ["1h", "15m", "1d", "1w", "1q", "1y"])
@pytest.mark.parametrize("gaps", [False, True])
def test_equals_the_table_in_memory(write, tmp_path, step, gaps):
    frame = shuffled(step)
    if gaps:
        frame = frame.filter(~(pl.col("sold") > 1.0).fill_null(False)).with_columns(pl.when(pl.col("price") < 0.9).then("price"))
    path, missing = write(frame, "t.parquet"), "mask" if gaps else "error"
    freq = {"1w": "W", "1q": "Q", "1y": "Y"}.get(step)
    options = {**COLUMNS, "missing": missing, "freq": freq}
    read, mapped = read_table(path, **options), map_table(path, tmp_path / "cache", **options)
    same(mapped, read, ahead=0)
    same(mapped, read, ahead=2)
    assert (read.filled > 0) == bool(read.masked) == gaps
    with pytest.raises(UserError, match=r"'s0': price must be known 4 steps"):
        mapped.to_gluonts(4)[0]


STATIC = {"s0": (1.5, "north"), "s1": (-2.0, "south"), "s2": (0.25, "north")}


def with_static(frame: pl.DataFrame) -> pl.DataFrame:
    area, region = ({item: values[i] for item, values in STATIC.items()} for i in range(2))
    return frame.with_columns(area=pl.col("shop").replace_strict(area), region=pl.col("shop").replace_strict(region))


def test_static_features_are_those_of_the_table_in_memory(write, tmp_path):
    path, options = write(with_static(shuffled()), "t.parquet"), {**COLUMNS, "static_features": ["area", "region"]}
    read = read_table(path, **options)
    for _ in range(2):  # written, and read again
        mapped = map_table(path, tmp_path / "cache", **options)
        same(mapped, read, ahead=2)
        assert mapped.static.categories == read.static.categories == {"region": ("north", "south")}
        assert mapped.static.frame.equals(read.static.frame)
    entries = mapped.to_gluonts()
    assert entries[1]["feat_static_cat"].tolist() == [1]
    assert entries[1]["feat_static_real"].tolist() == [-2.0]
    known = {"region": ("south", "north")}  # codes of a model that was trained on another table
    assert map_table(path, tmp_path / "cache", **options, categories=known).to_gluonts()[1]["feat_static_cat"].tolist() == [0]
    with pytest.raises(UserError, match=r"row .*: the model knows no 'north'"):
        map_table(path, tmp_path / "cache", **options, categories={"region": ("south",)})


def test_one_series_and_the_checks_of_lengths(write, tmp_path):
    path = write(shuffled(shops=1).drop("shop", "price").drop_nulls(), "one.parquet")
    read, mapped = read_table(path), map_table(path, tmp_path / "cache")
    same(mapped, read, ahead=0)
    for check in (lambda t: check_length(t, 4, 10, 30), lambda t: check_contexts(t, 30, 1, 1)):
        messages = []
        for table in (read, mapped):
            with pytest.raises(UserError) as caught:
                check(table)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    (window,) = split(mapped, 4, 1)[1].input
    assert window["target"].shape == (2, 33)


def test_written_once_and_anew_for_another_file(write, tmp_path, monkeypatch):
    path, cache = write(shuffled(), "t.parquet"), tmp_path / "cache"
    first = map_table(path, cache, **COLUMNS)
    assert [p.name for p in cache.iterdir()] == [first.path.parent.name]  # nothing half made is left
    monkeypatch.setattr(module, "_write", None)
    assert map_table(path, cache, **COLUMNS).path == first.path
    monkeypatch.undo()
    write(shuffled(rows=50), "t.parquet")
    assert map_table(path, cache, **COLUMNS).items["len"][0] == 47
    assert map_table(path, cache, **{**COLUMNS, "past_features": []}).roles.past_features == ()


def test_a_failed_pass_leaves_nothing(write, tmp_path):
    path = write(shuffled().with_columns(sold=pl.lit(float("inf"))), "t.parquet")
    with pytest.raises(UserError, match="not finite"):
        map_table(path, tmp_path / "cache", **COLUMNS)
    assert list((tmp_path / "cache").iterdir()) == []


def in_row_31(frame: pl.DataFrame, column: str, value) -> pl.DataFrame:
    return frame.with_columns(pl.when(pl.int_range(pl.len()) == 30).then(value).otherwise(column).alias(column))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: pl.concat([f, f.tail(1)]), ["row 124", "comes twice"]),
        (lambda f: in_row_31(f, "when", pl.col("when") + timedelta(minutes=7)), ["row 31", "regular grid"]),
        (lambda f: in_row_31(f, "when", None), ["row 31", "no time"]),
        (lambda f: in_row_31(f, "shop", None), ["row 31", "no item"]),
        (lambda f: in_row_31(f, "price", None), ["'price' has 1 missing value, the first on row 31", "--missing mask"]),
        (  # in all batches, of seven rows
            lambda f: in_row_31(f, "visits", None).with_columns(pl.when(pl.int_range(pl.len()) % 10 != 1).then("price")),
            ["2 columns have missing values: 'visits' 1, the first on row 31", "'price' 13, the first on row 2 ("],
        ),
        (
            lambda f: f.filter(pl.col("when") != START + timedelta(hours=4)),
            ["time steps of 'h' are missing", "2020-01-31 04:00:00 of 's0'"],
        ),
        (lambda f: f.with_columns(sold=pl.when(pl.col("when") != START).then("sold")), ["'s0' has missing values of sold"]),
        (lambda f: f.with_columns(when=pl.col("when").cast(pl.String)), ["'when' holds String", "Datetime"]),
        (lambda f: f.with_columns(pl.col("when").dt.replace_time_zone("Europe/Berlin")), ["zone Europe/Berlin", "UTC"]),
        (lambda f: f.with_columns(when=pl.col("when").dt.offset_by("-500y")), ["outside the years 1678 to 2199"]),
        (lambda f: f.with_columns(sold=pl.when(pl.col("shop") != "s1").then("sold")), ["'s1' has no value of sold"]),
    ],
)
def test_errors_name_the_row(write, tmp_path, fails, change, parts):
    path = write(change(shuffled()), "t.parquet")
    fails(path, *parts, read=lambda path, **options: map_table(path, tmp_path / "cache", **options), **COLUMNS)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: in_row_31(f, "region", pl.lit("west")), ["'region', row", "'west'", "one value a series"]),
        (lambda f: in_row_31(f, "area", pl.lit(7.0)), ["'area', row", "7.0", "one value a series"]),
        (lambda f: in_row_31(f, "region", None), ["'region', row 31", "missing"]),
        (lambda f: in_row_31(f, "area", float("nan")), ["'area', row 31", "missing"]),
    ],
)
def test_static_features_that_change_or_are_missing_are_refused(write, tmp_path, fails, change, parts):
    path = write(change(with_static(shuffled())), "t.parquet")
    options = {**COLUMNS, "static_features": ["area", "region"]}
    fails(path, *parts, read=lambda path, **options: map_table(path, tmp_path / "cache", **options), **options)


def test_only_a_parquet(write, tmp_path):
    with pytest.raises(UserError, match=r"Use one of \.parquet"):
        map_table(write("a,b\n"), tmp_path)


def test_a_view_is_pickled_as_its_place(write, tmp_path):
    """Whatever was cut from it: the bytes hold no values, and the other process reads the same."""
    entry = map_table(write(shuffled(rows=5000, shops=1), "t.parquet"), tmp_path / "cache", **COLUMNS).to_gluonts()[0]
    for view in (entry["target"], entry["target"][:, 4990:], entry["feat_dynamic_real"][..., 10:4000][:, ::3]):
        content = pickle.dumps(view)
        assert len(content) < 1000
        copy = pickle.loads(content)
        np.testing.assert_array_equal(copy, view)
        assert len(pickle.dumps(copy[:, 1:])) < 1000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's limits of memory")
def test_a_table_that_memory_does_not_hold_trains_and_workers_share_nothing(tmp_path):
    """2.4 million rows take over 500 MiB in memory: reading them under a limit of 400 fails, mapping and training on them does not."""
    rows = 800_000
    times = pl.datetime_range(START, START + timedelta(minutes=rows - 1), "1m", eager=True)
    parts = []
    for n in range(3):
        rng = np.random.default_rng(n)
        columns = {name: rng.normal(size=rows).astype(np.float32) for name in "abc"}
        parts.append(pl.DataFrame({"when": times, "item": f"item {n}", **columns}))
    path = tmp_path / "large.parquet"
    pl.concat(parts).write_parquet(path, row_group_size=100_000)

    def run(how: str) -> subprocess.CompletedProcess[str]:
        script = Path(__file__).with_name("mapped_training.py")
        environment = {**os.environ, "POLARS_MAX_THREADS": "2", "MALLOC_ARENA_MAX": "2"}
        command = [sys.executable, str(script), how, str(path), str(tmp_path / "cache"), "400"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    assert run("read").returncode != 0
    done = run("map")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[-2] == "3 2021-08-08 13:20 [(8, 16, 3)] True"
