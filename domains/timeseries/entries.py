"""What estimators and predictors take: GluonTS's entries. What is none is refused with the way to one."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

ENTRIES = "entries of GluonTS (a list or dataset of dictionaries with 'start', a pandas Period, and 'target', an array (T,) or (C, T))"


def check_dataset(data: Any, name: str = "training_data") -> None:
    """Refuse what holds no entries, by name.

    Raises:
        TypeError: it is a table, a data frame, a path, one entry or nothing to go through; how to make entries of it.
    """
    read = "read_table(path, target=[..]).to_gluonts() of domains.timeseries.data"
    ways = (
        (hasattr(data, "to_gluonts"), "give its to_gluonts()"),
        (isinstance(data, pd.DataFrame | pd.Series), "give gluonts.dataset.pandas.PandasDataset(frame, target='column')"),
        (hasattr(data, "columns"), f"write it to CSV or Parquet and give {read}"),
        (isinstance(data, str | Path), f"give {read}"),
        (isinstance(data, Mapping), "give a list of it, if it is an entry"),
        (not isinstance(data, Iterable), f"of a file {read} makes them"),
    )
    for wrong, way in ways:
        if wrong:
            raise TypeError(f"{name} must be {ENTRIES}, got a {type(data).__name__}: {way}")


def check_entry(entry: Any) -> None:
    """Refuse what is no entry.

    Raises:
        TypeError: it is no dictionary, has no start or target, or its start is no Period.
    """
    if not isinstance(entry, Mapping):
        raise TypeError(f"an entry must be a dictionary, got a {type(entry).__name__}; the data must be {ENTRIES}")
    lacking = [name for name in ("start", "target") if name not in entry]
    if lacking:
        raise TypeError(f"an entry lacks {' and '.join(map(repr, lacking))}; the data must be {ENTRIES}")
    start = entry["start"]
    if not isinstance(start, pd.Period):
        raise TypeError(f"an entry's start must be a pandas Period, got {start!r:.60}: pandas.Period('2024-01-01', freq='D')")
