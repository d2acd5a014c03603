"""Quantiles that hold: split-conformal calibration of any GluonTS predictor.

Shapes: Q levels, H steps ahead, C channels, n forecasts. What calibration adds to a quantile is in units of the forecast's own spread, so
that series of unlike scale share it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from gluonts.dataset.common import Dataset
from gluonts.dataset.split import TestData
from gluonts.model.estimator import Estimator
from gluonts.model.forecast import Forecast, QuantileForecast
from gluonts.model.predictor import Predictor

from domains.timeseries.adaptive import AdaptiveForecaster
from domains.timeseries.config import CALIBRATION_NAME, QUANTILES
from domains.timeseries.coverage import actual_of
from domains.timeseries.data import split
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.model import TitansForecaster
from domains.timeseries.outputs import smallest_values
from domains.timeseries.paths import with_paths
from domains.timeseries.predictor import TitansPredictor, load_predictor
from domains.timeseries.quantiles import Levels, forecast_of, quantiles_of, spread_of
from titans_seq.card import Card
from titans_seq.checkpoint import FILES
from titans_seq.errors import UserError
from titans_seq.files import read_safetensors, write_safetensors
from titans_seq.hub import HubOptions, locate
from titans_seq.progress import make_bar


@dataclass(frozen=True)
class Calibration:
    """What is added to a forecast's quantiles.

    Attributes:
        levels: of the quantiles.
        corrections: (Q, H, C) float64, how far each quantile is moved outward (below the median down, else up), in units of `spread_of`.
        counts: (H, C) int64, the forecasts that this was learned from.
        model: fingerprint of the forecaster whose forecasts they were; None of a predictor that is none of ours.
    """

    levels: Levels
    corrections: np.ndarray
    counts: np.ndarray
    model: str | None = None

    def apply(self, forecast: Forecast, smallest: np.ndarray | float = -math.inf) -> QuantileForecast:
        """The forecast with its quantiles corrected and put in order, none below `smallest`.

        Raises:
            ValueError: another number of steps or channels than was calibrated.
        """
        quantiles = quantiles_of(forecast, self.levels.values)
        if quantiles.shape != self.corrections.shape:
            steps, channels = self.corrections.shape[1:]
            raise ValueError(
                f"the calibration is of {steps} steps and {channels} channels, the forecast has {quantiles.shape[1]} steps and "
                f"{quantiles.shape[2]} channels"
            )
        return forecast_of(forecast, self.levels, self.levels.corrected(quantiles, self.corrections, spread_of(quantiles)), smallest)

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        corrections, counts = self.corrections.astype(np.float64), self.counts.astype(np.int64)
        arrays = {"levels": np.array(self.levels.values), "corrections": corrections, "counts": counts}
        metadata = None if self.model is None else {"model": self.model}
        write_safetensors(path, {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, damaged, or no calibration.
        """
        tensors, metadata = read_safetensors(path)
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        corrections = shapes.get("corrections", ())
        fits = {"levels": corrections[:1], "corrections": corrections, "counts": corrections[1:]}
        if shapes != fits or len(corrections) != 3:
            raise UserError(f"{path}: is no calibration; expected a file that Calibration.save wrote.")
        kinds = {"levels": torch.float64, "corrections": torch.float64, "counts": torch.int64}
        if any(tensors[name].dtype != kind for name, kind in kinds.items()) or bool((tensors["counts"] < 0).any()):
            raise UserError(f"{path}: damaged; expected levels and corrections in float64, and counts that are not negative.")
        try:
            levels = Levels(tuple(tensors["levels"].tolist()))
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}).") from None
        return cls(levels, tensors["corrections"].numpy(), tensors["counts"].numpy(), metadata.get("model"))


class CalibratedPredictor(Predictor):
    """A GluonTS predictor whose quantiles are corrected by what was learned from held-out windows (see `calibrate`).

    Attributes:
        predictor: what is corrected.
        calibration: the corrections.

    Raises:
        ValueError: the corrections were learned from the forecasts of another model.
    """

    def __init__(self, predictor: Predictor, calibration: Calibration) -> None:
        if calibration.model is not None and calibration.model != _name_of(predictor):
            raise ValueError("the calibration is of a model with other weights. Calibrate this one")
        super().__init__(predictor.prediction_length, predictor.lead_time)
        self.predictor, self.calibration = predictor, calibration

    def predict(self, dataset: Dataset, num_samples: int | None = None) -> Iterator[Forecast]:
        """Forecasts of each entry at the calibrated levels; with `num_samples` that many paths of them instead, as of `TitansPredictor`."""
        if num_samples is None:
            smallest = smallest_values(self.model.config) if isinstance(self.predictor, TitansPredictor) else -math.inf
            for forecast in self.predictor.predict(dataset):
                yield self.calibration.apply(forecast, smallest)
        else:
            yield from with_paths(self.predict, dataset, num_samples)

    @property
    def model(self) -> TitansForecaster:
        """The network. Raises TypeError if the predictor has none."""
        return self._titans.model

    @property
    def _titans(self) -> TitansPredictor:
        if not isinstance(self.predictor, TitansPredictor):
            raise TypeError(f"only a TitansPredictor is carried on and saved as a model, this is a {type(self.predictor).__name__}")
        return self.predictor

    def online(self, start: pd.Period | None = None, **arguments: Any) -> AdaptiveForecaster:
        """A stream to carry on, whose intervals begin with this calibration and adapt (`AdaptiveForecaster`)."""
        levels, corrections = self.calibration.levels, self.calibration.corrections
        return AdaptiveForecaster(self._titans, start, levels=levels.values, corrections=corrections, **arguments)

    def load_online(self, path: str | Path, **arguments: Any) -> AdaptiveForecaster:
        """Go on with a stream that was saved; arguments and errors as of `AdaptiveForecaster.load`."""
        return AdaptiveForecaster.load(path, self._titans, **arguments)

    def serialize(self, path: Path) -> None:
        """As GluonTS's: into a folder that exists; the calibration is the file calibration.safetensors."""
        super().serialize(path)
        (path / "predictor").mkdir(exist_ok=True)
        self.predictor.serialize(path / "predictor")
        self.calibration.save(path / CALIBRATION_NAME)

    @classmethod
    def deserialize(cls, path: Path, **kwargs: Any) -> "CalibratedPredictor":
        """Inverse of `serialize`, in another process as well."""
        return cls(Predictor.deserialize(path / "predictor", **kwargs), Calibration.load(path / CALIBRATION_NAME))

    def save_pretrained(self, folder: str | Path, card: Card | None = None) -> None:
        """Write the forecaster as its `save_pretrained` does, with the calibration beside it; `load_calibrated` reads both."""
        self.model.save_pretrained(folder, card=card)
        self.calibration.save(Path(folder) / CALIBRATION_NAME)


def load_calibrated(folder: str | Path, univariate: bool = False, batch_size: int = 32, **hub: Unpack[HubOptions]) -> CalibratedPredictor:
    """The forecaster of `folder` with the calibration beside it; arguments as of `load_predictor`.

    Raises:
        UserError: a file is missing or damaged, or the calibration is of another forecaster.
    """
    folder = locate(folder, (*FILES, CALIBRATION_NAME), **hub)
    predictor = load_predictor(folder, univariate, batch_size)
    calibration, c = Calibration.load(folder / CALIBRATION_NAME), predictor.model.config
    if calibration.counts.shape != (c.prediction_length, c.num_channels):
        steps, channels = calibration.counts.shape
        raise UserError(
            f"{folder / CALIBRATION_NAME}: is of {steps} steps and {channels} channels, the model of {c.prediction_length} and "
            f"{c.num_channels}. Calibrate the model again."
        )
    try:
        return CalibratedPredictor(predictor, calibration)
    except ValueError as error:
        raise UserError(f"{folder / CALIBRATION_NAME}: {error}.") from error


# ---- learning the corrections


class CalibratingEstimator(Estimator):
    """Trains without the end of each series, and calibrates there what was trained (`calibrate`).

    Args:
        estimator: makes the predictor.
        windows: of the prediction length, at the end of each series, that training does not see.
        season_length: steps in a season.
        progress: show a bar of the windows.
    """

    def __init__(self, estimator: TitansEstimator, windows: int, season_length: int = 1, progress: bool = True) -> None:
        super().__init__()
        self.estimator, self.windows, self.progress = estimator, windows, progress
        self.prediction_length = estimator.prediction_length
        self.distance = calibration_distance(self.prediction_length, season_length)

    def train(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        checkpoints: str | Path | None = None,
        metrics: str | Path | None = None,
    ) -> CalibratedPredictor:
        """As of the estimator, calibrated. Raises ValueError as the estimator or `calibrate`, UserError as the estimator."""
        return self._calibrated(partial(self.estimator.train, checkpoints=checkpoints, metrics=metrics), training_data, validation_data)

    def train_from(
        self, predictor: CalibratedPredictor, training_data: Dataset, validation_data: Dataset | None = None
    ) -> CalibratedPredictor:
        """Go on training a predictor of `train`, and calibrate it anew."""
        return self._calibrated(partial(self.estimator.train_from, predictor.predictor), training_data, validation_data)

    def _calibrated(self, train: Callable[..., Predictor], data: Dataset, validation_data: Dataset | None) -> CalibratedPredictor:
        training, held_out = split(data, self.prediction_length, self.windows, self.distance)
        return calibrate(train(training, validation_data), held_out, progress=self.progress)


def calibration_distance(prediction_length: int, season_length: int) -> int:
    """Steps from one window to the next: about a third of the horizon, without a factor of the season.

    So each step ahead is met at every place of the season.
    """
    return next(steps for steps in count(max(1, prediction_length // 3)) if math.gcd(steps, season_length) == 1)


def calibrate(
    predictor: Predictor, test_data: TestData, quantiles: Sequence[float] | None = None, *, progress: bool = True
) -> CalibratedPredictor:
    """Correct the quantiles of `predictor` so that each holds on windows like those of `test_data`.

    Conformalised quantile regression with each tail by itself (Romano, Patterson and Candès 2019, theorem 2), for each level, step ahead
    and channel; scores are in units of the forecast's own spread (Sesia and Candès 2020). Of n windows, the k-th smallest score is taken,
    k = ceil((1 - tail) (n + 1)): where windows are exchangeable, the next value lies beyond a quantile with at most the probability of its
    tail. Windows of one series follow one another, so in practice this holds as far as the series stays what it was; `online` adapts.

    Args:
        predictor: any GluonTS predictor.
        test_data: windows that training has not seen, as `gluonts.dataset.split.split(..)[1].generate_instances(prediction_length,
            windows=.., distance=..)` makes them. With a `distance` shorter than the prediction length, few steps give many windows; one
            that shares no factor with the season (5 of 24 hours) lets each step ahead be seen at every time of day.
        quantiles: levels to calibrate, in rising order; None for those that the predictor's first forecast stores, else 0.1 to 0.9.
        progress: show a bar of the windows.

    Raises:
        ValueError: too few observed windows for the outermost level (9 for 0.1, 19 for 0.05, 99 for 0.01), or levels out of order.
    """
    levels = None if quantiles is None else Levels(tuple(quantiles))
    scores = []
    windows = test_data.windows * len(test_data.dataset) if hasattr(test_data.dataset, "__len__") else None
    pairs = zip(predictor.predict(test_data.input), test_data.label, strict=True)
    with make_bar(disable=not progress) as bar:
        for forecast, label in bar.track(pairs, total=windows, description="Calibrating"):
            levels = levels or _levels_of(forecast)
            made = quantiles_of(forecast, levels.values)
            scores.append(levels.scores(made, actual_of(label), spread_of(made)).astype(np.float32))
    if levels is None:
        raise ValueError("test_data holds no window to calibrate on")
    return CalibratedPredictor(predictor, replace(split_conformal(np.stack(scores), levels), model=_name_of(predictor)))


def split_conformal(scores: np.ndarray, levels: Levels) -> Calibration:
    """The finite-sample corrected quantiles of scores (n, Q, H, C), NaN where nothing was observed. Raises ValueError as `calibrate`."""
    counts = np.isfinite(scores).all(1).sum(0)  # (H, C)
    rank = np.ceil((1 - levels.tails)[:, None, None] * (counts + 1) - 1e-9).astype(int)  # (Q, H, C)
    if (rank > counts).any():
        place = np.unravel_index(counts.argmin(), counts.shape)
        raise ValueError(
            f"the levels {levels.values[0]} to {levels.values[-1]} need at least {levels.fewest_scores} windows in which a step is "
            f"observed, but step {place[0] + 1} of channel {place[1]} has {counts[place]}: give more windows (a shorter distance), or "
            "levels further inside"
        )
    ordered = np.sort(np.where(np.isfinite(scores), scores, np.inf), axis=0)
    corrections = np.take_along_axis(ordered, rank[None] - 1, axis=0)[0]
    return Calibration(levels, corrections.astype(np.float64), counts.astype(np.int64))


def _name_of(predictor: Predictor) -> str | None:
    """The fingerprint of its model, if it has one."""
    return str(predictor.fingerprint) if isinstance(predictor, TitansPredictor) else None


def _levels_of(forecast: Forecast) -> Levels:
    stored = isinstance(forecast, QuantileForecast)
    return Levels(tuple(sorted(float(key) for key in forecast.forecast_keys if key != "mean")) if stored else QUANTILES)
