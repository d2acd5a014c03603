"""Forecasts that keep up: a stream is carried on from one arrival to the next, at a cost that does not depend on what came before.

>>> forecaster = predictor.online(start=pd.Period("2024-01-01 00:00", freq="h"))
>>> forecaster.observe([[20.1, 3.0], [19.8, 2.9]])
>>> forecaster.predict().quantile(0.5)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from gluonts.model.forecast import Forecast
from torch import Tensor

from domains.timeseries.data import quiet_pandas
from domains.timeseries.model import TitansForecaster
from domains.timeseries.outputs import smallest_values
from domains.timeseries.quantiles import bounded
from domains.timeseries.reading import ForecasterState
from domains.timeseries.windows import period_freq, time_columns
from titans_seq.display import html_table, size
from titans_seq.errors import UserError
from titans_seq.state import State

if TYPE_CHECKING:
    from domains.timeseries.predictor import TitansPredictor

BLOCK = 4096
"""Steps that are read at once."""
LARGEST = 1 << 53
"""Steps that a stream may have had."""
LONGEST_GAP = 100_000
"""Steps that may be missing in a row: more is a mistaken timestamp rather than an outage."""

Late = Literal["error", "drop"]


@dataclass(frozen=True)
class StreamState(State):
    """Where a stream stands.

    forecaster: that of the model, R rows.
    numbers:    (R, 5) int64, alike in each row: ordinal of the next period, fingerprint of the model, steps, missing, dropped.
    """

    forecaster: ForecasterState
    numbers: Tensor


class OnlineForecaster:
    """One series, observed as it arrives.

    Time goes on in steps of the model's frequency. What a timestamp may be, if any are given:

    - the next step: observed;
    - a later one: the steps between are missing, and are read as such (masked, never imputed);
    - a step that has been observed already, or one before it: refused, or dropped if `late` says so. A memory cannot take back what it has
      read, so corrections of the past need a new stream.

    Args:
        predictor: of a trained model.
        start: period of the first step; None to take the first timestamp that is observed.
        item_id: of the forecasts.
        feat_static_real, feat_static_cat: of the series, as GluonTS entries have them.
        late: "error" or "drop", what happens to a step that is not after the last.

    Attributes:
        steps: observed so far, missing ones included.
        missing: steps of those without any value.
        dropped: late steps that were dropped.
    """

    def __init__(
        self,
        predictor: "TitansPredictor",
        start: pd.Period | None = None,
        item_id: str | None = None,
        feat_static_real: Sequence[float] | None = None,
        feat_static_cat: Sequence[int] | None = None,
        late: Late = "error",
    ) -> None:
        self.predictor, self.item_id, self.late = predictor, item_id, late
        self.model: TitansForecaster = predictor.model.eval()
        self.freq = self.model.config.freq
        self.steps = self.missing = self.dropped = 0
        self._next = None if start is None else self._period(start).ordinal
        self._static = self._checked_static(feat_static_real, feat_static_cat)
        self._state = self.model.init_state(1)

    def _repr_html_(self) -> str:
        """In a notebook: how far the stream has come, and what it carries."""
        begun = self._next is not None
        rows = [
            ("item", "-" if self.item_id is None else self.item_id),
            ("steps observed", f"{self.steps:,}, of them {self.missing:,} missing; {self.dropped:,} late ones dropped"),
            ("next step", self.next_period if begun else "the first timestamp that is observed"),
            ("carried", size(self._state.nbytes)),
        ]
        return html_table("OnlineForecaster", rows)

    # ---- time

    def _period(self, timestamp: Any) -> pd.Period:
        with quiet_pandas():
            if isinstance(timestamp, pd.Period):
                if self.freq is not None and timestamp.freqstr != period_freq(self.freq):
                    raise ValueError(f"timestamp {timestamp} has frequency {timestamp.freqstr}, the model {self.freq}")
                return timestamp
            try:
                moment = pd.Timestamp(timestamp)
            except (ValueError, TypeError) as error:
                raise ValueError(f"timestamp {timestamp!r} is no time ({error})") from None
            if moment is pd.NaT:
                raise ValueError("a timestamp is missing (NaT); every observation needs its time")
            return pd.Period(moment.tz_convert("UTC").tz_localize(None) if moment.tzinfo else moment, freq=self.freq)

    @property
    def next_period(self) -> pd.Period:
        """The first step that has not been observed: where a forecast begins.

        Raises:
            ValueError: neither a start nor a timestamp has been given yet.
        """
        if self._next is None:
            raise ValueError("the stream has no time yet: give a start, or timestamps with the first observation")
        with quiet_pandas():
            return pd.Period(ordinal=self._next, freq=self.freq)

    def _grid(self, timestamps: Sequence[Any] | None, count: int) -> np.ndarray:
        """Steps after the stream's end (0 is the next) at which observations lie, (count,) int64, -1 for those to be dropped."""
        if timestamps is None:
            _ = self.next_period
            return np.arange(count)
        if len(timestamps) != count:
            raise ValueError(f"{len(timestamps)} timestamps for {count} observations")
        periods = [self._period(timestamp) for timestamp in timestamps]
        ordinals = np.array([period.ordinal for period in periods], dtype=np.int64)
        stride = periods[0].freq.n
        steps, off = np.divmod(ordinals - (ordinals[0] if self._next is None else self._next), stride)
        if off.any():
            raise ValueError(f"timestamp {timestamps[int(off.argmax())]} is not on the stream's grid of {self.freq}")
        last = np.maximum.accumulate(np.concatenate([[-1], steps[:-1]]))
        late = steps <= last
        if late.any() and self.late == "error":
            place = int(late.argmax())
            expected = self.next_period if self._next is not None and last[place] < 0 else periods[place - 1] + 1
            raise ValueError(
                f"timestamp {timestamps[place]} is late or comes twice: the next step is {expected}. A stream cannot take back what it has "
                'read; leave the row out, or make the forecaster with late="drop"'
            )
        gap = np.where(late, 0, steps - last - 1)
        if gap.max(initial=0) > LONGEST_GAP:
            raise ValueError(f"timestamp {timestamps[int(gap.argmax())]} leaves a gap of {gap.max():,} steps of {self.freq}: a mistake?")
        if self._next is None:
            self._next = int(ordinals[0])
        return np.where(late, -1, steps)

    # ---- values

    def observe(
        self,
        values: Any,
        timestamps: Sequence[Any] | None = None,
        feat_dynamic_real: Any = None,
        past_feat_dynamic_real: Any = None,
    ) -> np.ndarray:
        """Read observations. One by one, in blocks or all at once gives the same forecasts to rounding.

        Args:
            values: (n, C), or (n,) of one channel; NaN where missing.
            timestamps: n periods, datetimes or texts (a time zone is turned into UTC); None for the steps that follow.
            feat_dynamic_real, past_feat_dynamic_real: (n, F) each, as far as the model has such features; NaN where missing.

        Returns:
            Which of the observations were read, (n,) bool: False for late ones that were dropped.

        Raises:
            ValueError: shapes that do not fit, infinite values, or timestamps that cannot be (see the class). Then nothing is observed.
        """
        c = self.model.config
        x = self._table("values", values, c.num_channels, None)
        known = self._table("feat_dynamic_real", feat_dynamic_real, c.num_feat_dynamic_real, len(x))
        past = self._table("past_feat_dynamic_real", past_feat_dynamic_real, c.num_past_feat_dynamic_real, len(x))
        if not len(x):
            return np.ones(0, bool)
        places = self._grid(timestamps, len(x))
        kept = places >= 0
        self.dropped += int((~kept).sum())
        rows, places = np.concatenate([x, known, past], 1)[kept], places[kept]
        steps = int(places[-1]) + 1 if len(places) else 0
        for start in range(0, steps, BLOCK):
            stop = min(start + BLOCK, steps)
            inside = slice(*np.searchsorted(places, [start, stop]))
            block = np.full((stop - start, rows.shape[1]), np.nan)
            block[places[inside] - start] = rows[inside]
            self._read(block)
        return kept

    def _read(self, block: np.ndarray) -> None:
        """Steps that follow, without a gap: values and features (n, C + F), NaN where missing."""
        c = self.model.config
        x, known, past = np.split(block, np.cumsum([c.num_channels, c.num_feat_dynamic_real]), axis=1)
        feat = np.concatenate([self._calendar(0, len(block)), *_masked(known), *_masked(past)], 1)
        filled, seen = _masked(x)
        with torch.inference_mode():
            self._state = self.model.observe(self._state, *(self._tensor(part) for part in (filled, seen, feat)), **self._static)
        assert self._next is not None
        self._next += len(block) * self.next_period.freq.n
        self.steps += len(block)
        self.missing += int((seen.sum(1) == 0).sum())

    def _table(self, name: str, values: Any, columns: int, rows: int | None) -> np.ndarray:
        """(n, columns) float64."""
        if values is None or not columns:
            if columns:
                raise ValueError(f"the model needs {name} with {columns} columns")
            if values is not None and np.size(values):
                raise ValueError(f"{name} was given, but the model has none")
            return np.empty((rows or 0, 0))
        table = np.asarray(values, dtype=np.float64)
        table = table[:, None] if table.ndim == 1 and columns == 1 else table
        if table.ndim != 2 or table.shape[1] != columns or rows not in (None, len(table)):
            expected = f"({'n' if rows is None else rows}, {columns})"
            raise ValueError(f"{name} must be {expected}, got shape {np.shape(values)}")
        if np.isinf(table).any():
            raise ValueError(f"{name} holds an infinite value; write NaN where a value is missing")
        return table

    def _calendar(self, first: int, steps: int) -> np.ndarray:
        """Phase and time features of steps from `first` after the next one on, (steps, F)."""
        next_period = self.next_period
        return time_columns(next_period.ordinal + next_period.freq.n * np.arange(first, first + steps), self.model.config)

    def _tensor(self, values: np.ndarray) -> Tensor:
        """(1, ..) on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(values)).unsqueeze(0).to(self.model.linear.weight.device)

    def _checked_static(self, real: Sequence[float] | None, cat: Sequence[int] | None) -> dict[str, Tensor]:
        c = self.model.config
        made = {}
        for name, values, count in (("feat_static_real", real, c.num_feat_static_real), ("feat_static_cat", cat, len(c.cardinality))):
            given = np.asarray(() if values is None else values, dtype=np.float64)
            if given.shape != (count,) or not np.isfinite(given).all():
                raise ValueError(f"{name} must hold {count} numbers, got {given.tolist()}")
            made[name] = self._tensor(given)
        for value, count in zip(() if cat is None else cat, c.cardinality, strict=True):
            if not 0 <= value < count:
                raise ValueError(f"feat_static_cat has category {value}, cardinality {count} allows 0 to {count - 1}")
        return made

    # ---- forecasts

    def predict(self, feat_dynamic_real: Any = None) -> Forecast:
        """The forecast of the prediction_length steps after the last observed one, as GluonTS gives it; the stream stays as it is.

        Args:
            feat_dynamic_real: (H, F) of those steps, if the model has features known ahead.

        Raises:
            ValueError: nothing has been observed, or the features do not fit.
        """
        if self.steps == self.missing:
            raise ValueError("nothing has been observed yet: a forecast needs at least one value")
        c = self.model.config
        known = self._table("feat_dynamic_real", feat_dynamic_real, c.num_feat_dynamic_real, c.prediction_length)
        if not c.num_feat_dynamic_real:
            known = np.empty((c.prediction_length, 0))
        future = self._tensor(np.concatenate([self._calendar(0, c.prediction_length), *_masked(known)], 1))
        batch = {"forecast_start": [self.next_period], "item_id": [self.item_id]}

        def net() -> Any:
            args, loc, scale = self.model.predict(self._state, future, **self._static)
            if self.predictor.univariate:
                return tuple(x.squeeze(2) for x in args), loc.squeeze(2), scale.squeeze(2)
            return args, loc, scale

        with torch.inference_mode():
            (forecast,) = self.predictor.forecast_generator([batch], net, [], None, None)
        return bounded(forecast, smallest_values(c))

    # ---- on disk

    def save(self, path: str | Path) -> None:
        """Write the stream to a safetensors file, whole or not at all: some kilobytes a channel, whatever has been observed."""
        self._snapshot().save(path)

    def _snapshot(self) -> StreamState:
        rows = self._state.moments.weight.new_ones(self.model.config.num_channels, dtype=torch.int64)
        numbers = (self.next_period.ordinal, self.predictor.fingerprint, self.steps, self.missing, self.dropped)
        return StreamState(self._state, torch.stack([number * rows for number in numbers], 1))

    @classmethod
    def load(cls, path: str | Path, predictor: "TitansPredictor", **arguments: Any) -> "OnlineForecaster":
        """Go on with a saved stream; `arguments` as of the class (item_id, features of the series, late).

        Raises:
            UserError: the file is missing, damaged, or of a stream of another model.
        """
        saved = StreamState.load(path)
        made = cls(predictor, **arguments)
        made._restore(saved, path)
        return made

    def _restore(self, saved: StreamState, path: str | Path) -> None:
        numbers = saved.numbers
        of_model = _kinds(saved.forecaster) == _kinds(self._state) and numbers.shape[1:] == (5,) and numbers.dtype == torch.int64
        if not of_model or int(numbers[0, 1]) != self.predictor.fingerprint:
            raise UserError(f"{path}: is of a stream of another model. Load it with the predictor that it was made with.")
        start, _, self.steps, self.missing, self.dropped = (int(number) for number in numbers[0])
        counted = 0 <= self.missing <= self.steps <= LARGEST and 0 <= self.dropped <= LARGEST
        whole = bool((numbers == numbers[0]).all()) and 0 <= saved.forecaster.pending < self.model.config.patch_length
        moments = saved.forecaster.moments
        if not counted or not whole or bool(((moments.weight < 0) | (moments.square < 0)).any()):
            raise UserError(f"{path}: damaged, no stream stands as it says.")
        self._state, self._next = saved.forecaster.to(self.model.linear.weight.device), start
        try:  # what only the model knows of its state
            c, device = self.model.config, self.model.linear.weight.device
            nothing, feat = (torch.zeros(1, c.patch_length, columns, device=device) for columns in (c.num_channels, c.num_past_feat))
            with torch.inference_mode():
                after = self.model.observe(self._state, nothing, nothing, feat)
            if not all(bool(torch.isfinite(x).all()) for x in after.tensors()):
                raise ValueError("the next step is not finite")
            _ = self.next_period + self.model.config.prediction_length
        except (ValueError, OverflowError) as error:
            raise UserError(f"{path}: damaged ({error}).") from error


def _kinds(state: State) -> list[tuple[torch.Size, torch.dtype]]:
    return [(x.shape, x.dtype) for x in state.tensors()]


def _masked(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values with 0 where they are missing, and 1 where they are not."""
    seen = np.isfinite(values)
    return np.where(seen, values, 0.0), seen.astype(np.float64)
