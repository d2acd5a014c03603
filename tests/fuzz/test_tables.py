"""Tables from strangers: checked series, or a UserError that names the file; never a wrong time, a wrong number or a NaN that was none."""

import io
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.timeseries.data import read_table
from tests.fuzz.strategies import FEWER, mutated_bytes, mutated_text
from titans_seq import UserError

FREQUENCIES = [
    None,
    None,
    None,
    "D",
    "h",
    "W",
    "M",
    "B",
    "15min",
    "Q",
    "Y",
    "s",
    "ms",
    "0D",
    "-1D",
    "1000000D",
    "D D",
    "",
    "é",
    "2W-TUE",
    "nan",
]
NUMBERS = [
    "1",
    "2.5",
    "-3",
    "1e3",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e39",
    "9" * 400,
    "",
    " ",
    "NA",
    "?",
    "0x1",
    "1_000",
    "1,5",
    "x",
    "\0",
    "\u0661",
]
TIMES = [
    *("2020-01-01", "2020/1/2", "2020-01-03T00:00:00Z", "2020-01-03 00:00+02:00", "2020-13-01", "2020-02-30", "0000-00-00", "9999-12-31"),
    *(
        "0001-01-01",
        "99999-01-01",
        "20200101",
        "2020",
        "1577836800",
        "01/02/2020",
        "31/01/2020",
        "\u0663\u0661.01.2020",
        "",
        "NaT",
        "2020-01-01 24:00",
        "2020-01-01 00:00:60",
        "-1",
    ),
    *("1677-09-21", "2262-04-12", "2020-01-01T00:00:00.000000001", "2020-03-29 02:30+01:00", "2020-01-01\0"),
]
NAMES = ["date", "a", "b", "a ", "", " ", "item_id", "timestamp", "__row__", "a_duplicated_0", '"', "\0", "x" * 10_000, "é", "nan"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    """A header and rows: mostly a good series, with some fields, rows and names replaced."""
    columns = draw(st.integers(1, 3))
    header = ["date", *"abc"[:columns]]
    step = draw(
        st.sampled_from([timedelta(days=1), timedelta(hours=1), timedelta(days=7), timedelta(minutes=15), timedelta(milliseconds=1)])
    )
    start = draw(
        st.sampled_from([datetime(2020, 1, 1), datetime(1, 1, 1), datetime(9999, 9, 1), datetime(2020, 3, 28), datetime(2262, 4, 1)])
    )
    form = draw(st.sampled_from(["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d", "%Y/%m/%d %H:%M", "%Y-%m-%d %H:%M:%S+02:00"]))
    rows = [[(start + i * step).strftime(form), *(str(i + c) for c in range(columns))] for i in range(draw(st.integers(0, 12)))]
    for _ in range(draw(st.integers(0, 3))):
        what = draw(st.sampled_from(["number", "time", "name", "swap", "twice", "ragged", "drop"]))
        at = draw(st.integers(0, max(0, len(rows) - 1)))
        if what == "name":
            header[draw(st.integers(0, columns))] = draw(st.sampled_from(NAMES))
        elif not rows:
            continue
        elif what in ("number", "time"):
            values = NUMBERS if what == "number" else TIMES
            field = draw(st.integers(0, len(rows[at]) - 1)) if what == "number" else 0
            rows[at][field] = draw(st.sampled_from(values) | st.text(max_size=5))
        elif what == "swap":
            rows.append(rows.pop(at))
        elif what == "twice":
            rows.append(list(rows[at]))
        elif what == "ragged":
            rows[at] = rows[at][:-1] if len(rows[at]) > 1 and draw(st.booleans()) else [*rows[at], "7"]
        else:
            del rows[at]
    return header, rows


def as_text(header: list[str], rows: list[list[str]], separator: str = ",") -> str:
    return "\n".join(separator.join(row) for row in (header, *rows)) + "\n"


def as_bytes(data: st.DataObject, text: str) -> bytes:
    """With a byte order mark, other line ends, or in another encoding."""
    form = data.draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "crlf", "cr"]))
    if form.startswith("cr"):
        text, form = text.replace("\n", "\r\n" if form == "crlf" else "\r"), "utf-8"
    return text.encode(form, "replace")


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "target": st.lists(st.sampled_from([*NAMES, "c", "\ud800"]), max_size=3),
        "timestamp": st.sampled_from(["date", "a", "nothing", ""]),
        "item_id": st.sampled_from(["a", "b", "date", "nothing", ""]),
        "freq": st.sampled_from(FREQUENCIES),
        "missing": st.sampled_from(["error", "mask", "mask"]),
        "past_features": st.lists(st.sampled_from(["a", "b", "c", "nothing"]), max_size=2),
        "future_features": st.lists(st.sampled_from(["b", "c", ""]), max_size=1),
        "static_features": st.lists(st.sampled_from(["b", "c"]), max_size=1),
    },
)


def check(path: Path, options: dict[str, Any]) -> None:
    try:
        table = read_table(path, **options)
    except UserError as error:
        assert 0 < len(str(error)) < 50_000
        return
    assert table.targets
    assert table.frame["timestamp"].null_count() == 0
    entries = table.to_gluonts()
    assert len(entries) == table.frame["item_id"].n_unique() > 0
    for entry in entries:
        assert entry["target"].shape[0] == len(table.targets)
        assert not np.isinf(entry["target"]).any()
        assert options.get("missing") == "mask" or np.isfinite(entry["target"]).all()
        length = entry["target"].shape[1]
        own = table.frame.filter(pl.col("item_id") == entry["item_id"])["timestamp"].to_list()
        assert table.stamps(entry["item_id"], entry["start"], length) == own


@FEWER
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode), options=OPTIONS, data=st.data())
def test_any_bytes(content: bytes, options: dict[str, Any], tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / data.draw(st.sampled_from(["t.csv", "t.tsv", "t.csv.gz", "t.tsv.gz", "t.parquet", "t.tsf"]))
    path.write_bytes(content)
    check(path, options)


@FEWER
@given(table=tables(), options=OPTIONS, data=st.data())
def test_damaged_tables(table: tuple[list[str], list[list[str]]], options: dict[str, Any], tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "t.csv"
    separator = data.draw(st.sampled_from([",", ",", ";"]))
    path.write_bytes(as_bytes(data, as_text(*table, separator)))
    check(path, options)


@FEWER
@given(table=tables(), options=OPTIONS, data=st.data())
def test_damaged_bytes(table: tuple[list[str], list[list[str]]], options: dict[str, Any], tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data.draw(mutated_bytes(as_text(*table).encode())))
    check(path, options)


MONASH = """\
@relation A
@attribute series_name string
@attribute size numeric
@attribute start_timestamp date
@frequency daily
@horizon 2
@missing true
@equallength false
@data
T1:3:2020-01-01 00-00-00:1,2.5,?,4
T2:4:2020-03-01 00-00-00:5,6,7
"""


@FEWER
@given(data=st.data(), missing=st.sampled_from(["error", "mask"]), static=st.lists(st.sampled_from(["size", "series_name"]), max_size=1))
def test_damaged_monash_files(data: st.DataObject, missing: str, static: list[str], tmp_path: Path) -> None:
    path = tmp_path / "t.tsf"
    path.write_text(data.draw(mutated_text(MONASH)), encoding="utf-8", errors="surrogatepass")
    check(path, {"missing": missing, "static_features": static})


@settings(max_examples=settings().max_examples // 10)
@given(options=OPTIONS, data=st.data())
def test_parquet(options: dict[str, Any], tmp_path: Path, data: st.DataObject) -> None:
    """Of columns of every type, whole or damaged. Each is read by a process of its own first, which takes a third of a second."""
    path = tmp_path / "t.parquet"
    start = datetime(2020, 1, 1)
    days = [start + timedelta(days=i) for i in range(6)]
    types = [
        pl.Float32,
        pl.Float64,
        pl.Int8,
        pl.UInt64,
        pl.Boolean,
        pl.String,
        pl.Date,
        pl.Duration("ms"),
        pl.Time,
        pl.Categorical,
        pl.Binary,
    ]
    values = pl.Series([1, 2, 3, None, 5, 6])
    columns = {
        "date": pl.Series(days).cast(data.draw(st.sampled_from([pl.Datetime("us"), pl.Datetime("ns"), pl.Date, pl.String, pl.Int64])))
    }
    for name in "ab":
        kind = data.draw(st.sampled_from(types))
        text = kind in (pl.Categorical, pl.Binary)
        columns[name] = values.cast(pl.String).cast(kind) if text else values.cast(kind)
    if data.draw(st.booleans()):
        columns["b"] = pl.Series([float("nan"), float("inf"), 1e300, -0.0, None, 1.0])
    if data.draw(st.integers(0, 4)) == 0:
        columns["b"] = pl.Series([[1], [2], None, [], [1, 2], [3]])
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    content = buffer.getvalue()
    path.write_bytes(data.draw(st.just(content) | mutated_bytes(content)))
    check(path, options)
