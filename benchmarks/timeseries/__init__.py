"""Forecasters on the long-horizon protocol, every window, one code path: `python -m benchmarks.timeseries`.

`--quick` takes a minute. Results are written after every cell, and a rerun goes on where the last one ended.
`python -m benchmarks.timeseries.seattle` compares probabilistic forecasts of the series that ships.
"""
