"""What the commands see to before they begin, and the tables that they write."""

import logging
import warnings
from collections.abc import Callable
from datetime import time
from pathlib import Path
from typing import TYPE_CHECKING

from titans_seq.outputs import check_folder

if TYPE_CHECKING:
    import polars as pl


def prepare(**folders: Path) -> None:
    """Before anything slow: see that the folders can be written, and silence notices meant for developers."""
    for flag, folder in folders.items():
        check_folder(f"--{flag}", folder)
    logging.disable(logging.INFO)
    logging.getLogger("gluonts").setLevel(logging.ERROR)  # that a quantile forecast stores no mean
    warnings.filterwarnings("ignore", category=FutureWarning)  # of pandas, about the aliases that GluonTS builds on
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")


def set_threads(number: int) -> None:
    """Of torch: operations of a small model are so short that threads mostly wait for one another, on busy cores for minutes."""
    import torch  # which takes seconds: a table is read before

    torch.set_num_threads(number)


def table_writer(rows: "pl.DataFrame") -> Callable[[Path], None]:
    """Writes CSV or Parquet by the file's suffix; times without hours are written as days."""

    def write(path: Path) -> None:
        if path.suffix == ".parquet":
            rows.write_parquet(path)
            return
        days = "timestamp" in rows.columns and (rows["timestamp"].dt.time() == time()).all()
        rows.write_csv(path, datetime_format="%Y-%m-%d" if days else "%Y-%m-%d %H:%M:%S")

    return write
