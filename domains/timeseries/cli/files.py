"""What the commands write: all files or none, each whole."""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from datetime import time
from pathlib import Path
from typing import TYPE_CHECKING

from titans_seq.errors import UserError

if TYPE_CHECKING:
    import polars as pl


def prepare(threads: int, **folders: Path) -> None:
    """Before anything slow: see that the folders can be written, silence notices meant for developers, set torch's threads.

    Operations of a small model are so short that threads mostly wait for one another, on busy cores for minutes.
    """
    for flag, folder in folders.items():
        _check_folder(f"--{flag}", folder)
    logging.disable(logging.INFO)
    logging.getLogger("gluonts").setLevel(logging.ERROR)  # that a quantile forecast stores no mean
    warnings.filterwarnings("ignore", message="Using `json`-module", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of pandas, about the aliases that GluonTS builds on
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    import torch

    torch.set_num_threads(threads)


def write_all(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> list[Path]:
    """Have each writer make its file in a folder beside `folder`, and move them into it once all are complete."""
    with tempfile.TemporaryDirectory(dir=_existing_parent(folder), prefix=".titans-seq-") as temporary:
        for name, write in writers.items():
            write(Path(temporary) / name)
        folder.mkdir(parents=True, exist_ok=True)
        return [(Path(temporary) / name).replace(folder / name) for name in writers]


def table_writer(rows: "pl.DataFrame") -> Callable[[Path], None]:
    """Writes CSV or Parquet by the file's suffix; times without hours are written as days."""

    def write(path: Path) -> None:
        if path.suffix == ".parquet":
            rows.write_parquet(path)
            return
        days = "timestamp" in rows.columns and (rows["timestamp"].dt.time() == time()).all()
        rows.write_csv(path, datetime_format="%Y-%m-%d" if days else "%Y-%m-%d %H:%M:%S")

    return write


def _check_folder(flag: str, folder: Path) -> None:
    try:
        existing = _existing_parent(folder)
    except OSError as error:  # too long a name
        raise UserError(f"{flag} {folder}: is no usable path ({error.strerror}). Name another folder.") from None
    if not existing.is_dir():
        raise UserError(f"{flag} {folder}: {existing} is a file, not a folder. Name another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: no permission to write into {existing}. Name another folder.")


def _existing_parent(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    path = path.absolute()
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())
