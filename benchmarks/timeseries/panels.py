"""Many short series with an official or last horizon as test: M4 hourly and weekly, and weekly and monthly sets of the Monash archive."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from gluonts.dataset.repository._tsf_reader import TSFReader
from gluonts.dataset.split import TestData, split

from benchmarks.timeseries.datasets import data_folder
from domains.timeseries.data import quiet_pandas
from titans_seq.errors import UserError

M4_START = "2000-01-01"
"""M4's files have no dates: every series is taken to begin here, so the calendar tells nothing true."""


@dataclass(frozen=True)
class PanelSource:
    """Files, frequency, steps ahead, season of the naive forecast; that of MASE is GluonTS's of the frequency, 1 for weeks."""

    files: tuple[str, ...]
    freq: str
    horizon: int
    season: int
    mase_season: int


PANELS = {
    "tourism_monthly": PanelSource(("monash/tourism_monthly_dataset.tsf",), "M", 24, 12, 12),
    "electricity_weekly": PanelSource(("monash/electricity_weekly_dataset.tsf",), "W-SUN", 8, 52, 1),
    "traffic_weekly": PanelSource(("monash/traffic_weekly_dataset.tsf",), "W-SUN", 8, 52, 1),
    "m4_weekly": PanelSource(("m4/Weekly-train.csv.gz", "m4/Weekly-test.csv.gz"), "W-SUN", 13, 52, 1),
    "m4_hourly": PanelSource(("m4/Hourly-train.csv.gz", "m4/Hourly-test.csv.gz"), "h", 48, 24, 24),
}


@dataclass(frozen=True)
class Panel:
    """GluonTS entries with targets (T,), float32: `train` without the last horizon, `test` whose labels are it."""

    name: str
    source: PanelSource
    train: list[dict[str, Any]]
    test: TestData

    @property
    def shorter(self) -> list[dict[str, Any]]:
        """The training series without their last horizon."""
        return [{**entry, "target": entry["target"][: -self.source.horizon]} for entry in self.train]

    def earlier(self) -> "Panel":
        """The panel of one horizon before: its labels are the last steps of the training series, where settings are compared."""
        return _cut(self.name, self.source, self.train)


def load(name: str) -> Panel:
    """One of `PANELS`.

    Raises:
        UserError: a file is missing, or holds other series than its counterpart.
    """
    source = PANELS[name]
    paths = [data_folder() / file for file in source.files]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file; it belongs to the data set {name}.")
    with quiet_pandas():
        return _cut(name, source, _monash(paths[0], source) if len(paths) == 1 else _m4(*paths, source))


def _cut(name: str, source: PanelSource, entries: list[dict[str, Any]]) -> Panel:
    with quiet_pandas():
        train, template = split(entries, offset=-source.horizon)
        return Panel(name, source, list(train), template.generate_instances(source.horizon))


def _monash(path: Path, source: PanelSource) -> list[dict[str, Any]]:
    meta, series = TSFReader(path).read()
    if int(meta.forecast_horizon) != source.horizon:
        raise UserError(f"{path}: its horizon is {meta.forecast_horizon}, expected {source.horizon}.")
    return [_entry(one["series_name"], one["start_timestamp"], one["target"], source.freq) for one in series]


def _m4(train: Path, test: Path, source: PanelSource) -> list[dict[str, Any]]:
    past, future = (pl.read_csv(path, infer_schema_length=None) for path in (train, test))
    if past["V1"].to_list() != future["V1"].to_list():
        raise UserError(f"{test} holds other series than {train}.")
    joined = zip(past["V1"], past.drop("V1").cast(pl.Float64).to_numpy(), future.drop("V1").cast(pl.Float64).to_numpy(), strict=True)
    return [_entry(name, M4_START, np.concatenate([row[~np.isnan(row)], ahead]), source.freq) for name, row, ahead in joined]


def _entry(name: str, start: Any, target: np.ndarray, freq: str) -> dict[str, Any]:
    return {"item_id": name, "start": pd.Period(start, freq=freq), "target": target.astype(np.float32)}
