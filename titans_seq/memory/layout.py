"""Where the tokens of a batch lie on the grid of chunks.

A chunk begins where the stream says so, not where a call begins: a row that stands inside a chunk, a padded token and a document
boundary all move the tokens behind them on the grid. `uniform_layout` serves rows that move together (no data-dependent shape, views
where possible); `ragged_layout` serves any rows, by gathering.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Chunked:
    """A tensor (N, ...) of chunks, whole and by chunk: to take views again and again would cost as much as small products."""

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole
        self.parts = whole.unbind(0)


class Layout(NamedTuple):
    """The grid of one call: N chunks of C cells a row, some cells without a token.

    place:    (B, H, T, ...) and a fill value -> (B, H, N, C, ...), the fill value in cells without a token.
    collect:  (B, H, N, C, D) -> (B, H, T, D), zero for masked tokens.
    active:   (B or 1, 1, N, C) bool, cells with a token; None if all have one.
    complete: one entry a chunk, whether its last cell is taken: a bool for all rows or (B,) bool.
    restart:  (B, N + 1) bool, rows whose memory is set back to W^0 before that chunk (the last entry: after all of them); None if none.
    position: (B,) int64, cells of an unfinished chunk at the end of the call.
    """

    place: Callable[[Tensor, float], Tensor]
    collect: Callable[[Tensor], Tensor]
    active: Tensor | None
    complete: list[bool] | list[Tensor]
    restart: Tensor | None
    position: Tensor


def uniform_layout(length: int, chunk_size: int, offset: int, position: Tensor) -> Layout:
    """All rows stand at `offset` in their chunk and read `length` tokens, none masked; `position` (B,) is only a template."""
    chunks = -(-(offset + length) // chunk_size)
    padding = chunks * chunk_size - offset - length

    def place(x: Tensor, fill: float) -> Tensor:
        if offset or padding:
            x = F.pad(x, (*(0, 0) * (x.dim() - 3), offset, padding), value=fill)
        return x.unflatten(2, (chunks, chunk_size))

    def collect(y: Tensor) -> Tensor:
        return y.flatten(2, 3)[:, :, offset : offset + length]

    active = None
    if offset or padding:
        cell = torch.arange(chunks * chunk_size, device=position.device)
        active = ((cell >= offset) & (cell < offset + length)).view(1, 1, chunks, chunk_size)
    complete = [(n + 1) * chunk_size <= offset + length for n in range(chunks)]
    return Layout(place, collect, active, complete, None, torch.full_like(position, (offset + length) % chunk_size))


def ragged_layout(length: int, chunk_size: int, position: Tensor | None, mask: Tensor | None, reset: Tensor | None, like: Tensor) -> Layout:
    """Rows differ: their position (B,) in the chunk, their masked tokens (B, T), their document boundaries (B, T).

    Without `reset` the number of chunks depends on shapes alone, so this compiles as one graph; with it, it depends on the data.
    `like` gives batch size and device.
    """
    batch, device = like.shape[0], like.device
    tokens = torch.ones(batch, length, dtype=torch.bool, device=device) if mask is None else mask
    offset = torch.zeros(batch, dtype=torch.int64, device=device) if position is None else position
    boundaries = torch.zeros(batch, length, dtype=torch.int64, device=device) if reset is None else reset.long()
    document = boundaries.cumsum(1)  # (B, T): 0 goes on from the state, every boundary begins the next
    documents = 1 if reset is None else length + 1

    taken = torch.zeros(batch, documents, dtype=torch.int64, device=device).scatter_add(1, document, tokens.long())
    before_document = taken.cumsum(1) - taken  # tokens of the row in earlier documents
    taken = taken + F.pad(offset.unsqueeze(1), (0, documents - 1))  # cells, the ones taken before this call included
    chunks_of_document = -(-taken // chunk_size)
    first_chunk = chunks_of_document.cumsum(1) - chunks_of_document  # (B, documents)

    rank = tokens.long().cumsum(1) - 1 - before_document.gather(1, document)  # of a token in its document
    rank = rank + torch.where(document == 0, offset.unsqueeze(1), 0)
    cell = first_chunk.gather(1, document) * chunk_size + rank  # (B, T)

    if reset is None:
        chunks = -(-(length + (0 if position is None else chunk_size - 1)) // chunk_size)
        restart = None
    else:
        chunks = max(1, int(chunks_of_document.sum(1).max()))
        used = document[:, -1]
        opened = (torch.arange(documents, device=device) <= used.unsqueeze(1)).long()
        opened[:, 0] = 0
        restart = torch.zeros(batch, chunks + 1, dtype=torch.int64, device=device)
        restart = restart.scatter_add(1, first_chunk.clamp(max=chunks), opened).bool()

    cells = chunks * chunk_size
    cell = torch.where(tokens, cell, cells)  # masked tokens go to a spare cell behind the grid
    source = torch.zeros(batch, cells + 1, dtype=torch.int64, device=device)
    source = source.scatter(1, cell, torch.arange(length, device=device).expand(batch, length))[:, :cells]
    filled = torch.zeros(batch, cells + 1, dtype=torch.bool, device=device).scatter(1, cell, True)[:, :cells]

    def place(x: Tensor, fill: float) -> Tensor:
        trailing = [1] * (x.dim() - 3)
        index = source.view(batch, 1, cells, *trailing).expand(-1, x.shape[1], -1, *x.shape[3:])
        placed = torch.where(filled.view(batch, 1, cells, *trailing), x.gather(2, index), fill)
        return placed.unflatten(2, (chunks, chunk_size))

    def collect(y: Tensor) -> Tensor:
        y = F.pad(y.flatten(2, 3), (0, 0, 0, 1))  # the spare cell reads zero
        return y.gather(2, cell.view(batch, 1, length, 1).expand(-1, y.shape[1], -1, y.shape[3]))

    grid = filled.view(batch, chunks, chunk_size)
    at_end = taken.gather(1, document[:, -1:]).squeeze(1) % chunk_size
    return Layout(place, collect, grid.unsqueeze(1), list(grid[:, :, -1].unbind(1)), restart, at_end)
