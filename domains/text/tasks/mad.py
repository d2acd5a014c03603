"""The six tasks of MAD (arXiv 2403.17844), with the settings of its baseline. Shapes: T tokens of an example, V symbols.

Drawn as the original's published code does, but for what is named at each. Scores of its paper are those of the best of a sweep.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from domains.text.tasks.recall import next_tokens
from domains.text.tasks.task import Example, SymbolTask
from titans_seq.losses import IGNORED

Spread = Literal["gaps", "places"]


@dataclass(frozen=True, kw_only=True)
class InContextRecall(SymbolTask):
    """In-context recall, and with noise noisy in-context recall: pairs of a map that is the example's own.

    Keys are the first half of the symbols, values the second. The value is asked wherever a key comes again, and after the last
    pair, whose key came before. In training every next token is asked. T is length - 1: the original shifts a sequence of `length`.

    Attributes:
        symbols: V.
        length: of the sequence, even.
        noise_symbols, noise: of V so many are noise, and a pair is noise with this chance; one pair at least is none (in the original that
            one may be the place after the last, and then nothing may be there to ask for).
    """

    name: ClassVar[str] = "mad_recall"
    symbols: int = 16
    length: int = 128
    noise_symbols: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("noise_symbols", 0 <= self.noise_symbols <= self.symbols - 2, f"between 0 and symbols - 2 = {self.symbols - 2}")
        self._require(
            "noise", 0 <= self.noise < 1 and (self.noise == 0 or self.noise_symbols > 0), "in [0, 1), and 0 without noise_symbols"
        )
        self._require("length", self.length % 2 == 0 and self.length >= 4, "even, at least 4")

    @property
    def answers(self) -> int:
        """As of `SymbolTask`: the values that are no noise."""
        real = self.symbols - self.noise_symbols
        return real - real // 2

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        real = self.symbols - self.noise_symbols
        values: dict[int, int] = {}
        sequence, targets = list[int](), list[int]()
        pairs = self.length // 2 - 1
        never_noise = int(draw.integers(pairs))
        for i in range(pairs):
            if self.noise and i != never_noise and draw.random() < self.noise:
                sequence += draw.integers(real, self.symbols, size=2).tolist()
                targets += [IGNORED, IGNORED]
                continue
            key = int(draw.integers(real // 2))
            targets += [IGNORED, values.get(key, IGNORED)]
            sequence += [key, values.setdefault(key, int(draw.integers(real // 2, real)))]
        key = int(draw.choice(list(values)))
        return _shifted([*sequence, key, values[key]], [*targets, IGNORED, values[key]], training)


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(SymbolTask):
    """Fuzzy in-context recall: keys and values are motifs of one to `motif` different symbols; a test asks with keys of `motif` alone.

    The last symbol pads the left side to `length`. In training every next token is asked.
    The pair that is asked at the end always comes before; in the original its place can lie behind the last pair.

    Attributes:
        symbols: V, with the padding.
        length: T.
        motif: symbols of a motif, at most.
    """

    name: ClassVar[str] = "mad_fuzzy_recall"
    symbols: int = 16
    length: int = 128
    motif: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("motif", 1 <= self.motif <= (self.symbols - 1) // 2, f"between 1 and (symbols - 1) / 2 = {(self.symbols - 1) // 2}")
        self._require("length", self.length > 6 * self.motif, f"more than 6 motif={6 * self.motif}")

    @property
    def answers(self) -> int:
        """As of `SymbolTask`: those of values."""
        return self.symbols - 1 - (self.symbols - 1) // 2

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        half, real = (self.symbols - 1) // 2, self.symbols - 1

        def key() -> tuple[int, ...]:
            return _motif(draw, 0, half, int(draw.integers(1, self.motif + 1)) if training else self.motif)

        def value() -> tuple[int, ...]:
            return _motif(draw, half, real, int(draw.integers(1, self.motif + 1)))

        asked, answer = key(), value()
        end = self.length - len(asked) - len(answer) - 2 * self.motif
        place = min(int(draw.integers(self.length - 2 * len(asked + answer))), end - 2 * self.motif)  # there is a pair to come
        values: dict[tuple[int, ...], tuple[int, ...]] = {asked: answer}
        seen = set[tuple[int, ...]]()
        sequence, targets = list[int](), list[int]()
        while len(sequence) < end:
            now = asked if len(sequence) >= place and asked not in seen else key()
            follows = values.get(now) or value()
            values[now] = follows
            targets += [IGNORED] * len(now) + (list(follows) if now in seen else [IGNORED] * len(follows))
            sequence += now + follows
            seen.add(now)
        padding = self.length + 1 - len(sequence) - len(asked + answer)
        sequence = [real] * padding + sequence + [*asked, *answer]
        return _shifted(sequence, [IGNORED] * padding + targets + [IGNORED] * len(asked) + list(answer), training)


@dataclass(frozen=True, kw_only=True)
class Memorisation(SymbolTask):
    """Memorisation: a map from keys to values that is the same in all examples, and has to be learned by the weights.

    A key, then the last symbol, where its value is asked. The map is the original's, of its seed.

    Attributes:
        symbols: V, with the last that asks.
        length: T, even.
        map_seed: of the map.
    """

    name: ClassVar[str] = "mad_memorisation"
    symbols: int = 256
    length: int = 32
    map_seed: int = 12345

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("symbols", self.symbols >= 3, "at least 3")
        self._require("length", self.length % 2 == 0, "even")
        self._require("map_seed", self.map_seed >= 0, "at least 0")

    @property
    def answers(self) -> int:
        """As of `SymbolTask`: the values of the map."""
        return (self.symbols - 1) // 2

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        keys, values = fixed_map(self.symbols - 1, self.map_seed)
        chosen = draw.integers(len(keys), size=self.length // 2)
        inputs, targets = np.full(self.length, self.symbols - 1), np.full(self.length, IGNORED)
        inputs[0::2], targets[1::2] = keys[chosen], values[chosen]
        return Example(inputs, targets)


@lru_cache(maxsize=8)
def fixed_map(symbols: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys from the first half of the symbols and their values from the second, (K,) each, as the original draws them."""
    draw, half = np.random.default_rng(seed), symbols // 2
    keys, values = list(range(half)), list(range(half, symbols))
    draw.shuffle(keys)
    draw.shuffle(values)
    return np.array(keys), np.array(values[:half])


@dataclass(frozen=True, kw_only=True)
class Compression(SymbolTask):
    """Compression: random symbols, the last symbol at the end, and all of them are asked, of what the model made of the last alone.

    The target of a token is that token: a `LastTokenDecoder` makes all logits from the last hidden vector and positions, as the original's
    auto-encoder. A model of the next token would merely look at its input, and is refused.

    Attributes:
        symbols: V, with the last that ends the sequence.
        length: T.
    """

    name: ClassVar[str] = "mad_compression"
    at_once: ClassVar[bool] = True
    symbols: int = 16
    length: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("symbols", self.symbols >= 2, "at least 2")

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        inputs = np.append(draw.integers(self.symbols - 1, size=self.length - 1), self.symbols - 1)
        return Example(inputs, inputs.copy())


@dataclass(frozen=True, kw_only=True)
class SelectiveCopy(SymbolTask):
    """Selective copying: `copied` symbols with blanks between, then the last symbol, and they are asked again, in order, at blanks.

    spread="gaps" is MAD's: a blank goes before one of the symbols, each as likely, so that none is after the last. spread="places" is that
    of Mamba (arXiv 2312.00752; length=4096): all sets of places are as likely.

    Attributes:
        symbols: V, with the blank and the symbol that asks.
        length: T.
        copied: symbols to copy.
        spread: how the blanks lie.
    """

    name: ClassVar[str] = "mad_selective_copy"
    symbols: int = 16
    length: int = 256
    copied: int = 16
    spread: Spread = "gaps"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("symbols", self.symbols >= 3, "at least 3")
        self._require("copied", self.copied >= 1, "at least 1")
        self._require("length", self.length > 2 * self.copied, f"more than 2 copied={2 * self.copied}")

    @property
    def answers(self) -> int:
        """As of `SymbolTask`: all but the blank and the symbol that asks."""
        return self.symbols - 2

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        first = self.length - self.copied - 1
        symbols = draw.integers(self.symbols - 2, size=self.copied)
        if self.spread == "gaps":
            blanks = np.bincount(draw.integers(self.copied, size=first - self.copied), minlength=self.copied)
            places = np.cumsum(blanks + 1) - 1
        else:
            places = np.sort(draw.choice(first, self.copied, replace=False))
        inputs, targets = np.full(self.length, self.symbols - 2), np.full(self.length, IGNORED)
        inputs[places], inputs[first] = symbols, self.symbols - 1
        targets[first + 1 :] = symbols
        return Example(inputs, targets)


def _motif(draw: np.random.Generator, start: int, stop: int, size: int) -> tuple[int, ...]:
    """Different symbols of [start, stop), in an order that counts."""
    return tuple((start + draw.choice(stop - start, size, replace=False)).tolist())


def _shifted(sequence: list[int], targets: list[int], training: bool) -> Example:
    whole = np.array(sequence, np.int64)
    return next_tokens(whole, 0, True) if training else Example(whole[:-1], np.array(targets[1:], np.int64))
