"""The oracle of the two-level memory: token by token, each level by the single-level oracle. Slow, short, obviously right.

Nothing here is shared with the fast path but `PROJECTION_EPS`, which belongs to the definition.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from titans_seq.memory.reference import reference_memory
from titans_seq.memory.state import Gates, LocalMemory, MemoryState, MemoryWeights, TwoLevelState

PROJECTION_EPS = 1e-6


def two_level_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Gates],
    weights: MemoryWeights,
    local: Sequence[LocalMemory],
    state: TwoLevelState,
    *,
    gradient: str,
    surprise_clip: float | None,
) -> tuple[Tensor, TwoLevelState]:
    """Arguments and result as `two_level_memory`; float64 throughout if the inputs are."""

    def step(q_t: Tensor, t: int, gates: Sequence[Gates], weights: MemoryWeights, memory: MemoryState) -> tuple[Tensor, MemoryState]:
        """One token of one memory: its read (B, H, 1, D) and its next state."""
        token = slice(t, t + 1)
        token_gates = [Gates(*(gate[:, :, token] for gate in layer)) for layer in gates]
        options = {"gradient": gradient, "surprise_clip": surprise_clip, "mask": None, "reset": None}
        return reference_memory(q_t, k[:, :, token], v[:, :, token], token_gates, weights, memory, **options)  # type: ignore[arg-type]

    shared, memories, M, position = state.shared, list(state.local), state.projection, state.position
    outputs = []
    for t in range(q.shape[2]):
        if position == state.shard_length:  # t = 0 mod S_L: W_t = W_init (equation 6)
            memories = [MemoryState.initial(m.weights, q.shape[0], m.chunk_size).to(q.dtype) for m in local]
            M, position = None if M is None else torch.zeros_like(M), 0
        position += 1

        q_t, k_t = q[:, :, t], k[:, :, t]  # (B, H, D)
        y, shared = step(q_t.unsqueeze(2), t, gates, weights, shared)  # f(V, q_t)
        if M is not None:
            M = M + torch.einsum("bhi,bhj->bhij", k_t, k_t) / (k_t.square().sum(-1) + PROJECTION_EPS)[..., None, None]
            p = torch.einsum("bhij,bhj->bhi", M, q_t)
            length = (q_t.square().sum(-1, keepdim=True) + PROJECTION_EPS) / (p.square().sum(-1, keepdim=True) + PROJECTION_EPS)
            q_t = p * length.sqrt()
        for i, m in enumerate(local):
            read, memories[i] = step(q_t.unsqueeze(2), t, m.gates, m.weights, memories[i])
            y = y + read  # + sum_i f(W_i, M_t q_t) (equation 7)
        outputs.append(y)
    return torch.cat(outputs, dim=2), TwoLevelState(shared, tuple(memories), M, position, state.shard_length)
