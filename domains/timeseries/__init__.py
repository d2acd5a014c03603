"""Multivariate time series: tables in, calibrated forecasts out, with a memory that goes on learning."""

from titans_seq.domain import Domain

DOMAIN = Domain(
    commands={"forecast": "domains.timeseries.cli:app"},
    models={"titans_forecaster": "domains.timeseries.model:TitansForecaster"},
)
