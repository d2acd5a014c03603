"""`TitansPredictor`: a trained forecaster as a GluonTS predictor."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from titans_seq.quiet import quiet_import

with quiet_import():
    from gluonts.torch.model.predictor import PyTorchPredictor

import numpy as np
import pandas as pd
import torch
from gluonts.dataset.common import Dataset
from gluonts.model.forecast import Forecast

from domains.timeseries.model import TitansForecaster
from domains.timeseries.online import OnlineForecaster
from domains.timeseries.outputs import smallest_values
from domains.timeseries.paths import with_paths
from domains.timeseries.quantiles import bounded
from domains.timeseries.training import ForecasterModule
from domains.timeseries.windows import ForecastInstance, calendar
from titans_seq.errors import UserError
from titans_seq.hub import HubOptions

INPUT_NAMES = ["past_target", "past_observed_values", "past_feat", "future_feat", "feat_static_real", "feat_static_cat"]


class TitansPredictor(PyTorchPredictor):
    """Makes GluonTS forecasts of GluonTS entries with a trained `TitansForecaster`."""

    def _repr_html_(self) -> str:
        """In a notebook: the model's."""
        return self.model._repr_html_()

    @property
    def univariate(self) -> bool:
        """Whether targets and forecasts have no dimension of channels."""
        return self.input_transform.univariate

    def online(self, start: pd.Period | None = None, **arguments: Any) -> OnlineForecaster:
        """A stream to carry on (`OnlineForecaster`, which says what `arguments` there are), from the period `start` on."""
        return OnlineForecaster(self, start, **arguments)

    def load_online(self, path: str | Path, **arguments: Any) -> OnlineForecaster:
        """Go on with a stream that was saved; arguments and errors as of `OnlineForecaster.load`."""
        return OnlineForecaster.load(path, self, **arguments)

    def predict(self, dataset: Dataset, num_samples: int | None = None) -> Iterator[Forecast]:
        """Forecasts of each entry, in order: quantiles or a distribution of each step.

        Args:
            dataset: GluonTS entries.
            num_samples: give so many sample paths instead (gluonts SampleForecast), whose steps and channels depend on one another as in
                the entry's own history (`paths.sample_paths`).

        Raises:
            ValueError: an entry does not fit, or its history is too short for paths.
        """
        if num_samples is None:
            yield from self._forecasts(dataset)
        else:
            yield from with_paths(self._forecasts, dataset, num_samples)

    def _forecasts(self, dataset: Dataset) -> Iterator[Forecast]:
        """As GluonTS makes them, which would leave gradients off from the first forecast to the last, in whatever runs between them."""
        forecasts, smallest = super().predict(dataset), smallest_values(self.model.config)
        while True:
            with torch.no_grad():
                forecast = next(forecasts, None)
            if forecast is None:
                return
            yield bounded(forecast, smallest)

    @property
    def model(self) -> TitansForecaster:
        """The network, for `save_pretrained` and to carry streams on."""
        return self.prediction_net.model

    @cached_property
    def fingerprint(self) -> int:
        """63 bits of a digest of the network's configuration and weights, as they were when this was first asked for: by it a saved stream
        knows its model.
        """
        digest = hashlib.sha256(repr(self.model.config).encode())
        for name, x in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + x.detach().cpu().contiguous().numpy().tobytes())
        return int.from_bytes(digest.digest()[:8], "big") >> 1


def make_predictor(module: ForecasterModule, univariate: bool, batch_size: int) -> TitansPredictor:
    """A predictor of entries with targets (T,) if univariate, else (C, T)."""
    config = module.model.config
    return TitansPredictor(
        input_transform=ForecastInstance(config.to_dict(), univariate),
        input_names=INPUT_NAMES,
        prediction_net=module,
        forecast_generator=module.model.distr_output.forecast_generator,
        batch_size=batch_size,
        prediction_length=config.prediction_length,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def load_predictor(
    name_or_folder: str | Path, univariate: bool = False, batch_size: int = 32, **hub: Unpack[HubOptions]
) -> TitansPredictor:
    """The predictor of a saved `TitansForecaster`, ready to forecast series of its frequency and channels.

    Args:
        name_or_folder, hub: as of `TitansForecaster.from_pretrained`.
        univariate: take targets (T,) and give forecasts without a dimension of channels, as `TitansEstimator` with num_channels=None.
        batch_size: series that are forecast at once.

    Raises:
        UserError: as of `from_pretrained`, or the model does not say its frequency.
    """
    model = TitansForecaster.from_pretrained(name_or_folder, **hub)
    if model.config.freq is None:
        raise UserError(f"{name_or_folder}: its config.json names no freq, so its calendar features cannot be made.")
    try:
        expected = calendar(np.zeros(1, np.int64), model.config.freq).shape[-1]
    except (ValueError, RuntimeError) as error:  # of pandas, of GluonTS
        raise UserError(
            f"{name_or_folder}: its config.json has freq {model.config.freq!r:.40}, which is no frequency ({error})."
        ) from error
    if model.config.num_time_features != expected:
        raise UserError(
            f"{name_or_folder}: its config.json has num_time_features {model.config.num_time_features}, "
            f"but a step of {model.config.freq!r} has {expected} calendar features."
        )
    module = ForecasterModule(model.config.to_dict())
    module.model = model
    return make_predictor(module.eval(), univariate, batch_size)
