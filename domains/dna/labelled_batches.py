"""Labelled sequences, and windows with labels or values, as the training loaders read them. Shapes: B rows, T bases of the longest."""

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


class Item(NamedTuple):
    """Codes of a sequence, (T,) uint8, and what is to be said of it.

    label: its class, (); or labels of its bases, on the strand that is given and the other, (T, 2); or values of bins, (bins,) float32.
    """

    codes: np.ndarray
    label: np.ndarray


class SequenceItems(Sequence[Item]):
    """Labelled sequences as items. both_strands: each comes twice, as it is and as its reverse complement."""

    def __init__(self, sequences: LabelledSequences, both_strands: bool = False) -> None:
        self._sequences, self._strands = sequences, 1 + both_strands

    def __len__(self) -> int:
        return len(self._sequences) * self._strands

    def __getitem__(self, i: int) -> Item:  # type: ignore[override]  # one at a time
        row, reverse = divmod(i, self._strands)
        codes = self._sequences.sequence(row)
        return Item(reverse_complement(codes) if reverse else codes, self._sequences.labels[row])


class LabelledWindows(Sequence[Item]):
    """Windows of a genome with a label for each base and strand as items; a window of strand -1 is read along the other strand.

    genome: what is read. labels: of each record (length, 2) uint8, of the strand of the file and the other. windows: inside their records.
    """

    def __init__(self, genome: Genome, labels: Sequence[np.ndarray], windows: Intervals) -> None:
        self._genome, self._labels, self._windows = genome, labels, windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, i: int) -> Item:  # type: ignore[override]  # one at a time
        w = self._windows
        record, start, stop, strand = (int(x[i]) for x in (w.record, w.start, w.stop, w.strand))
        labels = self._labels[record][start:stop]
        return Item(self._genome.window(record, start, stop, strand), labels if strand > 0 else labels[::-1, ::-1])


class ProfileWindows(Sequence[Item]):
    """Windows of a genome with the values of their bins as items.

    genome: what is read. values: of each record (bins,) float32. windows: of strand 1, that begin with a bin. bin_width: bases of a bin.
    """

    def __init__(self, genome: Genome, values: Sequence[np.ndarray], windows: Intervals, bin_width: int) -> None:
        self._genome, self._values, self._windows, self._width = genome, values, windows, bin_width

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, i: int) -> Item:  # type: ignore[override]  # one at a time
        w = self._windows
        record, start, stop = (int(x[i]) for x in (w.record, w.start, w.stop))
        values = self._values[record][start // self._width : -(-stop // self._width)]
        return Item(self._genome.window(record, start, stop), values)


def collate(items: Sequence[Item]) -> Batch:
    """A batch: codes (B, T) int64, N where a row is padded; mask (B, T) bool, False there, or None; labels (B,) or (B, T, 2) int64, or
    (B, bins) float32, 0 or NaN where a row is padded.
    """
    lengths = np.array([len(item.codes) for item in items])
    codes = np.full((len(items), lengths.max()), N, dtype=np.int64)
    for row, item in zip(codes, items, strict=True):
        row[: len(item.codes)] = item.codes
    mask = np.arange(lengths.max()) < lengths[:, None]
    return {
        "codes": torch.from_numpy(codes),
        "mask": None if mask.all() else torch.from_numpy(mask),
        "labels": torch.from_numpy(_labels([item.label for item in items])),
    }


def _labels(labels: Sequence[np.ndarray]) -> np.ndarray:
    if labels[0].ndim == 0:
        return np.array(labels, dtype=np.int64)
    dtype, nothing = (np.float32, np.nan) if labels[0].dtype.kind == "f" else (np.int64, 0)
    made = np.full((len(labels), max(map(len, labels)), *labels[0].shape[1:]), nothing, dtype=dtype)
    for row, label in zip(made, labels, strict=True):
        row[: len(label)] = label
    return made


class EveryItem:
    """All items once, in their order, in batches of at most `batch_size`: from the first at every pass."""

    def __init__(self, items: Sequence[Item], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._items, self._rows, self._batch_size = items, range(rank, len(items), world_size), batch_size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self._batch_size):
            yield collate([self._items[i] for i in self._rows[start : start + self._batch_size]])


def item_loaders(
    training: Sequence[Item], validation: Sequence[Item], config: TrainingConfig
) -> tuple[Callable[[int, int], TrainingLoader], Callable[[int, int], Any]]:
    """How loaders of items are made on a device, from its rank and the number of devices: for training, and for validation."""

    def make_training(rank: int, world_size: int) -> TrainingLoader:
        stream = WindowStream(training, config.batch_size, collate, config.seed, rank, world_size)
        return TrainingLoader(stream, config.max_steps * config.accumulate)

    def make_validation(rank: int, world_size: int) -> EveryItem:
        return EveryItem(validation, config.batch_size // world_size, rank, world_size)

    return make_training, make_validation
