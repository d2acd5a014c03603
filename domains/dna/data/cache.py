"""The cache of a genome (`titans_seq.cache`): written once, whole or not at all, and noticed when it is stale.

Of the source NAME:

    NAME.json            the index: format, source (path, size, mtime, SHA-256), ambiguous letters, records (name, length, offset)
    NAME.HASH.bases      the codes of all records end to end; then how many N come before each N_BLOCK of them
"""

import json
import os
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.data.sequences import find_kind, read_records
from titans_seq import cache, strict_json
from titans_seq.cache import Place, places_of
from titans_seq.errors import UserError
from titans_seq.files import digest
from titans_seq.progress import make_bar

FORMAT = 2
KIND = "genomes"
N_BLOCK = 1024
"""Bases between two counts of N."""
_SHOWN_FROM = 20_000_000
"""Bytes of a file whose reading shows a progress bar."""
_COUNTED = N_BLOCK << 12


@dataclass(frozen=True)
class Index:
    """What a cache says of itself. ambiguous: letters other than N that were read as N. lengths, offsets: of the records, in bases."""

    source: Path
    size: int
    mtime_ns: int
    sha256: str
    ambiguous: int
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
        return json.dumps({"format": FORMAT, "source": source, "ambiguous": self.ambiguous, "records": records})

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
            of_source = Path(source["path"]), source["size"], source["mtime_ns"], source["sha256"]
            index = cls(*of_source, values["ambiguous"], names, lengths)
            good = values["format"] == FORMAT and all(type(n) is int and n > 0 for n in (*lengths, index.size))
            good = good and type(index.ambiguous) is int and index.ambiguous >= 0
            good = good and all(isinstance(text, str) for text in (*names, index.sha256)) and index.offsets[:-1].tolist() == list(offsets)
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"no index of a genome: {error!r}") from error
        if not good:
            raise ValueError("no index of a genome of this format")
        return index


def bases_path(place: Place, index: Index) -> Path:
    """The file of codes that an index is of."""
    return place.path(f"{index.sha256[:16]}.bases")


def find_or_build(source: Path, folder: Path | None, progress: bool) -> tuple[Place, Index]:
    """The cache of a source, as fresh as the source; folder: where, None for `titans_seq.cache.places_of`.

    Raises:
        UserError: as `read_records`, or no folder can be written to.
    """
    find_kind(source)
    places = places_of(source, folder, KIND)
    return cache.find_or_build(source, places, partial(_load_fresh, source), partial(_build, source, progress), progress)


def _load(place: Place) -> Index | None:
    """The index, or None where there is none that fits its file of codes."""
    try:
        index = Index.from_json(place.path("json").read_text())
        return index if bases_path(place, index).stat().st_size == index.file_size else None
    except (OSError, ValueError):  # not there, of another format, or damaged: it is written anew
        return None


def _load_fresh(source: Path, place: Place) -> Index | None:
    index = _load(place)
    if index is None or not _is_unchanged(source, index):
        return None
    return index if place.is_as_fresh("json", [source], lambda: index.sha256 == digest(source)) else None


def _is_unchanged(source: Path, index: Index) -> bool:
    stat = source.stat()
    return (stat.st_size, stat.st_mtime_ns) == (index.size, index.mtime_ns)


def _build(source: Path, progress: bool, place: Place) -> Index:
    before, old = source.stat(), _load(place)
    if old is not None and old.size == before.st_size and old.sha256 == digest(source):  # touched or copied, not changed
        index = replace(old, source=source.absolute(), mtime_ns=before.st_mtime_ns)
        place.write("json", index.to_json())
        return index
    with tempfile.TemporaryDirectory(dir=place.folder, prefix=".titans-seq-") as temporary:
        made = Path(temporary) / "bases"
        with made.open("w+b") as file:
            found = _write_codes(source, file, progress and before.st_size >= _SHOWN_FROM)
            index = Index(source.absolute(), before.st_size, before.st_mtime_ns, digest(source), *found)
            _append_counts(file, index)
            file.flush()
            os.fsync(file.fileno())
        if not _is_unchanged(source, index):
            raise UserError(f"{source}: has changed while it was read. Read it again when it is written.")
        os.replace(made, bases_path(place, index))
        place.write("json", index.to_json())
    for stale in place.others("bases", kept=bases_path(place, index)):
        stale.unlink(missing_ok=True)
    return index


def _write_codes(source: Path, file: BinaryIO, progress: bool) -> tuple[int, tuple[str, ...], tuple[int, ...]]:
    """How many letters are ambiguous, and names and lengths of the records."""
    ambiguous, names, lengths = 0, [], []
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with make_bar(*columns, disable=not progress) as bar:
        task = bar.add_task(f"Reading {source.name}", total=source.stat().st_size)
        for name, blocks in read_records(source, lambda opened: bar.wrap_file(opened, task_id=task)):
            begin = file.tell()
            for block in blocks:
                file.write(block.codes)
                ambiguous += block.ambiguous
            names.append(name)
            lengths.append(file.tell() - begin)
    return ambiguous, tuple(names), tuple(lengths)


def _append_counts(file: BinaryIO, index: Index) -> None:
    """Fill the last block, and write how many N come before each block and in all, (blocks + 1,) int64."""
    file.write(bytes(index.counts_at - file.tell()))
    file.seek(0)
    counts = [np.zeros(1, dtype=np.int64)]
    while len(codes := np.frombuffer(file.read(min(_COUNTED, index.counts_at - file.tell())), dtype=np.uint8)):
        counts.append(((codes & BASE_BITS) == N).reshape(-1, N_BLOCK).sum(axis=1))
    file.write(np.cumsum(np.concatenate(counts), dtype=np.int64).tobytes())
