"""Monash time series files (.tsf; Godahewa et al. 2021, arXiv 2105.06643): a header of attributes, then one series a line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import pandas as pd
import polars as pl

from domains.timeseries.data.columns import YEARS, checked_numbers, checked_static
from domains.timeseries.data.files import ROW, Source
from domains.timeseries.data.grid import find_step, period_alias
from domains.timeseries.data.missing import MEND_MISSING
from domains.timeseries.data.table import Roles, SeriesTable
from titans_seq.errors import UserError

TSF = ".tsf"
TARGET = "value"
"""What the one channel of such a file is called."""
_UNITS = {
    **{"seconds": "s", "secondly": "s", "minutely": "min", "minutes": "min", "hourly": "h", "hours": "h", "daily": "D", "days": "D"},
    **{"weekly": "W", "weeks": "W", "monthly": "M", "months": "M", "quarterly": "Q", "yearly": "Y", "years": "Y"},
}
_KINDS = ("string", "numeric", "date")
_NO_START = datetime(1900, 1, 1)


@dataclass
class _Header:
    """Attributes of a file: columns before the values with their kinds, and what is said of the series."""

    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    data_line: int = 0


def read_tsf(
    path: Path, static_features: Sequence[str] = (), categories: Mapping[str, Sequence[str]] | None = None, missing: str = "error"
) -> SeriesTable:
    """Read a .tsf: @frequency gives the step, @horizon `SeriesTable.horizon`; @missing and @equallength are held against the values.

    Series without a start_timestamp begin in 1900. Other attributes can be static features; "?" is a missing value.

    Raises:
        UserError: of the file, with the line.
    """
    lines = path.read_text(encoding="cp1252", errors="replace").splitlines()
    header = _read_header(path, lines)
    rows = [_split_line(path, n, line, header) for n, line in enumerate(lines, 1) if n > header.data_line and line.strip()]
    if not rows:
        _fail(path, header.data_line, "no series after @data. Each is one line of attributes and values")
    names = [column for column, kind in header.columns.items() if kind != "date"]
    frame = pl.DataFrame(rows, schema=[ROW, *header.columns, TARGET], orient="row", schema_overrides={ROW: pl.UInt32})
    source = Source(path, frame, "line")
    for column in static_features:
        source.require(column, option="--static-features")
    item_id = names[0] if names else None
    if item_id in static_features:
        source.fail(f"--static-features {item_id} tells the series apart; each attribute has one role.")
    items = frame[item_id] if item_id else frame[ROW].cast(pl.String)
    twice = frame.select(ROW, items.alias("item_id")).filter(items.is_duplicated()).sort("item_id", ROW)
    if not twice.is_empty():
        first, second = twice[ROW].head(2)
        source.fail(f"lines {first} and {second}: two series are called '{twice[0, 'item_id']}'. Rename one of them.")
    step, starts = _starts(source, header, frame)
    parts = [_series(path, *row, step) for row in zip(frame[ROW], items, starts, frame[TARGET], strict=True)]
    _check_tags(path, header, parts, missing)
    series = pl.concat(parts).sort("item_id", "timestamp", maintain_order=True)
    roles = Roles(
        timestamp=next((c for c, kind in header.columns.items() if kind == "date"), "start_timestamp"),
        item_id=item_id or "series",
        target=(TARGET,),
        static_features=tuple(static_features),
    )
    return SeriesTable(
        frame=series.drop(ROW),
        roles=roles,
        freq=period_alias(step),
        step=step,
        ahead=series.clear().select("item_id", "timestamp"),
        static=checked_static(source, items.alias("item_id"), roles, categories),
        horizon=_horizon(path, header),
        ignored={name: "not named in --static-features" for name in names if name != item_id and name not in static_features},
    )


def _fail(path: Path, line: int, message: str) -> NoReturn:
    raise UserError(f"{path}: line {line}: {message}.")


def _read_header(path: Path, lines: list[str]) -> _Header:
    header = _Header()
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if not line.startswith("@"):
            _fail(path, number, f"'{line:.40}' comes before @data. A header line begins with @")
        tag, *values = line[1:].split() or [""]
        tag = tag.lower()
        if not tag:
            _fail(path, number, "there is nothing after its @; expected @attribute, @frequency or the like")
        if tag == "data":
            header.data_line = number
            break
        if tag == "attribute":
            if len(values) != 2 or values[1] not in _KINDS:
                _fail(path, number, f"'{line:.60}' must be @attribute NAME KIND, with a KIND of {', '.join(_KINDS)}")
            header.columns[values[0]] = values[1]
        elif tag != "relation":
            header.tags[tag] = values[0] if values else ""
    if not header.data_line:
        raise UserError(f"{path}: has no line @data. A .tsf is a header of @attribute lines, @data, and one series a line.")
    taken = {ROW, TARGET} & set(header.columns)
    if taken:
        raise UserError(f"{path}: an attribute is called '{taken.pop()}', a name that is used inside. Rename it.")
    return header


def _split_line(path: Path, number: int, line: str, header: _Header) -> list:
    fields = line.strip().split(":")
    if len(fields) != len(header.columns) + 1:
        _fail(path, number, f"{len(fields)} fields between colons; the header's attributes and the values make {len(header.columns) + 1}")
    return [number, *fields]


def _starts(source: Source, header: _Header, frame: pl.DataFrame) -> tuple[str, list[datetime]]:
    """The step of the file, and the first time of each series."""
    column = next((c for c, kind in header.columns.items() if kind == "date"), None)
    if column is None:
        starts = pl.Series([_NO_START] * frame.height, dtype=pl.Datetime("us"))
    else:
        starts = frame[column].str.to_datetime("%Y-%m-%d %H-%M-%S", strict=False, time_unit="us")
        source.refuse_first(column, starts.is_null(), "no time", "Write it as 2012-01-31 06-00-00")
        source.refuse_first(column, ~starts.dt.year().is_between(*YEARS), f"outside the years {YEARS[0]} to {YEARS[1]}", "Mend it")
    step = find_step(source, pd.DatetimeIndex(starts.to_numpy()), _frequency(source, header))
    offset = pd.tseries.frequencies.to_offset(step)
    off = pl.Series([not offset.is_on_offset(pd.Timestamp(start)) for start in starts], dtype=pl.Boolean)
    if column is not None:
        source.refuse_first(column, off, f"not on the grid of step '{step}' that the first series is on", "Let all begin alike")
    return step, starts.to_list()


def _frequency(source: Source, header: _Header) -> str:
    """The pandas frequency of words such as weekly, half_hourly, 10_minutes."""
    if "frequency" not in header.tags:
        source.fail(f"the header has no @frequency. Add one of {', '.join(_UNITS)}, with a number before it such as 10_minutes.")
    text = header.tags["frequency"].lower()
    count, _, unit = text.rpartition("_")
    if unit not in _UNITS or not (count in ("", "half") or count.isdecimal()):
        source.fail(f"@frequency {text} is unknown. Use one of {', '.join(_UNITS)}, with a number before it such as 10_minutes.")
    if count == "half":
        return {"h": "30min", "min": "30s", "Y": "6M"}.get(_UNITS[unit], f"0.5{_UNITS[unit]}")
    return count + _UNITS[unit]


def _series(path: Path, line: int, item: str, start: datetime, values: str, step: str) -> pl.DataFrame:
    """One line as rows on the grid."""
    source = Source(path, pl.DataFrame({TARGET: values.split(",")}).with_columns(pl.lit(line, pl.UInt32).alias(ROW)), "line")
    numbers = checked_numbers(source, TARGET)
    if numbers.null_count() == len(numbers):
        _fail(path, line, f"series '{item}' holds no number at all")
    try:
        stamps = pd.date_range(start, periods=len(numbers), freq=step, unit="us").to_numpy()
    except (pd.errors.OutOfBoundsDatetime, OverflowError):
        _fail(path, line, f"series '{item}' has {len(numbers)} steps of '{step}' from {start} on, beyond the years that pandas holds")
    return pl.DataFrame({"item_id": [item] * len(numbers), "timestamp": stamps, TARGET: numbers, ROW: source.frame[ROW]}).cast(
        {"timestamp": pl.Datetime("us")}
    )


def _check_tags(path: Path, header: _Header, parts: list[pl.DataFrame], missing: str) -> None:
    holes = [(part[0, "item_id"], part[TARGET].null_count(), part[0, ROW]) for part in parts if part[TARGET].null_count()]
    if holes and missing == "error":
        item, count, line = holes[0]
        many = f"; {len(holes)} series of {len(parts)} have such, {sum(hole[1] for hole in holes)} in all" if len(holes) > 1 else ""
        says = " The header's @missing says so." if header.tags.get("missing") == "true" else ""
        _fail(path, line, f"series '{item}' has {count} missing value{'s' if count > 1 else ''}{many}.{says} {MEND_MISSING}")
    if header.tags.get("equallength") == "true":
        other = next((part for part in parts if part.height != parts[0].height), None)
        if other is not None:
            _fail(
                path,
                other[0, ROW],
                f"series '{other[0, 'item_id']}' has {other.height} values, the first series {parts[0].height}, but the header says "
                "@equallength true. The file may be cut off; if it is not, write @equallength false",
            )


def _horizon(path: Path, header: _Header) -> int | None:
    text = header.tags.get("horizon")
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{path}: @horizon {text} must be a whole number of steps, at least 1.")
    return int(text)
