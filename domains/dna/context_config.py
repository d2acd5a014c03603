"""Which contexts the context memory keeps (`context_memory.py`)."""

from dataclasses import dataclass
from itertools import accumulate

from titans_seq.config import Config

LONGEST = 31
"""Bases of a context, at most: at 2 bits each they are an int64."""


@dataclass(frozen=True, kw_only=True)
class ContextMemoryConfig(Config):
    """Which contexts are remembered.

    Attributes:
        lengths: bases of each context.
        skips: how many bases between it and the base it tells of are left out; with some a context outlives a base that has changed.
        table_bits: contexts of at most table_bits / 2 bases have a slot each, others of one kind share 2^table_bits; 20 bytes a slot.
        inverted: learn the other strand of what was read as well.
    """

    lengths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 10, 11, 12, 14, 18, 12, 12, 12, 16, 16)
    skips: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 12, 20, 8, 24)
    table_bits: int = 18
    inverted: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("lengths", len(self.lengths) > 0 and all(1 <= x <= LONGEST for x in self.lengths), f"one or more in [1, {LONGEST}]")
        fits = len(self.skips) == len(self.lengths) and all(0 <= x <= LONGEST for x in self.skips)
        self._require("skips", fits, f"as many as lengths, in [0, {LONGEST}]")
        self._require("table_bits", 2 <= self.table_bits <= 28, "in [2, 28]")

    @property
    def contexts(self) -> list[tuple[int, int]]:
        """(E,): length and skip of each."""
        return list(zip(self.lengths, self.skips, strict=True))

    @property
    def reach(self) -> int:
        """Bases before the latest that its contexts, and what they are the other strand of, reach back to."""
        return max(length + skip for length, skip in self.contexts)

    def has_own_slots(self, length: int) -> bool:
        """Whether every context of this length has a slot."""
        return 2 * length <= self.table_bits

    @property
    def first_slots(self) -> list[int]:
        """(E + 1,): where the table of each context begins, and S."""
        return [0, *accumulate(1 << min(2 * length, self.table_bits) for length, _ in self.contexts)]

    @property
    def table_bytes(self) -> int:
        """Of the tables of a row: four counts and a tag of 4 bytes a slot."""
        return 20 * self.first_slots[-1]

    @property
    def smoothing(self) -> list[float]:
        """Of each context, added to the counts: little where a context that came once is likely a repeat."""
        return [_smoothing(length) for length, _ in self.contexts]


def _smoothing(length: int) -> float:
    return 1.0 if length <= 8 else 0.5 if length <= 10 else 0.25 if length == 11 else 1 / 16 if length <= 14 else 1 / 64
