"""Multivariate time series: tables in, calibrated forecasts out, with a memory that goes on learning."""
