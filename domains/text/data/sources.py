"""Files as documents of text: plain, JSON lines and Parquet, also compressed, and folders of them; read as a stream, never whole.

A document comes as blocks, so that one that is larger than memory can be read too. Files are UTF-8 to the byte: no line ending, mark of
byte order or normal form is changed.
"""

import gzip
import io
import json
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import zstandard

from titans_seq import cache
from titans_seq.errors import UserError

TEXT = (".txt", ".text", ".md")
LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
PACKED = (".gz", ".zst")
SUFFIXES = (*TEXT, *LINES, *PARQUET)
"""Of the files that a folder is searched for; those of text and of JSON lines also with `PACKED` behind."""
FIELD = "text"
"""The field of a JSON line, and the column of a Parquet, that is read unless another is named."""
BLOCK = 1 << 20
"""Characters of a block, at most."""
_READ = 1 << 20
_ROWS = 1 << 12
_ZSTD_READ = 1 << 12  # what so many bytes can unpack to fits into memory, whatever they are
_DAMAGE = (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError)


class Block(NamedTuple):
    """A part of a document, or all of it; `last` where the document ends with it. Of an empty document the text is empty."""

    text: str
    last: bool


def find_files(path: Path) -> list[Path]:
    """The file itself, or all files below a folder whose names end as texts' do, in the order of their names.

    Raises:
        UserError: nothing is there, or the folder holds no such file.
    """
    try:
        if path.is_file():
            return [path]
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # too long a name, or one with NUL
        raise UserError(f"{path}: is no usable path ({getattr(error, 'strerror', error)}).") from error
    if is_there and not is_folder:
        raise UserError(f"{path}: is neither a file nor a folder, but a pipe or a device, which cannot be read twice. Save it to a file.")
    if not is_folder:
        raise UserError(f"{path}: no such file or folder. Check the path; it is looked up from {Path.cwd()}.")
    found = sorted(file for file in path.rglob("*") if _is_text(file) and file.is_file() and cache.FOLDER not in file.parts)
    if not found:
        raise UserError(
            f"{path}: no file in this folder ends in {', '.join(SUFFIXES)} (or .gz, .zst behind). Name files, or another folder."
        )
    return found


def _is_text(path: Path) -> bool:
    kind, packing = kind_of(path)
    return kind in SUFFIXES and not (packing and kind in PARQUET)


def kind_of(path: Path) -> tuple[str, str]:
    """The ending that tells what a file holds, and .gz, .zst or nothing: how it is packed."""
    packing = path.suffix.lower() if path.suffix.lower() in PACKED else ""
    return (path.with_suffix("") if packing else path).suffix.lower(), packing


def find_all(paths: Iterable[Path]) -> list[Path]:
    """What `find_files` finds of each."""
    return [file for path in paths for file in find_files(path)]


def read_files(paths: Iterable[Path], field: str = FIELD) -> Iterator[Block]:
    """The documents of files and folders, in order, as `read_blocks` gives them.

    Raises:
        UserError: as `find_files` and `read_blocks`, or all are empty.
    """
    files, empty = find_all(paths), True
    for file in files:
        for block in read_blocks(file, field):
            empty = empty and not block.text
            yield block
    if empty:
        raise all_empty(files)


def all_empty(files: Sequence[Path]) -> UserError:
    """Of files that hold no text."""
    if not files:
        return UserError("no text: name at least one file or folder.")
    others = f", and so are {len(files) - 1} others" if len(files) > 1 else ""
    return UserError(f"{files[0]}: is empty{others}. Name files that hold text.")


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file: what changes when it is written."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def has_changed(path: Path) -> UserError:
    """Of a file that was written while it was read."""
    return UserError(f"{path}: has changed while it was read. Read it when it is written, or a copy of it.")


def read_blocks(path: Path, field: str = FIELD) -> Iterator[Block]:
    """The documents of a file, in order.

    A plain text file is a document, of JSON lines every line is one, of a Parquet every row; `field` names the field or column. Blank lines
    are left out.

    Raises:
        UserError: the file cannot be read, is damaged, is not UTF-8 (the place is named), a line or the column is not of that form, or it
            has changed when its end is reached.
    """
    try:
        before = stamp(path)
        yield from _blocks(path, field)
        if stamp(path) != before:
            raise has_changed(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _blocks(path: Path, field: str) -> Iterator[Block]:
    kind, packing = kind_of(path)
    try:
        if kind in PARQUET and not packing:
            for text in _rows(path, field):
                yield from _document(iter([text]))
            return
        with _open(path, packing) as file:
            if kind in LINES:
                for text in _lines(path, file, field):
                    yield from _document(iter([text]))
            else:
                yield from _document(decoded(path, file))
    except _DAMAGE as error:
        raise UserError(f"{path}: damaged or no {packing} file ({error}). Copy or download it again.") from error


def _open(path: Path, packing: str) -> IO[bytes]:
    if packing == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if packing == ".zst":
        return io.BufferedReader(_Frames(path.open("rb")), _READ)
    return path.open("rb")


class _Frames(io.RawIOBase):
    """The content of a zstd file of one or more frames; zstandard's own reader takes the begin of a file for the whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._frame, self._held = file, zstandard.ZstdDecompressor().decompressobj(), b""
        self._begun = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the file below."""
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """As `io.RawIOBase`; EOFError where the last frame is cut off."""
        while not self._held:
            packed = (self._frame.unused_data if self._frame.eof else b"") or self._file.read(_ZSTD_READ)
            if not packed:
                if self._begun and not self._frame.eof:
                    raise EOFError("its last frame is cut off")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._begun = True
            self._held = self._frame.decompress(packed)
        size = min(len(buffer), len(self._held))
        buffer[:size], self._held = self._held[:size], self._held[size:]
        return size


def _document(texts: Iterator[str]) -> Iterator[Block]:
    """A document that comes in any parts, in blocks."""
    held = ""
    for text in texts:
        held += text
        while len(held) > BLOCK:
            place = seam(held, BLOCK)
            yield Block(held[:place], False)
            held = held[place:]
    yield Block(held, True)


def seam(text: str, limit: int) -> int:
    """Where to cut a text after at most `limit` characters: behind a line that the next one follows without space, if there is one in the
    second half; no tokeniser that keeps line ends apart joins what stands on both sides.
    """
    place = text.rfind("\n", limit // 2, limit)
    while place > 0:
        if not text[place - 1].isspace() and not text[place + 1].isspace():
            return place + 1
        place = text.rfind("\n", limit // 2, place)
    return limit


def decoded(path: Path | str, file: IO[bytes]) -> Iterator[str]:
    """What a file holds, in parts. path: what errors call it.

    Raises:
        UserError: it is not UTF-8; the place is named.
    """
    decoder, place, waiting, block = getincrementaldecoder("utf-8")(), 0, 0, b"."
    while block:
        block = file.read(_READ)
        waiting = len(decoder.getstate()[0])  # bytes of a character that the block before cut
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = place - waiting + error.start
            raise UserError(
                f"{path}: not UTF-8 at byte {at} ({error.reason}). Convert it: iconv -f ENCODING -t UTF-8 FILE > NEW."
            ) from error
        place += len(block)


def _lines(path: Path, file: IO[bytes], field: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line.decode("utf-8-sig"))
            if not isinstance(values, dict) or not isinstance(values.get(field), str):
                keys = f"its keys: {', '.join(map(str, values))}" if isinstance(values, dict) else f"a {type(values).__name__}"
                there = isinstance(values, dict) and field in values
                mend = "Make it a string, or leave the line out" if there else "Name the field, where there is --field, or call it text"
                raise UserError(f"{path}: line {number} holds no text in field {field!r} ({keys:.200}). {mend}.")
            values[field].encode()
        except UnicodeError as error:
            raise UserError(f"{path}: line {number} is not UTF-8, or holds half a character ({error}).") from error
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}).") from error
        yield values[field]


def _rows(path: Path, field: str) -> Iterator[str]:
    import polars as pl

    try:
        scan = pl.scan_parquet(path, glob=False)
        schema = scan.collect_schema()
        if schema.get(field) != pl.String:
            found = f"is of type {schema[field]}" if field in schema else f"is not there; columns: {', '.join(schema)}"
            mend = "Name another column, --field, or make it one of strings." if field in schema else "Name the column: --field."
            raise UserError(f"{path}: a column of text called {field!r} {found:.300}. {mend}")
        column = scan.select(pl.col(field).fill_null(""))
        for batch in column.collect_batches(chunk_size=_ROWS, maintain_order=True, engine="streaming"):
            yield from batch[field]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({str(error).partition(chr(10))[0]}).") from error
