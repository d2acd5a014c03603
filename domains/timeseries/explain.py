"""Why a forecast is what it is: what the memory found surprising, and what the forecast owes to it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from domains.timeseries.data import SeriesTable, quiet_pandas
from domains.timeseries.metrics import forecast_table
from domains.timeseries.predictor import TitansPredictor
from domains.timeseries.windows import Series
from titans_seq.inspect import record
from titans_seq.memory import frozen_memory

BEFORE = 32
"""Patches over which surprise is usual."""
FEWEST = 4
"""Patches before one that its surprise is compared with, at least."""


def surprise(predictor: TitansPredictor, entry: Mapping[str, Any], channel_names: Sequence[str] | None = None) -> pl.DataFrame:
    """How much each step of a series surprised the memories that read it, from its first step on.

    Surprise is the norm of the gradient of a memory's inner loss (arXiv 2501.00663, section 3.1): how wrong the memory was about what it
    just read, and so how strongly it is written. The model reads patches, so the steps of a patch share theirs.

    Args:
        predictor: of a trained model.
        entry: a GluonTS entry, as for `predict`; all of its target is read as a stream.
        channel_names: C names; None for channel_0, ..

    Returns:
        A row a step, channel, block and head: item_id, channel, timestamp (the step's start), patch, block, head, surprise, and relative:
        over the median of that head over the `BEFORE` patches before, null for the first few. A memory that has read little is surprised
        by all, so that `relative` tells events, and compares heads. Steps after the last complete patch have not been read and have no row.

    Raises:
        ValueError: the entry does not fit, or has no complete patch.
    """
    series, c = Series(entry, predictor.model.config, predictor.univariate), predictor.model.config
    names = [f"channel_{i}" for i in range(c.num_channels)] if channel_names is None else list(channel_names)
    if len(names) != c.num_channels:
        raise ValueError(f"{len(names)} channel names for {c.num_channels} channels")
    if series.length < c.patch_length:
        raise ValueError(f"item {series.item!r}: has {series.length} steps, the model reads patches of {c.patch_length}")
    static: dict[str, Any] = {"feat_static_real": series.static_real, "feat_static_cat": series.static_cat}
    stream = predictor.online(series.start, **{name: values for name, values in static.items() if len(values)})
    dynamic: dict[str, Any] = {name: values[:, : series.length].T for name, values in series.dynamic.items() if len(values)}
    with record(predictor.model) as recording:
        stream.observe(np.asarray(series.target).T, **dynamic)
    by_head = recording.stacked("surprise").square().sum(3).sqrt().double().cpu().numpy()  # (C, blocks, heads, N)
    return _surprise_table(by_head, series, names)


def _surprise_table(by_head: np.ndarray, series: Series, names: Sequence[str]) -> pl.DataFrame:
    """The table of `surprise` from that of C channels, blocks, heads and N patches."""
    channels, blocks, heads, patches = by_head.shape
    length = series.config.patch_length
    with quiet_pandas():
        stamps = pd.period_range(series.start, periods=patches * length).to_timestamp().to_numpy()
    steps = np.arange(patches * length)
    c, step, block, head = (
        part.ravel() for part in np.meshgrid(np.arange(channels), steps, np.arange(blocks), np.arange(heads), indexing="ij")
    )
    place = (c, block, head, step // length)
    return pl.DataFrame(
        {
            "item_id": pl.Series([None if series.item is None else str(series.item)], dtype=pl.String).new_from_index(0, len(c)),
            "channel": pl.Series(names, dtype=pl.String).gather(c),
            "timestamp": stamps[step],
            "patch": step // length,
            "block": block,
            "head": head,
            "surprise": by_head[place],
            "relative": (by_head / _usual(by_head))[place],
        }
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("us")), pl.col("relative").fill_nan(None))


def _usual(by_head: np.ndarray) -> np.ndarray:
    """Median of the `BEFORE` patches before each of (.., N); NaN where there are fewer than `FEWEST`, or nothing moved."""
    before = np.pad(by_head, [*[(0, 0)] * (by_head.ndim - 1), (BEFORE, 0)], constant_values=np.nan)[..., :-1]
    windows = np.lib.stride_tricks.sliding_window_view(before, BEFORE, axis=-1)
    usual = np.full(by_head.shape, np.nan)
    usual[..., FEWEST:] = np.nanmedian(windows[..., FEWEST:, :], axis=-1)
    return np.where(usual > 0, usual, np.nan)


def memory_effect(
    predictor: TitansPredictor, dataset: Iterable[Mapping[str, Any]], channel_names: Sequence[str], table: SeriesTable | None = None
) -> pl.DataFrame:
    """Forecasts with what the memory learned from each entry's context, and without: the same weights, the memory at its learned start.

    Args:
        predictor: of a trained model.
        dataset: GluonTS entries.
        channel_names, table: as of `forecast_table`.

    Returns:
        The rows of `forecast_table`, twice, with a column `memory` before them: "on" and "off".
    """
    entries = list(dataset)
    made = {"on": list(predictor.predict(entries))}
    with frozen_memory(predictor.model):
        made["off"] = list(predictor.predict(entries))
    tables = {name: forecast_table(forecasts, channel_names, table=table) for name, forecasts in made.items()}
    return pl.concat([rows.select(pl.lit(name).alias("memory"), pl.all()) for name, rows in tables.items()])
