"""Sequences that have a stretch of bases in common, on either strand: near duplicates, found without knowing their places."""

from collections.abc import Iterator

import numpy as np

from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.data.labelled import LabelledSequences

LONGEST = 32
"""Bases of a stretch at most: 64 bits."""
_BLOCK = 1 << 22


def sharing_stretches(part: LabelledSequences, other: LabelledSequences, length: int = LONGEST) -> np.ndarray:
    """(W,) bool: which sequences of `part` have `length` bases in a row, without N, that a sequence of `other` has on one of its strands.

    Raises:
        ValueError: length is not from 1 to 32.
    """
    if not 1 <= length <= LONGEST:
        raise ValueError(f"length must be from 1 to {LONGEST}, got {length}")
    found = list(_words(part, length))
    rows, words = (np.concatenate([pair[i] for pair in found]) for i in range(2)) if found else (np.zeros(0, int), np.zeros(0, np.uint64))
    known, which = np.unique(words, return_inverse=True)
    shared = np.zeros(len(known), bool)
    for _, there in _words(other, length) if len(known) else ():
        place = np.minimum(np.searchsorted(known, there), len(known) - 1)
        shared[place[known[place] == there]] = True
    marked = np.zeros(len(part), bool)
    marked[rows[shared[which]]] = True
    return marked


def _words(sequences: LabelledSequences, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of blocks of sequences: which sequence each word of `length` bases is in, and the word, the smaller of its two strands, as uint64."""
    ends = sequences.cu_seqlens
    first = 0
    while first < len(sequences):
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + _BLOCK, side="right")) - 1)
        bases = sequences.codes[ends[first] : ends[last]] & BASE_BITS
        count = max(0, len(bases) - length + 1)
        word, reverse = np.zeros((2, count), np.uint64)
        unknown = np.zeros(count, bool)
        for i in range(length):
            base = bases[i : count + i]
            word = (word << np.uint64(2)) | (base & 3).astype(np.uint64)
            reverse |= (3 - (base & 3)).astype(np.uint64) << np.uint64(2 * i)
            unknown |= base == N
        row = np.repeat(np.arange(first, last), sequences.lengths[first:last])
        inside = (row[:count] == row[len(row) - count :]) & ~unknown
        yield row[:count][inside], np.minimum(word, reverse)[inside]
        first = last
