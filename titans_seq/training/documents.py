"""Documents: what a stream of tokens is cut from. Nothing is read before it is asked for, so a set may be larger than memory."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Documents(Protocol):
    """Token sequences of unequal length. A domain offers its files in this form.

    A token is a number, or an array of numbers (an event's type and time, a row of measurements), of one shape and dtype throughout.
    """

    lengths: np.ndarray
    """(N,) int64: tokens of each document."""

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` - 1 of a document: (stop - start, ..) integers or floats."""
        ...


class TokenDocuments:
    """Documents that lie end to end in one array, in memory or mapped from a file (`np.load(path, mmap_mode="r")`, `np.memmap`).

    tokens: (M, ..) integers or floats. cu_seqlens: (N + 1,) integers, 0 first, not falling, M last; document n is the tokens
    cu_seqlens[n] to cu_seqlens[n + 1] - 1.

    Raises:
        ValueError: they are not of that form.
    """

    def __init__(self, tokens: np.ndarray, cu_seqlens: np.ndarray) -> None:
        if tokens.ndim < 1 or tokens.dtype.kind not in "iuf":
            raise ValueError(f"tokens must be (M, ..) integers or floats, got {tokens.shape} {tokens.dtype}")
        cu_seqlens = np.asarray(cu_seqlens)
        if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype.kind not in "iu":
            raise ValueError(f"cu_seqlens must be (N + 1 >= 2,) integers, got {cu_seqlens.shape} {cu_seqlens.dtype}")
        self._starts = cu_seqlens.astype(np.int64)
        self.lengths = np.diff(self._starts)
        if self._starts[0] != 0 or self._starts[-1] != len(tokens) or (self.lengths < 0).any():
            raise ValueError(f"cu_seqlens must go from 0 to {len(tokens)}, the number of tokens, without falling")
        self.tokens = tokens

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """As of `Documents`."""
        begin = self._starts[document]
        return self.tokens[begin + start : begin + stop]


@dataclass(frozen=True)
class Pieces:
    """Documents cut into pieces of at most `length` predictions; a token and the next one of its document make one prediction.

    document, start, size: (P,) int64 each: which document, where in it, and how many predictions. Documents of fewer than two tokens give
    none.
    """

    document: np.ndarray
    start: np.ndarray
    size: np.ndarray

    @classmethod
    def cut(cls, lengths: np.ndarray, length: int) -> "Pieces":
        """Pieces of documents with `lengths` (N,) tokens, in order."""
        predictions = np.maximum(np.asarray(lengths, dtype=np.int64) - 1, 0)
        counts = -(-predictions // length)
        document = np.repeat(np.arange(len(predictions)), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        start = (np.arange(len(document)) - first) * length
        return cls(document, start, np.minimum(length, predictions[document] - start))

    def __len__(self) -> int:
        return len(self.document)
