"""The three things the memory operator is given besides q, k, v: gates, first weights, and the state of a stream.

Shapes: B batch, H heads, T time, D head width, d_in and d_out the input and output width of one memory layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from titans_seq.state import State


class Gates(NamedTuple):
    """The gates of one memory layer (arXiv 2501.00663, equations 9, 10 and 13); exact 0 and 1 are legal.

    alpha: forgetting in [0, 1], (B, H, T), or per input channel of the layer (B, H, T, d_in).
    eta:   momentum decay in [0, 1], (B, H, T).
    theta: step size >= 0, (B, H, T). The loss is the sum of squares over D, so its gradient carries the factor 2.
    """

    alpha: Tensor
    eta: Tensor
    theta: Tensor


@dataclass(frozen=True, kw_only=True)
class MemoryWeights:
    """Outer parameters of the memory network M(x) = [x +] [LN] (act(.. act(x W_1) ..) W_L), one network per head.

    layers: W_1 (H, D, d_1), W_2 (H, d_1, d_2), .., W_L (H, d_{L-1}, D): the first state W^0 of every stream. L = 1 is the linear memory.
    norm_scale, norm_shift: (H, D) of a layer norm over D with eps 1e-5, both or neither.
    activation: "gelu" (the exact one) or "silu", between layers.
    residual: whether x is added to the output.
    forgetting_towards: what forgetting draws the layers to: "zero", as the paper's rule, or "first_state", W^0.
    """

    layers: Sequence[Tensor]
    norm_scale: Tensor | None = None
    norm_shift: Tensor | None = None
    activation: str = "gelu"
    residual: bool = True
    forgetting_towards: str = "zero"

    @property
    def rest(self) -> Sequence[Tensor]:
        """What is added to the `weights` of a state to give the memory's layers: W^0 where forgetting draws to it; else nothing."""
        return self.layers if self.forgetting_towards == "first_state" else ()

    def at(self, layers: Sequence[Tensor]) -> Sequence[Tensor]:
        """The memory's layers, (B, H, d_in, d_out) each, from `weights` or `anchor` of a state."""
        return [W + D for W, D in zip(self.rest, layers, strict=True)] if self.rest else layers


@dataclass(frozen=True)
class MemoryState(State):
    """Where a stream stands: all that the memory needs to go on, of a size that does not grow with the stream.

    Attributes:
        weights: W_l after the last token, L tensors (B, H, d_in, d_out). Where forgetting draws to the first state they are W_l - W_l^0,
            so that W^0 is learned from all of a stream that is carried on, not from its begin alone.
        momentum: S_l after the last token, the same shapes.
        anchor: the weights at which the next token's gradient is taken, the same shapes. This is what is pending of an unfinished chunk:
            every earlier token of the chunk is in `weights` and `momentum` already, only the gradients' point has to be kept.
        position: (B,) int64, tokens of the unfinished chunk that were read, 0 <= position < chunk_size. Rows may differ (padding).
        chunk_size: C of the stream; going on with another C would be another function, and is refused.
        beside_first: weights and anchor are less W^0, since forgetting draws to it; refused where it does not.
    """

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    anchor: tuple[Tensor, ...]
    position: Tensor
    chunk_size: int
    beside_first: bool = False

    @classmethod
    def initial(cls, weights: MemoryWeights, batch_size: int, chunk_size: int) -> "MemoryState":
        """The state before the first token: W = W^0 for every row of the batch, S = 0. A copy: a carried state stays as it is when an
        optimizer changes W^0 in place. Where forgetting draws to W^0 it is the memory beside it that is kept, which is zero.
        """
        dtype, beside_first = torch.promote_types(weights.layers[0].dtype, torch.float32), len(weights.rest) > 0
        momentum = tuple(W.new_zeros(batch_size, *W.shape, dtype=dtype) for W in weights.layers)
        first = tuple((W.new_zeros(W.shape) if beside_first else W).to(dtype).repeat(batch_size, 1, 1, 1) for W in weights.layers)
        position = torch.zeros(batch_size, dtype=torch.int64, device=first[0].device)
        return cls(first, momentum, first, position, chunk_size, beside_first)


class LocalMemory(NamedTuple):
    """One local memory of the two-level memory: as the operator takes them, its gates, its weights, and its chunk length."""

    gates: Sequence[Gates]
    weights: MemoryWeights
    chunk_size: int


@dataclass(frozen=True)
class TwoLevelState(State):
    """Where a stream stands that a global and local memories read (`two_level_memory`); of constant size.

    Attributes:
        shared: the global memory.
        local: the local memories, as they stand in the shard of the last token.
        projection: sum of ``k k^T / |k|^2`` over the keys of that shard, (B, H, D, D); None without query projection.
        position: (B,) int64, tokens of that shard that were read, 0 <= position <= shard_length. Rows may differ (padding). A complete
            shard is kept until the next token begins another, so that it can still be read.
        shard_length: S of the stream; going on with another is refused.
    """

    shared: MemoryState
    local: tuple[MemoryState, ...]
    projection: Tensor | None
    position: Tensor
    shard_length: int

    @classmethod
    def initial(
        cls,
        weights: MemoryWeights,
        local: Sequence[MemoryWeights],
        batch_size: int,
        chunk_size: int,
        local_chunk_sizes: Sequence[int],
        shard_length: int,
        query_projection: bool,
    ) -> "TwoLevelState":
        """The state before the first token: every memory at its first state, no key in the projection."""
        shared = MemoryState.initial(weights, batch_size, chunk_size)
        states = tuple(MemoryState.initial(w, batch_size, size) for w, size in zip(local, local_chunk_sizes, strict=True))
        heads, width = weights.layers[0].shape[:2]
        projection = shared.weights[0].new_zeros(batch_size, heads, width, width) if query_projection else None
        return cls(shared, states, projection, torch.zeros_like(shared.position), shard_length)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What a read needs, flat: the global memory's weights, each local memory's, and the projection if there is one."""
        layers = [W for memory in (self.shared, *self.local) for W in memory.weights]
        return (*layers, *(() if self.projection is None else (self.projection,)))
