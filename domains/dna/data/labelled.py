"""Labelled sequences: sets for classification, with numbered classes and parts for training, validation and test. Shapes: W sequences."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from domains.dna.data.alphabet import BASE_BITS, COMPLEMENT, FROM_LETTER, ILLEGAL, illegal
from domains.dna.data.regions import Intervals
from domains.dna.data.splits import clusters, deal
from titans_seq.errors import UserError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class LabelledSequences:
    """Sequences end to end, and a label of each.

    Attributes:
        codes: (M,) uint8, of all sequences.
        cu_seqlens: (W + 1,) int64: sequence i is codes cu_seqlens[i] to cu_seqlens[i + 1] - 1.
        labels: (W,) int64, numbers of classes.
        regions: where the sequences lie (chrom, start, end, strand), W rows; None where that is not known.
    """

    codes: np.ndarray
    cu_seqlens: np.ndarray
    labels: np.ndarray
    regions: pl.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """(W,) int64, bases of each."""
        return np.diff(self.cu_seqlens)

    def sequence(self, i: int) -> np.ndarray:
        """Codes of one sequence, (length,) uint8."""
        return self.codes[self.cu_seqlens[i] : self.cu_seqlens[i + 1]]

    def take(self, rows: np.ndarray) -> "LabelledSequences":
        """Some of them, by numbers (V,) or mask (W,)."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        lengths = self.lengths[rows]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(cu_seqlens[-1]) + np.repeat(self.cu_seqlens[rows] - cu_seqlens[:-1], lengths)
        regions = None if self.regions is None else self.regions[rows]
        return LabelledSequences(self.codes[places], cu_seqlens, self.labels[rows], regions)

    @cached_property
    def keys(self) -> list[bytes]:
        """W texts that are equal where sequences are, soft mask aside."""
        return _cut((self.codes & BASE_BITS).tobytes(), self.cu_seqlens)

    @cached_property
    def reverse_keys(self) -> list[bytes]:
        """`keys` of the reverse complements."""
        reverse = COMPLEMENT[self.codes[::-1] & BASE_BITS].tobytes()
        return _cut(reverse, len(self.codes) - self.cu_seqlens[::-1])[::-1]


@dataclass(frozen=True)
class Task:
    """A set for classification.

    Attributes:
        name: for reports.
        classes: name of each class; a label is a place in this list. They are sorted, as numbers if all are whole numbers.
        train, validation, test: its parts; None where there is none.
    """

    name: str
    classes: tuple[str, ...]
    train: LabelledSequences
    validation: LabelledSequences | None = None
    test: LabelledSequences | None = None

    @property
    def parts(self) -> dict[str, LabelledSequences]:
        """Those that there are, by name."""
        found = {name: getattr(self, name) for name in PARTS}
        return {name: part for name, part in found.items() if part is not None}


@dataclass(frozen=True)
class RawPart:
    """Sequences (W,) and labels (W,) as they stand in a file. place: what an error calls row i."""

    sequences: Sequence[str]
    labels: Sequence[str]
    place: Callable[[int], str]
    regions: pl.DataFrame | None = None


def make_task(name: str, parts: dict[str, RawPart]) -> Task:
    """Number the classes of all parts together, and encode the sequences.

    Raises:
        UserError: a sequence is empty or holds what is no base, there is no part "train", or fewer than two classes.
    """
    if "train" not in parts:
        raise UserError(f"{name}: has no part to train on; those found: {', '.join(parts) or 'none'}.")
    classes = sort_classes({label for part in parts.values() for label in part.labels})
    if len(classes) < 2:
        raise UserError(f"{name}: all sequences are of class '{classes[0][:40] if classes else ''}'; at least two classes are needed.")
    number = {label: i for i, label in enumerate(classes)}
    made = {}
    for part_name, part in parts.items():
        codes, cu_seqlens = _encode(part)
        labels = np.array([number[label] for label in part.labels], dtype=np.int64)
        made[part_name] = LabelledSequences(codes, cu_seqlens, labels, part.regions)
    return Task(name, classes, **made)


def sort_classes(names: set[str]) -> tuple[str, ...]:
    """In the order of their numbers if all are whole numbers, else in that of the alphabet: never that of files or folders."""
    if all(re.fullmatch("-?[0-9]{1,18}", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _encode(part: RawPart) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(sequence) for sequence in part.sequences], dtype=np.int64)
    if (lengths == 0).any():
        raise UserError(f"{part.place(int(np.argmin(lengths)))}: the sequence is empty. Take the line out.")
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    codes = "".join(part.sequences).encode("ascii", "replace").translate(FROM_LETTER)
    bad = codes.find(ILLEGAL)
    if bad >= 0:
        row = int(np.searchsorted(cu_seqlens, bad, side="right")) - 1
        position = bad - int(cu_seqlens[row])
        raise UserError(f"{part.place(row)}, position {position + 1} of the sequence: {illegal(part.sequences[row][position])}")
    return np.frombuffer(codes, dtype=np.uint8), cu_seqlens


def _cut(text: bytes, cuts: np.ndarray) -> list[bytes]:
    return [text[a:b] for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)]


def hold_out(task: Task, validation: float, seed: int, test: float = 0.0) -> Task:
    """Hold shares of the training part out at random for a part that the task lacks.

    Sequences that are equal, also as reverse complements, or whose places overlap stay together.

    Raises:
        ValueError: the shares are no fractions.
        UserError: the task has such a part already, or nothing is left for one.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(f"validation and test must be shares of at least 0 that leave some for training, got {validation} and {test}")
    wanted = {name: share for name, share in (("validation", validation), ("test", test)) if share > 0}
    for name in wanted:
        if name in task.parts:
            raise UserError(f"{task.name}: has a {name} part of its own; holding out another would mix the two.")
    part = deal(groups(task.train), validation, test, seed)
    made = {name: task.train.take(part == PARTS.index(name)) for name in wanted}
    empty = [name for name, held in made.items() if not len(held)]
    if empty:
        raise UserError(f"{task.name}: nothing can be held out for {' and '.join(empty)}: too many of {len(task.train)} sequences overlap.")
    return Task(task.name, task.classes, **(task.parts | {"train": task.train.take(part == 0)} | made))


def groups(sequences: LabelledSequences) -> np.ndarray:
    """(W,) int64 from 0: equal numbers for sequences that are equal, also as reverse complements, or overlap, also through others."""
    from scipy.sparse import coo_array  # half a second, which most commands on DNA need not wait
    from scipy.sparse.csgraph import connected_components

    canonical = [min(pair) for pair in zip(sequences.keys, sequences.reverse_keys, strict=True)]
    links = [np.unique(np.array(canonical, dtype=object), return_inverse=True)[1]]
    if sequences.regions is not None:
        links.append(clusters(to_intervals(sequences.regions, sequences.regions["chrom"].unique().sort().to_list())))
    rows = np.arange(len(sequences))
    first, nodes = [], len(rows)
    for link in links:  # a node for each sequence, and one for each text and each cluster
        first.append((rows, link + nodes))
        nodes += int(link.max()) + 1
    ends = np.concatenate([np.stack(pair) for pair in first], axis=1)
    graph = coo_array((np.ones(ends.shape[1], dtype=np.int8), ends), shape=(nodes, nodes))
    components = connected_components(graph, directed=False)[1][: len(rows)]
    return np.unique(components, return_inverse=True)[1]


def to_intervals(regions: pl.DataFrame, chromosomes: Sequence[str]) -> Intervals:
    """Places by the number of their chromosome in a list, without a genome."""
    record = regions["chrom"].replace_strict(list(chromosomes), range(len(chromosomes)), return_dtype=pl.Int64)
    return Intervals.of(record, regions["start"], regions["end"])
