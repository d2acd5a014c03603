"""The cache of a genome: written once, whole or not at all, and noticed when it is stale.

Beside NAME, in `.titans_seq` or a folder that the user names:

    NAME.json            the index: format, source (path, size, mtime, SHA-256), records (name, length, offset)
    NAME.HASH.bases      the codes of all records end to end; then how many N come before each N_BLOCK of them
"""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.data.sequences import find_kind, read_records
from titans_seq import strict_json
from titans_seq.errors import UserError
from titans_seq.files import sync_folder

FORMAT = 1
FOLDER = ".titans_seq"
N_BLOCK = 1024
"""Bases between two counts of N."""
_SHOWN_FROM = 20_000_000
"""Bytes of a file whose reading shows a progress bar."""
_COUNTED = N_BLOCK << 12


@dataclass(frozen=True)
class Index:
    """What a cache says of itself. lengths, offsets: of the records, in bases."""

    source: Path
    size: int
    mtime_ns: int
    sha256: str
    names: tuple[str, ...]
    lengths: tuple[int, ...]

    @property
    def offsets(self) -> np.ndarray:
        """(R + 1,) int64: where each record begins in the file of codes, and where the last one ends."""
        return np.concatenate([[0], np.cumsum(np.array(self.lengths, dtype=np.int64))])

    @property
    def counts_at(self) -> int:
        """The byte at which the counts of N begin."""
        return -(-int(self.offsets[-1]) // N_BLOCK) * N_BLOCK

    @property
    def file_size(self) -> int:
        """Bytes of the file of codes, counts included."""
        return self.counts_at + 8 * (self.counts_at // N_BLOCK + 1)

    def to_json(self) -> str:
        """The text of the index."""
        source = {"path": str(self.source), "size": self.size, "mtime_ns": self.mtime_ns, "sha256": self.sha256}
        records = [list(record) for record in zip(self.names, self.lengths, self.offsets.tolist(), strict=False)]
        return json.dumps({"format": FORMAT, "source": source, "records": records})

    @classmethod
    def from_json(cls, text: str) -> "Index":
        """Inverse of `to_json`.

        Raises:
            ValueError: the text is no such index, or one of another format.
        """
        values = strict_json.loads(text)
        try:
            source = values["source"]
            names, lengths, offsets = zip(*values["records"], strict=True)
            index = cls(Path(source["path"]), source["size"], source["mtime_ns"], source["sha256"], names, lengths)
            good = values["format"] == FORMAT and all(type(n) is int and n > 0 for n in (*lengths, index.size))
            good = good and all(isinstance(text, str) for text in (*names, index.sha256)) and index.offsets[:-1].tolist() == list(offsets)
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"no index of a genome: {error!r}") from error
        if not good:
            raise ValueError("no index of a genome of this format")
        return index


@dataclass(frozen=True)
class Cache:
    """Where the cache of a source is: files of the name `stem` in `folder`."""

    folder: Path
    stem: str

    @property
    def index_path(self) -> Path:
        """The index."""
        return self.folder / f"{self.stem}.json"

    def bases_path(self, index: Index) -> Path:
        """The file of codes that an index is of."""
        return self.folder / f"{self.stem}.{index.sha256[:16]}.bases"

    def load(self) -> Index | None:
        """The index, or None where there is none that fits its file of codes."""
        try:
            index = Index.from_json(self.index_path.read_text())
            return index if self.bases_path(index).stat().st_size == index.file_size else None
        except (OSError, ValueError):  # not there, of another format, or damaged: it is written anew
            return None


def caches_of(source: Path, folder: Path | None) -> list[Cache]:
    """Where the cache of a source may be: in `folder`, or else beside it or, if one cannot write there, in the user's own cache."""
    key = hashlib.sha256(str(source.resolve()).encode(errors="surrogateescape")).hexdigest()[:8]
    apart = f"{source.name}-{key}"  # files of one name from several folders
    if folder is not None:
        return [Cache(folder.absolute(), apart)]
    return [Cache(source.absolute().parent / FOLDER, source.name), Cache(user_folder(), apart)]


def user_folder() -> Path:
    """The user's own folder for caches of genomes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "titans_seq" / "genomes"


def find_or_build(source: Path, folder: Path | None, progress: bool) -> tuple[Cache, Index]:
    """The cache of a source, as fresh as the source.

    Raises:
        UserError: as `read_records`, or no folder can be written to.
    """
    find_kind(source)
    caches = caches_of(source, folder)
    for cache in caches:
        index = cache.load()
        if index is not None and _is_unchanged(source, index):
            return cache, index
    cache = _first_writable(caches, progress)
    try:
        with FileLock(cache.folder / f".{cache.stem}.lock"):
            index = cache.load()  # another process may have built it meanwhile
            if index is not None and _is_unchanged(source, index):
                return cache, index
            if index is not None and index.size == source.stat().st_size and index.sha256 == _digest(source):
                # touched or copied, not changed
                index = replace(index, source=source.absolute(), mtime_ns=source.stat().st_mtime_ns)
                with tempfile.TemporaryDirectory(dir=cache.folder, prefix=".titans-seq-") as temporary:
                    _write_index(cache, index, Path(temporary))
                return cache, index
            return cache, _build(source, cache, progress)
    except OSError as error:
        raise UserError(
            f"{cache.folder}: the cache of {source} cannot be written ({error}). Free space, or name another folder."
        ) from error


def _is_unchanged(source: Path, index: Index) -> bool:
    stat = source.stat()
    return (stat.st_size, stat.st_mtime_ns) == (index.size, index.mtime_ns)


def _first_writable(caches: list[Cache], progress: bool) -> Cache:
    problems = []
    for cache in caches:
        try:
            cache.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache.folder):
                pass
        except OSError as error:
            problems.append(f"{cache.folder} ({error.strerror})")
            continue
        if problems and progress:
            Console(stderr=True).print(
                f"{problems[0]} cannot be written to; the cache goes to {cache.folder}.", markup=False, soft_wrap=True
            )
        return cache
    raise UserError(f"no cache can be written to {' or '.join(problems)}. Name a folder that can be.")


def _build(source: Path, cache: Cache, progress: bool) -> Index:
    before = source.stat()
    with tempfile.TemporaryDirectory(dir=cache.folder, prefix=".titans-seq-") as temporary:
        made = Path(temporary) / "bases"
        with made.open("w+b") as file:
            names, lengths = _write_codes(source, file, progress and before.st_size >= _SHOWN_FROM)
            index = Index(source.absolute(), before.st_size, before.st_mtime_ns, _digest(source), tuple(names), tuple(lengths))
            _append_counts(file, index)
            file.flush()
            os.fsync(file.fileno())
        if not _is_unchanged(source, index):
            raise UserError(f"{source}: has changed while it was read. Read it again when it is written.")
        os.replace(made, cache.bases_path(index))
        _write_index(cache, index, Path(temporary))
    for old in cache.folder.glob(f"{_escaped(cache.stem)}.*.bases"):
        if old != cache.bases_path(index):
            old.unlink(missing_ok=True)
    return index


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _write_codes(source: Path, file: BinaryIO, progress: bool) -> tuple[list[str], list[int]]:
    names, lengths = [], []
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task(f"Reading {source.name}", total=source.stat().st_size)
        for name, blocks in read_records(source, lambda opened: bar.wrap_file(opened, task_id=task)):
            begin = file.tell()
            for block in blocks:
                file.write(block)
            names.append(name)
            lengths.append(file.tell() - begin)
    return names, lengths


def _append_counts(file: BinaryIO, index: Index) -> None:
    """Fill the last block, and write how many N come before each block and in all, (blocks + 1,) int64."""
    file.write(bytes(index.counts_at - file.tell()))
    file.seek(0)
    counts = [np.zeros(1, dtype=np.int64)]
    while len(codes := np.frombuffer(file.read(min(_COUNTED, index.counts_at - file.tell())), dtype=np.uint8)):
        counts.append(((codes & BASE_BITS) == N).reshape(-1, N_BLOCK).sum(axis=1))
    file.write(np.cumsum(np.concatenate(counts), dtype=np.int64).tobytes())


def _write_index(cache: Cache, index: Index, temporary: Path) -> None:
    made = temporary / "index.json"
    made.write_text(index.to_json())
    os.replace(made, cache.index_path)
    sync_folder(cache.folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
