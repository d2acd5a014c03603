"""Tasks of recall: what followed a key before. Shapes: T tokens of an example, V symbols, P pairs."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from domains.text.tasks.task import Example, SymbolTask
from titans_seq.losses import IGNORED


@dataclass(frozen=True, kw_only=True)
class MultiQueryRecall(SymbolTask):
    """MQAR of Zoology (arXiv 2312.04927): P pairs key value, then every key once more among filler; the value is asked at the key.

    Keys are 1 .. V/2 - 1, values V/2 .. V - 1, none twice. The key that is asked at 2 P + 2 g has its gap g = 0, 1 .. drawn without
    replacement with chances that are proportional to (g + 1)^(power - 1). Filler comes from our generator, so that a seed fixes it; it may
    hold keys and values, as the original's does. Accuracy is that of the asked tokens, mean by row.

    Attributes:
        symbols: V; the original's default 8,192 makes recall hard, 256 fits small machines.
        length: T, even.
        pairs: P.
        power: of the law of gaps; 1 is uniform.
        random_filler: filler is drawn from all symbols; else it is 0.
    """

    name: ClassVar[str] = "mqar"
    symbols: int = 8192
    length: int = 64
    pairs: int = 8
    power: float = 0.01
    random_filler: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("pairs", 1 <= self.pairs < self.symbols // 2, f"between 1 and symbols / 2 - 1 = {self.symbols // 2 - 1}")
        self._require("length", self.length % 2 == 0 and self.length >= 4 * self.pairs, f"even, and at least 4 pairs={4 * self.pairs}")

    @property
    def answers(self) -> int:
        """As of `SymbolTask`: the values."""
        return self.symbols - self.symbols // 2

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        half, context = self.symbols // 2, 2 * self.pairs
        keys = 1 + draw.choice(half - 1, self.pairs, replace=False)
        values = half + draw.choice(self.symbols - half, self.pairs, replace=False)
        chances = (self.power - 1) * np.log(np.arange(1, (self.length - context) // 2 + 1))
        gaps = np.argsort(-(chances + draw.gumbel(size=len(chances))))[: self.pairs]  # without replacement
        inputs, targets = np.zeros(self.length, np.int64), np.full(self.length, IGNORED)
        inputs[0:context:2], inputs[1:context:2] = keys, values
        inputs[context + 2 * gaps], targets[context + 2 * gaps] = keys, values
        filler = draw.integers(self.symbols, size=self.length)
        return Example(np.where((inputs == 0) & self.random_filler, filler, inputs), targets)


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(SymbolTask):
    """Associative recall of H3 (arXiv 2212.14052): pairs of a map that is the example's own, then `=>` and a key: which value?

    The first half of the symbols are keys, the second values, the last symbol is `=>`. Trained on every next token, as there.

    Attributes:
        symbols: V; the original counts 10, with a point that is never used.
        length: T, of the pairs, even; `=>` and the key come after.
    """

    name: ClassVar[str] = "associative_recall"
    symbols: int = 9
    length: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("symbols", self.symbols >= 3, "at least 3")
        self._require("length", self.length % 2 == 0 and self.length >= 2, "even, at least 2")

    @property
    def answers(self) -> int:
        """As of `SymbolTask`: the values."""
        return self.symbols - 1 - (self.symbols - 1) // 2

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        half, arrow = (self.symbols - 1) // 2, self.symbols - 1
        values = draw.integers(half, arrow, size=half)
        keys = draw.integers(half, size=self.length // 2)
        asked = draw.choice(keys)
        sequence = np.empty(self.length + 3, np.int64)
        sequence[0 : self.length : 2], sequence[1 : self.length : 2] = keys, values[keys]
        sequence[self.length :] = arrow, asked, values[asked]
        return next_tokens(sequence, 1, training)


@dataclass(frozen=True, kw_only=True)
class InductionHeads(SymbolTask):
    """Induction heads of H3 (arXiv 2212.14052) and Mamba (arXiv 2312.00752): what followed `=>` the first time?

    Random symbols with `=>` somewhere among them, then `=>` once more. The last symbol is `=>`. Trained on every next token.
    Mamba's form is symbols=16, length=256, tested at 64 to 1,048,576.

    Attributes:
        symbols: V; the original counts 20, with a point that is never used.
        length: T, with the first `=>` but without the last.
        triggers: `=>` stands so often before the end, each time with the same symbol after it; in half of the examples once. Fewer where
            two places are next to one another.
    """

    name: ClassVar[str] = "induction"
    symbols: int = 19
    length: int = 30
    triggers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("symbols", self.symbols >= 2, "at least 2")
        self._require("length", self.length >= 3, "at least 3")
        self._require("triggers", self.triggers >= 1, "at least 1")

    @property
    def answers(self) -> int:
        """As of `SymbolTask`: all but `=>`."""
        return self.symbols - 1

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        arrow = self.symbols - 1
        sequence = np.append(draw.integers(arrow, size=self.length), [arrow, 0])
        triggers = 1 if draw.random() < 0.5 else self.triggers
        places = np.sort(draw.integers(self.length - 2, size=triggers))
        kept = [int(places[0])]
        for place in places[1:].tolist():
            if place - kept[-1] > 1:
                kept.append(place)
        answer = sequence[kept[0] + 1]
        for place in kept:
            sequence[place], sequence[place + 1] = arrow, answer
        sequence[-1] = answer
        return next_tokens(sequence, 1, training)


def next_tokens(sequence: np.ndarray, asked: int, training: bool) -> Example:
    """A sequence (T + 1,) as inputs and next tokens: in training all of them are targets, else the last `asked`."""
    targets = sequence[1:].copy()
    if not training:
        targets[: len(targets) - asked] = IGNORED
    return Example(sequence[:-1], targets)
