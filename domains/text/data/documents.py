"""Documents of tokens as training and scoring read them, and how they are split."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from domains.text.config import BYTES, Split
from domains.text.data.packed import Packed, open_packed
from domains.text.data.sources import FIELD, all_empty
from domains.text.tokenizers import ByteTokenizer, Tokenizer
from titans_seq.errors import UserError

ENOUGH = 20
"""Documents from which on "auto" holds whole ones out."""


class TextDocuments:
    """Documents, each END, its tokens, END: what `DocumentStream` reads. Only what is asked for is read from the disk.

    Args:
        packed: the texts.
        spans: (N, 4) int64, a document a row: which of `packed`; first token and the one behind the last, END included; how many of
            them are predicted and no END.
        unit: "byte" or "token".
    """

    def __init__(self, packed: Sequence[Packed], spans: np.ndarray, unit: str = "byte") -> None:
        self._packed, self._spans, self.unit = packed, spans, unit
        self.lengths = spans[:, 2] - spans[:, 1]
        self.sizes = spans[:, 3]

    def __len__(self) -> int:
        return len(self._spans)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` - 1 of a document, (stop - start,) unsigned integers."""
        number, first, *_ = self._spans[document].tolist() if len(self._spans) else (0, 0)
        return self._packed[number].tokens[first + start : first + stop]

    def file(self, document: int) -> Path:
        """The file that a document is of."""
        number, first, *_ = self._spans[document].tolist()
        packed = self._packed[number]
        return packed.files[packed.file[np.searchsorted(packed.starts, first, side="right") - 1]]

    def bytes_of(self, document: int) -> int:
        """Bytes of UTF-8 of a whole document, or of all that were joined to it."""
        number, first, stop, _ = self._spans[document].tolist()
        packed = self._packed[number]
        begin, end = np.searchsorted(packed.starts, [first, stop - 1])
        return int(packed.sizes[begin:end].sum())

    def split(self, share: float, how: Split = "auto") -> tuple["TextDocuments", "TextDocuments"]:
        """For training and for validation.

        "documents": whole documents of about `share` of the tokens are held out, chosen by their content, so that equal ones are on one
        side and the order of files does not matter. "ends": the last `share` of every document. "auto": the first where there are at
        least `ENOUGH` documents.
        """
        return self._split_documents(share) if self.splits_whole(how) else self._split_ends(share)

    def splits_whole(self, how: Split) -> bool:
        """Whether `split` would hold out whole documents."""
        return how == "documents" or (how == "auto" and len(self) >= ENOUGH)

    def _split_documents(self, share: float) -> tuple["TextDocuments", "TextDocuments"]:
        keys = [hashlib.blake2b(self.read(n, 0, int(length)).data, digest_size=8).digest() for n, length in enumerate(self.lengths)]
        held, wanted, different = set[bytes](), share * self.sizes.sum(), len(set(keys))
        for key, size in sorted(zip(keys, self.sizes.tolist(), strict=True)):
            if wanted <= 0 or (key not in held and len(held) + 1 == different):  # something is left to train on
                break
            held.add(key)
            wanted -= size
        out = np.array([key in held for key in keys], dtype=bool)
        return self._of(self._spans[~out]), self._of(self._spans[out])

    def _split_ends(self, share: float) -> tuple["TextDocuments", "TextDocuments"]:
        number, first, stop, size = self._spans.T
        held = (size * share).astype(np.int64)
        cut = stop - 1 - held  # the first token that is held out; the one before is predicted in training, and stands for the begin there
        training = np.stack([number, first, np.where(held > 0, cut, stop), size - held], axis=1)
        validation = np.stack([number, cut - 1, stop, held], axis=1)
        return self._of(training[size > held]), self._of(validation[held > 0])

    def _of(self, spans: np.ndarray) -> "TextDocuments":
        return TextDocuments(self._packed, spans, self.unit)

    def describe(self, named: int = 20) -> str:
        """Number of documents, their tokens, and the names of the first `named` files with theirs: for a model card."""
        totals: dict[Path, int] = {}
        for n, size in enumerate(self.sizes.tolist()):
            path = self.file(n)
            totals[path] = totals.get(path, 0) + size
        files = [f"`{path.name}` ({size:,})" for path, size in list(totals.items())[:named]]
        others = [f"and {len(totals) - named:,} other files"] if len(totals) > named else []
        total = int(self.sizes.sum())
        return f"{len(self):,} document{'s'[: len(self) != 1]}, {total:,} {self.unit}s: {', '.join(files + others)}."


def read_texts(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer | None = None,
    *,
    field: str = FIELD,
    joined: bool = False,
    cache: str | Path | None = None,
    progress: bool = True,
) -> TextDocuments:
    """The documents of files, and of all texts below folders: a text file is one, a line of JSON lines, a row of a Parquet; also packed as
    .gz or .zst. Empty ones are left out.

    The first time the files are read whole, checked and tokenised, and the tokens go to a cache: two bytes each (four for a vocabulary of
    more than 65,536). Later, as long as names, sizes and times of the files are the same, or else their SHA-256, it is opened, after its
    checksum was compared. What is trained on is the cache: a file that changes meanwhile changes nothing.

    Args:
        paths: files and folders.
        tokenizer: None for bytes.
        field: of JSON lines, and column of a Parquet, that holds the text.
        joined: documents of one file, in order, are one document, with END between them: the memory is carried from each to the next.
        cache: folder for the caches; None for `.titans_seq` beside each file or folder, or ~/.cache/titans_seq/texts where one cannot
            write there.
        progress: show a bar on standard error while large files are read.

    Raises:
        UserError: nothing is there, all of it is empty, the tokeniser makes no token of it, or as `open_packed`; file and place are named.
    """
    tokenizer = tokenizer or ByteTokenizer()
    folder = None if cache is None else Path(cache)
    packed = [open_packed(Path(path), tokenizer, field, folder, progress) for path in paths]
    spans = np.concatenate([np.zeros((0, 4), np.int64), *(_spans(number, one, joined) for number, one in enumerate(packed))])
    if not len(spans):
        raise all_empty([file for one in packed for file in one.files])
    if not spans[:, 3].any():
        raise UserError(f"{paths[0]}: the tokeniser makes no token of the text. Take one that has tokens for what stands there.")
    return TextDocuments(packed, spans, "byte" if tokenizer.identity == BYTES else "token")


def _spans(number: int, packed: Packed, joined: bool) -> np.ndarray:
    """(N, 4) int64, as `TextDocuments` takes them."""
    first, stop = packed.starts[:-1], packed.starts[1:] + 1
    size = stop - first - 2
    if joined and len(first):
        begins = np.flatnonzero(np.diff(packed.file, prepend=-1))  # documents of a file follow one another
        first, stop, size = first[begins], stop[np.append(begins[1:], len(stop)) - 1], np.add.reduceat(size, begins)
    return np.stack([np.full(len(first), number), first, stop, size], axis=1)
