"""Tables to read."""

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from domains.timeseries.data import SeriesTable, read_table
from titans_seq.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes text, bytes or a frame (as Parquet) to a file and gives its path."""

    def write(text, name="t.csv"):
        path = tmp_path / name
        if isinstance(text, pl.DataFrame):
            text.write_parquet(path)
        elif name.endswith(".gz"):
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def fails() -> Callable[..., None]:
    """Reading raises a UserError that holds the file's name and all parts."""

    def fails(path: Path, *parts: str, read: Callable[..., SeriesTable] = read_table, **options) -> None:
        with pytest.raises(UserError) as caught:
            read(path, **options)
        for part in (path.name, *parts):
            assert part in str(caught.value), str(caught.value)

    return fails
