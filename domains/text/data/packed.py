"""Texts as tokens in a memory-mapped file, made once (`titans_seq.cache`), checked when opened, and gone on with after a kill.

Of the source NAME (a file or a folder), a tokeniser and a field, of which KEY is made:

    NAME.KEY.json                 the index: files (name, size, mtime), their SHA-256, numbers of tokens and documents, checksums
    NAME.KEY.HASH.tokens          END, tokens of a document, END, tokens of the next .. END: two bytes a token, or four
    NAME.KEY.HASH.documents       (N, 3) int64: where the END before each document is, its bytes of UTF-8, and the number of its file
    .NAME.KEY.partial/            of an unfinished one; progress.json says how far both files can be trusted
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

from domains.text.data.sources import BLOCK, LINES, PARQUET, Block, find_files, has_changed, kind_of, read_blocks, stamp
from domains.text.tokenizers import Tokenizer
from titans_seq import cache, strict_json
from titans_seq.cache import Place, places_of
from titans_seq.errors import UserError
from titans_seq.files import digest
from titans_seq.progress import make_bar

FORMAT = 1
KIND = "texts"
_SHOWN_FROM = 20_000_000
"""Bytes of a source whose reading shows a progress bar."""

Stamps = tuple[tuple[str, int, int], ...]
"""Name, size and time of each file."""


@dataclass(frozen=True)
class Index:
    """What a cache says of itself. checksums: CRC-32 of tokens and documents."""

    files: Stamps
    sha256: str
    dtype: str
    tokens: int
    documents: int
    checksums: tuple[int, int]
    format: int = FORMAT

    @classmethod
    def from_json(cls, text: str) -> "Index":
        """Inverse of `json.dumps(asdict(index))`.

        Raises:
            ValueError: the text is no such index, or one of another format.
        """
        values = strict_json.loads(text)
        try:
            files = tuple((str(name), int(size), int(time)) for name, size, time in values.pop("files"))
            first, second = values.pop("checksums")
            index = cls(files=files, checksums=(int(first), int(second)), **values)
            good = index.format == FORMAT and index.dtype in ("uint16", "uint32") and isinstance(index.sha256, str)
            good = good and all(type(n) is int and n >= 0 for n in (index.tokens, index.documents))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"no index of texts: {error!r}") from error
        if not good:
            raise ValueError("no index of texts of this format")
        return index


@dataclass(frozen=True)
class Packed:
    """Tokens of a source.

    source: the file or folder. files: its files. tokens: (M,) as the cache holds them, mapped. starts: (N + 1,) int64, where END stands
    before each document, and behind the last. sizes: (N,) int64 bytes of UTF-8. file: (N,) int64, the file that each is of.
    """

    source: Path
    files: tuple[Path, ...]
    tokens: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    file: np.ndarray


def open_packed(source: Path, tokenizer: Tokenizer, field: str, folder: Path | None = None, progress: bool = True) -> Packed:
    """The tokens of a file, or of the texts in a folder: read from the cache if it is as fresh as the files, else made.

    Raises:
        UserError: as `find_files` and `read_blocks`, a file changes while it is read, or no folder can be written to.
    """
    files = find_files(source)
    key = hashlib.sha256(json.dumps([FORMAT, tokenizer.identity, field]).encode()).hexdigest()[:8]
    places = places_of(source, folder, KIND, f".{key}")
    load, build = partial(_load_fresh, source, files), partial(_build, source, files, tokenizer, field, progress)
    place, index = cache.find_or_build(source, places, load, build, progress)
    try:
        tokens = np.memmap(_path(place, index, "tokens"), index.dtype, "r").view(np.ndarray) if index.tokens else np.zeros(0, index.dtype)
        starts, sizes, file = np.fromfile(_path(place, index, "documents"), np.int64).reshape(-1, 3).T
    except OSError as error:
        raise UserError(f"{place.folder}: the cache of {source} is gone or being made anew ({error}). Open it again.") from error
    return Packed(source, tuple(files), tokens, np.append(starts, max(index.tokens - 1, 0)), sizes, file)


def _path(place: Place, index: Index, ending: str) -> Path:
    return place.path(f"{index.sha256[:16]}.{ending}")


def _stamps(source: Path, files: list[Path]) -> Stamps:
    return tuple((str(path.relative_to(source)) if path != source else path.name, *stamp(path)) for path in files)


def _load(place: Place) -> Index | None:
    """The index, or None where there is none."""
    try:
        return Index.from_json(place.path("json").read_text())
    except (OSError, ValueError):  # not there, of another format, or damaged: it is written anew
        return None


def _is_whole(place: Place, index: Index) -> bool:
    """Whether the files are those that the index is of, by sizes and checksums."""
    sizes = (index.tokens * np.dtype(index.dtype).itemsize, index.documents * 24)
    for ending, size, checksum in zip(("tokens", "documents"), sizes, index.checksums, strict=True):
        path = _path(place, index, ending)
        if not path.is_file() or path.stat().st_size != size or _checksum(path, size) != checksum:
            return False
    return True


def _checksum(path: Path, size: int) -> int:
    """CRC-32 of the first `size` bytes of a file, of all of it where it is shorter."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(min(size, 1 << 22)):
            value, size = zlib.crc32(block, value), size - len(block)
    return value


def _load_fresh(source: Path, files: list[Path], place: Place) -> Index | None:
    index = _load(place)
    if index is None or index.files != _stamps(source, files) or not _is_whole(place, index):
        return None
    return index if place.is_as_fresh("json", files, lambda: index.sha256 == _digest(files)) else None


def _build(source: Path, files: list[Path], tokenizer: Tokenizer, field: str, progress: bool, place: Place) -> Index:
    stamps, old = _stamps(source, files), _load(place)
    alike = old is not None and [stamp[:2] for stamp in old.files] == [stamp[:2] for stamp in stamps]
    if old is not None and alike and old.sha256 == _digest(files) and _is_whole(place, old):
        index = replace(old, files=stamps)  # touched or copied, not changed
        place.write("json", json.dumps(asdict(index)))
        return index
    made = place.folder / f".{place.stem}.partial"
    written = _write(files, tokenizer, field, made, stamps, progress and sum(size for _, size, _ in stamps) >= _SHOWN_FROM)
    sha256 = _digest(files)
    now = _stamps(source, files)
    if now != stamps:
        changed = next(path for path, before, after in zip(files, stamps, now, strict=True) if before != after)
        raise has_changed(changed)
    index = Index(stamps, sha256, str(_dtype(tokenizer)), written.tokens, written.documents, written.checksums)
    for ending in ("tokens", "documents"):
        os.replace(made / ending, _path(place, index, ending))
    place.write("json", json.dumps(asdict(index)))
    shutil.rmtree(made)
    for ending in ("tokens", "documents"):
        for stale in place.others(ending, kept=_path(place, index, ending)):
            stale.unlink(missing_ok=True)
    return index


def _digest(files: list[Path]) -> str:
    return hashlib.sha256("".join(map(digest, files)).encode()).hexdigest()


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocabulary <= 1 << 16 else np.uint32)


class _Open(NamedTuple):
    """An unfinished document: where its END stands, and its bytes so far."""

    start: int
    size: int


@dataclass(frozen=True)
class _Written:
    """How far the files of an unfinished cache can be trusted. blocks: of the sources that are in them. stamps: of the sources."""

    stamps: Any
    blocks: int = 0
    tokens: int = 0
    documents: int = 0
    checksums: tuple[int, int] = (0, 0)
    open: _Open | None = None

    @classmethod
    def read(cls, path: Path, stamps: Stamps) -> "_Written":
        """What a progress.json says; the begin where there is none, or it is of other files."""
        try:
            values = json.loads(path.read_text())
            if values.pop("stamps") != [list(stamp) for stamp in stamps]:
                return cls(stamps)
            opened, (first, second) = values.pop("open"), values.pop("checksums")
            made = cls(stamps, checksums=(first, second), open=None if opened is None else _Open(*opened), **values)
            counts = (made.blocks, made.tokens, made.documents, *made.checksums, *(made.open or ()))
            return made if all(type(n) is int and 0 <= n < 2**48 for n in counts) else cls(stamps)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or damaged: from the begin
            return cls(stamps)

    def save(self, path: Path) -> None:
        """Write progress.json, whole or not at all."""
        beside = path.with_suffix(".new")
        with beside.open("w") as file:
            json.dump(asdict(self) | {"open": self.open}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def _write(files: list[Path], tokenizer: Tokenizer, field: str, folder: Path, stamps: Stamps, progress: bool) -> _Written:
    """Tokens and documents of all files into `folder`, from where an earlier process left it."""
    folder.mkdir(exist_ok=True)
    done = _Written.read(folder / "progress.json", stamps)
    paths = [folder / "tokens", folder / "documents"]
    for path in paths:
        path.touch()
    item = _dtype(tokenizer).itemsize
    with paths[0].open("r+b") as tokens, paths[1].open("r+b") as documents:
        if done.checksums != (_checksum(paths[0], done.tokens * item), _checksum(paths[1], done.documents * 24)):
            done = _Written(stamps)
        for file, size in ((tokens, done.tokens * item), (documents, done.documents * 24)):
            file.truncate(size)
            file.seek(size)
        for number, batch in enumerate(_batches(islice(_shown(files, field, progress), done.blocks, None))):
            if number:  # there is more to come than what was written
                _sync(tokens, documents)
                done.save(folder / "progress.json")
            done = _append(batch, tokenizer, done, tokens, documents)
        if done.tokens:
            done = _put(done, np.array([tokenizer.end], _dtype(tokenizer)), np.zeros((0, 3), np.int64), tokens, documents)
        _sync(tokens, documents)
    return done


def _sync(*files: BinaryIO) -> None:
    """Have on the disk what was written."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def _shown(files: list[Path], field: str, progress: bool) -> Iterator[tuple[int, Block]]:
    """All blocks of all files, with the number of the file, and a progress bar."""
    plain = all(not packing and kind not in (*LINES, *PARQUET) for kind, packing in map(kind_of, files))
    total = sum(path.stat().st_size for path in files) if plain else None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with make_bar(*columns, disable=not progress) as bar:
        task = bar.add_task("Tokenising", total=total)
        for number, path in enumerate(files):
            for block in read_blocks(path, field):
                yield number, block
                bar.advance(task, len(block.text.encode()) if progress else 0)


def _batches(blocks: Iterator[tuple[int, Block]]) -> Iterator[list[tuple[int, Block]]]:
    """Blocks of about `BLOCK` characters together: what is tokenised, written and remembered at a time."""
    batch: list[tuple[int, Block]] = []
    size = 0
    for number, block in blocks:
        batch.append((number, block))
        size += len(block.text) + 16
        if size >= BLOCK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _append(batch: list[tuple[int, Block]], tokenizer: Tokenizer, done: _Written, tokens: BinaryIO, documents: BinaryIO) -> _Written:
    dtype, opened, at = _dtype(tokenizer), done.open, done.tokens
    parts: list[np.ndarray] = []
    rows: list[tuple[int, int, int]] = []
    for (number, block), ids in zip(batch, tokenizer.encode_batch([block.text for _, block in batch]), strict=True):
        if block.text:
            if opened is None:
                opened = _Open(at, 0)
                parts.append(np.array([tokenizer.end], dtype))
                at += 1
            parts.append(ids.astype(dtype))
            at += len(ids)
            opened = _Open(opened.start, opened.size + len(block.text.encode()))
        if block.last and opened is not None:  # of an empty document nothing is written
            rows.append((*opened, number))
            opened = None
    written = np.concatenate([np.zeros(0, dtype), *parts])
    after = _put(done, written, np.array(rows, np.int64).reshape(-1, 3), tokens, documents)
    return replace(after, blocks=done.blocks + len(batch), open=opened)


def _put(done: _Written, ids: np.ndarray, rows: np.ndarray, tokens: BinaryIO, documents: BinaryIO) -> _Written:
    """Append to both files, and count it."""
    tokens.write(ids.tobytes())
    documents.write(rows.tobytes())
    sums = tuple(zlib.crc32(x.tobytes(), value) for x, value in zip((ids, rows), done.checksums, strict=True))
    return replace(done, tokens=done.tokens + len(ids), documents=done.documents + len(rows), checksums=(sums[0], sums[1]))
