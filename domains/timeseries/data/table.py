"""Checked series of one frequency, and the GluonTS entries that are made of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import polars as pl

from domains.timeseries.data.grid import quiet_pandas
from domains.timeseries.data.missing import masked_words
from titans_seq.display import html_table
from titans_seq.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What the columns of a table are.

    Attributes:
        timestamp: the column of the time steps.
        item_id: the column that tells series apart (long layout); None where the file is one series (wide layout).
        target: the channels to forecast, C of them.
        past_features: numbers that are known up to the present.
        future_features: numbers that are known ahead, such as prices or holidays.
        static_features: what does not change within a series; numbers or categories.
    """

    timestamp: str
    item_id: str | None
    target: tuple[str, ...]
    past_features: tuple[str, ...] = ()
    future_features: tuple[str, ...] = ()
    static_features: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[str, ...]:
        """The columns with a number for each step, in this order: target, past, future."""
        return (*self.target, *self.past_features, *self.future_features)


@dataclass(frozen=True)
class Static:
    """What does not change within a series.

    Attributes:
        frame: one row an item: `item_id`, then numbers (Float64) and categories (String) in the order of the file.
        categories: the known values of each column of categories, in the order of their codes.
    """

    frame: pl.DataFrame
    categories: Mapping[str, tuple[str, ...]]

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns of numbers."""
        return tuple(c for c in self.frame.columns[1:] if c not in self.categories)

    def fields(self) -> list[dict[str, np.ndarray]]:
        """`feat_static_cat` (S,) int64 and `feat_static_real` (S,) float32 of each item, where there are any."""
        rows = []
        for row in self.frame.iter_rows(named=True):
            fields = {}
            if self.categories:
                codes = [known.index(row[name]) for name, known in self.categories.items()]
                fields["feat_static_cat"] = np.array(codes, dtype=np.int64)
            if self.numbers:
                fields["feat_static_real"] = np.array([row[name] for name in self.numbers], dtype=np.float32)
            rows.append(fields)
        return rows


@dataclass(frozen=True)
class SeriesTable:
    """Checked series of one frequency.

    Attributes:
        frame: sorted by item_id, timestamp; columns `item_id` (String), `timestamp` (Datetime, microseconds, no time
            zone), then targets and features (Float64; null where a value is missing). Every item lies on a gapless grid.
        roles: what the columns are.
        freq: frequency of the GluonTS periods, a pandas period alias such as "D", "h", "W-SUN", "M".
        step: pandas offset alias of the timestamps, such as "D", "h", "W-SUN", "MS": "M" but stamped on the first day.
        ahead: `item_id`, `timestamp` and the future features of the steps after the last one with a target.
        static: what does not change within a series; None where nothing is known.
        filled: steps that the file has no row for; they are nulls in the frame.
        horizon: steps to forecast, where the file says so (a Monash .tsf does).
        ignored: columns of the file without a role, and why they have none.
        units: unit of each target where known.
        utc: whether the file's times had a zone and were turned into UTC.
        date_order: "day" or "month", what comes first in the file's dates if they end with the year; None where they do not.
    """

    frame: pl.DataFrame
    roles: Roles
    freq: str
    step: str
    ahead: pl.DataFrame
    static: Static | None = None
    filled: int = 0
    horizon: int | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    utc: bool = False
    date_order: Literal["day", "month"] | None = None

    def _repr_html_(self) -> str:
        """In a notebook: what the series are, and the first rows."""
        rows = [
            ("frequency", self.freq),
            ("targets", ", ".join(self.targets)),
            ("known ahead", ", ".join(self.roles.future_features) or "-"),
            ("known up to now", ", ".join(self.roles.past_features) or "-"),
            ("constant", ", ".join(self.roles.static_features) or "-"),
            ("values masked as missing", masked_words(self.masked)),
            ("steps without a row", f"{self.filled:,}"),
        ]
        return html_table(f"SeriesTable of {len(self.items):,} series, {len(self.frame):,} steps", rows) + self.frame.head(5)._repr_html_()

    @property
    def targets(self) -> tuple[str, ...]:
        """The channel names, C of them."""
        return self.roles.target

    @cached_property
    def masked(self) -> dict[str, int]:
        """Values that are missing and masked, of each column that has such; steps that the file has no row for count as well."""
        ahead = {column: self.ahead[column].null_count() for column in self.roles.future_features}
        counts = {column: self.frame[column].null_count() + ahead.get(column, 0) for column in self.roles.values}
        return {column: count for column, count in counts.items() if count}

    @cached_property
    def items(self) -> pl.DataFrame:
        """Columns item_id, first and last (Datetime of the first and last step with a target), len (steps), a row an item."""
        times = pl.col("timestamp")
        return self.frame.group_by("item_id", maintain_order=True).agg(first=times.first(), last=times.last(), len=pl.len())

    def to_gluonts(self, ahead: int = 0) -> list[dict[str, Any]]:
        """One entry an item, NaN for what is missing.

        Fields: `item_id`, `start` (pd.Period), `target`, float32 (C, T), 2-D even where there is one channel; and where the
        table has such features `past_feat_dynamic_real` (F, T), `feat_dynamic_real` (F, T + ahead), `feat_static_cat` (S,)
        and `feat_static_real` (S,).

        Args:
            ahead: steps beyond the end of the target that `feat_dynamic_real` covers: the prediction length to forecast with,
                0 to train on.

        Raises:
            UserError: the future features of an item do not reach that far.
        """
        items = self.frame.partition_by("item_id", maintain_order=True)
        static = self.static.fields() if self.static else [{}] * len(items)
        entries = []
        for item, fixed in zip(items, static, strict=True):
            name, length, values = item["item_id"][0], item.height, item.select(self.roles.values)
            if ahead and self.roles.future_features:
                values = pl.concat([values, self._known_ahead(name, ahead)], how="diagonal")
            with quiet_pandas():
                start = pd.Period(item["timestamp"][0], freq=self.freq)
            array = np.ascontiguousarray(values.to_numpy().T, dtype=np.float32)
            entries.append(make_entry(name, start, array, length, self.roles) | fixed)
        return entries

    def _known_ahead(self, item_id: str, steps: int) -> pl.DataFrame:
        known = self.ahead.filter(pl.col("item_id") == item_id).select(self.roles.future_features).head(steps)
        if known.height < steps:
            last = self.items.filter(pl.col("item_id") == item_id)["last"][0]
            raise UserError(
                f"series '{item_id}': {', '.join(self.roles.future_features)} must be known {steps} steps of {self.step} beyond {last}, "
                f"the last one with a target; the file has {known.height}. Add rows with these columns and an empty target."
            )
        return known

    def stamps(self, item_id: str, start: pd.Period, length: int) -> list[datetime]:
        """The `length` timestamps from the period `start` on, written as this file writes them.

        A GluonTS period knows only "the week to Sunday" or "May 2012": this gives back the Sunday, or the 31st.
        """
        first = self.items.filter(pl.col("item_id") == item_id)["first"][0]
        return stamps_from(first, self.freq, self.step, start, length)


def make_entry(item_id: str, start: pd.Period, values_KT: np.ndarray, length: int, roles: Roles) -> dict[str, Any]:
    """The GluonTS entry of one item.

    Args:
        item_id, start: its name and the period of its first step.
        values_KT: its values, in the order of `Roles.values`, with as many steps as the future features have.
        length: steps of the target, T.
        roles: what the rows are.
    """
    c, p = len(roles.target), len(roles.past_features)
    entry = {"item_id": item_id, "start": start, "target": values_KT[:c, :length]}
    if p:
        entry["past_feat_dynamic_real"] = values_KT[c : c + p, :length]
    if roles.future_features:
        entry["feat_dynamic_real"] = values_KT[c + p :]
    return entry


def stamps_from(first: datetime, freq: str, step: str, start: pd.Period, length: int) -> list[datetime]:
    """The `length` timestamps from the period `start` on, of a series whose first timestamp is `first`."""
    with quiet_pandas():
        skipped = (start.ordinal - pd.Period(first, freq=freq).ordinal) // start.freq.n
        return list(pd.date_range(first, periods=skipped + length, freq=step)[skipped:].to_pydatetime())
