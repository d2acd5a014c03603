"""Text files as documents of bytes."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from titans_seq.errors import UserError

END = 256
"""The token that stands before a document and after it."""
VOCABULARY = 257
SUFFIXES = (".txt", ".text", ".md")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `stop` - 1 of a file."""

    path: Path
    start: int
    stop: int


class TextDocuments:
    """Documents of bytes, each END, its bytes, END: what `DocumentStream` reads. Only what is asked for is read from the files."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = list(spans)
        self.lengths = np.array([span.stop - span.start + 2 for span in self.spans], dtype=np.int64)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` - 1 of a document, (stop - start,) int64."""
        span, length = self.spans[document], int(self.lengths[document])
        tokens = np.full(stop - start, END, dtype=np.int64)
        first, last = max(start, 1), min(stop, length - 1)  # those that are bytes
        if first < last:
            tokens[first - start : last - start] = _bytes(span.path, span.start + first - 1, last - first)
        return tokens

    def split(self, share: float) -> tuple["TextDocuments", "TextDocuments"]:
        """The first part of every document, and its last `share` of bytes, cut between characters: for training and for validation."""
        cuts = [(span, _character_start(span.path, span.stop - int((span.stop - span.start) * share), span.stop)) for span in self.spans]
        first = [Span(span.path, span.start, cut) for span, cut in cuts if cut > span.start]
        return TextDocuments(first), TextDocuments([Span(span.path, cut, span.stop) for span, cut in cuts if cut < span.stop])

    def describe(self, named: int = 20) -> str:
        """Number of documents, bytes, and the names of the first `named` files with theirs: for a model card."""
        sizes = [span.stop - span.start for span in self.spans]
        files = [f"`{span.path.name}` ({size:,})" for span, size in zip(self.spans[:named], sizes, strict=False)]
        others = [f"and {len(sizes) - named:,} others"] if len(sizes) > named else []
        return f"{len(sizes):,} document{'s'[: len(sizes) != 1]}, {sum(sizes):,} bytes: {', '.join(files + others)}."


def read_texts(paths: Sequence[str | Path]) -> TextDocuments:
    """Every file is a document; of a folder all files below it that end in .txt, .text or .md, in the order of their names.

    Raises:
        UserError: nothing is there, a file cannot be read, is empty or is not UTF-8 (the place is named).
    """
    files = [file for path in paths for file in _files(Path(path))]
    if not files:
        raise UserError("no text: name at least one file or folder.")
    for file in files:
        _check_utf8(file)
    return TextDocuments([Span(file, 0, file.stat().st_size) for file in files])


def _files(path: Path) -> list[Path]:
    try:
        if path.is_file():
            return [path]
        is_folder = path.is_dir()
    except OSError as error:  # too long a name
        raise UserError(f"{path}: is no usable path ({error.strerror}).") from error
    if not is_folder:
        raise UserError(f"{path}: no such file or folder.")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise UserError(f"{path}: no file in this folder ends in {', '.join(SUFFIXES)}. Name files, or another folder.")
    return found


def _check_utf8(path: Path) -> None:
    decoder, place, waiting = getincrementaldecoder("utf-8")(), 0, 0
    try:
        with path.open("rb") as file:
            for block in chain(iter(lambda: file.read(_BLOCK), b""), [b""]):
                waiting = len(decoder.getstate()[0])  # bytes of a character that the block before cut
                decoder.decode(block, final=not block)
                place += len(block)
    except UnicodeDecodeError as error:
        at = place - waiting + error.start
        raise UserError(f"{path}: not UTF-8 at byte {at} ({error.reason}). Convert it: iconv -f ENCODING -t UTF-8 FILE > NEW.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    if place == 0:
        raise UserError(f"{path}: is empty.")


def _bytes(path: Path, start: int, count: int) -> np.ndarray:
    """(count,) uint8."""
    with path.open("rb") as file:
        file.seek(start)
        read = file.read(count)
    if len(read) != count:
        raise UserError(f"{path}: has become shorter since training began; {count} bytes wanted from byte {start}, {len(read)} there.")
    return np.frombuffer(read, dtype=np.uint8)


def _character_start(path: Path, place: int, stop: int) -> int:
    """`place`, or the next byte after it that begins a character; `stop` if none does."""
    begins = (_bytes(path, place, min(4, stop - place)) & 0xC0) != 0x80
    return place + int(np.argmax(begins)) if begins.any() else stop
