"""Rows of unequal length in one batch, and documents packed into one row.

    mask  (B, T) bool   a token that is False is padding: it writes nothing, is seen by nobody, moves no position
    reset (B, T) bool   a document begins before a token that is True: memory, convolution, attention and positions begin anew

A reset at a padded token counts: the document begins with the next token of the row, in this call or a later one.
"""

import torch
from torch import Tensor


def cu_seqlens_to_reset(cu_seqlens: Tensor, length: int) -> Tensor:
    """`reset` of one row that packs documents end to end, from their cumulative lengths (the form of flash-attention).

    cu_seqlens: (N + 1,) integers, 0 first, not falling, `length` last; document n is the tokens cu_seqlens[n] to cu_seqlens[n + 1] - 1.

    >>> cu_seqlens_to_reset(torch.tensor([0, 3, 5]), 5)
    tensor([[ True, False, False,  True, False]])

    Returns:
        (1, length) bool, as `Titans.forward` takes it.

    Raises:
        ValueError: cu_seqlens is not such a list.
    """
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or not _holds_integers(cu_seqlens):
        raise ValueError(f"cu_seqlens must be (N + 1 >= 2,) integers, got {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}")
    cu_seqlens = cu_seqlens.long()  # differences of unsigned integers do not fall
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != length or (cu_seqlens.diff() < 0).any():
        raise ValueError(f"cu_seqlens must go from 0 to length={length} without falling, got {cu_seqlens.tolist()}")
    starts = torch.zeros(length + 1, dtype=torch.bool, device=cu_seqlens.device)
    starts[cu_seqlens] = True
    return starts[None, :length]


def document_ids_to_reset(document_ids: Tensor) -> Tensor:
    """`reset` from the document that each token is of: True where the number changes, and at the first token.

    document_ids: (B, T) integers; only whether neighbours differ counts. If the row goes on with a document of an earlier call, set
    the first column of the result to False.

    >>> document_ids_to_reset(torch.tensor([[7, 7, 7, 2, 2]]))
    tensor([[ True, False, False,  True, False]])

    Raises:
        ValueError: document_ids is not (B, T) integers.
    """
    if document_ids.dim() != 2 or not _holds_integers(document_ids):
        raise ValueError(f"document_ids must be (B, T) integers, got {tuple(document_ids.shape)} {document_ids.dtype}")
    changes = document_ids[:, 1:] != document_ids[:, :-1]
    return torch.cat([torch.ones_like(document_ids[:, :1], dtype=torch.bool), changes], dim=1)


def lengths_to_mask(lengths: Tensor, rows: int, length: int) -> Tensor:
    """`mask` of rows that are padded on the right: (rows, length) bool, True for the first `lengths[b]` tokens of row b.

    >>> lengths_to_mask(torch.tensor([3, 0]), 2, 4)
    tensor([[ True,  True,  True, False],
            [False, False, False, False]])

    Raises:
        ValueError: lengths is not (rows,) int64 from 0 to `length`; the values are not looked at while compiling.
    """
    if lengths.shape != (rows,) or lengths.dtype != torch.int64:
        raise ValueError(f"lengths must be ({rows},) torch.int64, one for each row, got {tuple(lengths.shape)} {lengths.dtype}")
    if not torch.compiler.is_compiling() and rows and not 0 <= int(lengths.min()) <= int(lengths.max()) <= length:
        raise ValueError(f"lengths must be from 0 to T={length}, got {lengths.tolist()}")
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def _holds_integers(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def check_marks(x: Tensor, mask: Tensor | None, reset: Tensor | None) -> None:
    """Raise ValueError unless mask and reset are None or (B, T) bool for x (B, T, dim)."""
    for name, marks in (("mask", mask), ("reset", reset)):
        if marks is not None and (marks.shape != x.shape[:2] or marks.dtype != torch.bool):
            raise ValueError(f"{name} must be {tuple(x.shape[:2])} torch.bool, as x is (B, T, dim), got {tuple(marks.shape)} {marks.dtype}")


class LeftAligned:
    """The tokens of every row moved to its front, in order, the padding behind them; and the way back.

    mask, reset: (B, T) bool, as given, but for the moved tokens. A reset that no token of the row follows stands on the padding.
    order: (B, T) int64, the places of the tokens, then those of padding.
    """

    def __init__(self, mask: Tensor, reset: Tensor | None) -> None:
        self._given = mask
        self.order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        self.mask = mask.gather(1, self.order)
        self.reset = None if reset is None else self._move_reset(reset)

    def _move_reset(self, reset: Tensor) -> Tensor:
        document = reset.long().cumsum(1)
        document = torch.where(self.mask, document.gather(1, self.order), document[:, -1:])
        return document.diff(dim=1, prepend=torch.zeros_like(document[:, :1])) > 0

    def take(self, x: Tensor) -> Tensor:
        """x (B, T, dim), what stands at padding replaced by zero, moved."""
        return torch.where(self._given.unsqueeze(-1), x, 0).gather(1, self.order.unsqueeze(-1).expand_as(x))

    def put(self, y: Tensor) -> Tensor:
        """y (B, T, dim) moved back, zero at padding."""
        placed = torch.zeros_like(y).scatter(1, self.order.unsqueeze(-1).expand_as(y), y)
        return torch.where(self._given.unsqueeze(-1), placed, 0)


def token_positions(start: Tensor, length: int, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where tokens stand in their document: (B, length) int64, the tokens before each; and (B,), the tokens read at the end.

    start: (B,) int64, tokens of the unfinished document that were read before.
    """
    if mask is None:
        before = torch.arange(length, device=start.device).expand(start.shape[0], -1)
        end = torch.full_like(start, length)
    else:
        count = mask.long().cumsum(1)
        before, end = count - mask.long(), count[:, -1]
    begin = -start.unsqueeze(1)  # (B, 1): of the document, counted as `before`
    if reset is not None:
        begin = torch.where(reset, before, begin).cummax(1).values  # (B, length)
    return before - begin, end - begin[:, -1]


def last_rows(x: Tensor, rows: int, given: int, mask: Tensor | None, held: Tensor | None) -> Tensor:
    """The last `rows` rows of every stream, (B, .., rows, D), older ones zero where the stream holds fewer.

    x: (B, .., K, D), rows kept from before and then the `given` rows of this call, tokens first and padding behind them by `mask`
    (B, given). held: (B,) how many rows count (of the last document); None for all. None for both: a slice, no gather.
    """
    if mask is None and held is None:
        kept = x[..., max(0, x.shape[-2] - rows) :, :]
        return torch.nn.functional.pad(kept, (0, 0, rows - kept.shape[-2], 0)) if kept.shape[-2] < rows else kept.clone()
    batch, between = x.shape[0], [1] * (x.dim() - 3)
    padding = 0 if mask is None else given - mask.sum(1, keepdim=True)  # (B, 1)
    slot = torch.arange(rows, device=x.device).expand(batch, -1)
    index = x.shape[-2] - rows - padding + slot  # (B, rows)
    valid = index >= 0
    if held is not None:
        valid = valid & (slot >= rows - held.unsqueeze(1))
    index, valid = (marks.view(batch, *between, rows, 1) for marks in (index.clamp(min=0), valid))
    return torch.where(valid, x.gather(-2, index.expand(*x.shape[:-2], -1, x.shape[-1])), 0)
