"""What a training step reads: rows of documents in segments, or independent windows; both know where they stand and go on from there.

Shapes: B rows of the batch on this device, T segment length.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from titans_seq.errors import UserError
from titans_seq.training import contents
from titans_seq.training.config import TrainingConfig
from titans_seq.training.documents import Documents, Pieces

Batch = dict[str, Any]


class Source(Protocol):
    """Batches without end (or with one: None), in an order that depends on nothing but the arguments; resumable."""

    def take(self) -> Batch | None:
        """The next batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the source stands: plain numbers, the same on every device."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, on any number of devices."""
        ...


MOST_SEGMENTS = 64
"""Of a document before it is cut, where no length is given: one segment of 64 begins a document."""


class DocumentStream:
    """`batch_size` rows side by side, each reading document after document in segments of T tokens.

    A row that ends its document goes on with the next one that no row has begun, in the same segment. Every epoch has an order of its own,
    made from `seed`. On several devices each walks all rows and reads its own, so a position is good for any number of them.

    Args:
        documents: what is read.
        batch_size: rows over all devices.
        segment_length: T.
        document_length: predictions after which a document is cut and the rest counts as another; None for a quarter of a row's share,
            so that all rows have work, and at most `MOST_SEGMENTS` segments, so that begins are learned.
        seed: of the order; None for the documents as they come, once.
        rank, world_size: of this device, and how many there are.
        begin: the token that documents begin with. It stands in place of the first token of each, and of the pieces of one that was cut.

    Raises:
        ValueError: batch_size is no multiple of world_size.
        UserError: no document has two tokens.
    """

    def __init__(
        self,
        documents: Documents,
        batch_size: int,
        segment_length: int,
        document_length: int | None = None,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        begin: int | None = None,
    ) -> None:
        share = rows_of(batch_size, rank, world_size)
        predictions = int(np.maximum(documents.lengths - 1, 0).sum())
        if predictions == 0:
            raise UserError(f"the data hold nothing to train on: none of {len(documents.lengths)} documents has two tokens.")
        length = document_length or min(max(segment_length, -(-predictions // (4 * batch_size))), MOST_SEGMENTS * segment_length)
        self._documents, self._pieces = documents, Pieces.cut(documents.lengths, length)
        self._length, self._seed, self._own, self._begin = segment_length, seed, share, begin
        sample = documents.read(0, 0, 0)  # of no token: shape and dtype alone
        self._token_shape, self._dtype = sample.shape[1:], np.float32 if sample.dtype.kind == "f" else np.int64
        self._made_of = {
            "predictions": predictions,
            "pieces": len(self._pieces),
            "batch_size": batch_size,
            "segment_length": segment_length,
        }
        self._rows = [(-1, 0)] * batch_size  # (piece, predictions of it that were read)
        self._epoch, self._next = 0, 0
        self._order = self._order_of(0)

    def take(self) -> Batch | None:
        """The next segment of every row, or None when the documents are read (only without `seed`).

        tokens, targets: (B, T, ..), int64 for integers and float32 for floats; a target is the next token of the document. mask: (B, T)
        bool, False where a row has nothing more to read; None if that is nowhere. reset: (B, T) bool, True where a document begins; None
        if that is nowhere.
        """
        own = range(len(self._rows))[self._own]
        shape = (len(own), self._length)
        tokens, targets = (np.zeros(shape + self._token_shape, self._dtype) for _ in range(2))
        mask, reset = np.zeros(shape, bool), np.zeros(shape, bool)
        anything = False
        for row in range(len(self._rows)):
            for at, piece, start, size in self._advance(row):
                anything = True
                if row in own:
                    i, part = row - own.start, slice(at, at + size)
                    begin = self._pieces.start[piece] + start
                    read = self._documents.read(int(self._pieces.document[piece]), int(begin), int(begin) + size + 1)
                    tokens[i, part], targets[i, part] = read[:-1], read[1:]
                    if start == 0 and self._begin is not None:
                        tokens[i, at] = self._begin
                    mask[i, part] = True
                    reset[i, at] = start == 0
        if not anything:
            return None
        marks = {"mask": None if mask.all() else torch.from_numpy(mask), "reset": torch.from_numpy(reset) if reset.any() else None}
        return {"tokens": torch.from_numpy(tokens), "targets": torch.from_numpy(targets), **marks}

    def _advance(self, row: int) -> Iterator[tuple[int, int, int, int]]:
        """Move a row one segment on: (where in the segment, piece, where in the piece, predictions) of each part of it."""
        piece, start = self._rows[row]
        at = 0
        while at < self._length:
            if piece < 0 or start == self._pieces.size[piece]:
                following = self._next_piece()
                if following is None:
                    break
                piece, start = following, 0
            size = min(self._length - at, int(self._pieces.size[piece]) - start)
            yield at, piece, start, size
            at, start = at + size, start + size
        self._rows[row] = (piece, start)

    def _next_piece(self) -> int | None:
        if self._next == len(self._order):
            if self._seed is None:
                return None
            self._epoch, self._next = self._epoch + 1, 0
            self._order = self._order_of(self._epoch)
        self._next += 1
        return int(self._order[self._next - 1])

    def _order_of(self, epoch: int) -> np.ndarray:
        return np.arange(len(self._pieces)) if self._seed is None else _permutation(len(self._pieces), self._seed, epoch)

    def state_dict(self) -> dict[str, Any]:
        """As of `Source`."""
        rows = [list(row) for row in self._rows]
        return {"made_of": self._made_of, "contents": self._contents, "epoch": self._epoch, "next": self._next, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As of `Source`.

        Raises:
            UserError: the position is of other data, of other rows, or no position in them.
        """
        contents.check_same_data(state, self._made_of, self._contents)
        values: list[Any] = [state.get(name) for name in ("epoch", "next", "rows")]
        epoch, following, rows = values
        in_data = _is_count(epoch, 2**63) and _is_count(following, len(self._pieces) + 1) and isinstance(rows, list)
        if not in_data or len(rows) != len(self._rows) or not all(map(self._holds, rows)):
            raise UserError(f"the position in the data is damaged: epoch {epoch!r:.40}, next {following!r:.40}, rows {rows!r:.80}.")
        self._epoch, self._next = epoch, following
        self._rows = [(piece, start) for piece, start in rows]
        self._order = self._order_of(self._epoch)

    @cached_property
    def _contents(self) -> int:
        return contents.of_documents(self._documents, self._dtype)

    def _holds(self, row: Any) -> bool:
        """Whether `row` is [piece, predictions of it that were read], or [-1, 0] before the first."""
        if not isinstance(row, list) or len(row) != 2:
            return False
        piece, start = row
        begun = _is_count(piece, len(self._pieces)) and _is_count(start, int(self._pieces.size[piece]) + 1)
        return begun or (all(type(x) is int for x in row) and row == [-1, 0])


class WindowStream:
    """Independent windows in random order, every one once an epoch; batches run on from one epoch into the next, none is smaller.

    Args:
        windows: anything with a length and items, always the same ones.
        batch_size: windows over all devices.
        collate: makes a batch of a list of items (`torch.utils.data.default_collate`).
        seed: of the order.
        rank, world_size: of this device, and how many there are.

    Raises:
        ValueError: batch_size is no multiple of world_size.
        UserError: there is no window.
    """

    def __init__(
        self,
        windows: Sequence[Any],
        batch_size: int,
        collate: Callable[[list[Any]], Batch] = torch.utils.data.default_collate,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._own = rows_of(batch_size, rank, world_size)
        if len(windows) == 0:
            raise UserError("the data hold nothing to train on: there is no window.")
        self._windows, self._batch_size, self._collate, self._seed = windows, batch_size, collate, seed
        self._made_of = {"windows": len(windows), "batch_size": batch_size}
        self._taken = 0
        self._order = (0, _permutation(len(windows), seed, 0))  # of an epoch

    def take(self) -> Batch:
        """The next batch, collated."""
        taken = range(self._taken, self._taken + self._batch_size)
        self._taken = taken.stop
        return self._collate([self._windows[self._window(i)] for i in taken[self._own]])

    def _window(self, taken: int) -> int:
        """The window that is the `taken`-th of the run."""
        epoch, place = divmod(taken, len(self._windows))
        if self._order[0] != epoch:
            self._order = (epoch, _permutation(len(self._windows), self._seed, epoch))
        return int(self._order[1][place])

    def state_dict(self) -> dict[str, Any]:
        """As of `Source`."""
        return {"made_of": self._made_of, "contents": self._contents, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As of `Source`.

        Raises:
            UserError: the position is of other data, or none.
        """
        contents.check_same_data(state, self._made_of, self._contents)
        if not _is_count(state.get("taken"), 2**63):
            raise UserError(f"the position in the data is damaged: {state.get('taken')!r:.40} windows taken.")
        self._taken = state["taken"]

    @cached_property
    def _contents(self) -> int:
        return contents.of_items(self._windows, self._collate)


class LengthWarmup:
    """Sources one after the other, each for a number of batches, the last for good. Only the one that is read is made.

    stages: batches of each source before the last. make: makes the source of a stage, 0 ..
    """

    def __init__(self, stages: Sequence[int], make: Callable[[int], Source]) -> None:
        self._stages, self._make = tuple(stages), make
        self._stage, self._taken, self._source = 0, 0, make(0)

    def take(self) -> Batch | None:
        """The next batch of the stage, or the first of the next stage."""
        if self._stage < len(self._stages) and self._taken == self._stages[self._stage]:
            self._stage, self._taken, self._source = self._stage + 1, 0, self._make(self._stage + 1)
        self._taken += 1
        return self._source.take()

    def state_dict(self) -> dict[str, Any]:
        """As of `Source`."""
        return {"stage": self._stage, "taken": self._taken, "source": self._source.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As of `Source`.

        Raises:
            UserError: the position is of other data, of other stages, or no position in them.
        """
        values: list[Any] = [state.get(name) for name in ("stage", "taken", "source")]
        stage, taken, source = values
        limits = [*(batches + 1 for batches in self._stages), 2**63]
        if not _is_count(stage, len(limits)) or not _is_count(taken, limits[stage]) or not isinstance(source, dict):
            raise UserError(f"the position in the data is damaged: stage {stage!r:.40}, taken {taken!r:.40}, source {source!r:.40}.")
        self._stage, self._taken, self._source = stage, taken, self._make(stage)
        self._source.load_state_dict(source)


class TrainingLoader:
    """A source as Lightning reads it: `batches` of them in all, and its position in every checkpoint."""

    def __init__(self, source: Source, batches: int) -> None:
        self._source, self._batches = source, batches

    def __len__(self) -> int:
        return self._batches  # known, so that Lightning reads no batch ahead of the step and the position is exact

    def __iter__(self) -> Iterator[Batch]:
        while (batch := self._source.take()) is not None:
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Of the source."""
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of the source."""
        self._source.load_state_dict(state)


class EvaluationLoader:
    """Documents in their order, each once, from the first at every pass; rows and segments as in training."""

    def __init__(self, make_stream: Callable[[], DocumentStream]) -> None:
        self._make_stream = make_stream

    def __iter__(self) -> Iterator[Batch]:
        stream = self._make_stream()
        while (batch := stream.take()) is not None:
            yield batch


def document_loaders(
    training: Documents, validation: Documents | None, config: TrainingConfig, begin: int | None = None
) -> tuple[Callable[[int, int], TrainingLoader], Callable[[int, int], EvaluationLoader] | None]:
    """How loaders of documents are made on a device, from its rank and the number of devices: for training, and for validation.

    Documents of the validation are read whole unless `document_length` is set, in no more rows than there are documents. begin: as of
    `DocumentStream`.
    """

    stages = len(config.length_warmup)

    def make_training(rank: int, world_size: int) -> TrainingLoader:
        def make_stream(stage: int) -> DocumentStream:
            rows, length, longest = config.batch_size, config.segment_length, config.document_length
            if stage < stages:  # as many more rows as they are shorter, each a document of its own
                shorter = 2 ** (stages - stage)
                rows, length = rows * shorter, length // shorter
                longest = min(length, longest or length)
            return DocumentStream(training, rows, length, longest, config.seed, rank, world_size, begin)

        batches = [steps * config.accumulate for steps in config.length_warmup]
        source = LengthWarmup(batches, make_stream) if stages else make_stream(stages)
        return TrainingLoader(source, config.max_steps * config.accumulate)

    def make_validation(rank: int, world_size: int) -> EvaluationLoader:
        assert validation is not None
        length = config.document_length or int(validation.lengths.max())
        rows = -(-min(config.batch_size, len(validation.lengths)) // world_size) * world_size
        return EvaluationLoader(lambda: DocumentStream(validation, rows, config.segment_length, length, None, rank, world_size, begin))

    return make_training, None if validation is None else make_validation


def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(size)


def rows_of(batch_size: int, rank: int, world_size: int) -> slice:
    """The rows of a batch that a device reads."""
    if batch_size % world_size:
        raise ValueError(f"batch_size={batch_size} must be a multiple of the number of devices, {world_size}")
    rows = batch_size // world_size
    return slice(rank * rows, (rank + 1) * rows)


def _is_count(value: Any, stop: int) -> bool:
    """Whether `value` is an integer in [0, stop)."""
    return type(value) is int and 0 <= value < stop
