"""How well a model does a task: the asked tokens, read through the state in constant memory. Shapes: B rows, T tokens, A asked tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from domains.text.tasks.batches import collate
from domains.text.tasks.task import Example, Examples, Task
from domains.text.tasks.train import check_reads
from titans_seq.display import html_table
from titans_seq.losses import IGNORED
from titans_seq.training.trainable import BITS

SEGMENT = 4096
"""Tokens of a row that are read at a time."""


@dataclass(frozen=True)
class Result:
    """Of an example. tokens: of its inputs. asked: tokens. right: of those the ones that the model finds likeliest, knowing the right ones
    before. answers, found: stretches of asked tokens without others between, such as a needle's value, and those all right. bits: of the
    asked tokens together. bytes: of the inputs as text, None where they are symbols.
    """

    tokens: int
    asked: int
    right: int
    answers: int
    found: int
    bits: float
    bytes: int | None = None


@dataclass(frozen=True)
class Scores:
    """Of all examples.

    Attributes:
        examples: how many.
        tokens: of inputs, mean.
        accuracy: share of asked tokens that are right, of each row, then the mean (Zoology's rule).
        chance: what a guess would have of `accuracy`, of a task of text of `answers` (`Task.chance`); None where that is not known.
        answers: share of answers found, likewise: the score of needles by likelihood.
        whole: share of examples with all right.
        bits: a token that is asked, mean over all of them.
        guess_bits: what a guess would take of `bits` (`Task.guess_bits`); None where that is not known.
        bytes: of UTF-8 that the inputs are, mean; None of a task of symbols.
    """

    examples: int
    tokens: float
    accuracy: float
    chance: float | None
    answers: float
    whole: float
    bits: float
    guess_bits: float | None = None
    bytes: float | None = None

    @classmethod
    def of(cls, results: Sequence[Result], task: Task | None = None) -> "Scores":
        """The mean of at least one result; task: for what a guess would have."""
        tokens, accuracy, answers, whole = (
            float(np.mean(values))
            for values in (
                [one.tokens for one in results],
                [one.right / one.asked for one in results],
                [one.found / one.answers for one in results],
                [one.right == one.asked for one in results],
            )
        )
        bits = sum(one.bits for one in results) / sum(one.asked for one in results)
        chance, guess_bits = (None, None) if task is None else (task.chance, task.guess_bits)
        sizes = [one.bytes for one in results if one.bytes is not None]
        size = float(np.mean(sizes)) if sizes else None
        return cls(len(results), tokens, accuracy, chance, answers, whole, bits, guess_bits, size)

    def _repr_html_(self) -> str:
        """In a notebook: a table of one row."""
        values = asdict(self)
        cells = ["" if value is None else f"{value:.4g}" for value in values.values()]
        return html_table("Scores", [cells], list(values))


def evaluate(
    model: Any,
    task: Task,
    count: int = 100,
    seed: int = 0,
    batch_size: int = 16,
    segment_length: int = SEGMENT,
    on_read: Callable[[int], None] = lambda tokens: None,
) -> Scores:
    """The scores on the first `count` test examples of a seed; `task.at_length` for other lengths.

    Args:
        model: in evaluation mode.
        task: that the model can read.
        count, seed: of the examples.
        batch_size: rows side by side, fewer where they are long: memory, not the scores.
        segment_length: tokens of a row at a time; memory does not grow with the length of the examples.
        on_read: called with tokens that were read.

    Raises:
        UserError: the model has other tokens, or is of another kind than the task needs.
    """
    found = results(model, task, Examples(task, seed, count, "test"), batch_size, segment_length, on_read)
    return Scores.of(list(found), task)


def results(
    model: Any,
    task: Task,
    items: Sequence[Example],
    batch_size: int = 16,
    segment_length: int = SEGMENT,
    on_read: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Result]:
    """As `evaluate`, the result of each item, in order."""
    check_reads(model, task)
    rows = max(1, min(batch_size, batch_size * SEGMENT // max(1, task.length)))
    for start in range(0, len(items), rows):
        some = [items[i] for i in range(start, min(start + rows, len(items)))]
        read = _read(some, model, None if task.at_once else segment_length, on_read)
        yield from (replace(result, bytes=task.bytes_of(item)) for item, result in zip(some, read, strict=True))


@torch.no_grad()
def _read(items: Sequence[Example], model: Any, segment_length: int | None, on_read: Callable[[int], None]) -> Iterator[Result]:
    device, batch, state = model.output_weight.device, collate(items), None
    length = batch["tokens"].shape[1]
    right, bits = (np.zeros(batch["tokens"].shape) for _ in range(2))
    for start in range(0, length, segment_length or length):
        part = slice(start, start + (segment_length or length))
        tokens = batch["tokens"][:, part].to(device)
        y, state = model.hidden(tokens, state)
        row, place = torch.nonzero(batch["targets"][:, part] != IGNORED, as_tuple=True)
        for some in torch.arange(len(row)).split(SEGMENT):
            i, t = row[some], place[some]
            targets = batch["targets"][i, start + t]
            logits = model.logits_of(y[i.to(device), t.to(device)]).float().cpu()
            at = i.numpy(), (start + t).numpy()  # a tensor of one number would be an index to numpy, not a list of one
            right[at] = (logits.argmax(-1) == targets).numpy()
            bits[at] = torch.nn.functional.cross_entropy(logits, targets, reduction="none").numpy() * BITS
        on_read(tokens.numel())
    for item, right_of, bits_of in zip(items, right, bits, strict=True):
        yield _result(item, right_of[: len(item.inputs)], bits_of[: len(item.inputs)])


def _result(item: Example, right: np.ndarray, bits: np.ndarray) -> Result:
    """right, bits: (T,), 0 where nothing is asked."""
    asked = item.targets != IGNORED
    begins = np.flatnonzero(asked & ~np.concatenate([[False], asked[:-1]]))
    found = np.add.reduceat(asked & (right == 0), begins) == 0 if len(begins) else np.zeros(0)
    return Result(len(item.inputs), int(asked.sum()), int(right.sum()), len(begins), int(found.sum()), float(bits.sum()))
