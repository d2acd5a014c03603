"""Values and time steps that are missing: what is said of them where they are refused, and where they are masked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from domains.timeseries.data.files import ROW, Source

MEND_MISSING = (
    "Fill them in yourself, or pass --missing mask (in Python, missing='mask'): then they are neither trained on nor scored, "
    "and never imputed"
)
_MOST_NAMED = 5


@dataclass(frozen=True)
class Holes:
    """Missing values of one column. row, time: of the first."""

    column: str
    count: int
    row: int
    time: str


def find_holes(frame: pl.DataFrame, columns: Sequence[str]) -> list[Holes]:
    """The columns in which a row of the file has no value. frame: columns `ROW` (null where the file has no row), timestamp, `columns`."""
    found = []
    for column in columns:
        holes = frame.filter(pl.col(column).is_null() & pl.col(ROW).is_not_null()).sort(ROW)
        if not holes.is_empty():
            row, time = holes.select(ROW, "timestamp").row(0)
            found.append(Holes(column, holes.height, row, str(time)))
    return found


def add_holes(holes: dict[str, Holes], later: Sequence[Holes]) -> None:
    """Add those of later rows."""
    for hole in later:
        first = holes.get(hole.column, replace(hole, count=0))
        holes[hole.column] = replace(first, count=first.count + hole.count)


def refuse_holes(source: Source, holes: Sequence[Holes], besides: str = "", choices: str = "") -> None:
    """Refuse all columns with missing values at once, if there are any.

    besides: what else is missing, a sentence. choices: as of `Source.fail`.
    """
    if not holes:
        return
    first = {hole.column: f"the first on {source.unit} {hole.row} ({hole.time})" for hole in holes}
    if len(holes) == 1:
        (hole,) = holes
        says = f"column '{hole.column}' has {hole.count} missing value{'s' if hole.count > 1 else ''}, {first[hole.column]}"
    else:
        named = [f"'{hole.column}' {hole.count}, {first[hole.column]}" for hole in holes[:_MOST_NAMED]]
        more = f"; and {len(holes) - _MOST_NAMED} more columns" if len(holes) > _MOST_NAMED else ""
        says = f"{len(holes)} columns have missing values: {'; '.join(named)}{more}"
    source.fail(f"{says}. {besides}{MEND_MISSING}.", choices)


def refuse_missing(source: Source, frame: pl.DataFrame, holes: Sequence[Holes], step: str) -> None:
    """Refuse missing values, and steps that are missing from a frame on the grid (null in `ROW`)."""
    gaps = frame.with_columns(after=pl.col(ROW).forward_fill()).filter(pl.col(ROW).is_null())
    if gaps.is_empty():
        return refuse_holes(source, holes)
    item, time, after = gaps.select("item_id", "timestamp", "after").row(0)
    first = f"{time} of '{item}', after {source.unit} {after}"
    refuse_holes(source, holes, f"{_tell_gaps(gaps.height, step, first)} ", _of_working_days(step))
    return refuse_gaps(source, gaps.height, step, first)


def refuse_gaps(source: Source, count: int, step: str, first: str) -> None:
    """Refuse `count` steps without a row; `first` says where the first one is."""
    source.fail(f"{_tell_gaps(count, step, first)} {MEND_MISSING}.", _of_working_days(step))


def _of_working_days(step: str) -> str:
    return "If only working days are recorded, give --freq B." if step == "D" else ""


def _tell_gaps(count: int, step: str, first: str) -> str:
    return f"{count} time steps of '{step}' are missing, the first {first}." if count > 1 else f"A step of '{step}' is missing: {first}."


def count_missing(values_TK: np.ndarray, rows: int) -> np.ndarray:
    """(K,), how many are NaN, of an array that is read so many rows at once."""
    parts = (values_TK[start : start + rows] for start in range(0, len(values_TK), rows))
    return np.sum([np.zeros(values_TK.shape[1], np.int64), *(np.isnan(part).sum(axis=0) for part in parts)], axis=0)


def masked_words(masked: Mapping[str, int]) -> str:
    """How many values of which column, such as "12 of price, 3 of sold"; "none" where none are."""
    told = [f"{count:,} of {column}" for column, count in list(masked.items())[:_MOST_NAMED]]
    more = len(masked) - _MOST_NAMED
    rest = f" and {sum(list(masked.values())[_MOST_NAMED:]):,} of {more} more columns" if more > 0 else ""
    return ", ".join(told) + rest or "none"
