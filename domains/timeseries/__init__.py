"""Multivariate time series: tables in, calibrated forecasts out, with a memory that goes on learning."""

import warnings

from titans_seq.domain import Domain

warnings.filterwarnings("ignore", message="Using `json`-module", category=UserWarning)  # gluonts without orjson, at its import

DOMAIN = Domain(
    commands={"forecast": "domains.timeseries.cli:app"},
    models={"titans_forecaster": "domains.timeseries.model:TitansForecaster"},
)
