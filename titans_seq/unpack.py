"""Archives from strangers: unpacked without leaving their folder, within limits, whole or not at all.

Only regular files and folders are made, each opened anew and written by us with the permissions that a new file has here. Links and
devices are refused: the filters of `tarfile` that allow them could be led out of the folder until Python 3.11.13 (CVE-2025-4517 and
others), `zipfile` has none, and data needs no links.
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from titans_seq.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".gz")
_CHUNK = 1 << 16
_LARGEST_READ = 1 << 17  # a header of a tar that asks for more at once is no header of data
_DEEPEST = 64
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,  # names that cannot be decoded or hold NUL, numbers out of range
    RuntimeError,  # an encrypted zip; NotImplementedError, its sub-class: a compression that zipfile lacks
    OverflowError,
)


@dataclass(frozen=True)
class UnpackLimits:
    """How much an archive may unpack to: bytes of all its files together, and files and folders."""

    max_bytes: int
    max_members: int = 10_000


class _Member(NamedTuple):
    name: str
    is_folder: bool
    is_file: bool
    open: Callable[[], Any]  # a file opened for reading bytes


def archive_suffix(name: str) -> str:
    """The ending of a file's name that tells its kind of archive, one of `SUFFIXES`.

    Raises:
        UserError: it has none of them.
    """
    found = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix) and len(name) > len(suffix)]
    if not found:
        raise UserError(f"{name}: unknown kind of archive. Those that can be unpacked end with {', '.join(SUFFIXES)}.")
    return max(found, key=len)


def unpack_archive(archive: str | Path, folder: str | Path, limits: UnpackLimits) -> Path:
    """Unpack a .zip, .tar (.gz, .bz2, .xz) or .gz into the new folder `folder`, which appears complete or not at all.

    Returns:
        folder; of a .gz it holds one file, called as the archive without its ending.

    Raises:
        UserError: the archive is damaged, unpacks to more than `limits`, or holds a path that leaves the folder, a link, a device or the
            same path twice; or `folder` exists.
    """
    archive, folder = Path(archive), Path(folder)
    suffix = archive_suffix(archive.name)
    if folder.exists():
        raise UserError(f"{folder}: is there already. Remove it, or unpack into another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".titans-seq-") as temporary:
        made = Path(temporary) / "unpacked"
        made.mkdir()
        try:
            with archive.open("rb") as file:
                _write(_members(file, archive.name, suffix), made, limits)
        except UserError as error:
            raise UserError(f"{archive}: {error}") from None
        except _DAMAGE as error:
            if isinstance(error, OSError) and error.errno:  # of the file system: no space, no permission, too long a name
                raise UserError(f"{archive}: cannot be unpacked into {folder} ({error}).") from error
            raise UserError(f"{archive}: cannot be unpacked, it is damaged or no {suffix} file ({error!r}). Download it again.") from error
        os.replace(made, folder)
    return folder


def _write(members: Iterator[_Member], folder: Path, limits: UnpackLimits) -> None:
    left = limits.max_bytes
    for count, member in enumerate(members):
        if count == limits.max_members:
            raise UserError(f"holds more than {limits.max_members} files and folders. If you trust it, raise max_members.")
        path = folder / _inside(member.name)
        if not (member.is_folder or member.is_file):
            raise UserError(f"{member.name!r} is a link or a device; only files and folders are unpacked.")
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            continue
        if path == folder:
            raise UserError(f"{member.name!r} names no file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise UserError(f"{member.name!r} comes twice.")
        with member.open() as source, path.open("xb") as target:
            while chunk := source.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise UserError(f"unpacks to more than {limits.max_bytes} bytes. If you trust it, raise the limit.")
                target.write(chunk)


def _inside(name: str) -> Path:
    """The path relative to the folder that `name` means, refused unless it stays inside."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or Path(name).drive:
        raise UserError(f"{name!r} leads out of the folder, or may do so on some system.")
    if len(path.parts) > _DEEPEST:
        raise UserError(f"a path is {len(path.parts)} folders deep, more than {_DEEPEST}.")
    return Path(path)


def _members(file: IO[bytes], name: str, suffix: str) -> Iterator[_Member]:
    if suffix == ".zip":
        yield from _zip_members(file)
    elif suffix == ".gz":
        yield _Member(name[: -len(suffix)], False, True, partial(gzip.open, file))
    else:
        yield from _tar_members(file, suffix)


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0  # of Unix; others have no links
            is_folder = info.filename.endswith("/")  # info.is_dir() fails for a name without a character
            is_file = not is_folder and kind in (0, stat.S_IFREG)
            yield _Member(info.filename, is_folder and kind in (0, stat.S_IFDIR), is_file, partial(archive.open, info))


def _tar_members(file: IO[bytes], suffix: str) -> Iterator[_Member]:
    opener: Any = {"gz": gzip.open, "z2": bz2.open, "xz": lzma.open}.get(suffix[-2:], nullcontext)
    with opener(file) as plain, tarfile.open(fileobj=_SmallReads(plain), mode="r:") as archive:  # type: ignore[call-overload]
        for info in archive:
            yield _Member(info.name, info.isdir(), info.isreg(), partial(archive.extractfile, info))
            archive.members.clear()  # it keeps every header otherwise


class _SmallReads:
    """A file that gives no more than `_LARGEST_READ` bytes at once: tarfile reads a header of any length into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_READ:
            raise UserError(f"a header asks for {size} bytes, more than {_LARGEST_READ}.")
        return self._file.read(size)
