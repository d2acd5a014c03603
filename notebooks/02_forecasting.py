# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a CSV to forecasts that can be trusted
#
# A table in, calibrated forecasts out; a backtest that compares them with what one would do without a model; updates as new rows arrive;
# and a look at what the memory contributes, which here is little, and is said. It takes two to three minutes on two cores, with data that
# ships. On the command line the same is `titans-seq forecast train | backtest | predict | watch`.

# %% [markdown]
# ## A table
#
# Any CSV, Parquet or Monash `.tsf` with a time column will do. We write one as you might have it, and read it back. Types, frequency and
# gaps are found; what cannot be read is an error that names the line.

# %%
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy as np
import polars as pl

from domains.timeseries.data import load_example, read_table, split

folder = Path(tempfile.mkdtemp())
load_example().frame.drop("item_id").write_csv(folder / "weather.csv")
print((folder / "weather.csv").read_text()[:200])

table = read_table(folder / "weather.csv", target=["temp_max", "wind"])
table

# %% [markdown]
# ## A backtest first
#
# Before any forecast is believed: forecast the past. Six windows of 14 days at the end are held out, the model is trained once on what comes before
# the first, and the seasonal naive (the same weekday of the last week) stands beside it with honest intervals of its own.

# %%
import logging

from domains.timeseries.backtest import backtest
from domains.timeseries.estimator import TitansEstimator

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

DAYS, WINDOWS, WEEK = 14, 6, 7
quick = {"max_epochs": 4, "num_batches_per_epoch": 30, "progress": False}
estimator = TitansEstimator(prediction_length=DAYS, freq=table.freq, num_channels=len(table.targets), unfinished_patches=True, **quick)
tested = backtest(table.to_gluonts(), estimator, windows=WINDOWS, season_length=WEEK, channel_names=table.targets)
tested.scores.by_channel

# %% [markdown]
# CRPS and MAE are in units of the series, MASE over the in-sample error of the naive; lower is better. `coverage_80` should be 0.8.

# %%
from domains.timeseries.plots import plot_coverage_by_horizon, plot_errors_by_horizon, plot_forecast, plot_memory_effect, plot_surprise

plot_forecast(
    [entry for entry, _ in tested.test][-1:],
    tested.forecasts[-1:],
    table.targets,
    actuals=[label for _, label in tested.test][-1:],
    baseline=tested.naive[-1:],
)

# %%
plot_errors_by_horizon(tested.scores.by_horizon)

# %% [markdown]
# ## Intervals that hold
#
# An 80 % interval of a trained model is right on average over its training data at best. `CalibratingEstimator` keeps windows back from training and
# corrects each quantile, step ahead and channel on them (split-conformal). On windows that neither has seen:

# %%
from domains.timeseries.conformal import CalibratingEstimator
from domains.timeseries.coverage import coverage

training, test = split(table, DAYS, windows=40, distance=5)
calibrated = CalibratingEstimator(estimator, windows=60, season_length=WEEK, progress=False).train(training)
held = {
    "as trained": coverage(calibrated.predictor.predict(test.input), test, table.targets),
    "calibrated": coverage(calibrated.predict(test.input), test, table.targets),
}
pl.DataFrame(
    {"": list(held)}
    | {
        f"{level:.0%} interval": [rows.filter((pl.col("interval") - level).abs() < 0.01)["coverage"].mean() for rows in held.values()]
        for level in (0.4, 0.8)
    }
)

# %%
plot_coverage_by_horizon(held)

# %% [markdown]
# ## New rows, one by one
#
# A predictor carries a stream on: a new row is read in constant time, nothing is refitted and nothing read again, and forecasts are those that one
# would get from all rows at once. We read all but the last 60 days, then day by day, and forecast on the way. A missing day is masked, not filled.

# %%
stream = calibrated.online()
days = table.frame["timestamp"].to_list()
values = table.frame.select(table.targets).to_numpy().copy()
begin = len(days) - 60
stream.observe(values[:begin], days[:begin])

errors = []
for day in range(begin, len(days)):
    if day + DAYS <= len(days):
        median = stream.predict().quantile(0.5)
        errors.append(np.abs(median - values[day : day + DAYS]).mean(0))
    stream.observe(np.full((1, 2), np.nan) if day == begin + 20 else values[day : day + 1], [days[day]])

pl.DataFrame(np.mean(errors, 0)[None], schema=list(table.targets)).with_columns(pl.lit("mean absolute error on the way").alias(""))

# %% [markdown]
# The intervals adapt as it goes: each forecast is scored when its days arrive, and quantiles that were missed move outward.

# %%
stream.coverage()

# %%
stream.save(folder / "stream.safetensors")  # go on tomorrow: calibrated.load_online(folder / "stream.safetensors")
(folder / "stream.safetensors").stat().st_size

# %% [markdown]
# ## What the memory contributes
#
# The same weights, once with a memory that learns from what it reads and once frozen as it was before the first row:

# %%
from domains.timeseries.explain import memory_effect, surprise

entries = [entry for entry, _ in tested.test][-1:]
effect = memory_effect(tested.predictor, entries, table.targets)
wide = effect.pivot("memory", index=["channel", "timestamp"], values="q0.5")
wide.group_by("channel").agg(change=(pl.col("on") - pl.col("off")).abs().mean(), level=pl.col("on").abs().mean())

# %%
plot_memory_effect(entries, effect, actuals=[label for _, label in tested.test][-1:])

# %% [markdown]
# On this series the two are close. That is no accident of the notebook: on the public benchmarks, too, nearly all of a forecast is season and a linear map that
# are found in closed form ([docs/forecasting_benchmark.md](../docs/forecasting_benchmark.md)), and it is good to know before one pays for more.
#
# What the memory found surprising is a by-product worth having: the most unusual days, without a label.

# %%
entry = table.to_gluonts()[0]
plot_surprise(entry, surprise(tested.predictor, entry, table.targets))

# %% [markdown]
# ## What to try next
#
# - Your own table: `read_table("sales.csv", target=["units"], item_id="shop")`, with `future_features=["price"]` for what is known ahead.
# - `linear_memory=32` in `TitansEstimator`: the linear map itself goes on learning on a stream, which pays where the relation drifts.
# - `predictor.predict(dataset, num_samples=200)`: sample paths, for sums and maxima over the horizon.
# - `titans-seq forecast watch my-model live.csv`: the stream of this notebook, on a file that grows.
