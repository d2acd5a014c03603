"""A Parquet larger than memory: one pass writes its values to a file on the grid, and entries are memory-mapped parts of that.

The pass reads the Parquet in batches (polars' streaming engine), in whatever order its rows are, and puts every value at its place.
Nothing but the list of items is held in memory. The file is kept in a cache, beside the size and time of the Parquet that it is of.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import polars as pl

from domains.timeseries.data.columns import YEARS, checked_items, checked_numbers, checked_static, checked_times, find_roles, refuse_text
from domains.timeseries.data.files import ROW, Source, explain, find_file
from domains.timeseries.data.grid import find_step, period_alias, quiet_pandas, refuse_off_grid, refuse_sparse
from domains.timeseries.data.missing import MEND_MISSING, Holes, add_holes, count_missing, find_holes, refuse_gaps, refuse_holes
from domains.timeseries.data.table import Roles, SeriesTable, Static, make_entry, stamps_from
from titans_seq.errors import UserError

BATCH = 1 << 18
"""Rows that are read at once."""
_FORMAT = 3
_SAMPLE = 10_000


class Mapped(np.memmap):
    """A memory-mapped array whose views go to another process as a place in the file, not as a copy of their values."""

    def __reduce__(self) -> tuple:
        this: Any = self
        start = np.frombuffer(this._mmap, np.uint8).__array_interface__["data"][0]
        offset = self.__array_interface__["data"][0] - start
        return _reopen, (str(self.filename), self.dtype.str, self.shape, offset, self.strides)


def _reopen(path: str, dtype: str, shape: tuple[int, ...], offset: int, strides: tuple[int, ...]) -> Mapped:
    whole: Any = Mapped(path, dtype=np.uint8, mode="r")
    view: Any = np.ndarray(shape, dtype, whole, offset, strides).view(Mapped)
    view.filename, view._mmap = whole.filename, whole._mmap
    return view


@dataclass(frozen=True)
class MappedTable:
    """Checked series of one frequency whose values lie in a file.

    Attributes:
        path: float32 values (steps of all items, columns in the order of `Roles.values`), NaN where missing.
        items: as of `SeriesTable`, with two more columns: offset (row of the first step) and span (steps, those ahead included).
        roles, freq, step, filled, masked, static: as of `SeriesTable`.
    """

    path: Path
    items: pl.DataFrame
    roles: Roles
    freq: str
    step: str
    filled: int
    masked: Mapping[str, int]
    static: Static | None = None
    horizon: None = None
    ignored: ClassVar[dict[str, str]] = {}
    units: ClassVar[dict[str, str]] = {}
    utc: ClassVar[bool] = False
    date_order: ClassVar[None] = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The channel names, C of them."""
        return self.roles.target

    def to_gluonts(self, ahead: int = 0) -> "MappedEntries":
        """As `SeriesTable.to_gluonts`, with arrays that are read when they are looked at."""
        return MappedEntries(self, ahead)

    def stamps(self, item_id: str, start: pd.Period, length: int) -> list[datetime]:
        """As `SeriesTable.stamps`."""
        first = self.items.filter(pl.col("item_id") == item_id)["first"][0]
        return stamps_from(first, self.freq, self.step, start, length)


Table = SeriesTable | MappedTable
"""What the readers give: series in memory, or in a file."""


class MappedEntries(Sequence):
    """A GluonTS dataset of memory-mapped entries. Another process gets the path, and opens the file for itself."""

    def __init__(self, table: MappedTable, ahead: int) -> None:
        self.table, self.ahead = table, ahead
        self.static = table.static.fields() if table.static else [{}] * len(self)

    def __len__(self) -> int:
        return self.table.items.height

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._entry(self.table.items.row(index, named=True), self.static[index], self._values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        values = self._values()
        items = self.table.items.iter_rows(named=True)
        return (self._entry(item, fixed, values) for item, fixed in zip(items, self.static, strict=True))

    def _values(self) -> np.ndarray:
        width = len(self.table.roles.values)
        return Mapped(self.table.path, dtype=np.float32, mode="r").reshape(-1, width)

    def _entry(self, item: dict[str, Any], fixed: dict[str, np.ndarray], values_TK: np.ndarray) -> dict[str, Any]:
        roles, length = self.table.roles, item["len"]
        span = length + (self.ahead if roles.future_features else 0)
        if span > item["span"]:
            raise UserError(
                f"series '{item['item_id']}': {', '.join(roles.future_features)} must be known {self.ahead} steps of {self.table.step} "
                f"beyond the last one with a target; the file has {item['span'] - length}. Add rows with an empty target."
            )
        with quiet_pandas():
            start = pd.Period(item["first"], freq=self.table.freq)
        values_KT = values_TK[item["offset"] : item["offset"] + span].T
        return make_entry(item["item_id"], start, values_KT, length, roles) | fixed


def map_table(
    path: str | Path,
    cache: str | Path,
    *,
    target: Sequence[str] | None = None,
    timestamp: str | None = None,
    item_id: str | None = None,
    freq: str | None = None,
    past_features: Sequence[str] = (),
    future_features: Sequence[str] = (),
    static_features: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] | None = None,
    missing: str = "error",
    progress: Callable[[int, int], None] | None = None,
) -> MappedTable:
    """`read_table` for a Parquet larger than memory.

    Args:
        path: the Parquet; its times are of a temporal type, its rows in any order.
        cache: folder for the values, 4 bytes each. They are written once, and anew when the file or the arguments have changed.
        target, timestamp, item_id, freq, past_features, future_features, static_features, categories, missing: as of `read_table`.
        progress: called with the rows done and the rows of the file.

    Raises:
        UserError: on anything in the file or the arguments that cannot be used.
    """
    refuse_text(target=target, past_features=past_features, future_features=future_features, static_features=static_features)
    path = Path(path)
    find_file(path, (".parquet",))
    chosen: dict[str, Any] = {
        "target": target,
        "timestamp": timestamp,
        "item_id": item_id,
        "past_features": tuple(past_features),
        "future_features": tuple(future_features),
        "static_features": tuple(static_features),
    }
    stat = path.stat()
    key = [_FORMAT, str(path.resolve()), stat.st_size, stat.st_mtime_ns, chosen, freq, categories and dict(categories), missing]
    name = f"{path.stem}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
    made = Path(cache) / name
    if not (made / "table.json").is_file():
        try:
            source = _sample(path)
            roles = find_roles(source, **chosen)
            Path(cache).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".titans-seq-") as folder:
                _write(path, source, roles, freq, categories, missing, Path(folder) / name, progress)
                shutil.rmtree(made, ignore_errors=True)
                os.replace(Path(folder) / name, made)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise UserError(f"{path}: cannot be read as .parquet: {explain(error)}") from None
    about: dict[str, Any] = json.loads((made / "table.json").read_text())
    items = pl.read_parquet(made / "items.parquet", glob=False)
    columns: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in about["roles"].items()}
    static = None
    if about["roles"]["static_features"]:
        static = Static(
            pl.read_parquet(made / "static.parquet", glob=False), {name: tuple(known) for name, known in about["categories"].items()}
        )
    return MappedTable(made / "values.f32", items, Roles(**columns), about["freq"], about["step"], about["filled"], about["masked"], static)


def _sample(path: Path) -> Source:
    """The first rows, to find the columns by."""
    scan = pl.scan_parquet(path, glob=False)
    if ROW in scan.collect_schema().names():
        raise UserError(f"{path}: a column is called '{ROW}', a name that is used inside. Rename it.")
    source = Source(path, scan.head(_SAMPLE).collect().with_row_index(ROW, offset=1), "row")
    if source.frame.is_empty():
        source.fail("holds no rows. It needs one row a time step.")
    return source


def _write(path: Path, source: Source, roles: Roles, freq: str | None, categories: Any, missing: str, folder: Path, progress: Any) -> None:
    """values.f32, items.parquet, static.parquet if there are such features, and table.json, last of all, into a new folder."""
    folder.mkdir()
    grid = _lay_out(source, path, roles, freq)
    values = np.memmap(folder / "values.f32", np.float32, "w+", shape=(grid.steps, len(roles.values)))
    seen = np.memmap(folder / "seen", np.bool_, "w+", shape=(grid.steps,))
    rows = _fill(path, roles, grid, values, seen, missing, progress)
    filled = grid.steps - rows
    if filled:
        _fill_gaps(source, grid, values, seen, missing, filled)
    items = _target_lengths(source, grid.items, grid.step, roles, values, missing)
    masked = _masked(items, roles, values) if missing == "mask" else {}
    values.flush()
    items.write_parquet(folder / "items.parquet")
    (folder / "seen").unlink()
    static = _static(path, roles, categories)
    if static is not None:
        static.frame.write_parquet(folder / "static.parquet")
    about = {"roles": asdict(roles), "freq": period_alias(grid.step), "step": grid.step, "filled": filled, "masked": masked}
    (folder / "table.json").write_text(json.dumps(about | {"categories": static.categories if static else {}}))


@dataclass(frozen=True)
class _Grid:
    """Where the steps of every item lie. items: item_id, first, last, rows, offset, span."""

    items: pl.DataFrame
    step: str
    steps: int
    total_rows: int

    def places(self, items: pl.Series, times: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """Row of each time in the file of values, and whether it is on the grid at all."""
        found = pl.DataFrame([items, times]).join(self.items, on="item_id", how="left", maintain_order="left")
        offset = pd.tseries.frequencies.to_offset(self.step)
        if isinstance(offset, pd.tseries.offsets.Tick):
            apart = (found["timestamp"] - found["first"]).dt.total_microseconds().to_numpy()
            steps, rest = np.divmod(apart, offset.nanos // 1000)
            return found["offset"].to_numpy() + steps, rest == 0
        places, on = np.empty(found.height, np.int64), np.empty(found.height, bool)
        for item in found.with_row_index("at").partition_by("item_id"):
            stamps = pd.date_range(item["first"][0], item["last"][0], freq=self.step, unit="us").to_numpy()
            own = item["timestamp"].to_numpy()
            steps = np.minimum(np.searchsorted(stamps, own), len(stamps) - 1)
            places[item["at"]], on[item["at"]] = item["offset"][0] + steps, stamps[steps] == own
        return places, on


def _lay_out(source: Source, path: Path, roles: Roles, freq: str | None) -> _Grid:
    """A streaming pass over items and times alone."""
    kind = source.frame[roles.timestamp].dtype
    if not kind.is_temporal() or kind in (pl.Time, pl.Duration):
        source.fail(f"column '{roles.timestamp}' holds {kind}; a table that is read from the disk needs a column of type Date or Datetime.")
    zone = getattr(kind, "time_zone", None)
    if zone not in (None, "UTC"):
        source.fail(f"column '{roles.timestamp}' is in the zone {zone}; a table that is read from the disk needs UTC or no zone.")
    time = pl.col(roles.timestamp).cast(pl.Datetime("us")).alias("timestamp")
    item = pl.lit(path.name.split(".")[0]) if roles.item_id is None else pl.col(roles.item_id).cast(pl.String)
    scan = pl.scan_parquet(path, glob=False).select(item.alias("item_id"), time)
    items = (
        scan.group_by("item_id")
        .agg(first=pl.col("timestamp").min(), last=pl.col("timestamp").max(), rows=pl.len())
        .collect(engine="streaming")
        .drop_nulls()  # the pass over the rows says which row it is
        .sort("item_id")
    )
    if items.is_empty():
        source.fail(f"column '{roles.timestamp}' holds no time.")
    outside = items.filter(~pl.col("first").dt.year().is_between(*YEARS) | ~pl.col("last").dt.year().is_between(*YEARS))
    if not outside.is_empty():
        item_id, first, last, _ = outside.row(0)
        source.fail(f"series '{item_id}' runs from {first} to {last}, outside the years {YEARS[0]} to {YEARS[1]}. Mend its times.")
    longest = items.row(items["rows"].arg_max() or 0, named=True)["item_id"]
    stamps = scan.filter(pl.col("item_id") == longest).head(_SAMPLE).collect(engine="streaming")["timestamp"].drop_nulls().unique().sort()
    step = find_step(source, pd.DatetimeIndex(stamps.to_numpy()), freq)
    for item_id, first, last, rows in items.iter_rows():
        refuse_sparse(source, item_id, first, last, rows, step)
    span = [_steps(first, last, period_alias(step)) for _, first, last, _ in items.iter_rows()]
    items = items.with_columns(pl.Series("span", span, dtype=pl.Int64))
    items = items.with_columns(offset=pl.col("span").cum_sum() - pl.col("span"))
    return _Grid(items, step, int(items["span"].sum()), int(items["rows"].sum()))


def _steps(first: datetime, last: datetime, freq: str) -> int:
    """Of the grid, both ends included."""
    with quiet_pandas():
        begin, end = pd.Period(first, freq=freq), pd.Period(last, freq=freq)
    return (end.ordinal - begin.ordinal) // begin.freq.n + 1


def _fill(path: Path, roles: Roles, grid: _Grid, values: np.ndarray, seen: np.ndarray, missing: str, progress: Any) -> int:
    """Put every row at its place; the number of rows."""
    columns = [*((roles.item_id,) if roles.item_id else ()), roles.timestamp, *roles.values]
    scan = pl.scan_parquet(path, glob=False).select(columns).with_row_index(ROW, offset=1)
    done, holes = 0, dict[str, Holes]()
    for batch in scan.collect_batches(chunk_size=BATCH, maintain_order=True, engine="streaming"):
        source = Source(path, batch, "row")
        items, times = checked_items(source, roles.item_id), checked_times(source, roles.timestamp, bare_years=False)
        numbers = pl.DataFrame([checked_numbers(source, column) for column in roles.values])
        if missing == "error":
            add_holes(holes, _holes(roles, numbers.with_columns(batch[ROW], times)))
        places, on = grid.places(items, times)
        if not on.all():
            first = int(np.flatnonzero(~on)[0])
            refuse_off_grid(source, (batch[first, ROW], items[first], times[first]), grid.step, int((~on).sum()))
        inverse, counts = np.unique(places, return_inverse=True, return_counts=True)[1:]
        again = seen[places] | (counts[inverse] > 1)
        if again.any():
            at = int(np.flatnonzero(again)[-1])
            source.fail(
                f"column '{roles.timestamp}', row {batch[at, ROW]}: the time {times[at]} of '{items[at]}' comes twice. Keep one of them.",
                "If the file holds several series, name the column that tells them apart: --item-id.",
            )
        values[places] = numbers.to_numpy().astype(np.float32)
        seen[places] = True
        done += batch.height
        if progress is not None:
            progress(done, grid.total_rows)
    refuse_holes(source, [holes[column] for column in roles.values if column in holes])
    return done


def _static(path: Path, roles: Roles, categories: Mapping[str, Sequence[str]] | None) -> Static | None:
    """As `checked_static`, of each series' different rows alone: one, or the file is refused before there are many."""
    if not roles.static_features:
        return None
    assert roles.item_id is not None  # `find_roles` refuses such features without it
    columns = [roles.item_id, *roles.static_features]
    scan = pl.scan_parquet(path, glob=False).select(columns).with_row_index(ROW, offset=1)

    def checked(rows: pl.DataFrame) -> Static | None:
        source = Source(path, rows, "row")
        return checked_static(source, checked_items(source, roles.item_id), roles, categories)

    found = pl.DataFrame()
    for batch in scan.collect_batches(chunk_size=BATCH, engine="streaming"):
        found = pl.concat([found, batch], how="diagonal").sort(ROW).unique(columns, keep="first", maintain_order=True)
        if found.height > found[roles.item_id].n_unique():
            checked(found)
    return checked(found)


def _holes(roles: Roles, rows: pl.DataFrame) -> list[Holes]:
    """Missing values, but for targets and past features of rows that may be the future; `_target_lengths` knows which are."""
    future = pl.all_horizontal(pl.col(roles.target).is_null()) if roles.future_features else pl.lit(False)
    return find_holes(rows.filter(~future), (*roles.target, *roles.past_features)) + find_holes(rows, roles.future_features)


def _fill_gaps(source: Source, grid: _Grid, values: np.ndarray, seen: np.ndarray, missing: str, count: int) -> None:
    """NaN where the file has no row."""
    for start in range(0, grid.steps, BATCH):
        gaps = np.flatnonzero(~seen[start : start + BATCH]) + start
        if len(gaps) and missing == "error":
            item = grid.items.filter(pl.col("offset") <= gaps[0]).row(-1, named=True)
            skipped = int(gaps[0] - item["offset"])
            time = pd.date_range(item["first"], periods=skipped + 1, freq=grid.step)[-1]
            refuse_gaps(source, count, grid.step, f"{time} of '{item['item_id']}'")
        values[gaps] = np.nan


def _target_lengths(source: Source, items: pl.DataFrame, step: str, roles: Roles, values: np.ndarray, missing: str) -> pl.DataFrame:
    """The items with `len`, their steps up to the last one with a target; without future features that is all."""
    found = items.select("item_id", "first", "last", "offset", "span", len="span")
    if not roles.future_features:
        return found
    lengths: list[int] = []
    lasts: list[datetime] = []
    for item_id, first, offset, span in items.select("item_id", "first", "offset", "span").iter_rows():
        targets_TC = values[offset : offset + span, : len(roles.target)]
        length = _last_known(targets_TC)
        if not length:
            source.fail(f"series '{item_id}' has no value of {', '.join(roles.target)}, so there is nothing to forecast from.")
        holes = any(np.isnan(targets_TC[start : min(start + BATCH, length)]).any() for start in range(0, length, BATCH))
        if missing == "error" and holes:
            source.fail(f"series '{item_id}' has missing values of {', '.join(roles.target)} before its last one. {MEND_MISSING}.")
        lengths.append(length)
        lasts.append(pd.date_range(first, periods=length, freq=step)[-1].to_pydatetime())
    return found.with_columns(pl.Series("len", lengths, dtype=pl.Int64), pl.Series("last", lasts, dtype=pl.Datetime("us")))


def _masked(items: pl.DataFrame, roles: Roles, values: np.ndarray) -> dict[str, int]:
    """`SeriesTable.masked` of what is on the grid."""
    counts, past = np.zeros(len(roles.values), np.int64), len(roles.values) - len(roles.future_features)
    for offset, length, span in items.select("offset", "len", "span").iter_rows():
        counts[:past] += count_missing(values[offset : offset + length, :past], BATCH)
        counts[past:] += count_missing(values[offset : offset + span, past:], BATCH)
    return {column: int(count) for column, count in zip(roles.values, counts, strict=True) if count}


def _last_known(targets_TC: np.ndarray) -> int:
    """Steps up to the last one with a value, 0 where there is none."""
    for stop in range(len(targets_TC), 0, -BATCH):
        start = max(0, stop - BATCH)
        known = np.flatnonzero(np.isfinite(targets_TC[start:stop]).any(axis=1))
        if len(known):
            return start + int(known[-1]) + 1
    return 0
