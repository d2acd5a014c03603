"""Rows as they arrive, at the end of a file that grows or through a pipe."""

import io
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import polars as pl

from domains.timeseries.data.columns import Order, checked_items, checked_numbers, checked_order, checked_static, checked_times, is_daily
from domains.timeseries.data.files import ROW, Decimal, Source, explain, plain_names
from domains.timeseries.data.grid import refuse_off_grid
from domains.timeseries.data.table import Roles, Static
from titans_seq.errors import UserError

_CHUNK = 1 << 20

Lines = list[tuple[int, str]]
"""Lines with their numbers, the first of a file being 1."""


def follow(path: Path | None, *, interval: float = 1.0, idle: float | None = None) -> Iterator[Lines]:
    """Complete lines as they come: all that a file holds, then what is appended; or standard input where there is no path.

    Args:
        path: the file, or a named pipe; None for standard input. Pipes end when they are closed.
        interval: seconds between two looks at a file.
        idle: seconds without a new line after which a file is left; None for never.

    Raises:
        UserError: no such file, it becomes shorter, or a line is no UTF-8, after those before it.
    """
    if path is None:
        yield from _numbered(_chunks(sys.stdin.fileno()), "standard input", ended=True)
        return
    if path.is_dir():
        raise UserError(f"{path}: is a folder. Name the file that grows.")
    if not path.exists():
        raise UserError(f"{path}: no such file. Check the path; it is looked up from {Path.cwd()}.")
    if not path.is_file():
        with path.open("rb", buffering=0) as pipe:
            yield from _numbered(_chunks(pipe.fileno()), str(path), ended=True)
        return
    with path.open("rb") as file:
        yield from _numbered(_growth(path, file.fileno(), interval, idle), str(path), ended=False)


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, _CHUNK):
        yield chunk


def _growth(path: Path, descriptor: int, interval: float, idle: float | None) -> Iterator[bytes]:
    read, last = 0, time.monotonic()
    while idle is None or time.monotonic() - last <= idle:
        if os.fstat(descriptor).st_size < read:
            raise UserError(f"{path}: became shorter while it was read. A watched file may only grow; start again.")
        new = b"".join(_chunks(descriptor))
        if new:
            read, last = read + len(new), time.monotonic()
            yield new
        else:
            time.sleep(interval)


def _numbered(chunks: Iterator[bytes], name: str, *, ended: bool) -> Iterator[Lines]:
    """Lines with their numbers; where the source has `ended` with its last chunk, what stands there without a line's end is a line."""
    rest, number = b"", 0
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        lines: Lines = []
        for line in whole:
            try:
                lines.append((number + 1, _text(line, number + 1, name)))
            except UserError:
                if lines:
                    yield lines  # what came before is whole
                raise
            number += 1
        if lines:
            yield lines
    if rest and ended:
        yield [(number + 1, _text(rest, number + 1, name))]


def _text(line: bytes, number: int, name: str) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
    except UnicodeDecodeError:
        raise UserError(f"{name}: line {number}: is no UTF-8. Save the file with UTF-8 encoding.") from None


class RowReader:
    """Turns lines below a header into checked rows, as `read_table` reads a whole file.

    Args:
        path: to name in errors.
        header: the first line.
        roles: what the columns are.
        step: pandas offset alias of the timestamps.
        categories: known values of static categories.
        decimal, date_order: as of `read_table`.

    Attributes:
        first: the first timestamp of each item.
    """

    def __init__(
        self,
        path: Path,
        header: str,
        roles: Roles,
        step: str,
        categories: Mapping[str, Sequence[str]],
        decimal: Decimal = ".",
        date_order: Order | None = None,
    ) -> None:
        self.path, self.header, self.roles, self.categories, self.decimal = path, header, roles, categories, decimal
        self.step, self._offset = step, pd.tseries.frequencies.to_offset(step)
        self._separator = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
        self.first: dict[str, pd.Timestamp] = {}
        self._order = date_order  # of dates that end with the year, once a day above 12 has told it
        source = self._source([(1, header)])
        own = [c for c in (roles.timestamp, roles.item_id, *roles.values, *roles.static_features) if c is not None]
        for column in own:
            source.require(column, "that the model was trained on")

    def read(self, lines: Lines) -> tuple[pl.DataFrame, Static | None]:
        """Columns `ROW`, item_id, timestamp and the values, null where missing, sorted by item and time; and static features.

        Raises:
            UserError: with the line, for what cannot be used. Then nothing is read.
        """
        source, roles, first = self._source(lines), self.roles, dict(self.first)
        order = checked_order(source, roles.timestamp, self._order)
        times = checked_times(source, roles.timestamp, bare_years=True, daily=is_daily(self.step), order=order)
        items = checked_items(source, roles.item_id)
        numbers = [checked_numbers(source, column) for column in roles.values]
        frame = source.frame.select(ROW, items, times, *numbers).sort("item_id", "timestamp", ROW)
        for row, item, moment in frame.select(ROW, "item_id", "timestamp").iter_rows():
            if not self._on_grid(first.setdefault(item, pd.Timestamp(moment)), pd.Timestamp(moment)):
                refuse_off_grid(source, (row, item, moment), self.step, 1)
        static = checked_static(source, items, roles, self.categories)
        self.first, self._order = first, order
        return frame, static

    def _source(self, lines: Lines) -> Source:
        kept = [(number, line) for number, line in lines if line.strip() and number > 1]
        text = "\n".join([self.header, *(line for _, line in kept)]) + "\n"
        try:
            frame = pl.read_csv(io.BytesIO(text.encode()), separator=self._separator, infer_schema=False)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise UserError(f"{self.path}: lines {lines[0][0]} to {lines[-1][0]}: {explain(error)}") from None
        if frame.height != len(kept):
            raise UserError(f"{self.path}: lines {lines[0][0]} to {lines[-1][0]}: a quote is not closed. Close it; a row is one line here.")
        frame = plain_names(self.path, frame)
        return Source(self.path, frame.with_columns(pl.Series(ROW, [number for number, _ in kept], dtype=pl.UInt32)), "line", self.decimal)

    def _on_grid(self, first: pd.Timestamp, moment: pd.Timestamp) -> bool:
        if isinstance(self._offset, pd.tseries.offsets.Tick):
            return (moment - first) % pd.Timedelta(self._offset) == pd.Timedelta(0)
        return bool(self._offset.is_on_offset(moment))
