"""Genomes as the training loaders read them: records in order with the state carried on, or windows at random places.

Tokens are codes with their soft mask (bit 3): a model embeds `codes & BASE_BITS`, its loss weighs targets by `BasePolicy.weights`.
"""

from dataclasses import astuple
from functools import cached_property
from typing import Any

import numpy as np
import torch

from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from domains.dna.data.windows import BasePolicy, sample
from titans_seq.errors import UserError
from titans_seq.training import contents
from titans_seq.training.documents import Documents
from titans_seq.training.loaders import Batch


class GenomeDocuments(Documents):
    """Stretches of a genome as documents of codes, for `DocumentStream`: only what is asked for is read.

    Args:
        genome: what is read.
        spans: the documents, inside their records; of strand -1 they are read as the reverse complement.
    """

    def __init__(self, genome: Genome, spans: Intervals) -> None:
        self.genome, self.spans = genome, spans
        self.lengths = spans.lengths

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Codes `start` to `stop` - 1 of a document, (stop - start,) uint8."""
        spans = self.spans
        record, strand = int(spans.record[document]), int(spans.strand[document])
        if strand > 0:
            begin = int(spans.start[document])
            return self.genome.read(record, begin + start, begin + stop)
        end = int(spans.stop[document])
        return self.genome.window(record, end - stop, end - start, strand)


class RandomWindows:
    """Batches of windows at random places, without end: a `titans_seq.training.loaders.Source` like `DocumentStream`, with its batches.

    A batch is drawn from (seed, its number) alone, so a run goes on where it was, on any number of devices.

    Args:
        genome: what is read.
        spans: where windows may lie.
        batch_size: windows over all devices.
        segment_length: T, predictions of a window, which has one base more.
        policy: unknown="reject" draws windows without N.
        seed: of the places and strands.
        reverse_complement: read every window on a strand drawn at random.
        rank, world_size: of this device, and how many there are.

    Raises:
        ValueError: batch_size is no multiple of world_size.
    """

    def __init__(
        self,
        genome: Genome,
        spans: Intervals,
        batch_size: int,
        segment_length: int,
        policy: BasePolicy,
        seed: int = 0,
        reverse_complement: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch_size={batch_size} must be a multiple of the number of devices, {world_size}")
        self._genome, self._spans, self._policy = genome, spans, policy
        self._batch_size, self._length, self._seed = batch_size, segment_length, seed
        self._reverse_complement = reverse_complement
        rows = batch_size // world_size
        self._own = slice(rank * rows, (rank + 1) * rows)
        self._made_of = {
            "bases": int(spans.lengths.sum()),
            "spans": len(spans),
            "batch_size": batch_size,
            "segment_length": segment_length,
            "seed": seed,
        }
        self._taken = 0

    def take(self) -> Batch:
        """As `DocumentStream.take`: tokens and targets (B, T) int64, mask None, reset (B, T) bool, True where a window begins."""
        random = np.random.Generator(np.random.PCG64([self._seed, self._taken]))
        without_n = self._policy.unknown == "reject"
        windows = sample(self._genome, self._spans, self._length + 1, self._batch_size, random, without_n)
        strand = random.choice([1, -1], self._batch_size) if self._reverse_complement else windows.strand
        self._taken += 1
        own = zip(*(x[self._own].tolist() for x in (windows.record, windows.start, windows.stop, strand)), strict=True)
        codes = torch.from_numpy(np.stack([self._genome.window(*window) for window in own])).long()
        reset = torch.zeros(len(codes), self._length, dtype=torch.bool)
        reset[:, 0] = True
        return {"tokens": codes[:, :-1], "targets": codes[:, 1:], "mask": None, "reset": reset}

    def state_dict(self) -> dict[str, Any]:
        """Where the source stands."""
        return {"made_of": self._made_of, "contents": self._contents, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            UserError: the position is of other data, or none.
        """
        contents.check_same_data(state, self._made_of, self._contents)
        taken = state.get("taken")
        if type(taken) is not int or not 0 <= taken < 2**63:
            raise UserError(f"the position in the data is damaged: {taken!r:.40} batches taken.")
        self._taken = taken

    @cached_property
    def _contents(self) -> int:
        return contents.checksum((self._genome.sha256, astuple(self._spans)))
