"""Embeddings: the output of the backbone at each base, as means over records, regions or bins.

Each stretch is read from a fresh state, after the token BEGIN and the bases before it as context. Along a strand the output at a base
tells of that base and of what was read before it; of both strands the mean is taken, place by place. Shapes: S stretches, R rows, T bases,
D width of the backbone.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from domains.dna.data.windows import whole
from domains.dna.documents import NucleotideDocuments
from domains.dna.model import DNAState, TitansForDNA
from domains.dna.reading import BOTH, read, reading, rows_at_once
from domains.dna.settings import ReadingConfig


class Rows:
    """What each row of embeddings is the mean of: a stretch, or a bin of `bin_size` bases of it; its last bin may be shorter.

    Nothing is held for each row: there may be as many as bases.

    Attributes:
        first: (S + 1,) int64, where the rows of each stretch begin.
        size: (S,) int64, bases of a row of each stretch.

    Args:
        genome: of the stretches.
        stretches: inside their records.
        bin_size: None for a row a stretch.

    Raises:
        ValueError: bin_size is below 1.
    """

    def __init__(self, genome: Genome, stretches: Intervals, bin_size: int | None = None) -> None:
        if bin_size is not None and bin_size < 1:
            raise ValueError(f"bin_size must be at least 1, got {bin_size}")
        self.genome, self.stretches = genome, stretches
        self.size = np.maximum(stretches.lengths, 1) if bin_size is None else np.full(len(stretches), bin_size)
        counts = np.ones(len(stretches), np.int64) if bin_size is None else -(-stretches.lengths // bin_size)
        self.first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def stretch(self, rows: np.ndarray) -> np.ndarray:
        """Which stretch each of rows (..) is of."""
        return np.searchsorted(self.first, rows, side="right") - 1

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Record, start and stop (half-open) of rows (..)."""
        stretch, spans = self.stretch(rows), self.stretches
        start = spans.start[stretch] + (rows - self.first[stretch]) * self.size[stretch]
        return spans.record[stretch], start, np.minimum(start + self.size[stretch], spans.stop[stretch])

    def table(self, rows: np.ndarray) -> pl.DataFrame:
        """Of rows (..): record, start, end (0-based, half-open as in BED), and bases that are no N."""
        record, start, stop = self.places(rows)
        names = pl.Series(self.genome.names, dtype=pl.String).gather(record)
        return pl.DataFrame(
            {"record": names, "start": start, "end": stop, "bases": stop - start - self.genome.count_n(record, start, stop)}
        )


def embed(
    model: TitansForDNA,
    genome: Genome,
    stretches: Intervals | None = None,
    *,
    bin_size: int | None = None,
    strands: Sequence[int] = BOTH,
    config: ReadingConfig | None = None,
    out: np.ndarray | None = None,
    advance: Callable[[int], object] = lambda bases: None,
) -> np.ndarray:
    """Embeddings of stretches of a genome. What is held beside the result does not grow with their length.

    Args:
        model: the model, in whose dtype and on whose device is computed.
        genome: what is read.
        stretches: None for every record. A stretch on strand -1 is read as its reverse complement where another is read forward.
        bin_size: bases of a row, from the start of each stretch on; 1 for a row a base, None for a row a stretch.
        strands: 1 reads each stretch along its own strand, -1 along the other; of both the mean is taken.
        config: of reading. The context lies before a stretch in the direction of reading.
        out: (R, D) float32 that is written to and returned, such as a memory-mapped file; None for a new array.
        advance: is told how many bases were read.

    Returns:
        (R, D) float32, rows as of `Rows`: means over the bases that are no N; NaN where there is none.

    Raises:
        ValueError: out is not (R, D) float32, or bin_size is below 1.
    """
    stretches, config = whole(genome) if stretches is None else stretches, config or ReadingConfig()
    rows = Rows(genome, stretches, bin_size)
    shape = (len(rows), model.config.titans.dim)
    if out is None:
        out = np.zeros(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"out must be {shape} float32, got {out.shape} {out.dtype}")
    out[:] = 0
    if bin_size is None:
        out[stretches.lengths == 0] = np.nan
    with reading(model, config.learn):
        for strand in strands:
            means = _Means(rows, out, 1 / len(strands))
            for stretch, start, codes, y in _read(model, genome, stretches, strand, config):
                means.add(stretch, start, codes, y)
                advance(len(codes))
    return out


def _read(
    model: TitansForDNA, genome: Genome, stretches: Intervals, strand: int, config: ReadingConfig
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Parts of stretches as they are read, in the direction of the record: which stretch, where in it the part begins, its codes (T,) and
    what the backbone made of them (T, D) float64.
    """
    direction = stretches.strand * strand
    documents, lead = _with_context(genome, stretches, direction, config.context_length)
    order, at_once = np.argsort(-documents.lengths, kind="stable"), rows_at_once(model, config.batch_size, 2)
    for first in range(0, len(order), at_once):
        batch = order[first : first + at_once]
        for start, tokens, y in _segments(model, documents, batch, config.segment_length):
            for row, stretch in enumerate(batch[: len(tokens)]):
                begin, end = max(lead[stretch], start), min(documents.lengths[stretch], start + tokens.shape[1])
                if begin >= end:
                    continue
                part = slice(begin - start, end - start)
                codes, found = tokens[row, part], y[row, part].double().cpu().numpy()
                if direction[stretch] > 0:
                    yield stretch, begin - lead[stretch], codes, found
                else:  # which base of the record it is, not of the other strand: N and others are all that is asked of the codes
                    yield stretch, documents.lengths[stretch] - end, codes[::-1], found[::-1]


def _with_context(genome: Genome, stretches: Intervals, direction: np.ndarray, context: int) -> tuple[NucleotideDocuments, np.ndarray]:
    """Stretches with the bases before them in the direction of reading, and (S,) how many tokens come before each one's first base."""
    length = genome.lengths[stretches.record]
    start = np.where(direction > 0, np.maximum(stretches.start - context, 0), stretches.start)
    stop = np.where(direction > 0, stretches.stop, np.minimum(stretches.stop + context, length))
    lead = 1 + (stop - start) - stretches.lengths
    return NucleotideDocuments([(genome, Intervals(stretches.record, start, stop, direction))]), lead


def _segments(
    model: TitansForDNA, documents: NucleotideDocuments, batch: np.ndarray, segment_length: int
) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    """Documents side by side, the longest first: where a segment begins, its tokens (B, T) and the backbone's output (B, T, D).

    A document that ends is filled up with N, and is left out from the next segment on.
    """
    lengths, state = documents.lengths[batch], None
    for start in range(0, int(lengths[0]), segment_length):
        alive = int((lengths > start).sum())
        tokens = np.full((alive, min(segment_length, int(lengths[0]) - start)), N, np.uint8)
        for row in range(alive):
            stop = min(start + segment_length, int(lengths[row]))
            tokens[row, : stop - start] = documents.read(int(batch[row]), start, stop)
        y, _, state = read(model, tokens, _first_rows(state, alive))
        yield start, tokens, y


def _first_rows(state: DNAState | None, count: int) -> DNAState | None:
    if state is None or state.batch_size == count:
        return state
    return state.select(torch.arange(count, device=state.tensors()[0].device))


class _Means:
    """Means of rows, from parts of stretches in any order; a row is written once all of its bases came by.

    rows: which. out: (R, D), to which the means times `share` are added.
    """

    def __init__(self, rows: Rows, out: np.ndarray, share: float) -> None:
        self._rows, self._out, self._share = rows, out, share
        self._begun: dict[int, tuple[int, np.ndarray]] = {}  # bases that came by, and their sum

    def add(self, stretch: int, start: int, codes: np.ndarray, y: np.ndarray) -> None:
        """Bases from `start` on of a stretch: codes (T,), y (T, D) float64."""
        size, stop = int(self._rows.size[stretch]), start + len(codes)
        numbers = np.arange(start // size, -(-stop // size))
        edges = np.maximum(numbers * size, start)
        counted = ((codes & BASE_BITS) < N)[:, None]
        sums = np.add.reduceat(np.concatenate([y, counted], axis=1) * counted, edges - start, axis=0)  # the last column counts bases
        came = np.append(edges[1:], stop) - edges
        needed = np.minimum((numbers + 1) * size, self._rows.stretches.lengths[stretch]) - numbers * size
        rows = self._rows.first[stretch] + numbers
        whole = came == needed
        self._write(rows[whole], sums[whole])
        for i in np.flatnonzero(~whole):  # the first and the last at most
            before, total = self._begun.pop(int(rows[i]), (0, np.zeros(sums.shape[1])))
            if before + came[i] == needed[i]:
                self._write(rows[i : i + 1], (total + sums[i])[None])
            else:
                self._begun[int(rows[i])] = (before + int(came[i]), total + sums[i])

    def _write(self, rows: np.ndarray, sums: np.ndarray) -> None:
        with np.errstate(invalid="ignore"):  # 0 / 0 where all is N
            self._out[rows] += self._share * sums[:, :-1] / sums[:, -1:]
