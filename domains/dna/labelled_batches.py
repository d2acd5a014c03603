"""Labelled sequences, and windows with a label for each base, as the training loaders read them. Shapes: B rows, T bases of the longest."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from domains.dna.data.alphabet import N, reverse_complement
from domains.dna.data.genome import Genome
from domains.dna.data.labelled import LabelledSequences
from domains.dna.data.regions import Intervals
from titans_seq.training.config import TrainingConfig
from titans_seq.training.loaders import Batch, TrainingLoader, WindowStream


class Labelled(NamedTuple):
    """Codes of a sequence, (T,) uint8; and its label (), or those of its bases (T, 2), on the strand that is given and on the other."""

    codes: np.ndarray
    label: np.ndarray


class SequenceItems(Sequence[Labelled]):
    """Labelled sequences as items. both_strands: each comes twice, as it is and as its reverse complement."""

    def __init__(self, sequences: LabelledSequences, both_strands: bool = False) -> None:
        self._sequences, self._strands = sequences, 1 + both_strands

    def __len__(self) -> int:
        return len(self._sequences) * self._strands

    def __getitem__(self, i: int) -> Labelled:  # type: ignore[override]  # one at a time
        row, reverse = divmod(i, self._strands)
        codes = self._sequences.sequence(row)
        return Labelled(reverse_complement(codes) if reverse else codes, self._sequences.labels[row])


class LabelledWindows(Sequence[Labelled]):
    """Windows of a genome with a label for each base and strand as items; a window of strand -1 is read along the other strand.

    genome: what is read. labels: of each record (length, 2) uint8, of the strand of the file and the other. windows: inside their records.
    """

    def __init__(self, genome: Genome, labels: Sequence[np.ndarray], windows: Intervals) -> None:
        self._genome, self._labels, self._windows = genome, labels, windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, i: int) -> Labelled:  # type: ignore[override]  # one at a time
        w = self._windows
        record, start, stop, strand = (int(x[i]) for x in (w.record, w.start, w.stop, w.strand))
        labels = self._labels[record][start:stop]
        return Labelled(self._genome.window(record, start, stop, strand), labels if strand > 0 else labels[::-1, ::-1])


def collate(items: Sequence[Labelled]) -> Batch:
    """A batch: codes (B, T) int64, N where a row is padded; mask (B, T) bool, False there, or None; labels (B,) or (B, T, 2) int64."""
    lengths = np.array([len(item.codes) for item in items])
    rows, longest, of_bases = len(items), int(lengths.max()), items[0].label.ndim > 0
    codes = np.full((rows, longest), N, dtype=np.int64)
    labels = np.zeros((rows, longest, 2) if of_bases else rows, dtype=np.int64)
    for row, (item, length) in enumerate(zip(items, lengths, strict=True)):
        codes[row, :length] = item.codes
        labels[(row, slice(length)) if of_bases else row] = item.label
    mask = np.arange(longest) < lengths[:, None]
    return {
        "codes": torch.from_numpy(codes),
        "mask": None if mask.all() else torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }


class EveryItem:
    """All items once, in their order, in batches of at most `batch_size`: from the first at every pass."""

    def __init__(self, items: Sequence[Labelled], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._items, self._rows, self._batch_size = items, range(rank, len(items), world_size), batch_size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self._batch_size):
            yield collate([self._items[i] for i in self._rows[start : start + self._batch_size]])


def item_loaders(
    training: Sequence[Labelled], validation: Sequence[Labelled], config: TrainingConfig
) -> tuple[Callable[[int, int], TrainingLoader], Callable[[int, int], Any]]:
    """How loaders of items are made on a device, from its rank and the number of devices: for training, and for validation."""

    def make_training(rank: int, world_size: int) -> TrainingLoader:
        stream = WindowStream(training, config.batch_size, collate, config.seed, rank, world_size)
        return TrainingLoader(stream, config.max_steps * config.accumulate)

    def make_validation(rank: int, world_size: int) -> EveryItem:
        return EveryItem(validation, config.batch_size // world_size, rank, world_size)

    return make_training, make_validation
