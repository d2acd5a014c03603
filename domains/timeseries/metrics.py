"""Scores of forecasts through gluonts.ev, and the seasonal naive that they are to beat."""

import io
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import pandas as pd
import polars as pl
from gluonts.dataset.split import TestData
from gluonts.dataset.util import forecast_start
from gluonts.ev.aggregations import Mean
from gluonts.ev.metrics import MAE, MASE, RMSE, DirectMetric, MeanWeightedSumQuantileLoss
from gluonts.model.evaluation import evaluate_forecasts
from gluonts.model.forecast import Forecast, QuantileForecast
from gluonts.model.seasonal_naive import SeasonalNaivePredictor
from gluonts.time_feature.seasonality import DEFAULT_SEASONALITIES, get_seasonality

from domains.timeseries.config import QUANTILES
from domains.timeseries.coverage import coverage, outside
from domains.timeseries.data import quiet_pandas
from titans_seq.errors import UserError

METRICS = ("CRPS", "MASE", "MAE", "RMSE", "coverage_80")
INTERVALS = (0.2, 0.4, 0.6, 0.8)
"""Central intervals that the quantiles 0.1 ... 0.9 bound."""


def default_season_length(freq: str) -> int:
    """Steps in the usual season of a pandas frequency: s 3600, min 1440, 15min 96, h 24, D 7, B 5, W 52, M 12, Q 4."""
    with quiet_pandas():
        return get_seasonality(freq, {**DEFAULT_SEASONALITIES, "D": 7, "W": 52})


@dataclass(frozen=True)
class Windows:
    """Some windows of a GluonTS TestData: entries up to each forecast's start, and entries with what came true, in the same order."""

    input: Sequence[dict[str, Any]]
    label: Sequence[dict[str, Any]]


def evaluate(
    forecasts: Iterable[Forecast], test_data: TestData | Windows, season_length: int, channel_names: Sequence[str]
) -> pl.DataFrame:
    """Score forecasts of `test_data` in original units, one row a channel and a last row "mean" over the channels.

    Columns: channel; CRPS, the mean weighted sum quantile loss over the levels 0.1 ... 0.9, each channel weighted by
    its own labels so that units never mix; MASE of the median, scaled by the in-sample error at lag `season_length`;
    MAE of the median; RMSE of the mean; coverage_80, the share of labels within the 0.1 and 0.9 quantiles, bounds
    included. Labels that are NaN are left out. A score that its channel leaves undefined (all labels 0, or none) is
    null, and "mean" is over the others.

    Raises:
        UserError: where a history is no longer than the season (GluonTS would silently scale MASE by lag 1).
    """
    return _scores(forecasts, test_data, season_length, channel_names, axis=(0, 2))


def evaluate_by_window(
    forecasts: Sequence[Forecast], test_data: TestData, season_length: int, channel_names: Sequence[str]
) -> pl.DataFrame:
    """`evaluate` of the first window of all series, of the second, and so on: column `window` (1 ...) before the others."""
    inputs, labels, count = list(test_data.input), list(test_data.label), test_data.windows
    parts = []
    for i in range(count):
        window = Windows(inputs[i::count], labels[i::count])
        scores = evaluate(forecasts[i::count], window, season_length, channel_names)
        parts.append(scores.select(pl.lit(i + 1).alias("window"), pl.all()))
    return pl.concat(parts)


def evaluate_by_horizon(
    forecasts: Iterable[Forecast], test_data: TestData | Windows, season_length: int, channel_names: Sequence[str]
) -> pl.DataFrame:
    """`evaluate` of each step ahead: column `horizon` (1 ... P) before the others."""
    return _scores(forecasts, test_data, season_length, channel_names, axis=(0,))


def interval_coverage(forecasts: Iterable[Forecast], test_data: TestData | Windows, channel_names: Sequence[str]) -> pl.DataFrame:
    """Share of labels inside each central interval, bounds included: columns channel, nominal (0.2, 0.4, 0.6, 0.8) and coverage.

    A last channel "mean" is over the others; a channel without labels is null.
    """
    steps = coverage(forecasts, test_data, channel_names, INTERVALS).rename({"interval": "nominal"})
    inside = (pl.col("coverage") * pl.col("count")).sum() / pl.col("count").sum()
    table = steps.group_by("nominal", "channel", maintain_order=True).agg(inside.fill_nan(None)).select("channel", "nominal", "coverage")
    means = table.group_by("nominal", maintain_order=True).agg(pl.col("coverage").mean())
    return pl.concat([table, means.select(pl.lit("mean").alias("channel"), "nominal", "coverage")])


def _scores(
    forecasts: Iterable[Forecast], data: TestData | Windows, season_length: int, channel_names: Sequence[str], axis: tuple[int, ...]
) -> pl.DataFrame:
    """Scores over `axis` of (window, channel, step): a row a channel, and a step where that is left."""
    for entry in data.input:
        length = entry["target"].shape[-1]
        if length <= season_length:
            raise UserError(
                f"MASE needs a history longer than the season of {season_length} steps, but that of "
                f"'{entry.get('item_id')}' has {length}. Give a shorter season length or test on fewer windows."
            )
    metrics = [MeanWeightedSumQuantileLoss(QUANTILES), MASE(), MAE(), RMSE(), Inside(0.8)]
    found = _evaluate(forecasts, data, metrics, season_length, axis)
    columns = {name: found.iloc[:, i].to_numpy(float) for i, name in enumerate(METRICS)}
    steps = len(found) // len(channel_names)
    keys = pl.DataFrame({"channel": np.repeat(list(channel_names), steps), "horizon": np.tile(np.arange(1, steps + 1), len(channel_names))})
    table = pl.concat([keys, pl.DataFrame(columns)], how="horizontal")
    table = table.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)) for name in METRICS)
    mean = table.group_by("horizon", maintain_order=True).agg(pl.lit("mean").alias("channel"), pl.col(METRICS).mean())
    table = pl.concat([table, mean.select(table.columns)])
    return table.drop("horizon") if 2 in axis else table.select("horizon", "channel", *METRICS)


def _evaluate(forecasts: Iterable[Forecast], data: Any, metrics: list[Any], season_length: int, axis: tuple[int, ...]) -> pd.DataFrame:
    with redirect_stderr(io.StringIO()), np.errstate(divide="ignore", invalid="ignore"):  # tqdm's bar; 0 / 0
        return evaluate_forecasts(forecasts, test_data=data, metrics=metrics, axis=axis, seasonality=season_length)


@dataclass(frozen=True)
class Inside:
    """A gluonts.ev metric: how many labels lie inside the central interval that is to hold `share` of them, as `coverage.outside` counts.

    The difference of GluonTS's Coverage(0.9) and Coverage(0.1) would miss labels on the lower bound.
    """

    share: float

    def __call__(self, axis: tuple[int, ...] | None) -> DirectMetric:
        """The metric over these axes, None for all."""
        low, high = (str(round((1 + sign * self.share) / 2, 6)) for sign in (-1, 1))

        def within(data: Any) -> np.ndarray:
            below, above = outside(data["label"], data[low], data[high])
            return 1.0 - below - above

        return DirectMetric(name=f"coverage_{self.share}", stat=within, aggregate=Mean(axis=axis))


def seasonal_naive(entries: Iterable[dict[str, Any]], prediction_length: int, season_length: int) -> list[QuantileForecast]:
    """The last season repeated, channel by channel, with intervals: the baseline that any forecaster has to beat.

    The median and mean are GluonTS's SeasonalNaivePredictor. The quantiles add those of the errors this rule makes in
    the history at the same lag (one season for the first season ahead, two for the second, ...), shifted to a median of
    zero: a baseline with its honest uncertainty, not a point whose CRPS a forecaster beats by being unsure.

    Args:
        entries: GluonTS entries with target (C, T), such as `TestData.input`. Missing steps are skipped over.
        prediction_length: steps ahead, P.
        season_length: steps in a season.

    Returns:
        One multivariate forecast an entry: levels 0.1 ... 0.9 and "mean", each (P, C).
    """
    predictor = SeasonalNaivePredictor(prediction_length, season_length)
    forecasts = []
    for entry in entries:
        channels = [
            predictor.predict_item({**entry, "target": channel}).samples[0]
            + np.insert(_error_quantiles(channel, prediction_length, season_length), 0, 0.0, axis=0)
            for channel in entry["target"]
        ]
        forecasts.append(
            QuantileForecast(
                np.stack(channels, axis=-1),
                start_date=forecast_start(entry),
                forecast_keys=["mean", *map(str, QUANTILES)],
                item_id=entry.get("item_id"),
            )
        )
    return forecasts


def _error_quantiles(history_T: np.ndarray, prediction_length: int, season_length: int) -> np.ndarray:
    """Quantiles (levels, P) of y[t] - y[t - lag], centred; a lag without observed pairs takes the last that has."""
    spread = np.zeros(len(QUANTILES))
    by_season = []
    for lag in range(season_length, prediction_length + season_length, season_length):
        errors = history_T[lag:] - history_T[:-lag]
        errors = errors[~np.isnan(errors)]
        if errors.size:
            spread = np.quantile(errors, QUANTILES) - np.median(errors)
        by_season.append(spread)
    return np.repeat(np.stack(by_season, axis=1), season_length, axis=1)[:, :prediction_length]


class HasStamps(Protocol):
    """A table that knows how its timestamps are written."""

    def stamps(self, item_id: str, start: pd.Period, length: int) -> Sequence[datetime]:
        """The `length` timestamps from the period `start` on."""


def forecast_table(
    forecasts: Iterable[Forecast],
    channel_names: Sequence[str],
    quantiles: Sequence[float] = QUANTILES,
    table: HasStamps | None = None,
    actuals: Iterable[dict[str, Any]] | None = None,
) -> pl.DataFrame:
    """Forecasts as rows: item_id, timestamp, channel, mean (the median where none is stored), q0.1 ... q0.9.

    Values are in original units, to 6 digits. Timestamps follow those of `table`; without it they are the
    starts of the periods. With `actuals`, entries of what came true in the same order, there are two more columns: `start`, the
    first timestamp of the row's window, and `actual`.
    """
    made = list(forecasts)
    labels: list[dict[str, Any] | None] = [None] * len(made) if actuals is None else list(actuals)
    rows = []
    for forecast, label in zip(made, labels, strict=True):
        length = forecast.prediction_length
        if table is None:
            stamps = list(pd.PeriodIndex(forecast.index).to_timestamp().to_pydatetime())
        else:
            stamps = list(table.stamps(forecast.item_id, forecast.start_date, length))
        arrays = {"mean": forecast.mean, **{f"q{level}": forecast.quantile(level) for level in quantiles}}
        if label is not None:
            arrays = {"actual": label["target"].T, **arrays}
        columns = {name: np.reshape(array, (length, -1)).astype(float) for name, array in arrays.items()}
        for i, channel in enumerate(channel_names):
            head = {"item_id": forecast.item_id, "timestamp": stamps, "channel": channel}
            if label is not None:
                head["start"] = stamps[0]
            rows.append(pl.DataFrame({**head, **{name: values[:, i] for name, values in columns.items()}}))
    typed = pl.concat(rows).with_columns(pl.col("item_id").cast(pl.String), pl.col(pl.Datetime).cast(pl.Datetime("us")))
    rounded = typed.with_columns(pl.col(pl.Float64).round_sig_figs(6))  # beyond that float32 is noise
    return rounded.with_columns(pl.col("^actual$").fill_nan(None))
