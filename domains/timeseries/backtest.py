"""Rolling-origin backtests: the forecasts that would have been made at the start of each held-out window, and their scores."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
from gluonts.dataset.split import TestData
from gluonts.model.forecast import Forecast

from domains.timeseries.conformal import CalibratingEstimator
from domains.timeseries.data import split
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.metrics import evaluate, evaluate_by_horizon, evaluate_by_window, interval_coverage, seasonal_naive

Refit = Literal["no", "yes", "warm"]


@dataclass(frozen=True)
class Scores:
    """Scores of Titans and of the seasonal naive, told apart by the column `forecaster`: as the functions of metrics.py give them."""

    by_channel: pl.DataFrame
    by_window: pl.DataFrame
    by_horizon: pl.DataFrame
    coverage: pl.DataFrame

    def _repr_html_(self) -> str:
        """In a notebook: the scores by channel."""
        return self.by_channel._repr_html_()


@dataclass(frozen=True)
class Backtest:
    """Forecasts of every window of every series, in the order of `test`, and the predictor that made the last of them."""

    test: TestData
    forecasts: list[Forecast]
    naive: list[Forecast]
    scores: Scores
    predictor: Any

    def _repr_html_(self) -> str:
        """In a notebook: the scores by channel."""
        return self.scores._repr_html_()

    def last_window(self, values: Iterable[Any]) -> list[Any]:
        """Of `values` in the order of `test`, those of the last window of each series."""
        return list(values)[self.test.windows - 1 :: self.test.windows]


def backtest(
    entries: Sequence[dict[str, Any]],
    estimator: TitansEstimator | CalibratingEstimator,
    *,
    windows: int,
    season_length: int,
    channel_names: Sequence[str],
    distance: int | None = None,
    refit: Refit = "no",
    on_window: Callable[[int], None] | None = None,
    checkpoints: Path | None = None,
    metrics: Path | None = None,
) -> Backtest:
    """Forecast the last `windows` windows of every series from what came before each of them, and score it.

    Args:
        entries: as of `SeriesTable.to_gluonts`.
        estimator: makes the predictors.
        windows: windows of the estimator's prediction length at the end of each series.
        season_length: of the seasonal naive and of MASE.
        channel_names: the C names.
        distance: steps from the start of one window to that of the next; None for the prediction length.
        refit: "no" trains once, on what comes before the first window; "yes" trains anew before each; "warm" goes on training
            the last one before each.
        on_window: called with the number of the window, 1 ..., before it is trained for.
        checkpoints, metrics: folder and file as of `TitansEstimator.train_model`, for refit "no".

    Raises:
        ValueError: one of these with another refit, which trains many times; as of the estimator.
        UserError: as of the estimator.
    """
    if refit != "no" and (checkpoints is not None or metrics is not None):
        raise ValueError(f"checkpoints and metrics are those of one training, refit={refit!r} has one for each window")
    steps = estimator.prediction_length
    distance = distance or steps
    _, test = split(entries, steps, windows, distance)
    predictor: Any = None
    if refit == "no":
        training, _ = split(entries, steps, windows, distance)
        predictor = estimator.train(training, checkpoints=checkpoints, metrics=metrics)
        forecasts = list(predictor.predict(test.input))
    else:
        inputs = list(test.input)
        forecasts = [None] * len(inputs)
        for window in range(windows):
            if on_window is not None:
                on_window(window + 1)
            known = [_training_entry(entry) for entry in inputs[window::windows]]
            warm = refit == "warm" and predictor is not None
            predictor = estimator.train_from(predictor, known) if warm else estimator.train(known)
            forecasts[window::windows] = predictor.predict(inputs[window::windows])
    naive = seasonal_naive(test.input, steps, season_length)
    return Backtest(test, forecasts, naive, score(forecasts, naive, test, season_length, channel_names), predictor)


def _training_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """The input of a window without what is known ahead of it."""
    known = entry.get("feat_dynamic_real")
    return entry if known is None else {**entry, "feat_dynamic_real": known[:, : entry["target"].shape[-1]]}


def score(
    forecasts: Sequence[Forecast], naive: Sequence[Forecast], test: TestData, season_length: int, channel_names: Sequence[str]
) -> Scores:
    """All scores of both forecasters."""

    def both(make: Callable[..., pl.DataFrame], *arguments: Any) -> pl.DataFrame:
        named = {"titans": forecasts, "seasonal_naive": naive}
        return pl.concat(make(made, test, *arguments).select(pl.lit(name).alias("forecaster"), pl.all()) for name, made in named.items())

    return Scores(
        both(evaluate, season_length, channel_names),
        both(evaluate_by_window, season_length, channel_names),
        both(evaluate_by_horizon, season_length, channel_names),
        both(interval_coverage, channel_names),
    )
