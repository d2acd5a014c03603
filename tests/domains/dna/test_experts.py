"""Counts and copies: exact against loops over the bases, and blind to what comes later."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.dna.data.alphabet import SOFT, N, encode, reverse_complement
from domains.dna.experts import RECENT, bits, chances, copies, copy_chances, counts, experts, prequential_counts

CODES = st.lists(st.sampled_from([0, 1, 2, 3, 0, 1, 2, 3, N, 1 | SOFT]), min_size=1, max_size=60).map(lambda x: np.array(x, np.uint8))
REPEATS = st.tuples(CODES, st.booleans()).map(lambda x: np.concatenate([x[0], reverse_complement(x[0]) if x[1] else x[0], x[0][:9]]))


def counts_by_loop(codes: np.ndarray, order: int, inverted: bool) -> np.ndarray:
    """Base by base: what followed the context so far, then what the base teaches on its strand and on the other."""
    bases, seen = [int(code) & 7 for code in codes], defaultdict(Counter)
    found = np.zeros((4, len(bases)), np.int32)
    for t in range(order, len(bases)):
        word = bases[t - order : t + 1]
        if N in word:
            continue
        found[:, t] = [seen[tuple(word[:-1])][base] for base in range(4)]
        seen[tuple(word[:-1])][word[-1]] += 1
        if inverted:
            other = [3 - base for base in reversed(word)]
            seen[tuple(other[:-1])][other[-1]] += 1
    return found


def copies_by_loop(codes: np.ndarray, order: int, inverted: bool, fewest: int) -> list[tuple[int, int, int]]:
    """Base by base: the latest place of the context is taken up if it agrees enough, and followed; symbol, matches, run."""
    bases, latest, line, found = [int(code) & 7 for code in codes], {}, None, []

    def original(line: int, t: int) -> int:
        return line - t if inverted else t - line

    def agreement(line: int, t: int) -> tuple[int, int]:
        equal = []
        for back in range(1, RECENT + 1):
            here, there = t - back, original(line, t - back)
            inside = here >= 0 and 0 <= there < t and N not in (bases[here], bases[there])
            equal.append(inside and bases[here] == (3 - bases[there] if inverted else bases[there]))
        return sum(equal), next((n for n, x in enumerate(equal) if not x), RECENT)

    for t in range(len(bases)):
        word = bases[max(0, t - order) : t + 1]
        whole = len(word) == order + 1 and N not in word
        if whole and (at := latest.get(tuple(word[:-1]))) is not None:
            candidate = at + t if inverted else t - at
            if agreement(candidate, t)[0] >= fewest:
                line = candidate
        place = -1 if line is None else original(line, t)
        symbol = bases[place] if 0 <= place < t else N
        if symbol < N:
            found.append((3 - symbol if inverted else symbol, *agreement(line, t)))
        else:
            found.append((N, 0, 0))
        if whole:
            if inverted:
                latest[tuple(3 - base for base in reversed(word[1:]))] = t - order
            else:
                latest[tuple(word[:-1])] = t
    return found


@settings(max_examples=60, deadline=None)
@given(codes=REPEATS, order=st.integers(1, 12), inverted=st.booleans())
def test_counts_are_those_of_a_loop(codes: np.ndarray, order: int, inverted: bool) -> None:
    assert np.array_equal(counts(codes, order, inverted), counts_by_loop(codes, order, inverted))


@settings(max_examples=60, deadline=None)
@given(codes=REPEATS, order=st.integers(3, 12), inverted=st.booleans(), fewest=st.sampled_from([1, 6, 12]))
def test_copies_are_those_of_a_loop(codes: np.ndarray, order: int, inverted: bool, fewest: int) -> None:
    copy = copies(codes, order, inverted, fewest)
    assert list(zip(*(x.tolist() for x in copy), strict=True)) == copies_by_loop(codes, order, inverted, fewest)


@settings(max_examples=20, deadline=None)
@given(codes=REPEATS, cut=st.integers(0, 60), later=CODES)
def test_no_expert_knows_what_comes_later(codes: np.ndarray, cut: int, later: np.ndarray) -> None:
    """What is told of the base at the cut does not depend on it either, N apart, of which nothing is told."""
    cut = min(cut, len(codes) - 1)
    changed = np.concatenate([codes[:cut], later])
    known = cut + int((codes[cut] & 7) < N and (later[0] & 7) < N)
    for (name, first), (_, second) in zip(experts(codes, (2, 5, 11), True, (6,)), experts(changed, (2, 5, 11), True, (6,)), strict=True):
        assert np.array_equal(first[:, :known], second[:, :known]), name


def test_order_six_needs_what_the_loop_needs() -> None:
    """Bits of a random genome with a repeat, to the last digit; the repeat is nearly free to a copy, and to an order-12 context."""
    random = np.random.default_rng(0)
    text = random.integers(0, 4, 3000).astype(np.uint8)
    codes = np.concatenate([text, reverse_complement(text[1000:2000])])
    cost = bits(codes, chances(counts(codes, 6), 1.0))
    expected = counts_by_loop(codes, 6, True) + 1.0
    by_hand = -np.log2(expected[codes, np.arange(4000)] / expected.sum(0))
    np.testing.assert_allclose(cost, by_hand, rtol=1e-5)
    for told in (copy_chances(codes, copies(codes, 12, inverted=True)), chances(counts(codes, 12), 1 / 16)):
        assert bits(codes, told)[3100:].mean() < 0.3
    assert bits(codes, copy_chances(codes, copies(codes, 12, inverted=False)))[3100:].mean() > 1.9


@settings(max_examples=30, deadline=None)
@given(codes=REPEATS)
def test_chances_are_positive_and_sum_to_one(codes: np.ndarray) -> None:
    for name, told in experts(codes, (1, 4, 12, 24), True, (8,)):
        assert (told > 0).all(), name
        np.testing.assert_allclose(told.sum(axis=0), 1, rtol=1e-5)


def test_counts_of_any_symbols() -> None:
    counted = prequential_counts(np.array([7, 7, 9, 7, 9]), np.array([0, 1, 1, 1, 0]), 2)
    assert counted.tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize("order", [0, 30])
def test_an_order_that_fits_no_integer_is_refused(order: int) -> None:
    with pytest.raises(ValueError, match="order must be in"):
        counts(encode("ACGT"), order)
