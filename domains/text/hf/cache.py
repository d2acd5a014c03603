"""A carried state as transformers' cache."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from titans_seq.backbone import TitansState


class TitansCache(Cache):
    """What the memory holds after the tokens so far: of one size, however many they were. A call of the model changes it in place.

    As with the caches of other recurrent models, what a model is given with a cache are new tokens alone. The tensors of a state are never
    written to, so `copy.copy(cache)` is a fork that costs nothing.

    Args:
        state: of B rows; None before the first token.
    """

    def __init__(self, state: TitansState | None = None) -> None:
        super().__init__(layers=[])
        self.state = state

    def __repr__(self) -> str:
        rows = "nothing read" if self.state is None else f"{self.batch_size} rows, {self.state.nbytes:,} bytes"
        return f"{type(self).__name__}({rows})"

    @property
    def batch_size(self) -> int:
        """B; -1 before the first token."""
        return -1 if self.state is None else self.state.batch_size

    @property
    def is_croppable(self) -> bool:
        """What was read cannot be taken back."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: keep a copy from before."""
        raise ValueError("what a memory has read cannot be taken back; keep copy.copy(cache) from before")

    def reset(self) -> None:
        """As new."""
        self.state = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Rows `indices` (N,) int64, in that order."""
        if self.state is not None:
            self.state = self.state.select(indices.to(self.state.tensors()[0].device))

    def reorder_cache(self, beam_idx: Any) -> None:
        """The rows of the beams that go on."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, one after the other."""
        if self.state is not None:
            self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))
