"""What a task of memory is: examples made from numbers alone, the same on any machine. Shapes: T tokens of an example, V symbols.

A task says what is read and what is asked; it knows no model. Tasks of symbols are configurations themselves; those of text (`texts.py`)
also hold a tokeniser and books.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np

from domains.text.config import SYMBOLS
from titans_seq.config import Config
from titans_seq.errors import UserError

Part = Literal["training", "validation", "test"]
_PARTS: dict[Part, int] = {"training": 0, "validation": 1, "test": 2}


class Example(NamedTuple):
    """inputs: (T,) int64. targets: (T,) int64, what the token after each is to be, or `IGNORED` where nothing is asked."""

    inputs: np.ndarray
    targets: np.ndarray


class Task(Protocol):
    """What trains and evaluates models on a task needs to know of it."""

    @property
    def name(self) -> str:
        """Of `load_task`."""
        ...

    @property
    def distinct(self) -> bool:
        """Whether examples that are tested must not be trained on."""
        ...

    @property
    def at_once(self) -> bool:
        """Whether the model must read an example in one piece."""
        ...

    @property
    def vocabulary(self) -> int:
        """Of the model, `end` among them."""
        ...

    @property
    def end(self) -> int:
        """The model's token that ends a document."""
        ...

    @property
    def tokenizer_identity(self) -> str:
        """`TextConfig.tokenizer` of a model that can read the task."""
        ...

    @property
    def length(self) -> int:
        """Tokens of an example, at most."""
        ...

    @property
    def chance(self) -> float | None:
        """Share that guessing gets right, each answer that there can be as likely: of the asked tokens, of a task of text of the answers.
        None where the answers are not counted out.
        """
        ...

    @property
    def guess_bits(self) -> float | None:
        """Bits that guessing takes of an asked token, each that tests ask for as likely; None of a task of text."""
        ...

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """One example; training: as it is trained on, which may ask for more than a test does."""
        ...

    def bytes_of(self, example: Example) -> int | None:
        """Bytes of UTF-8 that the inputs of an example are; None of a task of symbols."""
        ...

    def at_length(self, length: int) -> "Task":
        """The same task, longer or shorter.

        Raises:
            ValueError: it does not fit.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """What `load_task` takes to make it again."""
        ...


@dataclass(frozen=True, kw_only=True)
class SymbolTask(Config):
    """Base of the tasks of symbols: a configuration with the published defaults, that makes its examples.

    Attributes:
        length: T, of the sequence.
    """

    name: ClassVar[str] = ""
    distinct: ClassVar[bool] = True
    at_once: ClassVar[bool] = False
    tokenizer_identity: ClassVar[str] = SYMBOLS
    length: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("length", self.length >= 1, "at least 1")

    @property
    def symbols(self) -> int:
        """V: inputs and targets are in [0, V)."""
        raise NotImplementedError

    @property
    def answers(self) -> int:
        """How many of the symbols a test may ask for."""
        return self.symbols

    @property
    def chance(self) -> float:
        """As of `Task`."""
        return 1 / self.answers

    @property
    def guess_bits(self) -> float:
        """As of `Task`."""
        return math.log2(self.answers)

    @property
    def vocabulary(self) -> int:
        """As of `Task`: the symbols and the end, which no example has."""
        return self.symbols + 1

    @property
    def end(self) -> int:
        """As of `Task`."""
        return self.symbols

    def example(self, draw: np.random.Generator, training: bool = False) -> Example:
        """As of `Task`."""
        raise NotImplementedError

    def bytes_of(self, example: Example) -> None:
        """As of `Task`."""

    def at_length(self, length: int) -> Self:
        """As of `Task`."""
        return replace(self, length=length)

    def settings(self) -> dict[str, Any]:
        """As of `Task`."""
        return self.to_dict()


def generator(seed: int, part: Part, number: int) -> np.random.Generator:
    """Of the random numbers of an example: those of a seed, of its parts and of their examples are independent."""
    return np.random.Generator(np.random.PCG64([seed, _PARTS[part], number]))


def examples(task: Task, seed: int, count: int, part: Part = "test") -> list[Example]:
    """The first `count` examples of a part, as they are trained on or tested: a pure function of its arguments."""
    return list(Examples(task, seed, count, part))


class Examples(Sequence[Example]):
    """As `examples`, each made when it is asked for.

    Args:
        task, seed, count, part: as `examples`.
        held_out: examples whose inputs must not come up; such a one is drawn again. `redrawn` counts them.

    Raises (when an item is asked for):
        UserError: nothing else comes up.
    """

    def __init__(self, task: Task, seed: int, count: int, part: Part, held_out: Sequence[Example] = ()) -> None:
        self._task, self._seed, self._count, self._part = task, seed, count, part
        self._held_out = {one.inputs.tobytes() for one in held_out} if task.distinct else set()
        self.redrawn = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Example:  # type: ignore[override]  # one at a time
        if not -self._count <= i < self._count:
            raise IndexError(i)
        draw = generator(self._seed, self._part, i % self._count)
        for _ in range(100):
            made = self._task.example(draw, training=self._part == "training")
            if made.inputs.tobytes() not in self._held_out:
                return made
            self.redrawn += 1
        raise UserError(f"{self._task.name}: there are no other examples than those held out. Make it longer, or test on fewer.")


def shared(some: Sequence[Example], others: Sequence[Example]) -> int:
    """How many of `some` have inputs that are among `others`."""
    known = {one.inputs.tobytes() for one in others}
    return sum(one.inputs.tobytes() in known for one in some)
