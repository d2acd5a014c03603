"""What commands write: all files or none, each whole, and nothing over a run."""

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from titans_seq.errors import UserError


def write_all(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> list[Path]:
    """Have each writer make its file in a folder beside `folder`, and move them into it once all are complete."""
    with tempfile.TemporaryDirectory(dir=_existing_parent(folder), prefix=".titans-seq-") as temporary:
        for name, write in writers.items():
            write(Path(temporary) / name)
        folder.mkdir(parents=True, exist_ok=True)
        return [(Path(temporary) / name).replace(folder / name) for name in writers]


def check_folder(flag: str, folder: Path, names: Iterable[str] = (), inputs: Iterable[Path] = ()) -> None:
    """See before anything slow that a folder can be written into.

    Args:
        flag, folder: its option and its name.
        names: of files that are written there.
        inputs: what is read, which they must not be written over; what is not there is passed over.

    Raises:
        UserError: it cannot; `flag` and folder are named.
    """
    try:
        existing = _existing_parent(folder)
    except OSError as error:  # too long a name
        raise UserError(f"{flag} {folder}: is no usable path ({error.strerror}). Name another folder.") from None
    if not existing.is_dir():
        raise UserError(f"{flag} {folder}: {existing} is a file, not a folder. Name another folder.")
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".titans-seq-"):
            pass  # permissions alone say nothing of file systems that take no files
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot write into {existing} ({error.strerror}). Name another folder.") from None
    read = list(inputs)
    for path in (folder / name for name in names):
        if path.is_dir():
            raise UserError(f"{flag} {folder}: {path} is a folder, where a file is to be. Name another folder.")
        if _is_one_of(path, read):
            raise UserError(f"{flag} {folder}: {path} is read, and would be written over. Name another folder.")


def check_file(flag: str, path: Path, example: str, inputs: Iterable[Path] = ()) -> None:
    """See before anything slow that a file can be written.

    Args:
        flag, path: its option and its name.
        example: a name that it might have.
        inputs: what is read, which it must not be written over; what is not there is passed over.

    Raises:
        UserError: it cannot; `flag` and path are named.
    """
    check_folder(flag, path.parent)
    try:
        is_folder, is_other = path.is_dir(), path.exists() and not path.is_file()
    except OSError as error:  # too long a name
        raise UserError(f"{flag} {path}: is no usable path ({error.strerror}). Name another file.") from None
    if is_folder:
        raise UserError(f"{flag} {path}: is a folder. Name a file, such as {path / example}.")
    if is_other:  # a device or a pipe, in whose place a file would be put
        raise UserError(f"{flag} {path}: is no file that can be written anew. Name another.")
    if _is_one_of(path, inputs):
        raise UserError(f"{flag} {path}: is a file that is read, and would be written over. Name another.")


def check_no_run(folder: Path, parts: Sequence[str]) -> None:
    """Raise UserError if the folder holds a run that would be written over."""
    found = [name for name in parts if any(folder.glob(name))]
    if found:
        raise UserError(f"{folder}: already holds a run ({', '.join(found)}). Add --resume to go on with it, or name another folder.")


def _is_one_of(path: Path, others: Iterable[Path]) -> bool:
    """Whether it is there, and the same file as another."""
    return path.exists() and any(os.path.exists(one) and path.samefile(one) for one in others)


def _existing_parent(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    path = path.absolute()
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())
