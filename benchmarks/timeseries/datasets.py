"""The public long-horizon data sets, as the papers read them, from the folder that TITANS_SEQ_DATA names."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from gluonts.dataset.repository._tsf_reader import TSFReader
from torch import Tensor

from titans_seq.errors import UserError

ETT_MONTH = 30 * 24
"""Hours of the twelve, four and four months of training, validation and test of ETT."""


@dataclass(frozen=True)
class Source:
    """A file, its rows, its season in steps, and for ETT the steps an hour: their borders are months, those of others shares."""

    path: str
    rows: int
    channels: int
    season: int
    steps_per_hour: int | None = None

    def borders(self) -> tuple[int, int, int]:
        """Where training, validation and test end."""
        if self.steps_per_hour is not None:
            month = ETT_MONTH * self.steps_per_hour
            return 12 * month, 16 * month, 20 * month
        test = int(0.2 * self.rows)
        return int(0.7 * self.rows), self.rows - test, self.rows


SOURCES = {
    "ETTh1": Source("ett/ETTh1.csv", 17_420, 7, 24, 1),
    "ETTh2": Source("ett/ETTh2.csv", 17_420, 7, 24, 1),
    "Exchange": Source("exchange_rate/exchange_rate.csv", 7_588, 8, 1),
    "ETTm1": Source("ett/ETTm1.parquet", 69_680, 7, 96, 4),
    "ETTm2": Source("ett/ETTm2.parquet", 69_680, 7, 96, 4),
    "Weather": Source("weather/weather.parquet", 52_696, 21, 144),
}
"""In rising order of size. Exchange has no season: the last value is repeated."""


def data_folder() -> Path:
    """The folder of the data sets.

    Raises:
        UserError: TITANS_SEQ_DATA is not set, or names no folder.
    """
    folder = os.environ.get("TITANS_SEQ_DATA")
    if not folder:
        raise UserError("TITANS_SEQ_DATA is not set. Let it name the folder that holds timeseries/ett/ETTh1.csv and the other data sets.")
    if not (Path(folder) / "timeseries").is_dir():
        raise UserError(f"TITANS_SEQ_DATA={folder}: no folder 'timeseries' in it.")
    return Path(folder) / "timeseries"


def saugeen() -> Tensor:
    """Daily flow of the Saugeen River, 1915 to 1979, float64 (23,741, 1); Monash archive.

    Raises:
        UserError: the file is missing.
    """
    path = data_folder() / "monash/saugeenday_dataset.tsf"
    if not path.exists():
        raise UserError(f"{path}: no such file; it is the data set Saugeen.")
    _, (series,) = TSFReader(path).read()
    return torch.from_numpy(np.asarray(series["target"], dtype=np.float64)).unsqueeze(1)


def read(name: str) -> tuple[Tensor, Tensor]:
    """Every row of a data set, float64 (T, C), in the order of the file and as published: Weather keeps its sentinels of -9999.

    With it the phase of the day of every row, in steps since midnight, int64 (T,); zeros where there is no season.

    Raises:
        UserError: the file is missing or is not the published one.
    """
    source = SOURCES[name]
    path = data_folder() / source.path
    if not path.exists():
        raise UserError(f"{path}: no such file; it is the data set {name}.")
    frame = pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)
    phase = _phase(frame["date"].cast(pl.String), source.season)
    frame = frame.drop("date")
    if frame.shape != (source.rows, source.channels):
        raise UserError(
            f"{path}: {frame.height} rows of {frame.width} channels, the published {name} has {source.rows} of {source.channels}."
        )
    values = frame.cast(pl.Float64).to_numpy()
    if not np.isfinite(values).all():
        raise UserError(f"{path}: missing values, the published {name} has none.")
    return torch.from_numpy(np.ascontiguousarray(values)), phase


def _phase(dates: pl.Series, season: int) -> Tensor:
    if season == 1:
        return torch.zeros(len(dates), dtype=torch.int64)
    moments = dates.str.to_datetime()
    minutes = moments.dt.hour().cast(pl.Int64) * 60 + moments.dt.minute()
    return torch.from_numpy((minutes * season // (24 * 60)).to_numpy().copy())
