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


class Workspace:
    """Buffers by name, made once and used again for every segment: fresh memory costs more than what is computed in it."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}
        self.by_chunk: dict[tuple[str, int], Chunked] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised buffer of this shape; the same memory at every call with this name."""
        buffer = self.buffers.get(name)
        if buffer is None or buffer.shape[1:] != shape[1:] or buffer.shape[0] < shape[0]:
            buffer = self.buffers[name] = self.like.new_empty(shape)
        return buffer[: shape[0]]

    def chunked(self, name: str, *shape: int, keep: bool = True) -> "Chunked":
        """A buffer by chunk; without `keep` every chunk writes over the one before, which then is still in the cache."""
        key = (name, shape[0])
        if key not in self.by_chunk:
            self.by_chunk[key] = Chunked(self(name, *shape) if keep else self(name, 1, *shape[1:]).expand(shape))
        return self.by_chunk[key]


class Chunked:
    """A tensor (N, ...) of chunks, whole and by chunk: to take views again and again would cost as much as small products."""

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole
        self.parts = whole.unbind(0)


LARGEST_BLOCK = 64


def block_size(chunk_size: int) -> int:
    """Cells that are worked off together: the chunk, or a part of a large one; equal parts where they are not small, else the chunk's last
    block has cells to spare.

    What is done inside a block grows with its square. A chunk in parts is the same function: its gradients are all taken at its anchor,
    and the dual form may go on from weights and momentum at any token.
    """
    equal = max(size for size in range(1, LARGEST_BLOCK + 1) if chunk_size % size == 0)
    if 4 * equal >= LARGEST_BLOCK or equal == chunk_size:
        return equal
    return -(-chunk_size // -(-chunk_size // LARGEST_BLOCK))


class Layout(NamedTuple):
    """The grid of one call: N blocks of C cells a row, some cells without a token; a block is a chunk or a part of one.

    place:    (B, H, T, ...) and a fill value -> (B, H, N, C, ...), the fill value in cells without a token.
    collect:  (B, H, N, C, D) -> (B, H, T, D), zero for masked tokens.
    active:   (B or 1, 1, N, C) bool, cells with a token; None if all have one.
    complete: one entry a block, whether the chunk's last cell is in it and taken: a bool for all rows or (B,) bool.
    restart:  (B, N + 1) bool, rows whose memory is set back to W^0 before that block (the last entry: after all of them); None if none.
    position: (B,) int64, cells of an unfinished chunk at the end of the call.
    """

    place: Callable[[Tensor, float], Tensor]
    collect: Callable[[Tensor], Tensor]
    active: Tensor | None
    complete: list[bool] | list[Tensor]
    restart: Tensor | None
    position: Tensor


def uniform_layout(length: int, chunk_size: int, offset: int, position: Tensor, *, short: bool = False) -> Layout:
    """All rows stand at `offset` in their chunk and read `length` tokens, none masked; `position` (B,) is only a template.

    short: a call that stays inside one chunk takes a block of its own length, wherever that begins.
    """
    size = block_size(chunk_size)
    begin = offset // size * size  # of the first block, in the chunk
    if short and offset + length <= chunk_size and length <= LARGEST_BLOCK:
        size, begin = length, offset
    before = offset - begin
    blocks = -(-(before + length) // size)
    padding = blocks * size - before - length

    def place(x: Tensor, fill: float) -> Tensor:
        if before or padding:
            x = F.pad(x, (*(0, 0) * (x.dim() - 3), before, padding), value=fill)
        return x.unflatten(2, (blocks, size))

    def collect(y: Tensor) -> Tensor:
        return y.flatten(2, 3)[:, :, before : before + length]

    active = None
    if before or padding:
        cell = torch.arange(blocks * size, device=position.device)
        active = ((cell >= before) & (cell < before + length)).view(1, 1, blocks, size)
    ends = range(begin + size, begin + (blocks + 1) * size, size)
    complete = [end % chunk_size == 0 and end <= offset + length for end in ends]
    return Layout(place, collect, active, complete, None, torch.full_like(position, (offset + length) % chunk_size))


def ragged_layout(length: int, chunk_size: int, position: Tensor | None, mask: Tensor | None, reset: Tensor | None, like: Tensor) -> Layout:
    """Rows differ: their position (B,) in the chunk, their masked tokens (B, T), their document boundaries (B, T).

    Without `reset` the number of chunks depends on shapes alone, so this compiles as one graph; with it, it depends on the data.
    `like` gives batch size and device.
    """
    batch, device = like.shape[0], like.device
    size = block_size(chunk_size)
    parts = -(-chunk_size // size)
    spare = parts * size - chunk_size  # cells of a chunk's last block that are none of its tokens
    tokens = torch.ones(batch, length, dtype=torch.bool, device=device) if mask is None else mask
    offset = torch.zeros(batch, dtype=torch.int64, device=device) if position is None else position
    begun = offset // size  # blocks of the unfinished chunk that lie behind
    boundaries = torch.zeros(batch, length, dtype=torch.int64, device=device) if reset is None else reset.long()
    document = boundaries.cumsum(1)  # (B, T): 0 goes on from the state, every boundary begins the next
    documents = 1 if reset is None else length + 1

    def of_first(x: Tensor) -> Tensor:
        """(B,) -> (B, documents), for a row's first document, 0 for others."""
        return F.pad(x.unsqueeze(1), (0, documents - 1))

    taken = torch.zeros(batch, documents, dtype=torch.int64, device=device).scatter_add(1, document, tokens.long())
    before_document = taken.cumsum(1) - taken  # tokens of the row in earlier documents
    taken = taken + of_first(offset)  # the ones of earlier calls included
    blocks_of_document = (taken + taken.sub(1).clamp(min=0) // chunk_size * spare + size - 1) // size - of_first(begun)
    first_block = blocks_of_document.cumsum(1) - blocks_of_document  # (B, documents)

    rank = tokens.long().cumsum(1) - 1 - before_document.gather(1, document) + of_first(offset).gather(1, document)  # in its document
    cell = (first_block - of_first(begun)).gather(1, document) * size + rank + rank // chunk_size * spare  # (B, T)

    if reset is None:
        blocks = -(-(length + (0 if position is None else size - 1) + -(-length // chunk_size) * spare) // size)
        restart, since = None, begun.neg().unsqueeze(1)
    else:
        blocks = max(1, int(blocks_of_document.sum(1).max()))
        opened = (torch.arange(documents, device=device) <= document[:, -1:]).long()
        opened[:, 0] = 0
        restart = torch.zeros(batch, blocks + 1, dtype=torch.int64, device=device)
        restart = restart.scatter_add(1, first_block.clamp(max=blocks), opened).bool()
        since = torch.where(restart[:, :-1], torch.arange(blocks, device=device), begun.neg().unsqueeze(1)).cummax(1).values

    cells = blocks * size
    gathering = Gathering.of(torch.where(tokens, cell, cells), cells)  # masked tokens go to a spare cell behind the grid

    def place(x: Tensor, fill: float) -> Tensor:
        return gathering.place(x, fill).unflatten(2, (blocks, size))

    def collect(y: Tensor) -> Tensor:
        return gathering.collect(y.flatten(2, 3))

    filled = gathering.filled
    grid = filled.view(batch, blocks, size)
    block_of_document = torch.arange(blocks, device=device) - since  # (B, blocks)
    complete = list((grid[:, :, size - 1 - spare] & ((block_of_document + 1) % parts == 0)).unbind(1))
    at_end = taken.gather(1, document[:, -1:]).squeeze(1) % chunk_size
    return Layout(place, collect, grid.unsqueeze(1), complete, restart, at_end)


class Gathering(NamedTuple):
    """Tokens in cells, at most one in each.

    cell:   (B, T) int64, that of each token; the number of cells for a masked one.
    filled: (B, cells) bool, whether a token is there.
    source: (B, cells) int64, which.
    """

    cell: Tensor
    filled: Tensor
    source: Tensor

    @classmethod
    def of(cls, cell: Tensor, cells: int) -> "Gathering":
        """From the cell (B, T) of each token."""
        batch, length = cell.shape
        source = torch.zeros(batch, cells + 1, dtype=torch.int64, device=cell.device)
        source = source.scatter(1, cell, torch.arange(length, device=cell.device).expand(batch, length))
        filled = torch.zeros(batch, cells + 1, dtype=torch.bool, device=cell.device).scatter(1, cell, True)
        return cls(cell, filled[:, :cells], source[:, :cells])

    def place(self, x: Tensor, fill: float) -> Tensor:
        """(B, H, T, ...) -> (B, H, cells, ...), the fill value in cells without a token."""
        batch, cells = self.source.shape
        trailing = [1] * (x.dim() - 3)
        index = self.source.view(batch, 1, cells, *trailing).expand(-1, x.shape[1], -1, *x.shape[3:])
        return torch.where(self.filled.view(batch, 1, cells, *trailing), x.gather(2, index), fill)

    def collect(self, y: Tensor) -> Tensor:
        """(B, H, cells, D) -> (B, H, T, D), zero for masked tokens."""
        y = F.pad(y, (0, 0, 0, 1))  # the spare cell reads zero
        return y.gather(2, self.cell[:, None, :, None].expand(-1, y.shape[1], -1, y.shape[3]))


def choose_layout(
    q: Tensor, chunk_size: int, position: Tensor | None, mask: Tensor | None, reset: Tensor | None, *, short: bool = False
) -> Layout:
    """The layout of a call with q (B, H, T, D) that begins at `position` (B,), None at the stream's begin; short: as `uniform_layout`.

    Rows that move together take the one without gathers; looking at a position costs a graph break, so not while compiling.
    """
    length = q.shape[2]
    if mask is None and reset is None and chunk_size % block_size(chunk_size) == 0:
        if position is None:
            return uniform_layout(length, chunk_size, 0, torch.zeros(q.shape[0], dtype=torch.int64, device=q.device), short=short)
        if not torch.compiler.is_compiling():
            lowest, highest = position.aminmax()
            if lowest == highest:
                return uniform_layout(length, chunk_size, int(lowest), position, short=short)
    return ragged_layout(length, chunk_size, position, mask, reset, q)
