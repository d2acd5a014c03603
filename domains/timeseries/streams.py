"""Several series that are observed as their rows arrive, each by an `OnlineForecaster`."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import polars as pl
from gluonts.model.forecast import Forecast

from domains.timeseries.adaptive import AdaptiveForecaster
from domains.timeseries.data import Roles, quiet_pandas
from domains.timeseries.data.files import ROW, TableError
from domains.timeseries.data.stream import Lines, RowReader
from domains.timeseries.data.table import Static, stamps_from
from domains.timeseries.online import OnlineForecaster
from titans_seq.errors import UserError

if TYPE_CHECKING:
    from domains.timeseries.conformal import CalibratedPredictor
    from domains.timeseries.predictor import TitansPredictor


class BadRow(UserError):
    """A row that a stream cannot use.

    items: those among the rows that were read before it.
    """

    def __init__(self, message: str, items: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.items = list(items)


@dataclass
class _Stream:
    """One series. end: the step after the last that the state it went on from had read; recent: the last steps that were read, (C,) each,
    for a plot; known: features ahead; again: rows that the state had read before.
    """

    online: OnlineForecaster
    end: pd.Period | None = None
    recent: dict[pd.Period, np.ndarray] = field(default_factory=dict)
    known: dict[pd.Period, np.ndarray] = field(default_factory=dict)
    last: datetime | None = None
    again: int = 0

    def read_before(self, periods: Sequence[pd.Period]) -> np.ndarray:
        """Which rows are of steps that the state had read, until its last one has come again."""
        if self.end is None or any(period + 1 >= self.end for period in self.recent):
            return np.zeros(len(periods), bool)
        return np.array([period < self.end for period in periods], bool)


class Streams:
    """The series of a table that arrives row by row.

    Args:
        predictor: of a trained model; intervals of a calibrated one adapt.
        reader: of the rows.
        folder: with the states of the series, which are gone on from and kept up to date; None to begin anew and keep none.
    """

    def __init__(self, predictor: "TitansPredictor | CalibratedPredictor", reader: RowReader, folder: Path | None = None) -> None:
        self.predictor, self.reader, self.folder = predictor, reader, folder
        self.freq: str = predictor.model.config.freq or ""
        self._shown = 3 * predictor.prediction_length  # steps of a plot
        self._streams: dict[str, _Stream] = {}

    @property
    def roles(self) -> Roles:
        """What the columns are."""
        return self.reader.roles

    def observe(self, lines: Lines) -> list[str]:
        """Read rows; the items that were among them.

        Where features are known ahead, a row whose targets are all missing is not observed but what is known of its step; a row with
        targets for the same step may follow.

        Raises:
            BadRow: with the line, for what cannot be used; what came before it has been read.
        """
        try:
            return self._observe_all(*self.reader.read(lines))
        except BadRow:
            raise
        except UserError as error:  # of the first rows that cannot be used, none was read
            good = bisect.bisect_left(range(1, len(lines)), True, key=lambda n: not self._readable(lines[:n]))
            said = error.problem if isinstance(error, TableError) else str(error)
            raise BadRow(said, self._observe_all(*self.reader.read(lines[:good])) if good else []) from error

    def _readable(self, lines: Lines) -> bool:
        try:
            self.reader.read(lines)
        except UserError:
            return False
        return True

    def _observe_all(self, frame: pl.DataFrame, static: Static | None) -> list[str]:
        """As `observe`, of rows that were read."""
        fixed = {} if static is None else dict(zip(static.frame["item_id"], static.fields(), strict=True))
        items, bad = [], None
        for rows in frame.partition_by("item_id", maintain_order=True):
            item = rows["item_id"][0]
            if item not in self._streams:
                self._streams[item] = self._begin(item, fixed.get(item, {}))
            failed = self._observe_until_bad(self._streams[item], rows)
            if failed is None or failed[0] > 0:
                items.append(item)
            if failed is not None and bad is None:
                bad = f"{self.reader.path}: series '{item}', line {rows[ROW][failed[0]]}: {failed[1]}."
        if bad is not None:
            raise BadRow(bad, items)
        return items

    def _observe_until_bad(self, stream: _Stream, rows: pl.DataFrame) -> tuple[int, ValueError] | None:
        """Rows of one item, at once if they can be; else one by one up to the first that cannot be used: its place, and what is wrong."""
        try:
            self._observe(stream, rows)
        except ValueError as error:
            if rows.height == 1:
                return 0, error
            for n in range(rows.height):
                failed = self._observe_until_bad(stream, rows[n : n + 1])
                if failed is not None:
                    return n, failed[1]
        return None

    def _begin(self, item: str, fixed: Mapping[str, Any]) -> _Stream:
        path = self._path(item)
        if path is not None and path.is_file():
            online = self.predictor.load_online(path, item_id=item, late="drop", **fixed)
            return _Stream(online, online.next_period)
        return _Stream(self.predictor.online(item_id=item, late="drop", **fixed))

    def _path(self, item: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{quote(item, safe='')}.safetensors"

    def _observe(self, stream: _Stream, rows: pl.DataFrame) -> None:
        roles = self.roles
        if roles.future_features:
            stream.known.update(zip(self._periods(rows), _numbers(rows, roles.future_features), strict=True))
            rows = rows.filter(pl.any_horizontal(pl.col(roles.target).is_not_null()))
        if rows.is_empty():
            return
        periods, values = self._periods(rows), _numbers(rows, roles.target)
        again = stream.read_before(periods)
        new, read = rows.filter(pl.Series(~again)), again.copy()
        read[~again] = stream.online.observe(
            values[~again],
            [period for period, known in zip(periods, again, strict=True) if not known],
            feat_dynamic_real=_numbers(new, roles.future_features),
            past_feat_dynamic_real=_numbers(new, roles.past_features),
        )
        stream.again += int(again.sum())
        for n in np.flatnonzero(read).tolist():
            stream.recent.setdefault(periods[n], values[n])
            stream.last = max(rows["timestamp"][n], stream.last or datetime.min)
        end = stream.online.next_period
        stream.recent = {period: value for period, value in stream.recent.items() if period >= end - self._shown}
        stream.known = {period: value for period, value in stream.known.items() if period >= end}
        self._save(rows["item_id"][0], stream)

    def _periods(self, rows: pl.DataFrame) -> list[pd.Period]:
        with quiet_pandas():
            return [pd.Period(moment, freq=self.freq) for moment in rows["timestamp"]]

    def _save(self, item: str, stream: _Stream) -> None:
        path = self._path(item)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream.online.save(path)

    def last(self, item: str) -> datetime | None:
        """Timestamp of the newest observed row; None before the first."""
        return self._streams[item].last

    def counts(self, item: str) -> dict[str, int]:
        """Steps read, those of them that were missing, and rows that came too late, all of them since the stream began; and rows that came
        again, though the state that it went on from had read them ("read before").
        """
        stream = self._streams[item]
        online = stream.online
        return {"steps": online.steps, "missing": online.missing, "late": online.dropped, "read before": stream.again}

    def forecast(self, item: str) -> Forecast | None:
        """Of the steps after the newest row; None where nothing has been observed yet or too little is known ahead.

        Intervals that adapt remember the forecast until it is scored, so it is part of the state that is kept.
        """
        stream, steps = self._streams[item], self.predictor.prediction_length
        if stream.online.steps == stream.online.missing:
            return None
        ahead = None
        if self.roles.future_features:
            known = [stream.known.get(stream.online.next_period + i) for i in range(steps)]
            if any(values is None for values in known):
                return None
            ahead = np.stack([values for values in known if values is not None])
        forecast = stream.online.predict(feat_dynamic_real=ahead)
        if isinstance(stream.online, AdaptiveForecaster):
            self._save(item, stream)
        return forecast

    def history(self, item: str) -> dict[str, Any]:
        """The newest steps as they were read, as a GluonTS entry, NaN for those without a row."""
        stream = self._streams[item]
        length = min(self._shown, stream.online.steps)
        start, missing = stream.online.next_period - length, np.full(len(self.roles.target), np.nan)
        return {"item_id": item, "start": start, "target": np.stack([stream.recent.get(start + i, missing) for i in range(length)], axis=1)}

    def stamps(self, item_id: str, start: pd.Period, length: int) -> Sequence[datetime]:
        """As `SeriesTable.stamps`."""
        return stamps_from(self.reader.first[item_id].to_pydatetime(), self.freq, self.reader.step, start, length)


def _numbers(rows: pl.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """(n, columns) float64, NaN where missing."""
    return rows.select(columns).to_numpy().astype(np.float64)
