"""Windows of GluonTS entries, cut on demand: what the forecaster trains on and forecasts from.

An entry's arrays are kept as they are (a memory-mapped one stays on disk) and only the steps of a window are read. Shapes: C channels,
T steps, L context length, H prediction length, F features of a step as `ForecasterConfig.num_past_feat` orders them.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from gluonts.core.component import validated
from gluonts.time_feature import time_features_from_frequency_str
from gluonts.transform import MapTransformation
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from domains.timeseries.config import ForecasterConfig
from domains.timeseries.data import quiet_pandas
from domains.timeseries.entries import check_entry
from titans_seq.training.loaders import rows_of

BLOCK = 1 << 20
"""Steps that are read at once where a whole series is gone through."""
STREAM_STEPS = 12_000
"""Of a series, the latest, that `Series.stream` gives."""
DYNAMIC = {"feat_dynamic_real": "num_feat_dynamic_real", "past_feat_dynamic_real": "num_past_feat_dynamic_real"}


class Series:
    """One entry, checked against what the forecaster takes.

    Args:
        entry: `target` (C, T), or (T,) if univariate, NaN where missing; `start`, a pd.Period; as far as the configuration has them
            feat_dynamic_real (F, T) or (F, T + H), past_feat_dynamic_real (F, T), NaN where missing, feat_static_real (F,),
            feat_static_cat (K,).
        config: of the forecaster.
        univariate: whether targets have no dimension of channels.

    Raises:
        TypeError: it is no entry (`check_entry`).
        ValueError: the entry does not fit, with the item, what it has and what is needed.
    """

    def __init__(self, entry: Mapping[str, Any], config: ForecasterConfig, univariate: bool) -> None:
        check_entry(entry)
        self.item, self.config = entry.get("item_id"), config
        target = np.asanyarray(entry["target"])  # a memory-mapped one goes to another process as a place in its file
        if target.ndim != (1 if univariate else 2):
            shape = "(T,)" if univariate else "(C, T)"
            raise ValueError(f"item {self.item!r}: target must be {shape}, got shape {target.shape}; see num_channels of the estimator")
        self.target = target[None] if univariate else target  # (C, T)
        if len(self.target) != config.num_channels:
            raise ValueError(
                f"item {self.item!r}: its target has {len(self.target)} channels, the estimator num_channels={config.num_channels}"
            )
        self.start: pd.Period = entry["start"]
        if config.freq is not None and self.start.freqstr != period_freq(config.freq):
            raise ValueError(f"item {self.item!r}: its start has frequency {self.start.freqstr}, the model {period_freq(config.freq)}")
        self.dynamic = {name: self._dynamic(entry, name, count) for name, count in DYNAMIC.items()}
        self.static_real = self._static(entry, "feat_static_real", config.num_feat_static_real).astype(np.float32)
        self.static_cat = self._static(entry, "feat_static_cat", len(config.cardinality)).astype(np.int64)
        for value, count in zip(self.static_cat, config.cardinality, strict=True):
            if not 0 <= value < count:
                raise ValueError(f"item {self.item!r}: feat_static_cat has category {value}, cardinality {count} allows 0 to {count - 1}")

    @property
    def length(self) -> int:
        """T, steps of the target."""
        return self.target.shape[1]

    def without_last(self, steps: int) -> "Series":
        """The same without its last steps; features stay, as they are known."""
        shorter = copy.copy(self)
        shorter.__dict__.pop("units", None)
        shorter.target = self.target[:, : self.length - steps]
        return shorter

    def _dynamic(self, entry: Mapping[str, Any], name: str, count_name: str) -> np.ndarray:
        count = getattr(self.config, count_name)
        if not count:
            return np.empty((0, self.length), np.float32)
        values = np.atleast_2d(entry.get(name, np.empty((0, 0))))
        if len(values) != count or values.shape[1] < self.length:
            raise ValueError(f"item {self.item!r}: {name} must be ({count}, at least {self.length} steps), got shape {values.shape}")
        return values

    def _static(self, entry: Mapping[str, Any], name: str, count: int) -> np.ndarray:
        values = np.asarray(entry.get(name, ()), dtype=np.float64).reshape(-1)
        if not count:
            return np.empty(0)
        if len(values) != count or not np.isfinite(values).all():
            raise ValueError(f"item {self.item!r}: {name} must hold {count} numbers, got {values.tolist()}")
        return values

    def window(self, place: int, *, with_future: bool) -> dict[str, np.ndarray]:
        """The context that ends before step `place`, and what is known of the steps after it.

        Steps before the series began are unobserved. The calendar is left to `calendar`, by `ordinals` (L + H,).

        Raises:
            ValueError: features known ahead end before the forecast does.
        """
        c, H = self.config, self.config.prediction_length
        first, last = place - c.context_length, place + H
        past, past_seen = self._piece(self.target, first, place)
        known, known_seen = self._piece(self.dynamic["feat_dynamic_real"], first, last)
        if known.shape[1] and self.dynamic["feat_dynamic_real"].shape[1] < last:
            has = self.dynamic["feat_dynamic_real"].shape[1]
            raise ValueError(f"item {self.item!r}: feat_dynamic_real ends after {has} steps, the forecast needs {last}")
        before, before_seen = self._piece(self.dynamic["past_feat_dynamic_real"], first, place)
        L = c.context_length
        made = {
            "past_target": past,
            "past_observed_values": past_seen,
            "past_feat": np.concatenate([known[:L], known_seen[:L], before, before_seen], 1),
            "future_feat": np.concatenate([known[L:], known_seen[L:]], 1),
            "feat_static_real": self.static_real,
            "feat_static_cat": self.static_cat,
            "ordinals": self.start.ordinal + self.start.freq.n * np.arange(first, last),
        }
        if with_future:
            made["future_target"], made["future_observed_values"] = self._piece(self.target, place, last)
            made["series_spread"] = self.units.spread.astype(np.float32)
        return made

    def stream(self, counted: float) -> dict[str, Tensor]:
        """Its latest STREAM_STEPS steps as `start_forecast_memory` takes them."""
        first = max(0, self.length - STREAM_STEPS)
        values, seen = self._piece(self.target, first, self.length)
        ordinals = self.start.ordinal + self.start.freq.n * np.arange(first, self.length)
        season, freq = self.config.season_length, self.config.freq
        phase = np.zeros(len(values), np.int64) if season is None or freq is None else phases(ordinals, freq, season).astype(np.int64)
        parts = {"target": values, "observed_values": seen, "phases": phase, "series_spread": self.units.spread}
        return {name: torch.from_numpy(part).unsqueeze(0) for name, part in parts.items()} | {"counted": torch.tensor(counted)}

    @staticmethod
    def _piece(values: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps first to last - 1 of (F, T) as (steps, F) float32, and 1 where they are there and finite; zeros elsewhere."""
        there = np.asarray(values[:, max(first, 0) : max(last, 0)], dtype=np.float32).T
        seen = np.isfinite(there)
        around = ((max(-first, 0), last - max(first, 0) - len(there)), (0, 0))
        return np.pad(np.where(seen, there, 0), around), np.pad(seen.astype(np.float32), around)

    @cached_property
    def units(self) -> "Units":
        """Level and spread of each channel over the whole series."""
        return Units.of(self.target)


def first_negative(target: np.ndarray, channels: Sequence[int]) -> tuple[int, int] | None:
    """Channel and step of the first negative value in these channels of a target (C, T), None where there is none."""
    for start in range(0, target.shape[1], BLOCK):
        steps, rows = np.nonzero(np.asarray(target[:, start : start + BLOCK])[list(channels)].T < 0)
        if len(steps):
            return channels[int(rows[0])], start + int(steps[0])
    return None


@dataclass(frozen=True)
class Units:
    """Observed values of each row of an array: their number, mean, and sum of squared distances from it, (F,) float64 each."""

    count: np.ndarray
    mean: np.ndarray
    square: np.ndarray

    @classmethod
    def none(cls, rows: int) -> "Units":
        """Of no values."""
        return cls(*(np.zeros(rows) for _ in range(3)))

    @classmethod
    def of(cls, values: np.ndarray) -> "Units":
        """Of (F, T); NaN and infinities are left out. Long arrays are gone through block by block."""
        units = cls.none(len(values))
        for start in range(0, values.shape[1], BLOCK):
            x = np.asarray(values[:, start : start + BLOCK], dtype=np.float64)
            seen = np.isfinite(x)
            count = seen.sum(1)
            mean = np.where(seen, x, 0).sum(1) / np.maximum(count, 1)
            square = np.square(np.where(seen, x - mean[:, None], 0)).sum(1)
            units = units.merged(cls(count, mean, square))
        return units

    def merged(self, other: "Units") -> "Units":
        """Of both together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        distance, share = other.mean - self.mean, other.count / np.maximum(count, 1)
        return Units(count, self.mean + distance * share, self.square + other.square + np.square(distance) * self.count * share)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation."""
        return np.sqrt(self.square / np.maximum(self.count, 1))


@cache
def period_freq(freq: str) -> str:
    """The frequency as periods write it, such as "h" for "H" and "W-SUN" for "W"."""
    with quiet_pandas():
        return str(pd.Period("2000-01-01", freq=freq).freqstr)


def calendar(ordinals: np.ndarray, freq: str) -> np.ndarray:
    """GluonTS's time features of periods given by their ordinals, (..) -> (.., F) float32.

    Raises:
        ValueError: pandas knows no such frequency.
    """
    with quiet_pandas():
        try:
            features = time_features_from_frequency_str(freq)
        except ValueError:
            raise ValueError(f"freq='{freq}' is no pandas frequency. Use one such as 15min, h, D, B, W, M; a table has its own") from None
        if not features:
            return np.empty((*ordinals.shape, 0), np.float32)
        index = pd.PeriodIndex.from_ordinals(ordinals.reshape(-1), freq=freq)
        columns = [np.asarray(feature(index), dtype=np.float32) for feature in features]
    return np.stack(columns, -1).reshape(*ordinals.shape, -1)


def phases(ordinals: np.ndarray, freq: str, season_length: int) -> np.ndarray:
    """Where in a season of so many steps periods stand, counted from 1970: (..) -> (..) float32, integers."""
    with quiet_pandas():
        stride = pd.Period("2000-01-01", freq=freq).freq.n
    return (ordinals // stride % season_length).astype(np.float32)


def time_columns(ordinals: np.ndarray, config: ForecasterConfig) -> np.ndarray:
    """The first features of steps, (..) -> (.., F): the phase of a season if there is one, and the calendar."""
    assert config.freq is not None
    times = calendar(ordinals, config.freq)
    if config.season_length is None:
        return times
    return np.concatenate([phases(ordinals, config.freq, config.season_length)[..., None], times], -1)


def with_calendar(windows: dict[str, np.ndarray], config: ForecasterConfig) -> dict[str, np.ndarray]:
    """Windows (.., L, F) with phase and calendar of their `ordinals` before their other features."""
    times, L = time_columns(windows.pop("ordinals"), config), config.context_length
    for name, part in (("past_feat", times[..., :L, :]), ("future_feat", times[..., L:, :])):
        windows[name] = np.concatenate([part, windows[name]], -1)
    return windows


def collate(windows: Sequence[dict[str, np.ndarray]], config: ForecasterConfig) -> dict[str, Tensor]:
    """A batch for `TitansForecaster.loss`."""
    stacked = {name: np.stack([window[name] for window in windows]) for name in windows[0]}
    return {name: torch.from_numpy(values) for name, values in with_calendar(stacked, config).items()}


class RandomWindows(IterableDataset):
    """Batches of windows at random places: each from a series drawn alike, at a place drawn alike. The same seed gives the same batches.

    A source of training (`take`, and a position to go on from), and a data set of which every iteration is an epoch.

    Args:
        series: those that are shorter than min_past + H are left out.
        config: of the forecaster.
        batch_size, num_batches: windows of a batch over all devices, batches of an epoch.
        min_past: fewest steps before a window's future.
        seed: of the draw; every epoch goes on drawing.
        rank, world_size: of this device, and how many there are: each cuts its share of every batch.

    Attributes:
        taken: batches so far.
    """

    def __init__(
        self,
        series: Iterable[Series],
        config: ForecasterConfig,
        *,
        batch_size: int,
        num_batches: int,
        min_past: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.config, self.batch_size, self.num_batches, self.min_past = config, batch_size, num_batches, min_past
        self.series = [one for one in series if one.length >= min_past + config.prediction_length]
        self.seed, self.taken = seed, 0
        self._own = rows_of(batch_size, rank, world_size)

    def of(self, series: Iterable[Series], rank: int = 0, world_size: int = 1) -> "RandomWindows":
        """Windows of other series, or a device's share, drawn in the same way from the first on."""
        sizes = {"batch_size": self.batch_size, "num_batches": self.num_batches, "min_past": self.min_past, "seed": self.seed}
        return RandomWindows(series, self.config, **sizes, rank=rank, world_size=world_size)

    def take(self) -> dict[str, Tensor]:
        """The next batch."""
        self.taken += 1
        return self._batch(*divmod(self.taken - 1, self.num_batches))

    def state_dict(self) -> dict[str, int]:
        """Where it stands."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken, on any number of devices."""
        self.taken = state["taken"]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches of the next epoch; workers share them out."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch = self.taken // self.num_batches
        self.taken += self.num_batches
        if worker is not None:  # of a copy of this object, in every epoch a new one: the loader's seed of the epoch tells them apart
            epoch = worker.seed - worker.id
        for batch in range(first, self.num_batches, step):
            yield self._batch(epoch, batch)

    def _batch(self, epoch: int, number: int) -> dict[str, Tensor]:
        random = np.random.default_rng((self.seed, epoch, number))
        places = [self._draw(random) for _ in range(self.batch_size)]
        return collate([one.window(place, with_future=True) for one, place in places[self._own]], self.config)

    def _draw(self, random: np.random.Generator) -> tuple[Series, int]:
        one = self.series[random.integers(len(self.series))]
        return one, int(random.integers(self.min_past, one.length - self.config.prediction_length + 1))


def last_windows(series: Sequence[Series], config: ForecasterConfig, batch_size: int) -> list[dict[str, Tensor]]:
    """Batches of the last window of every series."""
    windows = [one.window(one.length - config.prediction_length, with_future=True) for one in series]
    return [collate(windows[start : start + batch_size], config) for start in range(0, len(windows), batch_size)]


class ForecastInstance(MapTransformation):
    """From a GluonTS entry to what a forecast after its end is made of: the arguments of `TitansForecaster.forward`, without a batch."""

    @validated()
    def __init__(self, config: dict, univariate: bool) -> None:
        super().__init__()
        self.config, self.univariate = ForecasterConfig.from_dict(config), univariate

    def map_transform(self, data: dict[str, Any], is_train: bool) -> dict[str, Any]:
        """Adds the fields. Raises ValueError as `Series` does."""
        series = Series(data, self.config, self.univariate)
        window = with_calendar(series.window(series.length, with_future=False), self.config)
        if self.univariate:
            for name in ("past_target", "past_observed_values"):
                window[name] = window[name][:, 0]
        made = {"item_id": data.get("item_id"), "info": data.get("info"), "forecast_start": series.start + series.length, **window}
        return {name: value for name, value in made.items() if value is not None}
