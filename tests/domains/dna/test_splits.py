"""What is held out shares no base with what is trained on."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from domains.dna.data.splits import Split, by_cluster, by_fraction, by_record, clusters, deal, overlapping
from tests.domains.dna.test_windows import places, spans_of
from titans_seq import UserError

MANY = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300), st.integers(0, 30)), min_size=1, max_size=40)


def bases(intervals: Intervals) -> set[tuple[int, int]]:
    return {(record, i) for record, start, stop, _ in places(intervals) for i in range(start, stop)}


def parts(split: Split) -> list[Intervals]:
    return [split.train, split.validation, split.test]


def test_by_record(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "AC", "b": "ACG", "c": "A", "d": "ACGT"})
    split = by_record(genome, validation=["c"], test=["a"])
    assert [places(part) for part in parts(split)] == [[(1, 0, 3, 1), (3, 0, 4, 1)], [(2, 0, 1, 1)], [(0, 0, 2, 1)]]
    for validation, test, message in [
        (["a"], ["a"], "a cannot be both"),
        (["e"], [], "no record 'e'"),
        (["a", "b"], ["c", "d"], "none is left to train on"),
    ]:
        with pytest.raises(UserError, match=message):
            by_record(genome, validation, test)


def test_by_fraction_leaves_a_guard() -> None:
    split = by_fraction(Intervals.of([0, 1], [0, 100], [100, 300]), validation=0.1, test=0.2, guard=7)
    assert [places(part) for part in parts(split)] == [
        [(0, 0, 56, 1), (1, 100, 226, 1)],
        [(0, 63, 73, 1), (1, 233, 253, 1)],
        [(0, 80, 100, 1), (1, 260, 300, 1)],
    ]
    assert places(by_fraction(Intervals.of([0], [0], [10]), 0.0, 0.5, guard=2).train) == [(0, 0, 3, 1)]


@given(made=MANY, validation=st.floats(0, 0.5), test=st.floats(0, 0.45), guard=st.integers(0, 10))
def test_parts_by_fraction_are_a_guard_apart(made: list[tuple], validation: float, test: float, guard: int) -> None:
    made = [(i, start, size) for i, (_, start, size) in enumerate(made)]  # one a record
    try:
        split = by_fraction(spans_of(made), validation, test, guard)
    except UserError:  # nothing is left for a part
        return
    found = [bases(part) for part in parts(split)]
    assert set().union(*found) <= bases(spans_of(made))
    for i, part in enumerate(found):
        near = {(record, place + d) for record, place in part for d in range(-guard, guard + 1)}
        assert not any(near & other for other in found[i + 1 :])


def test_shares_that_are_none() -> None:
    spans = Intervals.of([0], [0], [100])
    for validation, test in [(-0.1, 0.1), (0.5, 0.5), (0.1, float("nan"))]:
        with pytest.raises(ValueError, match="must be shares"):
            by_fraction(spans, validation, test)
        with pytest.raises(ValueError, match="must be shares"):
            by_cluster(spans, validation, test, seed=0)
    with pytest.raises(ValueError, match="guard must not be negative"):
        by_fraction(spans, 0.1, 0.1, guard=-1)
    with pytest.raises(UserError, match=r"nothing is left for validation and test: the spans are too few .*\(--guard\), .* \("):
        by_fraction(spans, 0.1, 0.1, guard=60)


@given(made=MANY, distance=st.integers(0, 5))
def test_clusters_are_what_overlaps_directly_or_through_others(made: list[tuple], distance: int) -> None:
    intervals = spans_of([(r, a, n + 1) for r, a, n in made])
    number = clusters(intervals, distance)
    group = list(range(len(made)))
    rows = places(intervals)
    for i, (r, a, b, _) in enumerate(rows):  # joined one by one
        for j, (s, c, d, _) in enumerate(rows[:i]):
            if r == s and a < d + distance and c < b + distance:
                group = [group[j] if x == group[i] else x for x in group]
    assert [[x == y for y in number] for x in number] == [[x == y for y in group] for x in group]


@given(made=MANY, others=MANY)
def test_overlapping(made: list[tuple], others: list[tuple]) -> None:
    there = bases(spans_of(others))
    expected = [bool(bases(spans_of([one])) & there) for one in made]
    assert overlapping(spans_of(made), spans_of(others)).tolist() == expected


@given(made=MANY, validation=st.floats(0, 0.5), test=st.floats(0, 0.45), seed=st.integers(0, 9))
def test_no_base_is_in_two_clusters(made: list[tuple], validation: float, test: float, seed: int) -> None:
    intervals = spans_of(made)
    try:
        split = by_cluster(intervals, validation, test, seed)
    except UserError:  # nothing is left for a part
        return
    found = [bases(part) for part in parts(split)]
    assert sum(map(len, found)) == len(bases(intervals))
    assert sorted(place for part in parts(split) for place in places(part)) == sorted(places(intervals))


def test_shares_are_met() -> None:
    intervals = Intervals.of([0] * 1000, range(0, 10_000, 10), range(10, 10_010, 10))
    split = by_cluster(intervals, 0.1, 0.2, seed=1)
    assert [len(part) for part in parts(split)] == [700, 100, 200]
    assert (
        places(split.test) == places(by_cluster(intervals, 0.1, 0.2, seed=1).test) != places(by_cluster(intervals, 0.1, 0.2, seed=2).test)
    )


def test_one_large_cluster_cannot_be_split() -> None:
    intervals = Intervals.of([0] * 100, range(100), range(5, 105))
    with pytest.raises(UserError, match="nothing is left for validation and test: the clusters of overlapping intervals"):
        by_cluster(intervals, 0.1, 0.1, seed=0)


def test_groups_are_dealt_out_whole() -> None:
    groups = np.repeat(np.arange(30), 4)
    part = deal(groups, 0.2, 0.3, seed=0)
    assert (part.reshape(30, 4) == part.reshape(30, 4)[:, :1]).all()
    assert np.bincount(part).tolist() == [60, 24, 36]
