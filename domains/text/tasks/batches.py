"""Batches of examples for the shared trainer. Shapes: B rows, T tokens of the longest."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from domains.text.tasks.task import Example
from titans_seq.errors import UserError
from titans_seq.losses import IGNORED
from titans_seq.training import contents
from titans_seq.training.config import TrainingConfig
from titans_seq.training.loaders import Batch, Source, TrainingLoader, WindowStream, rows_of


def collate(items: Sequence[Example]) -> Batch:
    """A batch as `TitansForCausalLM.loss` takes it.

    tokens, targets: (B, T) int64, 0 and `IGNORED` where a row is padded. asked: (A,) int64, places of
    the targets that count, in the flattened (B T). mask: None, as rows are padded at their ends alone, and no token sees a later one; so a
    state after a batch is none to go on from. reset: None, each row begins anew.
    """
    lengths = np.array([len(item.inputs) for item in items])
    tokens, targets = np.zeros((len(items), lengths.max()), np.int64), np.full((len(items), lengths.max()), IGNORED)
    for i, item in enumerate(items):
        tokens[i, : lengths[i]], targets[i, : lengths[i]] = item
    asked = np.flatnonzero(targets != IGNORED)
    return {
        "tokens": torch.from_numpy(tokens),
        "targets": torch.from_numpy(targets),
        "asked": torch.from_numpy(asked),
        "mask": None,
        "reset": None,
    }


class FreshExamples:
    """New examples in every batch, in their order; a `Source` of the trainer.

    Args:
        items: as many as are ever taken.
        batch_size: rows over all devices.
        rank, world_size: of this device, and how many there are.
    """

    def __init__(self, items: Sequence[Example], batch_size: int, rank: int, world_size: int) -> None:
        self._items, self._batch_size, self._own, self._taken = items, batch_size, rows_of(batch_size, rank, world_size), 0
        self._made_of = {"batch_size": batch_size}

    def take(self) -> Batch:
        """The next batch."""
        taken = range(self._taken, self._taken + self._batch_size)
        self._taken = taken.stop
        return collate([self._items[i] for i in taken[self._own]])

    def state_dict(self) -> dict[str, Any]:
        """As of `Source`."""
        return {"made_of": self._made_of, "contents": self._contents, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As of `Source`.

        Raises:
            UserError: the position is of other examples, or none.
        """
        contents.check_same_data({"made_of": self._made_of} | state, self._made_of, self._contents)  # runs of earlier versions do not say
        taken = state.get("taken")
        if type(taken) is not int or not 0 <= taken < 2**63:
            raise UserError(f"the position in the data is damaged: {taken!r:.40} examples taken.")
        self._taken = taken

    @cached_property
    def _contents(self) -> int:
        return contents.checksum(collate([self._items[i] for i in range(self._batch_size)]))  # of the first, however many there are


class EveryExample:
    """All examples once, in their order, in batches of at most `batch_size`: from the first at every pass."""

    def __init__(self, items: Sequence[Example], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._items, self._rows, self._batch_size = items, range(rank, len(items), world_size), batch_size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self._batch_size):
            yield collate([self._items[i] for i in self._rows[start : start + self._batch_size]])


def example_loaders(
    training: Sequence[Example], validation: Sequence[Example], config: TrainingConfig, fresh: bool
) -> tuple[Callable[[int, int], TrainingLoader], Callable[[int, int], Any]]:
    """How loaders of examples are made on a device, from its rank and the number of devices: for training, and for validation.

    fresh: each example of the training is read once, in order; else all of them in a new order in every epoch.
    """

    def make_training(rank: int, world_size: int) -> TrainingLoader:
        if fresh:
            stream: Source = FreshExamples(training, config.batch_size, rank, world_size)
        else:
            stream = WindowStream(training, config.batch_size, collate, config.seed, rank, world_size)
        return TrainingLoader(stream, config.max_steps * config.accumulate)

    def make_validation(rank: int, world_size: int) -> EveryExample:
        return EveryExample(validation, config.batch_size // world_size, rank, world_size)

    return make_training, make_validation
