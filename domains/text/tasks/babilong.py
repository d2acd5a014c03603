"""BABILong (arXiv 2406.10149): facts of bAbI inside book text (babilong/babilong_utils.py, data/create_tasks.py)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from domains.text.tasks.babi import LABELS, Story, compare_answers, find_file, read_stories
from domains.text.tasks.books import sentences
from domains.text.tasks.stories import TOLD, tell
from domains.text.tasks.texts import LONGEST, Question, TextTask
from titans_seq.config import Config
from titans_seq.errors import UserError

BabiTask = Literal["qa1", "qa2", "qa3", "qa4", "qa5", "qa6", "qa7", "qa8", "qa9", "qa10"]
SHORTEST = 10
"""Tokens of a sentence of background, at least."""
PAGE = 2_000
"""Characters that are looked through for sentences, at least, however little room is left: whole sentences have to be among them."""
FRUITLESS = 100
"""Random pages without one, after which the books are none of sentences."""
PREFIX = "\nAnswer:"


@dataclass(frozen=True, kw_only=True)
class BabiLongConfig(Config):
    """Facts of a story of bAbI, in their order, between sentences of a book.

    Attributes:
        task: of bAbI.
        length: tokens of facts, book and `reserve`; 0 for the facts alone.
        babi: folder of bAbI's files: tests read their test files. None for stories that we tell (qa1, qa2, qa3, qa6, qa7, qa8, qa9), which
            training takes in any case; of other tasks it reads the training files.
        reserve: tokens that are kept free for the question and what is around it. Where these take more, a text is as much longer than
            `length`; nothing is cut off.
        instruction: text before the context; the original's hold instructions and examples, which are not shipped here.
        questions: drawn for each text of the training, and asked one after the other where they are not the same; of stories that we tell.
            A text of the test has one.
        earlier_questions: in training, what bAbI asks earlier in a story is asked in the text too, after the facts until then, and
            answered. It is not counted in `length`.
    """

    task: BabiTask = "qa1"
    length: int = 4000
    babi: str | None = None
    reserve: int = 300
    instruction: str = ""
    questions: int = 4
    earlier_questions: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("length", 0 <= self.length <= LONGEST, f"between 0 and {LONGEST}")
        self._require("reserve", self.reserve >= 0, "at least 0")
        self._require("length", self.length == 0 or self.length > self.reserve, f"0, or more than reserve={self.reserve}")
        self._require("questions", self.questions >= 1, "at least 1")
        told = self.babi is not None or self.task in TOLD
        self._require("babi", told, f"the folder of bAbI's files for {self.task}: our own stories are {', '.join(TOLD)}")


class BabiLong(TextTask):
    """BABILong (arXiv 2406.10149): facts of bAbI, in their order, between sentences of your books, and a question about them.

    As there: a sample a question, earlier questions left out; stories with more facts than an eighth of the tokens are not used; the
    background begins at a random character of a random book, without the sentence that is cut there; its sentences of fewer than 10
    tokens are left out, the last one is cut to the length; facts lie at places drawn with replacement, sorted. Not as there: tests read
    bAbI's test files; sentences are our own (`books.py`) and joined by spaces; "Answer:" ends the prompt; facts that take more tokens than
    there are, as they can in bytes, are not used either.
    """

    config: BabiLongConfig

    @property
    def in_books(self) -> bool:
        """As of `TextTask`."""
        return True

    def question(self, draw: np.random.Generator, training: bool = False) -> Question:
        """As of `TextTask`."""
        story = self._story(draw, training)
        parts = self._context(draw, story)
        begin = f"{self.config.instruction}\n\n" * bool(self.config.instruction) + "<context>\n"
        before, told = list[tuple[str, str]](), 0
        for facts, asked, answer in story.earlier if training and self.config.earlier_questions else ():
            before.append((f"{begin}{_joined(parts[told:facts])}{_ask(asked)}", answer))
            begin, told = "\n\n", facts
        prompt = f"{begin}{_joined(parts[told:])}\n</context>{_ask(story.question)}"
        more = tuple((_ask(other), answer) for other, answer in story.more)
        return Question(prompt, PREFIX, story.question, (story.answer,), before=tuple(before), more=more)

    @property
    def chance(self) -> float | None:
        """As of `Task`: of the labels; qa8 asks for lists of them."""
        return None if self.config.task == "qa8" else 1 / len(LABELS[self.config.task])

    def score(self, question: Question, output: str) -> float:
        """`compare_answers`."""
        return float(compare_answers(question.answers[0], output, question.question, self.config.task))

    def size(self, question: Question) -> int:
        """As of `TextTask`: `reserve` holds the question, which is in the prompt."""
        return self.tokens(f"{question.prompt} {question.answers[0]}")

    @property
    def _budget(self) -> int | None:
        """Tokens of facts and background; None for the facts alone."""
        return self.config.length - self.config.reserve if self.config.length else None

    def _story(self, draw: np.random.Generator, training: bool) -> Story:
        config = self.config
        if config.task not in TOLD or (config.babi is not None and not training):
            stories = self._stories("train" if training else "test")
            return stories[int(draw.integers(len(stories)))]
        for _ in range(100):
            story = tell(config.task, draw, config.questions if training else 1)
            if self._fits(story):
                return story
        raise UserError(f"{self.name}: length={config.length} is too short for the stories of {config.task}.")

    def _stories(self, part: Literal["train", "test"]) -> list[Story]:
        """Of a file of bAbI, those that fit."""
        if part not in self._read:
            assert self.config.babi is not None
            path = find_file(Path(self.config.babi), self.config.task, part)
            self._read[part] = [story for story in read_stories(path) if self._fits(story)]
            if not self._read[part]:
                raise UserError(f"{path}: no story is short enough for length={self.config.length}.")
        return self._read[part]

    @cached_property
    def _read(self) -> dict[str, list[Story]]:
        return {}

    def _fits(self, story: Story) -> bool:
        budget = self._budget
        return budget is None or (len(story.facts) + 1 <= budget // 8 and self.tokens(" ".join(story.facts)) <= budget)

    def _context(self, draw: np.random.Generator, story: Story) -> list[list[str]]:
        """Sentences up to each fact, with it as the last, and those after all facts."""
        background = list[str]()
        if self._budget is not None:
            background = list(self._background(draw, self._budget - self.tokens(" ".join(story.facts))))
        places = np.sort(draw.integers(len(background) + 1, size=len(story.facts)))
        edges = [0, *places.tolist(), len(background)]
        parts = [background[begin:end] for begin, end in pairwise(edges)]
        for part, fact in zip(parts, story.facts, strict=False):
            part.append(fact)
        return parts

    def _background(self, draw: np.random.Generator, room: int) -> Iterator[str]:
        """Sentences of so many tokens together."""
        fruitless = 0
        while room > 0:
            if fruitless == FRUITLESS:
                raise UserError(
                    f"the books have no sentences of at least {SHORTEST} tokens: {FRUITLESS} random pages held none. Name books of prose, "
                    "whose sentences end with . ! or ? and a space."
                )
            fruitless += 1
            for sentence in self._pages(draw, max(PAGE, 10 * room)):
                if self.tokens(sentence) < SHORTEST:
                    continue
                size = self.tokens(f" {sentence}")
                if size > room:
                    cut = self.tokenizer.encode_batch([f" {sentence}"])[0][:room]
                    sentence = self.tokenizer.decode(cut.tolist()).strip().rstrip("\ufffd")
                if sentence:
                    yield sentence
                room -= size
                fruitless = 0
                if room <= 0:
                    return

    def _pages(self, draw: np.random.Generator, characters: int) -> Iterator[str]:
        """Sentences from a random place of a random book on, whole ones."""
        books = self.need_books().texts
        book = books[int(draw.integers(len(books)))]
        start = int(draw.integers(len(book)))
        found = sentences(book[start : start + characters])
        next(found, None)
        last = next(found, None)
        for sentence in found:  # the last one may be cut
            assert last is not None
            yield last
            last = sentence


def _joined(parts: list[list[str]]) -> str:
    return " ".join(chain.from_iterable(parts))


def _ask(question: str) -> str:
    return f"\n\nQuestion: {question}{PREFIX}"
