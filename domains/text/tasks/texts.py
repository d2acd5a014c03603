"""Tasks of text: a prompt, answers, and what of them is asked. Shapes: T tokens of an example."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from domains.text.tasks.books import Books
from domains.text.tasks.task import Example
from domains.text.tokenizers import Tokenizer
from titans_seq.config import Config
from titans_seq.errors import UserError
from titans_seq.losses import IGNORED

LONGEST = 1_000_000_000
"""Tokens of a text, at most: it is made in memory."""


@dataclass(frozen=True)
class Question:
    """A text to read and what to say then.

    Attributes:
        prompt: all that is read; an answer goes on from it.
        prefix: the end of the prompt, which says how the answer begins; a model for chats is given it as the begin of its answer.
        question: what is asked, as it stands in the prompt.
        answers: all of which are right, in the order in which they are asked by likelihood.
        depth: of what the answer depends on, 0 at the begin of the context and 1 at its end; None where it is in several places.
        before, more: in training, what is said before the prompt and after the answers, each with the answer to it.
    """

    prompt: str
    prefix: str
    question: str
    answers: tuple[str, ...]
    depth: float | None = None
    before: tuple[tuple[str, str], ...] = ()
    more: tuple[tuple[str, str], ...] = ()


class TextTask(ABC):
    """Base of the tasks of text.

    Args:
        name: of the task.
        config: its settings, with `length`.
        tokenizer: counts tokens, and makes them.
        books: the hay; None where there is none.
    """

    distinct = True
    at_once = False

    def __init__(self, name: str, config: Any, tokenizer: Tokenizer, books: Books | None = None) -> None:
        self.name, self.config, self.tokenizer, self.books = name, config, tokenizer, books

    @abstractmethod
    def question(self, draw: np.random.Generator, training: bool = False) -> Question:
        """One question."""

    @abstractmethod
    def score(self, question: Question, output: str) -> float:
        """Of a text that a model wrote after the prompt, in [0, 1], by the published rule."""

    @property
    def in_books(self) -> bool:
        """Whether facts are hidden in books."""
        return False

    @property
    def vocabulary(self) -> int:
        """As of `Task`."""
        return self.tokenizer.vocabulary

    @property
    def end(self) -> int:
        """As of `Task`."""
        return self.tokenizer.end

    @property
    def tokenizer_identity(self) -> str:
        """As of `Task`."""
        return self.tokenizer.identity

    @property
    def length(self) -> int:
        """As of `Task`: tokens of prompt and room for the answer."""
        return int(self.config.length)

    @property
    def chance(self) -> float | None:
        """As of `Task`."""
        return None

    @property
    def guess_bits(self) -> float | None:
        """As of `Task`."""
        return None

    def settings(self) -> dict[str, Any]:
        """As of `Task`."""
        found: Config = self.config
        return found.to_dict()

    def at_length(self, length: int) -> Self:
        """As of `Task`."""
        return type(self)(self.name, type(self.config).from_dict({**self.settings(), "length": length}), self.tokenizer, self.books)

    def need_books(self) -> Books:
        """The books.

        Raises:
            UserError: there are none.
        """
        if self.books is None:
            raise UserError(f"{self.name} hides its facts in books. Name files or folders of texts: --books.")
        return self.books

    @cached_property
    def reserve(self) -> int:
        """Tokens that are kept free for the answers."""
        return int(self.config.reserve)

    def size(self, question: Question) -> int:
        """Tokens of the prompt, with room for the answers."""
        return self.tokens(question.prompt) + self.reserve

    def tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer.encode_batch([text])[0])

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`: the prompt, then the answers with commas between and a point. Asked are the answers; in training the rest of it
        too, with the document's end, and what the question has `before` and `more`, which is not counted in `length`.

        Raises:
            UserError: the answers take more tokens than are kept free for them.
        """
        question = self.question(draw, training)
        before = [*_answered(question.before), (question.prompt, False)]
        answers = [part for answer in question.answers for part in ((",", training), (f" {answer}", True))][1:]
        pieces, asked = zip(*before, *answers, (".", training), *_answered(question.more), strict=True)
        encoded = [part.astype(np.int64) for part in self.tokenizer.encode_batch(pieces)]
        self._check_room(sum(map(len, encoded[len(before) : len(before) + len(answers)])))
        sequence = np.concatenate([[self.end], *encoded, [self.end]])
        wanted = np.concatenate([[False], *(np.full(len(part), one) for part, one in zip(encoded, asked, strict=True)), [training]])
        return Example(sequence[:-1], np.where(wanted, sequence, IGNORED)[1:])

    def bytes_of(self, example: Example) -> int:
        """As of `Task`."""
        return len(self.tokenizer.decode(example.inputs.tolist()).encode())

    def _check_room(self, answers: int) -> None:
        if self.length and answers > self.reserve:
            raise UserError(
                f"{self.name}: the answers take {answers} tokens, and reserve={self.reserve} are kept free for them in "
                f"length={self.length}. Set reserve to {answers} or more."
            )


def _answered(said: Iterable[tuple[str, str]]) -> Iterator[tuple[str, bool]]:
    """What is said, the answer to it, and a point; and whether each is asked."""
    for text, answer in said:
        yield from ((text, False), (f" {answer}", True), (".", True))
