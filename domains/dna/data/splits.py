"""What is trained on and what is held out: whole records, stretches of records with a gap between, or clusters of overlapping intervals."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from domains.dna.data.windows import whole
from titans_seq.errors import UserError


@dataclass(frozen=True)
class Split:
    """Parts of a genome, or of a set of intervals, that share no base."""

    train: Intervals
    validation: Intervals
    test: Intervals


def by_record(genome: Genome, validation: Collection[str], test: Collection[str]) -> Split:
    """Whole records, by name: all others are for training.

    Raises:
        UserError: a name is not in the genome or in both, or nothing is left to train on.
    """
    both = set(validation) & set(test)
    if both:
        raise UserError(f"{', '.join(sorted(both))} cannot be both for validation and for the test.")
    part = np.zeros(len(genome), int)
    for number, names in ((1, validation), (2, test)):
        part[[genome.record(name) for name in names]] = number
    if (part != 0).all():
        raise UserError(f"{genome.source}: all {len(genome)} records are held out, none is left to train on. Split by fraction instead.")
    spans = whole(genome)
    return Split(spans[part == 0], spans[part == 1], spans[part == 2])


def by_fraction(spans: Intervals, validation: float, test: float, guard: int = 0) -> Split:
    """Of each span the first part for training, then `guard` bases for nothing, then the share for validation, a guard again, the test.

    A guard as long as a window, or as a repeat may be, keeps what is nearly the same apart.

    Raises:
        ValueError: the shares are no fractions, or guard is negative.
        UserError: no span is long enough to leave something of every part that was asked for.
    """
    _check_shares(validation, test)
    if guard < 0:
        raise ValueError(f"guard must not be negative, got {guard}")
    tests, validations = (np.round(spans.lengths * share).astype(np.int64) for share in (test, validation))
    test_start = spans.stop - tests
    validation_stop = test_start - np.where(tests > 0, guard, 0)
    validation_start = validation_stop - validations
    train_stop = validation_start - np.where(validations > 0, guard, 0)
    fits = train_stop > spans.start

    def part(start: np.ndarray, stop: np.ndarray) -> Intervals:
        chosen = fits & (stop > start)
        return Intervals(spans.record, start, stop, spans.strand)[chosen]

    short = spans[~fits]  # too short to be cut: for training alone
    train = part(spans.start, train_stop)
    made = Split(
        Intervals(*(np.concatenate([getattr(train, n), getattr(short, n)]) for n in ("record", "start", "stop", "strand"))),
        part(validation_start, validation_stop),
        part(test_start, spans.stop),
    )
    _check_parts(
        made,
        validation,
        test,
        "spans",
        "Take a smaller guard (--guard), longer records, or whole records to validate on (--validation-records)",
    )
    return made


def by_cluster(intervals: Intervals, validation: float, test: float, seed: int, distance: int = 0) -> Split:
    """Intervals at random, but those that overlap, directly or through others, stay together: no base is in two parts.

    Args:
        intervals: what is divided; strands make no difference.
        validation, test: shares of the intervals.
        seed: of the order in which clusters are dealt out.
        distance: intervals fewer than so many bases apart count as overlapping.

    Raises:
        ValueError: the shares are no fractions.
        UserError: the clusters are so large that a part that was asked for stays empty.
    """
    _check_shares(validation, test)
    part = deal(clusters(intervals, distance), validation, test, seed)
    made = Split(intervals[part == 0], intervals[part == 1], intervals[part == 2])
    _check_parts(made, validation, test, "clusters of overlapping intervals", "Split by record, or thin the intervals out")
    return made


def clusters(intervals: Intervals, distance: int = 0) -> np.ndarray:
    """(W,) int64: equal numbers for intervals that share a base (or are fewer than `distance` apart), directly or through others."""
    order = np.lexsort((intervals.start, intervals.record))
    record, start, stop = intervals.record[order], intervals.start[order], intervals.stop[order]
    reach = np.zeros(len(order), np.int64)
    for block in _blocks(record):
        reach[block] = np.maximum.accumulate(stop[block])
    begins = np.ones(len(order), bool)
    begins[1:] = (record[1:] != record[:-1]) | (start[1:] >= reach[:-1] + distance)
    found = np.empty(len(order), np.int64)
    found[order] = np.cumsum(begins) - 1
    return found


def deal(groups: np.ndarray, validation: float, test: float, seed: int) -> np.ndarray:
    """(W,) 0 for training, 1 for validation, 2 for the test; a group's members all alike, the shares met as nearly as groups allow.

    groups: (W,) integers from 0. Groups are dealt out at random; one goes where it still fits, or else to training.
    """
    sizes = np.bincount(groups)
    room = {2: round(test * len(groups)), 1: round(validation * len(groups))}
    part = np.zeros(len(sizes), int)
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        chosen = next((number for number, left in room.items() if sizes[group] <= left), 0)
        part[group] = chosen
        if chosen:
            room[chosen] -= sizes[group]
    return part[groups]


def overlapping(intervals: Intervals, others: Intervals) -> np.ndarray:
    """(W,) bool: which intervals share at least a base with any of the others."""
    found = np.zeros(len(intervals), bool)
    for record in np.intersect1d(intervals.record, others.record):
        own = np.flatnonzero((intervals.record == record) & (intervals.lengths > 0))
        there = others[(others.record == record) & (others.lengths > 0)]
        order = np.argsort(there.start, kind="stable")
        reach = np.concatenate([[-1], np.maximum.accumulate(there.stop[order])])
        before = np.searchsorted(there.start[order], intervals.stop[own], side="left")  # those that begin before this one ends
        found[own] = reach[before] > intervals.start[own]
    return found


def _blocks(record: np.ndarray) -> list[slice]:
    """Stretches of equal values of a sorted array."""
    cuts = [0, *(np.flatnonzero(np.diff(record)) + 1).tolist(), len(record)]
    return [slice(a, b) for a, b in pairwise(cuts) if b > a]


def _check_shares(validation: float, test: float) -> None:
    if min(validation, test) < 0 or not validation + test < 1:
        raise ValueError(f"validation and test must be shares of at least 0 that leave some for training, got {validation} and {test}")


def _check_parts(made: Split, validation: float, test: float, what: str, mend: str) -> None:
    empty = [
        name for name, share in (("train", 1.0), ("validation", validation), ("test", test)) if share > 0 and not len(getattr(made, name))
    ]
    if empty:
        raise UserError(f"nothing is left for {' and '.join(empty)}: the {what} are too few or too large or too short. {mend}.")
