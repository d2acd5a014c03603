"""Facts in noise: needles that are small enough for a small model to learn in a minute."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Literal

import numpy as np

from domains.text.tasks.needles import NOISE
from domains.text.tasks.task import Example
from domains.text.tasks.texts import LONGEST, Question, TextTask
from domains.text.tasks.words import ADJECTIVES, NOUNS
from titans_seq.config import Config
from titans_seq.errors import UserError

SENTENCES = tuple(f"{sentence.removesuffix('.')}." for sentence in NOISE.split(". "))
"""RULER's noise, in sentences."""


@dataclass(frozen=True, kw_only=True)
class FactsConfig(Config):
    """A few things, each with a quality: "The candle is crimson." One of them is asked: "The candle is".

    In training no question stands out: facts are told again and again between sentences of noise, and every next token is asked. A test
    tells each once, anywhere in the haystack.

    Attributes:
        length: tokens of the prompt and `reserve`, at most; of a text of the training.
        haystack: "noise" is RULER's sentences, in their order; "facts" is facts about other things, each drawn anew.
        facts: things with a quality; one of them is asked, the others are told in the test too.
        things: how many things there are, the first of our list.
        qualities: likewise; several things may have the same.
        noise: share of the sentences of training that are noise.
        reserve: tokens that are kept free for the answer; None for those of the longest quality.
    """

    length: int = 128
    haystack: Literal["noise", "facts"] = "noise"
    facts: int = 2
    things: int = 40
    qualities: int = 40
    noise: float = 0.2
    reserve: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("length", 1 <= self.length <= LONGEST, f"between 1 and {LONGEST}")
        self._require("facts", 1 <= self.facts < self.things, f"between 1 and things - 1 = {self.things - 1}")
        self._require("things", self.things <= len(NOUNS), f"at most {len(NOUNS)}")
        self._require("qualities", 1 <= self.qualities <= len(ADJECTIVES), f"between 1 and {len(ADJECTIVES)}")
        self._require("noise", 0 <= self.noise < 1, "in [0, 1)")
        self._require("reserve", self.reserve is None or self.reserve >= 0, "at least 0 or None")


class Facts(TextTask):
    """Facts in noise: our own, after RULER's needles and MQAR, with short sentences in place of their templates."""

    config: FactsConfig

    def question(self, draw: np.random.Generator, training: bool = False) -> Question:
        """As of `TextTask`.

        Raises:
            UserError: `length` is too short for facts, question and reserve.
        """
        config = self.config
        facts = self._facts(draw)
        told = [_fact(*fact) for fact in facts]
        number = int(draw.integers(config.facts))
        thing, quality = facts[number]
        said = f"The {thing} is"
        room = config.length - self.reserve - self.tokens(" ".join([*told, said]))
        if room < 0:
            raise UserError(f"{self.name}: length={config.length} is {-room} tokens too short for facts, question and reserve.")
        hay = self._fitting(room, _noise(draw) if config.haystack == "noise" else self._other_facts(draw, {thing for thing, _ in facts}))
        places = np.sort(draw.integers(len(hay) + 1, size=config.facts))
        depth = float(places[number]) / max(1, len(hay))
        for place, fact in reversed(list(zip(places.tolist(), told, strict=True))):
            hay.insert(place, fact)
        return Question(" ".join([*hay, said]), said, said, (quality,), depth)

    @property
    def chance(self) -> float:
        """As of `Task`: of the qualities."""
        return 1 / self.config.qualities

    def score(self, question: Question, output: str) -> float:
        """Whether the quality is in the output."""
        return float(question.answers[0] in output)

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `TextTask`; in training the next token of everything is asked."""
        if not training:
            return super().example(draw)
        sequence = np.concatenate([[self.end], self.tokenizer.encode_batch([self.text(draw)])[0].astype(np.int64)])
        return Example(sequence[:-1], sequence[1:])

    def text(self, draw: np.random.Generator) -> str:
        """A text of the training.

        Raises:
            UserError: `length` is too short for a sentence.
        """
        said = self._fitting(self.config.length, self._told_again(draw))
        if not said:
            raise UserError(f"{self.name}: length={self.config.length} is too short for a sentence.")
        return " ".join(said)

    def _facts(self, draw: np.random.Generator) -> list[tuple[str, str]]:
        """Some things, none twice, and the quality of each."""
        things = draw.choice(self.config.things, self.config.facts, replace=False)
        qualities = draw.integers(self.config.qualities, size=self.config.facts)
        return [(NOUNS[thing], ADJECTIVES[quality]) for thing, quality in zip(things, qualities, strict=True)]

    def _told_again(self, draw: np.random.Generator) -> Iterator[str]:
        """Facts and noise without end."""
        facts, noise = self._facts(draw), _noise(draw)
        while True:
            yield next(noise) if draw.random() < self.config.noise else _fact(*facts[int(draw.integers(len(facts)))])

    def _other_facts(self, draw: np.random.Generator, asked: set[str]) -> Iterator[str]:
        """Facts about other things without end."""
        others = [thing for thing in NOUNS[: self.config.things] if thing not in asked]
        while True:
            yield _fact(others[draw.integers(len(others))], ADJECTIVES[draw.integers(self.config.qualities)])

    def _fitting(self, room: int, sentences: Iterator[str]) -> list[str]:
        """The first sentences, as many as have `room` tokens."""
        found = list[str]()
        for sentence in sentences:
            if sentence not in self._sizes:
                self._sizes[sentence] = self.tokens(f" {sentence}")
            room -= self._sizes[sentence]
            if room < 0:
                break
            found.append(sentence)
        return found

    @cached_property
    def reserve(self) -> int:
        """As of `TextTask`."""
        if self.config.reserve is not None:
            return self.config.reserve
        return max(self.tokens(f" {quality}") for quality in ADJECTIVES[: self.config.qualities])

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Tokens of sentences, with the space before them."""
        return {}


def _noise(draw: np.random.Generator) -> Iterator[str]:
    """RULER's sentences in their order, from any on, without end."""
    first = int(draw.integers(len(SENTENCES)))
    return cycle([*SENTENCES[first:], *SENTENCES[:first]])


def _fact(thing: str, quality: str) -> str:
    return f"The {thing} is {quality}."
