"""Tables in, GluonTS entries out: reading, checking and splitting time series.

A file is either *wide* (one series; each target column is a channel) or *long* (one more column, `item_id`, tells the
series apart). Whatever cannot be used raises a `UserError` that names the file, the column, the line and the mend.
"""

import difflib
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import pandas as pd
import polars as pl

from titans_seq.errors import UserError

EXAMPLES = {"seattle_weather": {"temp_max": "°C", "temp_min": "°C", "precipitation": "mm", "wind": "m/s"}}
"""The series that ship with the package: name -> {target column: unit}."""

_ROW = "__row__"
_PROBE = "import sys, polars; polars.read_parquet(sys.argv[1])"
_MISSING = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "none", "?", "-"]
_SUFFIXES = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t", ".parquet": None}
_DATE_FORMATS = ["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m"]
_ZONED_FORMATS = ["%Y-%m-%d %H:%M%z", "%Y-%m-%d %H:%M:%S%.f%z"]
_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_ANCHORED = {
    "W": [f"W-{day}" for day in ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")],
    "M": ["MS", "ME"],
    "Q": [f"{kind}-{month}" for kind in ("QS", "QE") for month in _MONTHS],
    "Y": [f"{kind}-{month}" for kind in ("YS", "YE") for month in _MONTHS],
}
"""A bare --freq W, M, Q or Y means the day of the week, month or year that the file's first timestamp lies on."""
_YEARS = (1678, 2199)  # what pandas' nanoseconds hold, with room for a forecast
_MOSTLY_GAPS = 20  # more grid steps than this for each row: the frequency is wrong, and the grid could fill the memory


@dataclass(frozen=True)
class SeriesTable:
    """Checked series of one frequency.

    Attributes:
        frame: sorted by item_id, timestamp; columns `item_id` (String), `timestamp` (Datetime, microseconds, no time
            zone), then the targets (Float64; null where a step is missing). Every item lies on a gapless grid.
        targets: the channel names, C of them.
        freq: frequency of the GluonTS periods, a pandas period alias such as "D", "h", "W-SUN", "M".
        step: pandas offset alias of the timestamps, such as "D", "h", "W-SUN", "MS": "M" but stamped on the first day.
        ignored: columns of the file that are neither timestamp, item nor target.
        units: unit of each target where known.
    """

    frame: pl.DataFrame
    targets: tuple[str, ...]
    freq: str
    step: str
    ignored: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)

    def to_gluonts(self) -> list[dict[str, Any]]:
        """One entry an item: `item_id`, `start` (pd.Period) and `target`, float32 (C, T), NaN for missing steps.

        The target is 2-D even where there is one channel.
        """
        with quiet_pandas():
            return [
                {
                    "item_id": item["item_id"][0],
                    "start": pd.Period(item["timestamp"][0], freq=self.freq),
                    "target": np.ascontiguousarray(item.select(self.targets).to_numpy().T, dtype=np.float32),
                }
                for item in self.frame.partition_by("item_id", maintain_order=True)
            ]

    def stamps(self, item_id: str, start: pd.Period, length: int) -> list[datetime]:
        """The `length` timestamps from the period `start` on, written as this file writes them.

        A GluonTS period knows only "the week to Sunday" or "May 2012": this gives back the Sunday, or the 31st.
        """
        first = self.frame.filter(pl.col("item_id") == item_id)["timestamp"][0]
        with quiet_pandas():
            offset = start.ordinal - pd.Period(first, freq=self.freq).ordinal
            skipped = offset // start.freq.n
            return list(pd.date_range(first, periods=skipped + length, freq=self.step)[skipped:].to_pydatetime())


def read_table(
    path: str | Path,
    *,
    target: Sequence[str] | None = None,
    timestamp: str | None = None,
    item_id: str | None = None,
    freq: str | None = None,
    missing: Literal["error", "mask"] = "error",
) -> SeriesTable:
    """Read .csv, .csv.gz, .tsv, .tsv.gz or .parquet into checked series.

    Args:
        path: the file. A CSV is UTF-8 with a header line, columns separated by "," or ";", decimal points.
        target: columns to forecast; default: every numeric column but `timestamp` and `item_id`.
        timestamp: column of the time steps; default: the only one that holds dates, year first ("2012-01-31",
            "2012/1/31 6:00", ISO 8601). Times with a zone become UTC, so daylight saving leaves no gap or duplicate.
        item_id: column that tells series apart (long layout); default: the file is one series (wide layout).
        freq: step between timestamps as a pandas alias ("h", "15min", "D", "B", "W", "M"); default: inferred.
        missing: "error" refuses missing values and time steps; "mask" keeps them as nulls. Nothing is ever imputed.

    Raises:
        UserError: on anything in the file or the arguments that cannot be used.
    """
    if missing not in ("error", "mask"):
        raise UserError(f"missing='{missing}' is unknown. Use 'error' or 'mask'.")
    source = _open(Path(path))
    roles = [("--timestamp", timestamp), ("--item-id", item_id), *(("--target", column) for column in target or ())]
    for option, column in roles:
        if column is not None:
            source.require(column, option)
    if item_id is not None and item_id in (timestamp, *(target or ())):
        source.fail(f"--item-id {item_id} is also given as the timestamp or a target; each column has one role.")
    time_column = timestamp or _timestamp_column(source, item_id)
    targets = tuple(dict.fromkeys(target)) if target else _target_columns(source, {time_column, item_id})
    for column in targets:
        if column in (time_column, "item_id", "timestamp"):
            hint = " or name it with --item-id" if column == "item_id" and item_id is None else ""
            source.fail(f"column '{column}' cannot be a target: rename it, choose the targets with --target{hint}.")
    frame = _checked_rows(source, time_column, item_id, targets, explicit_time=timestamp is not None)
    frame, step = _on_grid(source, frame, freq)
    _check_missing(source, frame, targets, step, missing)
    return SeriesTable(
        frame=frame.drop(_ROW),
        targets=targets,
        freq=_period_alias(step),
        step=step,
        ignored=tuple(c for c in source.columns if c.strip() and c not in (time_column, item_id, *targets)),
    )


def load_example(name: str = "seattle_weather") -> SeriesTable:
    """One of the series that ship with the package (`EXAMPLES`), with its units."""
    if name not in EXAMPLES:
        raise UserError(f"No example series is called '{name}'. Those that ship: {', '.join(EXAMPLES)}.")
    with as_file(files("domains.timeseries") / "datasets" / f"{name}.csv") as path:
        table = read_table(path, target=list(EXAMPLES[name]))
    return replace(table, units=EXAMPLES[name])


def check_length(table: SeriesTable, prediction_length: int, context_length: int, windows: int, season_length: int = 1) -> None:
    """Refuse series too short to train on and then to test on `windows` held-out horizons.

    Each item needs max(context_length + prediction_length, season_length + 1) steps before the held-out
    windows * prediction_length, and there at least one value in every channel.

    Raises:
        UserError: with the length there is, the length needed and what to change.
    """
    lengths = table.frame.group_by("item_id", maintain_order=True).len()
    item, length = lengths.row(lengths["len"].arg_min() or 0)
    history = max(context_length + prediction_length, season_length + 1)
    held_out = windows * prediction_length
    if length < history + held_out:
        because = f"context {context_length} + prediction length {prediction_length}"
        because = because if history > season_length + 1 else f"season {season_length} + 1"
        raise UserError(
            f"Series '{item}' has {length} steps of {table.step}; {history + held_out} are needed: {because} to train on, "
            f"and {windows} held-out windows of {prediction_length} to test on. Give a shorter --prediction-length, "
            f"--context-length or --season-length, fewer --windows, or a longer series."
        )
    trained_on = table.frame.group_by("item_id", maintain_order=True).agg(
        pl.col(table.targets).head(pl.len() - held_out).is_not_null().any()
    )
    for column in table.targets:
        empty = trained_on.filter(~pl.col(column))
        if not empty.is_empty():
            raise UserError(
                f"Column '{column}' of series '{empty['item_id'][0]}' has no value before the {held_out} held-out steps, "
                f"so there is nothing to learn from. Leave it out with --target, or hold out fewer steps."
            )


def check_contexts(table: SeriesTable, prediction_length: int, context_length: int, windows: int) -> None:
    """Every forecast that will be made (at the end, and of each held-out window) needs something to go by.

    Raises:
        UserError: a channel has fewer than two observed values in the context of one of them.
    """
    for entry in table.to_gluonts():
        target = entry["target"]
        for window in range(windows + 1):
            stop = target.shape[1] - window * prediction_length
            seen = np.isfinite(target[:, max(0, stop - context_length) : stop]).sum(axis=1)
            for channel, count in zip(table.targets, seen, strict=True):
                if count < 2:
                    last = entry["start"] + stop - 1
                    raise UserError(
                        f"item {entry['item_id']!r}, column {channel!r}: {count} observed values in the {context_length} steps "
                        f"up to {last}; "
                        "a forecast needs at least 2. Leave the column out, give a longer --context-length, or fewer --windows."
                    )


def split(table: SeriesTable | list[dict[str, Any]], prediction_length: int, windows: int) -> tuple[Any, Any]:
    """Hold out the last `windows * prediction_length` steps of every series.

    Returns:
        A GluonTS TrainingDataset of all that comes before, and a GluonTS TestData with, for each series, `windows`
        consecutive windows of `prediction_length` steps; the input of each is everything before it.
    """
    from gluonts.dataset.split import split as gluonts_split

    entries = table.to_gluonts() if isinstance(table, SeriesTable) else table
    training, template = gluonts_split(entries, offset=-windows * prediction_length)
    return training, template.generate_instances(prediction_length, windows=windows, distance=prediction_length)


# ---- the file


@dataclass(frozen=True)
class _Source:
    """A file as read: its own columns and `_ROW`, the number of each row in terms of `unit` ("line" or "row")."""

    path: Path
    frame: pl.DataFrame
    unit: str

    @property
    def columns(self) -> list[str]:
        return [column for column in self.frame.columns if column != _ROW]

    def fail(self, message: str) -> NoReturn:
        raise UserError(f"{self.path}: {message}") from None

    def require(self, column: str, option: str) -> None:
        if column in self.columns:
            return
        close = difflib.get_close_matches(column, self.columns, n=1, cutoff=0.5)
        guess = f" Did you mean '{close[0]}'?" if close else ""
        self.fail(f"there is no column '{column}' ({option}).{guess} The columns are: {', '.join(self.columns)}.")


def _open(path: Path) -> _Source:
    suffix = next((s for s in _SUFFIXES if path.name.lower().endswith(s)), None)
    try:
        exists = path.exists()
    except OSError as error:  # too long a name
        raise UserError(f"{path}: is no usable path ({error.strerror}).") from None
    if not exists:
        raise UserError(f"{path}: no such file. Check the path; it is looked up from {Path.cwd()}.")
    if path.is_dir():
        raise UserError(f"{path}: is a folder. Name one file in it.")
    if suffix is None:
        raise UserError(f"{path}: unknown kind of file. Use one of {', '.join(_SUFFIXES)}.")
    separator = _SUFFIXES[suffix]
    unit = "row" if separator is None else "line"
    try:
        frame = _read_parquet(path) if separator is None else _read_text(path, separator)
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: the file is empty. It needs a header line and one line a time step.") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserError(f"{path}: cannot be read as {suffix}: {_explain(error)}") from None
    if _ROW in frame.columns:
        raise UserError(f"{path}: a column is called '{_ROW}', a name that is used inside. Rename it.")
    source = _Source(path, frame.with_row_index(_ROW, offset=1 if unit == "row" else 2), unit)
    for column in frame.columns:
        if unit == "line" and "_duplicated_" in column and column.rpartition("_duplicated_")[0] in frame.columns:
            source.fail(f"two columns are called '{column.rpartition('_duplicated_')[0]}'. Rename one of them.")
    rows = source.frame.filter(~pl.all_horizontal(pl.all().exclude(_ROW).is_null()))  # blank lines are no rows
    if rows.is_empty():
        source.fail("holds no rows below its header. It needs one row a time step.")
    return _Source(path, rows, unit)


def _read_parquet(path: Path) -> pl.DataFrame:
    """Once in a process of its own first: where a damaged file has polars ask for more memory than there is, it ends the process."""
    probe = subprocess.run([sys.executable, "-P", "-c", _PROBE, str(path)], capture_output=True, check=False)
    if probe.returncode not in (0, 1):  # 1 is an exception, which comes here as well
        why = (probe.stderr.decode(errors="replace").strip().splitlines() or [f"status {probe.returncode}"])[0]
        raise UserError(f"{path}: cannot be read as .parquet, it is damaged: its reader was ended ({why:.200}). Write the file again.")
    return pl.read_parquet(path)


def _read_text(path: Path, separator: str) -> pl.DataFrame:
    """Every column as text, so that a value that is no number can be shown as it stands in the file."""
    frame = pl.read_csv(path, separator=separator, infer_schema=False)
    if frame.width == 1 and ";" in frame.columns[0]:
        frame = pl.read_csv(path, separator=";", infer_schema=False)
    return frame


def _explain(error: Exception) -> str:
    message = str(error).strip().splitlines()[0]
    if "utf-8" in message:
        return f"{message}. Save it with UTF-8 encoding."
    if "more fields" in message:
        return "a line has more fields than the header. Quote values that hold the separator, or mend the line."
    return f"{message}. Write the file again, or check that its ending tells its kind."


# ---- columns


def _is_text(values: pl.Series) -> bool:
    return values.dtype == pl.String


def _plain(values: pl.Series) -> pl.Series:
    """Text without surrounding blanks and with null for what stands for a missing value; other types as they are."""
    if isinstance(values.dtype, (pl.Categorical, pl.Enum)):
        values = values.cast(pl.String)
    if not _is_text(values):
        return values
    values = values.str.strip_chars()
    return values.set(values.is_in(_MISSING), None)


def _as_number(values: pl.Series) -> pl.Series | None:
    """Float64 with null for missing and for what is no number; None for a column that is no table of numbers."""
    values = _plain(values)
    if not (_is_text(values) or values.dtype.is_numeric()):
        return None
    return values.cast(pl.Float64, strict=False).fill_nan(None)


def _as_time(values: pl.Series, bare_years: bool = False) -> pl.Series | None:
    """Datetime in microseconds without a zone (UTC where there was one), null for what is no time, None as above."""
    values = _plain(values)
    if bare_years and values.dtype.is_integer():
        values = values.cast(pl.String)
    if values.dtype.is_temporal() and values.dtype not in (pl.Time, pl.Duration):
        if values.dtype == pl.Date:  # of others the microseconds would overflow
            values = values.set(~values.is_between(date.min, date.max), None)
        zone = getattr(values.dtype, "time_zone", None)
        values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zone else values
        return values.cast(pl.Datetime("us"))
    if not _is_text(values):
        return None
    text = values.str.replace(r"^(\d{4})[/.](\d{1,2})[/.](\d{1,2})", "${1}-${2}-${3}").str.replace("T", " ")
    text = text.str.replace(r"\s*Z$", "+00:00").str.replace(r"(:\d{2}(?:\.\d+)?[+-]\d{2})$", "${1}:00")
    if bare_years:
        text = text.str.replace(r"^(\d{4})$", "${1}-01-01")
    naive = pl.select(pl.coalesce(text.str.to_datetime(f, strict=False, time_unit="us") for f in _DATE_FORMATS))
    zoned = pl.select(pl.coalesce(text.str.to_datetime(f, strict=False, time_unit="us") for f in _ZONED_FORMATS))
    times, others = naive.to_series(), zoned.to_series().dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return times if times.null_count() <= others.null_count() else others  # times of the rarer kind count as no times


def _mostly(part: pl.Series | None, values: pl.Series) -> bool:
    """Whether more than half of the present values are in `part`: such a column with a typo is not passed over."""
    present = len(values) - _plain(values).null_count()
    return part is not None and 2 * (len(part) - part.null_count()) > present


def _timestamp_column(source: _Source, item_id: str | None) -> str:
    frame = source.frame.drop(_ROW, *([item_id] if item_id else []))
    found = [column.name for column in frame if _mostly(_as_time(column), column)]
    if len(found) == 1:
        return found[0]
    problem = f"columns {', '.join(found)} all hold dates" if found else "no column holds dates such as 2012-01-31"
    source.fail(
        f"{problem}. Name the column of the time steps with --timestamp; dates are written year first (2012-01-31, "
        f"2012/01/31 06:00, 2012-01-31T06:00:00Z). The columns are: {', '.join(source.columns)}."
    )


def _target_columns(source: _Source, taken: set[str | None]) -> tuple[str, ...]:
    free = [column for column in source.columns if column not in taken and column.strip()]
    found = tuple(c for c in free if _mostly(_as_number(source.frame[c]), source.frame[c]))
    if not found:
        source.fail(f"no column of numbers (with decimal points) to forecast. The columns are: {', '.join(source.columns)}.")
    return found


def _checked_rows(source: _Source, time_column: str, item_id: str | None, targets: tuple[str, ...], explicit_time: bool) -> pl.DataFrame:
    """Columns `_ROW`, item_id, timestamp and the targets, sorted; every value is of its type, no time comes twice."""
    times = _as_time(source.frame[time_column], bare_years=explicit_time)
    advice = "Write times year first, such as 2012-01-31 or 2012-01-31 06:00"
    if times is None:
        source.fail(f"column '{time_column}' holds {source.frame[time_column].dtype}, not times. {advice}.")
    _refuse_first(source, time_column, times.is_null(), "no time", f"{advice}, or drop the {source.unit}")
    outside = ~times.is_between(datetime(_YEARS[0], 1, 1), datetime(_YEARS[1] + 1, 1, 1), closed="left")
    _refuse_first(source, time_column, outside, f"outside the years {_YEARS[0]} to {_YEARS[1]}", f"Mend it, or drop the {source.unit}")
    name = pl.lit(source.path.name.split(".")[0])
    if item_id is not None:
        name = pl.col(item_id).cast(pl.String)
        _refuse_first(source, item_id, source.frame[item_id].is_null(), "no item", "Every row needs its series' name")
    numbers = [_number_column(source, column) for column in targets]
    frame = source.frame.select(_ROW, name.alias("item_id"), times.alias("timestamp"), *numbers)
    frame = frame.sort("item_id", "timestamp", _ROW)
    twice = frame.filter(frame.select("item_id", "timestamp").is_duplicated())
    if not twice.is_empty():
        (row, item, time), (other, *_) = twice.row(0)[:3], twice.row(1)
        several = "" if item_id else " If the file holds several series, name the column that tells them apart: --item-id."
        source.fail(
            f"column '{time_column}', {source.unit}s {row} and {other}: the time {time} of '{item}' comes twice. "
            f"Keep one of the two; local time with daylight saving must be turned into UTC first.{several}"
        )
    return frame


def _number_column(source: _Source, column: str) -> pl.Series:
    numbers = _as_number(source.frame[column])
    if numbers is None:
        source.fail(f"column '{column}' holds {source.frame[column].dtype}, not numbers. Choose other --target columns.")
    values = _plain(source.frame[column])
    present = values.is_not_null() if _is_text(values) else numbers.is_not_null()
    text = present & numbers.is_null() & (values.str.to_lowercase() != "nan" if _is_text(values) else present)
    _refuse_first(source, column, text, "no number", "Mend the value, or leave it empty and use --missing mask")
    wide = (numbers.abs() > np.finfo(np.float32).max).fill_null(False)
    _refuse_first(source, column, wide, "not finite in float32", "Mend the value, or leave it empty")
    if numbers.null_count() == len(numbers):
        source.fail(f"column '{column}' holds no number at all. Choose the columns to forecast with --target.")
    return numbers.alias(column)


def _refuse_first(source: _Source, column: str, bad: pl.Series, what: str, mend: str) -> None:
    if not bad.any():
        return
    found = source.frame.filter(bad).select(_ROW, column)
    try:
        row, value = found.row(0)
    except (ValueError, OverflowError, pl.exceptions.PanicException):  # polars has years that Python has not
        row, value = found.select(_ROW, pl.col(column).to_physical()).row(0)
    shown = "an empty value" if value is None else f"'{value!s:.40}'"
    more = f" ({bad.sum()} such values in all)" if bad.sum() > 1 else ""
    source.fail(f"column '{column}', {source.unit} {row}: {shown} is {what}{more}. {mend}.")


# ---- the grid of time steps


def _on_grid(source: _Source, frame: pl.DataFrame, freq: str | None) -> tuple[pl.DataFrame, str]:
    """Every step of every item, in order, with nulls (also in `_ROW`) where the file has none; and the step."""
    items = frame.partition_by("item_id", maintain_order=True)
    longest = pd.DatetimeIndex(max(items, key=len)["timestamp"].to_numpy())
    if freq is None and len(longest) < 3:
        source.fail(f"{len(longest)} time steps do not tell a frequency. Give it with --freq, such as D or h.")
    step = _infer_step(source, longest) if freq is None else _given_step(freq, longest[0])
    _refuse_sparse(source, items, step)
    grid = pl.concat(
        pl.DataFrame({"timestamp": pd.date_range(i["timestamp"][0], i["timestamp"][-1], freq=step, unit="us").to_numpy()})
        .cast(pl.Datetime("us"))
        .select(pl.lit(i["item_id"][0]).alias("item_id"), "timestamp")
        for i in items
    )
    off = frame.join(grid, on=["item_id", "timestamp"], how="anti")
    if not off.is_empty():
        row, item, time = off.sort(_ROW).row(0)[:3]
        source.fail(
            f"{source.unit} {row}: the time {time} of '{item}' is not on a regular grid of step '{step}' "
            f"({off.height} such times in all). Resample the data to one regular step, or give its step with --freq."
        )
    return grid.join(frame, on=["item_id", "timestamp"], how="left", maintain_order="left"), step


def _infer_step(source: _Source, stamps: pd.DatetimeIndex) -> str:
    """The frequency that most short stretches of the stamps agree on, so that gaps elsewhere do not hide it."""
    width = min(8, len(stamps))
    starts = range(0, len(stamps) - width + 1, max(1, len(stamps) // 200))
    with quiet_pandas():
        votes = Counter(pd.infer_freq(stamps[start : start + width]) for start in starts)
    steps = [step for step, _ in votes.most_common() if step is not None and _period_alias(step, check=False)]
    if steps:
        return steps[0]
    common = pd.Series(stamps).diff().mode()[0]
    if common < pd.Timedelta("1s"):
        source.fail("the time steps are shorter than a second. Rescale the times, or give a --freq.")
    return pd.tseries.frequencies.to_offset(common).freqstr


def _given_step(freq: str, first: pd.Timestamp) -> str:
    bare = "Y" if freq.upper() == "A" else freq.upper()
    with quiet_pandas():
        try:
            candidates = [pd.tseries.frequencies.to_offset(alias) for alias in _ANCHORED.get(bare, [freq])]
        except ValueError:
            raise UserError(f"--freq '{freq}' is no pandas frequency. Use one such as 15min, h, D, B, W, M, Q.") from None
        step = next((c for c in candidates if c.is_on_offset(first)), candidates[0]).freqstr
    if candidates[0].n < 1 or not _period_alias(step, check=False):
        raise UserError(f"--freq '{freq}' is not supported: pandas has no such period. Use one such as h, D, B, W, M.")
    return step


def _refuse_sparse(source: _Source, items: list[pl.DataFrame], step: str) -> None:
    for item in items:
        first, last = pd.Timestamp(item["timestamp"][0]), pd.Timestamp(item["timestamp"][-1])
        steps = (last - first) / ((first + 4 * pd.tseries.frequencies.to_offset(step) - first) / 4)
        if steps > _MOSTLY_GAPS * (item.height + 5):
            source.fail(
                f"'{item['item_id'][0]}' has {item.height} rows but would have {steps:.0f} steps of '{step}' from "
                f"{first} to {last}: nearly all are missing. Resample the data, or give its step with --freq."
            )


def _check_missing(source: _Source, frame: pl.DataFrame, targets: tuple[str, ...], step: str, missing: str) -> None:
    if missing == "mask":
        return
    mend = "Fill them in yourself, or pass --missing mask: then they are neither trained on nor scored, and never imputed"
    for column in targets:
        holes = frame.filter(pl.col(column).is_null() & pl.col(_ROW).is_not_null()).sort(_ROW)
        if not holes.is_empty():
            row, time = holes.select(_ROW, "timestamp").row(0)
            source.fail(f"column '{column}' has {holes.height} missing values, the first on {source.unit} {row} ({time}). {mend}.")
    gaps = frame.with_columns(after=pl.col(_ROW).forward_fill()).filter(pl.col(_ROW).is_null())
    if not gaps.is_empty():
        item, time, after = gaps.select("item_id", "timestamp", "after").row(0)
        daily = " If only working days are recorded, give --freq B." if step == "D" else ""
        source.fail(
            f"{gaps.height} time steps of '{step}' are missing, the first {time} of '{item}', after {source.unit} {after}. {mend}.{daily}"
        )


def _period_alias(step: str, check: bool = True) -> str:
    """The period alias of an offset alias ("MS" -> "M"); where there is none, "" or, if it is to `check`, a failure."""
    try:
        with quiet_pandas():
            return str(pd.date_range("2000-01-01", periods=1, freq=step).to_period().freqstr)
    except ValueError:
        if check:
            raise
        return ""


@contextmanager
def quiet_pandas() -> Iterator[None]:
    """Without pandas' notices about the aliases and the business-day periods that GluonTS still builds on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
