"""Tasks of state: parity, words of groups, and copying of strings. Shapes: T tokens of an example, G elements of a group."""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations, product
from typing import ClassVar, Literal, Self

import numpy as np

from domains.text.tasks.task import Example, SymbolTask
from titans_seq.losses import IGNORED

Group = Literal["S5", "A5", "S3", "Z60", "A4xZ5"]


@dataclass(frozen=True, kw_only=True)
class _OfLengths(SymbolTask):
    """Examples of min_length to length tokens, all lengths as likely. Short ones cannot but come up in training and test."""

    distinct: ClassVar[bool] = False
    min_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        lowest = self.min_length
        self._require("min_length", lowest is None or 1 <= lowest <= self.length, f"None for length, or in [1, length={self.length}]")

    def at_length(self, length: int) -> Self:
        """As of `Task`: all examples have this length."""
        return replace(self, length=length, min_length=None)

    def _draw_length(self, draw: np.random.Generator) -> int:
        return self.length if self.min_length is None else int(draw.integers(self.min_length, self.length + 1))


@dataclass(frozen=True, kw_only=True)
class Parity(_OfLengths):
    """Parity: bits; asked at each token is the sum of all so far, modulo 2.

    Attributes:
        length: T, the longest; published runs train on 3 to 40 and test on 40 to 256.
        min_length: the shortest; None for `length` alone.
    """

    name: ClassVar[str] = "parity"
    length: int = 40
    min_length: int | None = 3

    @property
    def symbols(self) -> int:
        """As of `SymbolTask`: two bits."""
        return 2

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        bits = draw.integers(2, size=self._draw_length(draw))
        return Example(bits, np.cumsum(bits) % 2)


@dataclass(frozen=True, kw_only=True)
class GroupWords(_OfLengths):
    """The word problem: elements of a group, uniform; asked at each token is the product of all so far, y_t = y_{t-1} x_t.

    Permutations act from the left to the right: (p q)(i) = q(p(i)), p first. They are numbered in the order of their images, the even ones
    of A4 and A5 among themselves; 0 is the identity. In A4xZ5 element 5 a + z is (a, z). (arXiv 2404.08819 trains on words of up to 20.)

    Attributes:
        group: S5 (120 elements) and A5 (60) cannot be solved by finite-depth parallel scans (NC1); S3, Z60 and A4xZ5 (60) are solvable.
        length: T, of the words, the longest.
        min_length: the shortest; None for `length` alone.
    """

    name: ClassVar[str] = "group_words"
    group: Group = "S5"
    length: int = 20

    @property
    def symbols(self) -> int:
        """As of `SymbolTask`: elements of the group."""
        return len(group_table(self.group))

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        table = group_table(self.group)
        word = draw.integers(len(table), size=self._draw_length(draw))
        products, now = np.empty_like(word), 0
        for t, element in enumerate(word.tolist()):
            products[t] = now = int(table[now, element])
        return Example(word, products)


@lru_cache(maxsize=8)
def group_table(group: Group) -> np.ndarray:
    """(G, G) int64: the number of the product x y of elements x and y."""
    if group == "Z60":
        return np.add.outer(np.arange(60), np.arange(60)) % 60
    if group == "A4xZ5":
        left, right = _permutation_table(4, True), np.add.outer(np.arange(5), np.arange(5)) % 5
        return np.kron(left * 5, np.ones((5, 5), np.int64)) + np.tile(right, (12, 12))
    return _permutation_table(int(group[1]), group[0] == "A")


def _permutation_table(n: int, even: bool) -> np.ndarray:
    elements = [p for p in permutations(range(n)) if not even or _is_even(p)]
    number = {p: i for i, p in enumerate(elements)}
    rows = [number[tuple(q[i] for i in p)] for p, q in product(elements, elements)]
    return np.array(rows).reshape(len(elements), len(elements))


def _is_even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for i, a in enumerate(permutation) for b in permutation[i + 1 :]) % 2 == 0


@dataclass(frozen=True, kw_only=True)
class Copy(SymbolTask):
    """Copying of a string (arXiv 2402.01032): `$ s | s .` with letters; after `|` the string and the point are asked.

    Symbols 0 to 25 are letters, then `$`, `|` and `.`. Right is an example with all of it right.

    Attributes:
        length: letters, at most; T is 2 length + 2.
        min_length: letters, at least.
    """

    name: ClassVar[str] = "copy"
    distinct: ClassVar[bool] = True
    symbols: int = 29
    length: int = 20
    min_length: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("symbols", self.symbols >= 4, "at least 4")
        self._require("min_length", 1 <= self.min_length <= self.length, f"in [1, length={self.length}]")

    def at_length(self, length: int) -> Self:
        """As of `Task`: all strings have this length."""
        return replace(self, length=length, min_length=length)

    @property
    def answers(self) -> int:
        """As of `SymbolTask`: the letters and the point."""
        return self.symbols - 2

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        size = int(draw.integers(self.min_length, self.length + 1))
        begin, again, point = self.symbols - 3, self.symbols - 2, self.symbols - 1
        string = draw.integers(begin, size=size)
        sequence = np.concatenate([[begin], string, [again], string, [point]])
        targets = sequence[1:].copy()
        targets[: size + 1] = IGNORED
        return Example(sequence[:-1], targets)
