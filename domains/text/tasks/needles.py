"""Needles in a haystack, by the rules of RULER (arXiv 2404.06654; scripts/data/synthetic/niah.py)."""

import re
import uuid
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

from domains.text.tasks.books import sentences
from domains.text.tasks.texts import LONGEST, Question, TextTask
from domains.text.tasks.words import ADJECTIVES, NOUNS
from titans_seq.config import Config
from titans_seq.errors import UserError

Kind = Literal["words", "numbers", "uuids"]
Haystack = Literal["noise", "essay", "needle"]

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
TEMPLATE = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about the {kind} afterwards."
    "\n{context}\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
)
PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"
DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int)
"""Where an essay may hold needles, in per cent of its sentences."""


@dataclass(frozen=True, kw_only=True)
class NeedleConfig(Config):
    """Needles, each a key with values, in a haystack; the values of some keys are asked.

    Attributes:
        length: tokens of the prompt and `reserve`, at most, and as near as a unit of hay allows.
        haystack: "noise" repeats five sentences, "essay" is the books, "needle" is needles of other keys.
        keys: keys of needles.
        values: values of each key.
        queries: keys that are asked.
        key_kind: what keys are: words, numbers of 7 digits, or UUIDs (version 4).
        value_kind: what values are.
        reserve: tokens that are kept free for the answer.
        anywhere: an essay begins anywhere in the books; RULER's always begins with the first word.
    """

    length: int = 4096
    haystack: Haystack = "noise"
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_kind: Kind = "words"
    value_kind: Kind = "numbers"
    reserve: int = 128
    anywhere: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("length", 1 <= self.length <= LONGEST, f"between 1 and {LONGEST}")
        for name in ("keys", "values", "queries"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("reserve", self.reserve >= 0, "at least 0")
        self._require("queries", self.queries <= self.keys, f"at most keys={self.keys}")
        needles = self.keys * self.values
        self._require("keys", self.haystack != "essay" or needles <= len(DEPTHS), f"such that keys times values is at most {len(DEPTHS)}")
        self._require("length", self.length >= needles, f"at least keys times values = {needles}")


PRESETS: dict[str, dict[str, int | str]] = {
    "niah_single_1": {},
    "niah_single_2": {"haystack": "essay"},
    "niah_single_3": {"haystack": "essay", "value_kind": "uuids"},
    "niah_multikey_1": {"haystack": "essay", "keys": 4},
    "niah_multikey_2": {"haystack": "needle"},
    "niah_multikey_3": {"haystack": "needle", "key_kind": "uuids", "value_kind": "uuids"},
    "niah_multivalue": {"haystack": "essay", "values": 4},
    "niah_multiquery": {"haystack": "essay", "keys": 4, "queries": 4},
    "niah_w_words": {"haystack": "essay", "value_kind": "words"},
    "niah_w_uuid": {"haystack": "essay", "value_kind": "uuids"},
}
"""RULER's eight settings (PK, N and UUID of papers are single_1, 2 and 3), and both readings of Titans' "S-NIAH-W"."""


class Needles(TextTask):
    """RULER's needles (arXiv 2404.06654): keys with values, told once anywhere in a haystack; the values of some are asked.

    As there: the needle keeps its plural; with one answer template and prefix are put in the singular; needles lie before different units
    of hay, drawn without replacement. Not as there: words and sentences are our own, no key or value comes twice, no hay has a key that is
    asked, needles are shuffled anew in each example, answers are in the order of queries and of the text, and a length that is too short is
    an error, not a loop without end.
    """

    config: NeedleConfig

    @property
    def in_books(self) -> bool:
        """As of `TextTask`."""
        return self.config.haystack == "essay"

    def question(self, draw: np.random.Generator, training: bool = False) -> Question:
        """As of `TextTask`."""
        seed = int(draw.integers(2**63))
        units = self._units
        while True:  # another example's words may take more tokens
            made = self._write(seed, units)
            excess = self.tokens(made.prompt) + self.config.reserve - self.length
            if excess <= 0 or units <= self._fewest:
                return made
            units = max(self._fewest, units - max(1, excess // self._unit_tokens))

    def score(self, question: Question, output: str) -> float:
        """Share of the answers that are in the output, whatever the case (RULER's string_match_all)."""
        text = re.sub(r"[\x00-\x1f]", "\n", output.strip()).strip().lower()
        return sum(answer.lower() in text for answer in question.answers) / len(question.answers)

    @property
    def _fewest(self) -> int:
        """Units of hay: each needle lies before another one; an essay has words."""
        return 1 if self.config.haystack == "essay" else self.config.keys * self.config.values

    @cached_property
    def _unit_tokens(self) -> int:
        fewest = self._fewest
        more = self.tokens(self._write(0, fewest + 64).prompt) - self.tokens(self._write(0, fewest).prompt)
        return max(1, more // 64)

    @cached_property
    def _units(self) -> int:
        """Most units of hay with which the prompt of a first example fits.

        Raises:
            UserError: not even the fewest do.
        """

        def room(units: int) -> int:
            return self.length - self.config.reserve - self.tokens(self._write(0, units).prompt)

        low = self._fewest
        if room(low) < 0:
            raise UserError(f"{self.name}: length={self.length} is {-room(low)} tokens too short for needles, question and reserve.")
        high = low + 1 + room(low) // self._unit_tokens
        while room(high) >= 0:
            low, high = high, high + max(1, room(high) // self._unit_tokens)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if room(middle) >= 0 else (low, middle)
        return low

    def _write(self, seed: int, units: int) -> Question:
        """The question of a seed with so many units of hay."""
        config, draw = self.config, np.random.default_rng(seed)
        keys = _distinct(draw, config.key_kind, config.keys, set())
        values = _distinct(draw, config.value_kind, config.keys * config.values, set())
        owner = np.repeat(np.arange(config.keys), config.values)
        order = draw.permutation(len(values))
        needles = [NEEDLE.format(kind=config.value_kind, key=keys[owner[i]], value=values[i]) for i in order]
        asked = draw.choice(config.keys, config.queries, replace=False)
        if config.haystack == "essay":
            context, depths = self._essay(draw, needles, units)
        else:
            context, depths = self._units_of_hay(draw, needles, units, set(keys))
        queries = [keys[k] for k in asked]
        query = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
        answers = tuple(values[i] for k in asked for i in order if owner[i] == k)
        depth = depths[int(np.flatnonzero(order == asked[0])[0])] if len(answers) == config.values == 1 else None
        single = config.queries * config.values == 1
        template, prefix = (_singular(text) if single else text for text in (TEMPLATE, PREFIX))
        kind = config.value_kind[:-1] if single else config.value_kind
        said = prefix.format(kind=kind, query=query)
        prompt = template.format(kind=kind, context=context, query=query) + said
        return Question(prompt, said, prompt.rpartition("\n")[2].removesuffix(said), answers, depth)

    def _essay(self, draw: np.random.Generator, needles: list[str], words: int) -> tuple[str, list[float]]:
        """Needles between sentences of the first words of the books, and their depths."""
        book = self.need_books().words
        first = int(draw.integers(len(book))) if self.config.anywhere else 0
        text = " ".join(book[(first + i) % len(book)] for i in range(words))
        hay = list(sentences(text))
        depths = np.sort(draw.choice(DEPTHS, len(needles), replace=False))
        places = [0, *(len(hay) * depths // 100).tolist(), len(hay)]
        parts = [" ".join(hay[a:b]) for a, b in pairwise(places)]
        context = " ".join(part for pair in zip(parts, [*needles, ""], strict=True) for part in pair if part)
        return context, (depths / 100).tolist()

    def _units_of_hay(self, draw: np.random.Generator, needles: list[str], units: int, keys: set[str]) -> tuple[str, list[float]]:
        """Needles before lines of hay, and their depths."""
        config = self.config
        if config.haystack == "noise":
            hay = [NOISE] * units
        else:
            others = _distinct(draw, config.key_kind, units, keys)
            hay = [NEEDLE.format(kind=config.value_kind, key=key, value=_random(draw, config.value_kind)) for key in others]
        places = np.sort(draw.choice(units, len(needles), replace=False))
        for place, needle in reversed(list(zip(places.tolist(), needles, strict=True))):
            hay.insert(place, needle)
        return "\n".join(hay), (places / max(1, units - 1)).tolist()


def _singular(text: str) -> str:
    """RULER's replacements, in its order."""
    for old, new in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        text = text.replace(old, new)
    return text


def _random(draw: np.random.Generator, kind: Kind) -> str:
    if kind == "numbers":
        return str(draw.integers(10**6, 10**7))
    if kind == "uuids":
        return str(uuid.UUID(bytes=draw.bytes(16), version=4))
    return f"{ADJECTIVES[draw.integers(len(ADJECTIVES))]}-{NOUNS[draw.integers(len(NOUNS))]}"


def _distinct(draw: np.random.Generator, kind: Kind, count: int, taken: set[str]) -> list[str]:
    """Random ones of a kind, none twice and none that is taken."""
    if kind == "words" and count + len(taken) > len(ADJECTIVES) * len(NOUNS) // 2:
        raise UserError(f"{count:,} different pairs of words are more than our list gives; take key_kind='numbers' or 'uuids'.")
    found, seen = list[str](), set(taken)
    while len(found) < count:
        one = _random(draw, kind)
        if one not in seen:
            found.append(one)
            seen.add(one)
    return found
