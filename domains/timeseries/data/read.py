"""`read_table`: files in, checked series out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import time as clock_time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

import polars as pl

from domains.timeseries.data.columns import (
    Order,
    checked_items,
    checked_numbers,
    checked_order,
    checked_static,
    checked_times,
    find_roles,
    is_daily,
    is_zoned,
    refuse_text,
    times_of_day,
    why_left_out,
)
from domains.timeseries.data.files import ROW, SUFFIXES, Decimal, Source, find_file, open_source
from domains.timeseries.data.grid import on_grid, period_alias
from domains.timeseries.data.missing import find_holes, refuse_missing
from domains.timeseries.data.table import Roles, SeriesTable
from domains.timeseries.data.tsf import TSF, read_tsf
from titans_seq.errors import UserError

EXAMPLES = {"seattle_weather": {"temp_max": "°C", "temp_min": "°C", "precipitation": "mm", "wind": "m/s"}}
"""The series that ship with the package: name -> {target column: unit}."""

Missing = Literal["error", "mask"]


def read_table(
    path: str | Path,
    *,
    target: Sequence[str] | None = None,
    timestamp: str | None = None,
    item_id: str | None = None,
    freq: str | None = None,
    past_features: Sequence[str] = (),
    future_features: Sequence[str] = (),
    static_features: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] | None = None,
    missing: Missing = "error",
    decimal: Decimal = ".",
    date_order: Order | None = None,
) -> SeriesTable:
    """Read .csv, .csv.gz, .tsv, .tsv.gz, .parquet or Monash .tsf into checked series.

    Args:
        path: the file. A CSV is UTF-8 with a header line, columns separated by "," or ";".
        target: columns to forecast; default: every numeric column without another role. Then a column of text that holds numbers in a
            form that is not read, such as 12,015.27 or 45%, is refused.
        timestamp: column of the time steps; default: the only one that holds dates, year first ("2012-01-31",
            "2012/1/31 6:00", ISO 8601), or year last ("31.1.2012") where days above 12 tell days from months. Times with a
            zone become UTC, so daylight saving leaves no gap or duplicate; days and longer steps that begin at the same time
            on the wall keep it.
        item_id: column that tells series apart (long layout); default: the file is one series (wide layout).
        freq: step between timestamps as a pandas alias ("h", "15min", "D", "B", "W", "M"); default: inferred.
        past_features: columns of numbers that are known up to the present.
        future_features: columns of numbers that are known ahead. Rows at the end of a series whose targets are all empty are
            its future: they hold what is known of it (`SeriesTable.ahead`).
        static_features: columns that hold one value a series (long layout): numbers, or categories where any value is none.
        categories: the known values of the columns of categories, of the table that a model was trained on; default: the file's.
        missing: "error" refuses missing values and time steps; "mask" keeps them as nulls. Nothing is ever imputed, and a
            static feature is never missing.
        decimal: the mark before fractions of numbers in CSV and TSV, "." or ",".
        date_order: what comes first in dates that end with the year, "day" or "month"; default: what days above 12 tell
            (`SeriesTable.date_order`).

    Raises:
        UserError: on anything in the file or the arguments that cannot be used.
    """
    if missing not in ("error", "mask"):
        raise UserError(f"missing='{missing}' is unknown. Use 'error' or 'mask'.")
    refuse_text(target=target, past_features=past_features, future_features=future_features, static_features=static_features)
    path = Path(path)
    suffix = find_file(path, (*SUFFIXES, TSF))
    if suffix == TSF:
        if target or timestamp or item_id or freq or past_features or future_features or decimal != ".":
            raise UserError(f"{path}: a {TSF} names its own series, times and frequency; only --static-features can be chosen.")
        return read_tsf(path, static_features, categories, missing)
    source = open_source(path, suffix, decimal)
    roles = find_roles(
        source,
        target=target,
        timestamp=timestamp,
        item_id=item_id,
        past_features=past_features,
        future_features=future_features,
        static_features=static_features,
        date_order=date_order,
    )
    order = checked_order(source, roles.timestamp, date_order)
    frame = _checked_rows(source, roles, bare_years=timestamp is not None, freq=freq, order=order)
    static = checked_static(source, checked_items(source, item_id), roles, categories)
    frame, step = on_grid(source, frame, freq)
    frame, ahead = _split_ahead(source, frame, roles)
    if missing == "error":
        whole = pl.concat([frame, ahead], how="diagonal").sort("item_id", "timestamp")
        holes = find_holes(frame, (*roles.target, *roles.past_features)) + find_holes(whole, roles.future_features)
        refuse_missing(source, whole, holes, step)
    return SeriesTable(
        frame=frame.drop(ROW),
        roles=roles,
        freq=period_alias(step),
        step=step,
        ahead=ahead.drop(ROW),
        static=static,
        date_order=order,
        utc=is_zoned(source.frame[roles.timestamp]) and not is_daily(step),
        filled=frame[ROW].null_count() + ahead[ROW].null_count(),
        ignored={c: why_left_out(source, c) for c in _without_role(source, roles)},
    )


def _without_role(source: Source, roles: Roles) -> list[str]:
    taken = (roles.timestamp, roles.item_id, *roles.values, *roles.static_features)
    return [column for column in source.columns if column.strip() and column not in taken]


def load_example(name: str = "seattle_weather") -> SeriesTable:
    """One of the series that ship with the package (`EXAMPLES`), with its units."""
    if name not in EXAMPLES:
        raise UserError(f"No example series is called '{name}'. Those that ship: {', '.join(EXAMPLES)}.")
    with as_file(files("domains.timeseries") / "datasets" / f"{name}.csv") as path:
        table = read_table(path, target=list(EXAMPLES[name]))
    return replace(table, units=EXAMPLES[name])


def _checked_rows(source: Source, roles: Roles, bare_years: bool, freq: str | None, order: Order | None) -> pl.DataFrame:
    """Columns `ROW`, item_id, timestamp and the values, sorted; every value is of its type, no time comes twice."""
    times = checked_times(source, roles.timestamp, bare_years, is_daily(freq), order)
    items = checked_items(source, roles.item_id)
    numbers = [checked_numbers(source, column) for column in roles.values]
    for column in numbers:
        if column.null_count() == len(column):
            source.fail(f"column '{column.name}' holds no number at all.", "Choose the columns to forecast with --target.")
    frame = source.frame.select(ROW, items, times, *numbers).sort("item_id", "timestamp", ROW)
    twice = frame.filter(frame.select("item_id", "timestamp").is_duplicated())
    if not twice.is_empty():
        (row, item, time), (other, *_) = twice.row(0)[:3], twice.row(1)
        clocks = times_of_day(source, [column for column in source.columns if column not in (roles.timestamp, roles.item_id)])
        names = [column for column in _telling_apart(source, roles) if column not in clocks]
        comes_twice = f"column '{roles.timestamp}', {source.unit}s {row} and {other}: the time {time} of '{item}' comes twice"
        if clocks and not names and (times.dt.time() == clock_time()).all():
            source.fail(
                f"{comes_twice}, and column '{clocks[0]}' holds times of the day. Put date and time into one column, as in "
                "2024-01-31 06:00."
            )
        apart = "".join(f" {column}" for column in names[:1])
        several = "" if roles.item_id else f"If the file holds several series, name the column that tells them apart: --item-id{apart}."
        source.fail(
            f"{comes_twice}. Keep one of the two; local time with daylight saving must be turned into UTC first.",
            several,
        )
    return frame


def _telling_apart(source: Source, roles: Roles) -> list[str]:
    """Columns with fewer values than half the rows with which no time comes twice: likely names of series."""
    most = source.frame.height // 2
    others = [column for column in source.columns if column != roles.timestamp and source.frame[column].n_unique() < most]
    return [column for column in others if not source.frame.select(roles.timestamp, column).is_duplicated().any()]


def _split_ahead(source: Source, frame: pl.DataFrame, roles: Roles) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What is up to the last step with a target, and the future features after it; without such features all is past."""
    columns = ["item_id", "timestamp", *roles.future_features, ROW]
    if not roles.future_features:
        return frame, frame.clear().select(columns)
    known = pl.any_horizontal(pl.col(roles.target).is_not_null())
    frame = frame.with_columns(last=pl.col("timestamp").filter(known).max().over("item_id"))
    empty = frame.filter(pl.col("last").is_null())
    if not empty.is_empty():
        source.fail(f"series '{empty['item_id'][0]}' has no value of {', '.join(roles.target)}, so there is nothing to forecast from.")
    past = pl.col("timestamp") <= pl.col("last")
    return frame.filter(past).drop("last"), frame.filter(~past).select(columns)
