"""A long input read in pieces through the state: what is held beside input and result does not grow with its length.

With a gradient its activations are held, but what passes through memory on the way does not grow: a token costs the same at any length.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

PIECE_LENGTH = 4096  # tokens that are read at once: what a layer makes of them stays in the cache

S = TypeVar("S")


def read_in_pieces(
    read: Callable[[Tensor, S | None, Tensor | None, Tensor | None], tuple[Tensor, S]],
    x: Tensor,
    state: S | None,
    mask: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, S]:
    """`read` of x (B, T, dim), a state and marks (B, T), in pieces of `PIECE_LENGTH` tokens; while compiling at once.

    Returns:
        As `read`: a tensor of x's shape, and the state after the last token.
    """
    if x.shape[1] <= PIECE_LENGTH or torch.compiler.is_compiling():
        return read(x, state, mask, reset)
    first, *rest = (slice(start, start + PIECE_LENGTH) for start in range(0, x.shape[1], PIECE_LENGTH))
    x_first, *x_rest = x.split(PIECE_LENGTH, dim=1)  # not slices, whose gradients would each be as long as x
    y_first, after = read(x_first, state, _of_piece(mask, first), _of_piece(reset, first))
    if torch.is_grad_enabled():
        parts = [y_first]
        for piece, x_piece in zip(rest, x_rest, strict=True):
            part, after = read(x_piece, after, _of_piece(mask, piece), _of_piece(reset, piece))
            parts.append(part)
        return torch.cat(parts, dim=1), after
    y = y_first.new_empty(x.shape)  # filled piece by piece: a list of the pieces would be held beside the result
    y[:, first] = y_first
    for piece, x_piece in zip(rest, x_rest, strict=True):
        y[:, piece], after = read(x_piece, after, _of_piece(mask, piece), _of_piece(reset, piece))
    return y, after


def _of_piece(marks: Tensor | None, piece: slice) -> Tensor | None:
    return None if marks is None else marks[:, piece]
