"""How well a language model predicts files: bits per byte, and bits per token by position in the document, read in a stream."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from domains.text.data import TextDocuments
from domains.text.model import TitansForCausalLM
from titans_seq.losses import token_nats
from titans_seq.training.trainable import BITS

FIRST = 64
"""Tokens of the first range of positions; each further range is as long as all before it."""


@dataclass(frozen=True)
class Score:
    """Of a document. `bits` counts what its end needs as well.

    ranges: (R,) of each range of positions, [0, 64), [64, 128), [128, 256) ..: nats and tokens in it.
    """

    path: Path
    bytes: int
    tokens: int
    bits: float
    ranges: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class FileScore:
    """Of all documents of a file."""

    path: Path
    documents: int
    bytes: int
    tokens: int
    bits: float

    @property
    def bits_per_byte(self) -> float:
        """Exact for any tokeniser: the bits of all tokens, over the bytes of the text in UTF-8."""
        return self.bits / self.bytes

    @property
    def bits_per_token(self) -> float:
        """Over the tokens without ends; not to be compared between tokenisers."""
        return self.bits / self.tokens if self.tokens else float("nan")

    @property
    def perplexity(self) -> float:
        """Of a token: 2 to the power of `bits_per_token`, and likewise not to be compared between tokenisers."""
        return 2**self.bits_per_token if not self.bits_per_token >= sys.float_info.max_exp else float("inf")


@dataclass(frozen=True)
class RangeScore:
    """Of the tokens at positions `start` to `stop` - 1 of their documents, counted from 0, in all documents that reach so far."""

    start: int
    stop: int
    tokens: int
    bits_per_token: float


def score(
    model: TitansForCausalLM, documents: TextDocuments, segment_length: int = 1024, on_read: Callable[[int], None] = lambda tokens: None
) -> Iterator[Score]:
    """The score of each document, which is read from a fresh state in segments: memory does not grow with its length.

    segment_length: tokens at a time; changes nothing but memory and speed. on_read: called with the tokens that were read.
    """
    device = model.output_weight.device
    for n in range(len(documents)):
        last, state = int(documents.lengths[n]) - 1, model.init_state(1).detach()
        sums, counts = np.zeros(64), np.zeros(64, np.int64)
        for start in range(0, last, segment_length):
            read = torch.from_numpy(documents.read(n, start, min(start + segment_length, last) + 1).astype(np.int64)).to(device)
            with torch.no_grad():
                y, state = model.hidden(read[None, :-1], state)
            nats = token_nats(y[0], model.output_weight, read[1:]).double().cpu().numpy()
            place = range_of(np.arange(start, start + len(nats)))
            sums += np.bincount(place, weights=nats, minlength=64)
            counts += np.bincount(place, minlength=64)
            on_read(len(nats))
        yield Score(documents.file(n), documents.bytes_of(n), int(documents.sizes[n]), float(sums.sum()) * BITS, (sums, counts))


def range_of(positions: np.ndarray) -> np.ndarray:
    """The number of the range that each position, int64, is in."""
    return np.frexp(positions // FIRST)[1].astype(np.int64)  # 0, then 1 for [1, 2), 2 for [2, 4) ..


def by_file(scores: Iterable[Score]) -> list[FileScore]:
    """Documents of one file together, in the order in which files come first."""
    found: dict[Path, FileScore] = {}
    for one in scores:
        so_far = found.get(one.path, FileScore(one.path, 0, 0, 0, 0.0))
        found[one.path] = FileScore(
            one.path, so_far.documents + 1, so_far.bytes + one.bytes, so_far.tokens + one.tokens, so_far.bits + one.bits
        )
    return list(found.values())


def by_position(scores: Iterable[Score]) -> list[RangeScore]:
    """How much a token needs early and late in documents: where it falls, far context is used. The end of a document counts as a token."""
    sums, counts = np.zeros(64), np.zeros(64, np.int64)
    for one in scores:
        sums, counts = sums + one.ranges[0], counts + one.ranges[1]
    bounds = [0, *(FIRST << k for k in range(64))]
    return [RangeScore(bounds[k], bounds[k + 1], int(counts[k]), float(sums[k]) * BITS / int(counts[k])) for k in range(64) if counts[k]]
