"""The regular grid of time steps that every series lies on."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import polars as pl

from domains.timeseries.data.files import ROW, Source
from titans_seq.errors import UserError

_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_ANCHORED = {
    "W": [f"W-{day}" for day in ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")],
    "M": ["MS", "ME"],
    "Q": [f"{kind}-{month}" for kind in ("QS", "QE") for month in _MONTHS],
    "Y": [f"{kind}-{month}" for kind in ("YS", "YE") for month in _MONTHS],
}
"""A bare --freq W, M, Q or Y means the day of the week, month or year that the file's first timestamp lies on."""
_MOSTLY_GAPS = 20  # more grid steps than this for each row: the frequency is wrong, and the grid could fill the memory


def on_grid(source: Source, frame: pl.DataFrame, freq: str | None) -> tuple[pl.DataFrame, str]:
    """Every step of every item, in order, with nulls (also in `ROW`) where the file has none; and the step."""
    items = frame.partition_by("item_id", maintain_order=True)
    longest = pd.DatetimeIndex(max(items, key=len)["timestamp"].to_numpy())
    step = find_step(source, longest, freq)
    for item in items:
        refuse_sparse(source, item["item_id"][0], item["timestamp"][0], item["timestamp"][-1], item.height, step)
    grid = pl.concat(
        pl.DataFrame({"timestamp": pd.date_range(i["timestamp"][0], i["timestamp"][-1], freq=step, unit="us").to_numpy()})
        .cast(pl.Datetime("us"))
        .select(pl.lit(i["item_id"][0]).alias("item_id"), "timestamp")
        for i in items
    )
    off = frame.join(grid, on=["item_id", "timestamp"], how="anti")
    if not off.is_empty():
        refuse_off_grid(source, off.sort(ROW).row(0)[:3], step, off.height)
    return grid.join(frame, on=["item_id", "timestamp"], how="left", maintain_order="left"), step


def refuse_off_grid(source: Source, first: tuple, step: str, count: int) -> None:
    """Refuse `count` times of which `first`, its row, item and time, is the first."""
    row, item, time = first
    source.fail(
        f"{source.unit} {row}: the time {time} of '{item}' is not on a regular grid of step '{step}' "
        f"({count} such times in all). Resample the data to one regular step.",
        "Or give its step with --freq.",
    )


def find_step(source: Source, stamps: pd.DatetimeIndex, freq: str | None) -> str:
    """The pandas offset alias of `freq`, anchored where the stamps of the longest series are; or what the stamps agree on."""
    if freq is not None:
        return _given_step(freq, stamps[0])
    if len(stamps) < 3:
        source.fail(f"{len(stamps)} time steps do not tell a frequency. Give it with --freq, such as D or h.")
    return _infer_step(source, stamps)


def _infer_step(source: Source, stamps: pd.DatetimeIndex) -> str:
    """The frequency that most short stretches of the stamps agree on, so that gaps elsewhere do not hide it."""
    width = min(8, len(stamps))
    starts = range(0, len(stamps) - width + 1, max(1, len(stamps) // 200))
    with quiet_pandas():
        votes = Counter(pd.infer_freq(stamps[start : start + width]) for start in starts)
    steps = [step for step, _ in votes.most_common() if step is not None and period_alias(step, check=False)]
    if steps:
        return steps[0]
    common = pd.Series(stamps).diff().mode()[0]
    if common < pd.Timedelta("1s"):
        source.fail("the time steps are shorter than a second. Rescale the times, or give a --freq.")
    return pd.tseries.frequencies.to_offset(common).freqstr


def _given_step(freq: str, first: pd.Timestamp) -> str:
    bare = "Y" if freq.upper() == "A" else freq.upper()
    with quiet_pandas():
        try:
            candidates = [pd.tseries.frequencies.to_offset(alias) for alias in _ANCHORED.get(bare, [freq])]
        except ValueError:
            raise UserError(f"--freq '{freq}' is no pandas frequency. Use one such as 15min, h, D, B, W, M, Q.") from None
        step = next((c for c in candidates if c.is_on_offset(first)), candidates[0]).freqstr
    if candidates[0].n < 1 or not period_alias(step, check=False):
        raise UserError(f"--freq '{freq}' is not supported: pandas has no such period. Use one such as h, D, B, W, M.")
    return step


def refuse_sparse(source: Source, item_id: str, first: object, last: object, rows: int, step: str) -> None:
    """Refuse a series of `rows` rows from `first` to `last` whose grid would be nearly empty."""
    begin, end = pd.Timestamp(first), pd.Timestamp(last)
    steps = (end - begin) / ((begin + 4 * pd.tseries.frequencies.to_offset(step) - begin) / 4)
    if steps > _MOSTLY_GAPS * (rows + 5):
        source.fail(
            f"'{item_id}' has {rows} rows but would have {steps:.0f} steps of '{step}' from "
            f"{begin} to {end}: nearly all are missing. Resample the data.",
            "Or give its step with --freq.",
        )


def period_alias(step: str, check: bool = True) -> str:
    """The period alias of an offset alias ("MS" -> "M"); where there is none, "" or, if it is to `check`, a failure."""
    try:
        with quiet_pandas():
            return str(pd.date_range("2000-01-01", periods=1, freq=step).to_period().freqstr)
    except ValueError:
        if check:
            raise
        return ""


@contextmanager
def quiet_pandas() -> Iterator[None]:
    """Without pandas' notices about the aliases and the business-day periods that GluonTS still builds on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
