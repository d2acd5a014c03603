"""Scores of forecasts through gluonts.ev, and the seasonal naive that they are to beat."""

import io
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from typing import Any

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
from domains.timeseries.data import SeriesTable, quiet_pandas
from titans_seq.errors import UserError

METRICS = ("CRPS", "MASE", "MAE", "RMSE", "coverage_80")


def default_season_length(freq: str) -> int:
    """Steps in the usual season of a pandas frequency: s 3600, min 1440, 15min 96, h 24, D 7, B 5, W 52, M 12, Q 4."""
    with quiet_pandas():
        return get_seasonality(freq, {**DEFAULT_SEASONALITIES, "D": 7, "W": 52})


def evaluate(forecasts: Iterable[Forecast], test_data: TestData, season_length: int, channel_names: Sequence[str]) -> pl.DataFrame:
    """Score forecasts of `test_data` in original units, one row a channel and a last row "mean" over the channels.

    Columns: channel; CRPS, the mean weighted sum quantile loss over the levels 0.1 ... 0.9, each channel weighted by
    its own labels so that units never mix; MASE of the median, scaled by the in-sample error at lag `season_length`;
    MAE of the median; RMSE of the mean; coverage_80, the share of labels within the 0.1 and 0.9 quantiles, bounds
    included. Labels that are NaN are left out. A score that its channel leaves undefined (all labels 0, or none) is
    null, and "mean" is over the others.

    Raises:
        UserError: where a history is no longer than the season (GluonTS would silently scale MASE by lag 1).
    """
    for entry in test_data.input:
        length = entry["target"].shape[-1]
        if length <= season_length:
            raise UserError(
                f"MASE needs a history longer than the season of {season_length} steps, but that of "
                f"'{entry.get('item_id')}' has {length}. Give a shorter season length or test on fewer windows."
            )
    with redirect_stderr(io.StringIO()), np.errstate(divide="ignore", invalid="ignore"):  # tqdm's bar; 0 / 0
        scores = evaluate_forecasts(
            forecasts,
            test_data=test_data,
            metrics=[MeanWeightedSumQuantileLoss(QUANTILES), MASE(), MAE(), RMSE(), _coverage_80],
            axis=(0, 2),
            seasonality=season_length,
        )
    columns = {name: scores.iloc[:, i].to_numpy(float) for i, name in enumerate(METRICS)}
    table = pl.DataFrame({"channel": list(channel_names), **columns})
    table = table.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)) for name in METRICS)
    return pl.concat([table, table.select(pl.lit("mean").alias("channel"), pl.col(METRICS).mean())])


def _coverage_80(axis: tuple[int, ...]) -> DirectMetric:
    """A gluonts.ev metric; Coverage(0.9) - Coverage(0.1) would miss labels equal to the lower bound, such as 0 mm."""

    def within(data: Any) -> np.ndarray:
        return ((data["0.1"] <= data["label"]) & (data["label"] <= data["0.9"])).astype(float)

    return DirectMetric(name="coverage_80", stat=within, aggregate=Mean(axis=axis))


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


def forecast_table(
    forecasts: Iterable[Forecast],
    channel_names: Sequence[str],
    quantiles: Sequence[float] = QUANTILES,
    table: SeriesTable | None = None,
) -> pl.DataFrame:
    """Forecasts as rows: item_id, timestamp, channel, mean (the median where none is stored), q0.1 ... q0.9.

    Values are in original units, to 6 digits. Timestamps follow those of `table`; without it they are the
    starts of the periods.
    """
    rows = []
    for forecast in forecasts:
        length = forecast.prediction_length
        if table is None:
            stamps = list(pd.PeriodIndex(forecast.index).to_timestamp().to_pydatetime())
        else:
            stamps = table.stamps(forecast.item_id, forecast.start_date, length)
        arrays = {"mean": forecast.mean, **{f"q{level}": forecast.quantile(level) for level in quantiles}}
        columns = {name: np.reshape(array, (length, -1)).astype(float) for name, array in arrays.items()}
        for i, channel in enumerate(channel_names):
            head = {"item_id": forecast.item_id, "timestamp": stamps, "channel": channel}
            rows.append(pl.DataFrame({**head, **{name: values[:, i] for name, values in columns.items()}}))
    return pl.concat(rows).with_columns(
        pl.col("item_id").cast(pl.String),
        pl.col("timestamp").cast(pl.Datetime("us")),
        pl.col(pl.Float64).round_sig_figs(6),  # beyond that float32 is noise
    )
