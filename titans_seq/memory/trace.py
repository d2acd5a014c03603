"""What a memory does with each token that it reads: how much it is surprised, how far its gates are open, how large it is, what it answers.

Shapes: B batch, T time, H heads, L memory layers, D head width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from titans_seq.memory.layer import MemoryLayerState, NeuralMemory
from titans_seq.memory.rule import key_gradients
from titans_seq.memory.state import Gates, MemoryState, TwoLevelState
from titans_seq.packing import LeftAligned, check_marks


class MemoryTrace(NamedTuple):
    """A number a token, head and memory layer (B, H, L, T), or a token and head (B, H, T).

    Attributes:
        surprise: norm of the gradient of the inner loss by the layer's weights, before the clip: how wrong the memory was about the token,
            and so how strongly it is written (arXiv 2501.00663, section 3.1).
        alpha, eta, theta: the gates, equations 9, 10 and 13; alpha is the mean over input channels where each has its own.
        weight_norm, momentum_norm: Frobenius norms of W and S after the token.
        read: (B, H, T), norm of the memory's answer to the token's query.
        learned: (B, H, T), norm of the part of it that the memory has from the stream: the answer less that of a memory that has read
            nothing.
        active: (B, T) bool, False where there is no token: those of a row come first.
    """

    surprise: Tensor
    alpha: Tensor
    eta: Tensor
    theta: Tensor
    weight_norm: Tensor
    momentum_norm: Tensor
    read: Tensor
    learned: Tensor
    active: Tensor


@torch.no_grad()
def trace_memory(
    memory: NeuralMemory, x: Tensor, state: MemoryLayerState | None = None, mask: Tensor | None = None, reset: Tensor | None = None
) -> MemoryTrace:
    """Read x token by token and say what happens. Meant for a look at a sequence, not for training: it costs a millisecond a token.

    Of two levels it is the global memory that is looked at; answers are those of both together.

    Args:
        memory: the layer.
        x, state, mask, reset: as `NeuralMemory.forward` takes them; the state stays as it is.

    Raises:
        ValueError: as `NeuralMemory.forward`.
    """
    check_marks(x, mask, reset)
    active = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask is not None:
        aligned = LeftAligned(mask, reset)
        x, active, reset = aligned.take(x), aligned.mask, aligned.reset
    first = memory.init_state(len(x))
    state = first if state is None else state
    begin: Any = first.memory
    q, k, v, _ = memory._project(x, state.convolution, None if mask is None else active, reset)
    now, steps = state.memory, []
    for t in range(x.shape[1]):
        token = slice(t, t + 1)
        if reset is not None:
            now = begin.where(reset[:, t], now)
        surprise = _surprise(memory, k[:, :, token], v[:, :, token], now)
        here = None if mask is None else active[:, token]
        y, now = memory._memory(q[:, :, token], k[:, :, token], v[:, :, token], x[:, token], now, "auto", here, None)
        unlearned = memory.answer(q[:, :, token], memory.snapshot(MemoryLayerState(_unlearned(now, first.memory), first.convolution)))
        level = _global(now)
        steps.append((surprise, _norms(memory.weights.at(level.weights)), _norms(level.momentum), y, y - unlearned))
    surprises, weight_norms, momentum_norms, answers, learned = zip(*steps, strict=True)
    alpha, eta, theta = (torch.stack(gate, 2) for gate in zip(*map(_of_heads, memory.gates(x)), strict=True))
    return MemoryTrace(
        torch.cat(surprises, -1),
        alpha,
        eta,
        theta,
        torch.stack(weight_norms, -1),
        torch.stack(momentum_norms, -1),
        torch.linalg.vector_norm(torch.cat(answers, 2), dim=-1),
        torch.linalg.vector_norm(torch.cat(learned, 2), dim=-1),
        active,
    )


def _global(state: MemoryState | TwoLevelState) -> MemoryState:
    return state if isinstance(state, MemoryState) else state.shared


def _unlearned(state: MemoryState | TwoLevelState, first: MemoryState | TwoLevelState) -> MemoryState | TwoLevelState:
    """The first state, asked as `state` is: its queries are projected on the keys of the shard."""
    return replace(state, shared=first.shared, local=first.local) if isinstance(state, TwoLevelState) else first  # type: ignore[union-attr]


def _surprise(memory: NeuralMemory, k: Tensor, v: Tensor, state: MemoryState | TwoLevelState) -> Tensor:
    """(B, H, L, 1) of one token's k and v (B, H, 1, D), where the rule takes its gradient."""
    level = _global(state)
    points = memory.weights.at(level.weights if memory.config.gradient == "token" else level.anchor)
    gradients = key_gradients(k.to(points[0].dtype), v.to(points[0].dtype), points, memory.weights)
    parts = zip(gradients.inputs, gradients.outputs, strict=True)  # rank one: the norm of u g^T is |u| |g|
    return torch.stack([torch.linalg.vector_norm(u, dim=-1) * torch.linalg.vector_norm(g, dim=-1) for u, g in parts], 2)


def _norms(layers: Sequence[Tensor]) -> Tensor:
    """(B, H, L) of L tensors (B, H, d_in, d_out)."""
    return torch.stack([torch.linalg.matrix_norm(W) for W in layers], 2)


def _of_heads(gates: Gates) -> Gates:
    alpha = gates.alpha if gates.alpha.dim() == 3 else gates.alpha.mean(-1)
    return Gates(alpha, gates.eta, gates.theta)
