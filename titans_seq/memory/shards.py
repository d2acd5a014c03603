"""How a call's tokens are cut into shards, for memories that begin anew at each: the shards of all rows are rows of one batch.

Rows that move together are cut by views; rows that stand elsewhere, are padded or begin documents, by gathering.

Shapes: B batch, H heads, T tokens, n shards of S cells each; a cell holds a token, or none.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from titans_seq.memory.layout import Gathering
from titans_seq.packing import token_positions


class Shards(NamedTuple):
    """Shards that are read at once: the tokens of a call, or a part of them.

    place:    (B, H, T, ...) -> (B n, H, S, ...), zero in cells without a token.
    collect:  (B n, H, S, D) -> (B, H, tokens of this part, D), zero for masked tokens.
    filled:   (B n, S) bool, cells with a token; None if all have one.
    goes_on:  True: each row's one shard goes on from the state; False: all shards begin; or (B, n) bool, shard by shard.
    last:     (B,) int64, the shard that each row ends in; None for the last.
    renewed:  (B,) bool, rows that end at the begin of a document, before its first token; None for none.
    position: (B,) int64, tokens of the last shard that were read.
    """

    place: Callable[[Tensor], Tensor]
    collect: Callable[[Tensor], Tensor]
    filled: Tensor | None
    goes_on: bool | Tensor
    last: Tensor | None
    renewed: Tensor | None
    position: Tensor

    def before(self, carried: Tensor, first: Tensor) -> Tensor:
        """What each shard begins with, (B n, ..), from what each row carries (B, ..) and the first state (1, ..); not where all begin."""
        if not isinstance(self.goes_on, Tensor):
            return carried
        rows = self.goes_on.view(*self.goes_on.shape, *[1] * (carried.dim() - 1))
        return torch.where(rows, carried.unsqueeze(1), first.unsqueeze(1)).flatten(0, 1)

    def after(self, x: Tensor, first: Tensor) -> Tensor:
        """What each row carries on, (B, ..), from what each shard ends with (B n, ..) and the first state (1, ..)."""
        batch = self.position.shape[0]
        x = x.unflatten(0, (batch, -1))
        x = x[:, -1] if self.last is None else x[torch.arange(batch, device=x.device), self.last]
        return x if self.renewed is None else torch.where(self.renewed.view(-1, *[1] * (x.dim() - 1)), first, x)


def cut_into_shards(q: Tensor, shard_length: int, position: Tensor | None, mask: Tensor | None, reset: Tensor | None) -> list[Shards]:
    """The shards of a call with q (B, H, T, D), in parts that are read one after another.

    Args:
        position: (B,) int64, tokens of the unfinished shard that were read before, 0 to shard_length; None for a stream's begin.
        mask, reset: (B, T) bool, as of `neural_memory`.

    Looking at a position costs a graph break, so while compiling rows that go on are gathered. Without `reset` the number of shards
    depends on shapes alone.
    """
    batch, length = q.shape[0], q.shape[2]
    if mask is None and reset is None:
        if position is None:
            return _together(length, shard_length, 0, torch.zeros(batch, dtype=torch.int64, device=q.device))
        if not torch.compiler.is_compiling():
            lowest, highest = position.aminmax()
            if lowest == highest:
                return _together(length, shard_length, int(lowest), position)
    if position is None:
        position = torch.zeros(batch, dtype=torch.int64, device=q.device)
    return [_gathered(length, shard_length, position, mask, reset)]


def _together(length: int, shard_length: int, position: int, like: Tensor) -> list[Shards]:
    """The rest of the shard that all rows stand in, the whole shards after it, and the begin of the next: those that are there."""
    inside = position % shard_length  # 0 also where a shard is complete
    head = min(length, shard_length - inside) if inside else 0
    shards = (length - head) // shard_length
    body = head + shards * shard_length
    parts = [(0, head, 1, True), (head, body, shards, False), (body, length, 1, False)]
    return [_views(start, stop, shards, goes_on, inside, like) for start, stop, shards, goes_on in parts if start < stop]


def _views(start: int, stop: int, shards: int, goes_on: bool, inside: int, like: Tensor) -> Shards:
    """Tokens start to stop, in whole shards or in a part of one."""
    batch, size = like.shape[0], (stop - start) // shards

    def place(x: Tensor) -> Tensor:
        return x[:, :, start:stop].unflatten(2, (shards, size)).transpose(1, 2).flatten(0, 1)

    def collect(y: Tensor) -> Tensor:
        return y.unflatten(0, (batch, shards)).transpose(1, 2).flatten(2, 3)

    return Shards(place, collect, None, goes_on, None, None, torch.full_like(like, size + inside * goes_on))


def _gathered(length: int, shard_length: int, position: Tensor, mask: Tensor | None, reset: Tensor | None) -> Shards:
    """Rows differ: their position (B,) in their shard, their masked tokens (B, T), their document boundaries (B, T)."""
    batch, device = position.shape[0], position.device
    tokens = torch.ones(batch, length, dtype=torch.bool, device=device) if mask is None else mask
    place_in_document, read = token_positions(position, length, mask, reset)  # that goes on from the shard which a row stands in
    begins = tokens & (place_in_document % shard_length == 0)
    fresh = (begins & (tokens.long().cumsum(1) == 1)).any(1)  # rows whose first token begins a shard
    begun = begins.long().cumsum(1)
    shard = (begun - fresh.long().unsqueeze(1)).clamp(min=0)  # (B, T)

    size = min(length, shard_length)
    cell = place_in_document % shard_length - torch.where(begun == 0, position.unsqueeze(1), 0)
    shards = 1 + -(-(length - 1) // shard_length) if reset is None else 1 + int(shard.max())
    gathering = Gathering.of(torch.where(tokens, shard * size + cell, shards * size), shards * size)

    def place(x: Tensor) -> Tensor:
        return gathering.place(x, 0.0).unflatten(2, (shards, size)).transpose(1, 2).flatten(0, 1)

    def collect(y: Tensor) -> Tensor:
        return gathering.collect(y.unflatten(0, (batch, shards)).transpose(1, 2).flatten(2, 3))

    goes_on = (torch.arange(shards, device=device) == 0) & ~fresh.unsqueeze(1)
    after = torch.where(read > 0, (read - 1) % shard_length + 1, 0)
    filled = gathering.filled.unflatten(1, (shards, size)).flatten(0, 1)
    return Shards(place, collect, filled, goes_on, shard[:, -1], None if reset is None else read == 0, after)
