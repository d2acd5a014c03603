"""Counts and copies as experts on the next base: for every base, what each would have said before it was read.

All of it is prequential: what stands at base t was learned from the bases before t alone, on both strands (inverted repeats). It is exact,
and no loop goes over the bases: events are sorted by context, stably, so that those of one context stand in the order of time, and what
an event may know is a sum over those before it in its group.

Shapes: T bases, E experts. Codes are those of `domains.dna.data.alphabet`; their soft mask is left aside. A context that holds N is no
event and knows nothing, so an N between two records keeps them apart.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from domains.dna.data.alphabet import BASE_BITS, N

ORDERS = (1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 14, 16, 18, 20, 24)
COPY_ORDERS = (12, 16, 20, 24)
LONGEST = 30
"""Bases of a context and the base after it, at 2 bits, are an int64."""
RECENT = 32
"""Bases before, over which a copy is compared with its original."""


class Events(NamedTuple):
    """What is learned of contexts of `order` bases, at every base whose context and itself are no N.

    time: (M,) int64, the base. forward, inverted: (M,) the contexts before it: as read, and on the other strand. symbol, opposite: (M,)
    uint8, the base that follows each of them.
    """

    time: np.ndarray
    forward: np.ndarray
    inverted: np.ndarray
    symbol: np.ndarray
    opposite: np.ndarray


def events(codes: np.ndarray, order: int) -> Events:
    """Events of codes (T,) uint8.

    That on the other strand at base t is what one reads there from t back to t - order: the context is the complement of t, .., t - order
    + 1, and what follows it the complement of t - order.

    Raises:
        ValueError: order is not in [1, LONGEST).
    """
    if not 1 <= order < LONGEST:
        raise ValueError(f"order must be in [1, {LONGEST}), got {order}")
    bases = codes & BASE_BITS
    last_n = np.maximum.accumulate(np.where(bases >= N, np.arange(len(bases)), -1))
    time = np.flatnonzero(last_n < np.arange(len(bases)) - order)
    forward, inverted = (np.zeros(len(time), dtype=np.int64) for _ in range(2))
    for back in range(order - 1, -1, -1):
        forward = (forward << 2) | bases[time - 1 - back]
    for back in range(order):
        inverted = (inverted << 2) | (3 - bases[time - back])
    if order <= 8:  # numpy sorts 16 bits by radix
        forward, inverted = forward.astype(np.uint16), inverted.astype(np.uint16)
    return Events(time, forward, inverted, bases[time], 3 - bases[time - order])


def prequential_counts(keys: np.ndarray, symbols: np.ndarray, num_symbols: int = 4, wanted: slice = slice(None)) -> np.ndarray:
    """How often each symbol stood at the same key before, for each item in the order of time.

    Args:
        keys: (M,) integers.
        symbols: (M,) integers in [0, num_symbols).
        num_symbols: how many there are.
        wanted: of which items; the others are learned from.

    Returns:
        (num_symbols, W) int32.
    """
    order = np.argsort(keys, kind="stable")
    group = _begins(keys[order])
    place = np.empty(len(keys), dtype=np.int32)
    place[order] = np.arange(len(keys), dtype=np.int32)
    place = place[wanted]
    first = group[place]
    symbols = symbols[order]
    before = np.zeros(len(keys) + 1, dtype=np.int32)
    counts = np.empty((num_symbols, len(place)), dtype=np.int32)
    for symbol in range(num_symbols):
        np.cumsum(symbols == symbol, out=before[1:])
        counts[symbol] = before[place] - before[first]
    return counts


def _begins(keys: np.ndarray) -> np.ndarray:
    """(M,) int32: where the group of each of sorted keys (M,) begins."""
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return np.maximum.accumulate(np.where(new, np.arange(len(keys), dtype=np.int32), 0))


def counts(codes: np.ndarray, order: int, inverted: bool = True) -> np.ndarray:
    """How often A, C, G and T have followed the `order` bases before each base, in all that comes before it: (4, T) int32.

    inverted: what was read counts on the other strand as well. Where there is no such context, at the begin and close after an N, and at
    N itself, all are 0.
    """
    found, seen = np.zeros((4, len(codes)), dtype=np.int32), events(codes, order)
    if not inverted:
        found[:, seen.time] = prequential_counts(seen.forward, seen.symbol)
        return found
    keys, symbols = _interleaved(seen.forward, seen.inverted), _interleaved(seen.symbol, seen.opposite)
    found[:, seen.time] = prequential_counts(keys, symbols, wanted=slice(None, None, 2))
    return found


def _interleaved(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first[0], second[0], first[1], ..: an event on the other strand comes after what was asked at its base."""
    both = np.empty(2 * len(first), dtype=first.dtype)
    both[::2], both[1::2] = first, second
    return both


def chances(counted: np.ndarray, smoothing: float) -> np.ndarray:
    """Chances (4, T) float32 from counts (4, T): each count with `smoothing` added, over their sum."""
    smoothed = counted + np.float32(smoothing)
    return smoothed / smoothed.sum(axis=0)


def smoothing_of(order: int) -> float:
    """What is added to counts of an order: little where a context that was seen once is likely a repeat."""
    return 1.0 if order <= 8 else 0.5 if order <= 10 else 0.25 if order == 11 else 1 / 16 if order <= 14 else 1 / 64


class Copy(NamedTuple):
    """A place before each base that it may be a copy of.

    symbol: (T,) uint8, what the copy would have there; N where there is none. matches: (T,) uint8, how many of the `RECENT` bases before
    agree with the original. run: (T,) uint8, how many in a row agree before the base, at most `RECENT`.
    """

    symbol: np.ndarray
    matches: np.ndarray
    run: np.ndarray


def copies(codes: np.ndarray, order: int, inverted: bool, fewest: int = 20) -> Copy:
    """Follow for each base the latest place before it where the `order` bases were the same (`inverted`: on the other strand).

    A place is taken up if `fewest` of the RECENT bases before agree; then it is followed, whatever does not agree, until another one is
    taken up.
    """
    bases = codes & BASE_BITS
    length, seen = len(bases), events(codes, order)
    at = np.arange(length, dtype=np.int64)
    source = np.full(length, -1, dtype=np.int64)
    source[seen.time] = _latest(seen, order, inverted)
    found = source >= 0
    line = np.where(found, source + at if inverted else at - source, 0)  # what stays the same along a copy
    matches, _ = _agreement(bases, line, found, inverted)
    taken = np.maximum.accumulate(np.where(found & (matches >= fewest), at, -1))
    line = line[np.maximum(taken, 0)]
    original = line - at if inverted else at - line
    valid = (taken >= 0) & (original >= 0) & (original < at)
    symbol = np.where(valid, bases[np.where(valid, original, 0)], N).astype(np.uint8)
    symbol = np.where(symbol < N, 3 - symbol if inverted else symbol, N).astype(np.uint8)
    return Copy(symbol, *_agreement(bases, line, symbol < N, inverted))


def _latest(seen: Events, order: int, inverted: bool) -> np.ndarray:
    """(M,) int64: the base that follows (inverted: precedes) the latest earlier event of each one's context; -1 where there is none."""
    if not inverted:
        order_of = np.argsort(seen.forward, kind="stable")
        key, time = seen.forward[order_of], seen.time[order_of]
        same = np.concatenate([[False], key[1:] == key[:-1]])
        latest = np.where(same, np.concatenate([[0], time[:-1]]), -1)
        found = np.empty_like(latest)
        found[order_of] = latest
        return found
    keys = _interleaved(seen.forward, seen.inverted)
    order_of = np.argsort(keys, kind="stable")
    begin = _begins(keys[order_of])
    is_inverted = (order_of & 1) == 1
    last = np.maximum.accumulate(np.where(is_inverted, np.arange(len(keys), dtype=np.int64), -1))
    latest = np.where(last >= begin, seen.time[order_of[np.maximum(last, 0)] >> 1] - order, -1)
    found = np.empty_like(latest)
    found[order_of] = latest
    return found[::2]


def _agreement(bases: np.ndarray, line: np.ndarray, valid: np.ndarray, inverted: bool) -> tuple[np.ndarray, np.ndarray]:
    """How many of the RECENT bases before each lie on `line` with an equal base, and how many in a row: (T,) uint8 each."""
    matches, run = (np.zeros(len(bases), dtype=np.uint8) for _ in range(2))
    where = np.flatnonzero(valid)
    unbroken = np.ones(len(where), dtype=bool)
    for back in range(1, RECENT + 1):
        here = where - back
        there = line[where] - here if inverted else here - line[where]
        inside = (here >= 0) & (there >= 0) & (there < len(bases) if not inverted else there < where)
        mine, other = bases[np.where(inside, here, 0)], bases[np.where(inside, there, 0)]
        equal = inside & (mine < N) & (other < N) & (mine == (3 - other if inverted else other))
        matches[where] += equal
        unbroken &= equal
        run[where] += unbroken
    return matches, run


def copy_chances(codes: np.ndarray, copy: Copy) -> np.ndarray:
    """Chances (4, T) float32 of a copy: how often one with as many matches and as long a run was right before, the rest shared."""
    bases = codes & BASE_BITS
    told = np.full((4, len(codes)), 0.25, dtype=np.float32)
    where = np.flatnonzero((copy.symbol < N) & (bases < N))
    keys = (copy.matches[where].astype(np.uint16) * 8 + np.minimum(np.log2(copy.run[where] + 1.0).astype(np.uint16), 7)).astype(np.uint16)
    missed, hit = prequential_counts(keys, (copy.symbol[where] == bases[where]).astype(np.uint8), 2).astype(np.float32)
    right = (hit + 1) / (hit + missed + 2.5)
    told[:, where] = (1 - right) / 3
    told[copy.symbol[where], where] = right
    return told


def experts(
    codes: np.ndarray, orders: Sequence[int] = ORDERS, inverted: bool = True, copy_orders: Sequence[int] = COPY_ORDERS
) -> Iterator[tuple[str, np.ndarray]]:
    """Each expert's name and chances (4, T) float32, one at a time: order-k counts, then copies, along both strands if `inverted`."""
    for order in orders:
        yield f"order {order}", chances(counts(codes, order, inverted), smoothing_of(order))
    for order in copy_orders:
        for other_strand in (False, True)[: 1 + inverted]:
            name = f"{'inverted ' if other_strand else ''}copy {order}"
            yield name, copy_chances(codes, copies(codes, order, other_strand))


def bits(codes: np.ndarray, told: np.ndarray) -> np.ndarray:
    """What each base cost under chances (4, T): -log2 of its own, (T,) float64; 0 at N."""
    bases = codes & BASE_BITS
    scored = bases < N
    cost = np.zeros(len(codes))
    cost[scored] = -np.log2(told[bases[scored], np.flatnonzero(scored)].astype(np.float64))
    return cost
