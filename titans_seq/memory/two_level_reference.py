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
    mask: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, TwoLevelState]:
    """Arguments and result as `two_level_memory`; float64 throughout if the inputs are."""

    def step(
        q_t: Tensor, t: int, gates: Sequence[Gates], weights: MemoryWeights, memory: MemoryState, begins: Tensor
    ) -> tuple[Tensor, MemoryState]:
        """One token of one memory, which begins anew before it in the rows `begins` (B,): its read (B, H, 1, D) and its next state."""
        token = slice(t, t + 1)
        token_gates = [Gates(*(gate[:, :, token] for gate in layer)) for layer in gates]
        marks = {"mask": valid[:, token], "reset": begins[:, None]}
        options = {"gradient": gradient, "surprise_clip": surprise_clip, **marks}
        return reference_memory(q_t, k[:, :, token], v[:, :, token], token_gates, weights, memory, **options)  # type: ignore[arg-type]

    shared, memories, M, position = state.shared, list(state.local), state.projection, state.position
    everywhere = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool, device=q.device)
    valid = everywhere if mask is None else mask
    document = ~everywhere if reset is None else reset
    outputs = []
    for t in range(q.shape[2]):
        shard = document[:, t] | (valid[:, t] & (position == state.shard_length))  # t = 0 mod S_L: W_t = W_init (TNT equation 6)
        position = torch.where(shard, 0, position) + valid[:, t]

        q_t, k_t = q[:, :, t], k[:, :, t]  # (B, H, D)
        y, shared = step(q_t.unsqueeze(2), t, gates, weights, shared, document[:, t])  # f(V, q_t) (TNT equation 5)
        if M is not None:
            written = torch.einsum("bhi,bhj->bhij", k_t, k_t) / (k_t.square().sum(-1) + PROJECTION_EPS)[..., None, None]
            M = torch.where(_rows(shard), 0, M) + torch.where(_rows(valid[:, t]), written, 0)
            p = torch.einsum("bhij,bhj->bhi", M, q_t)
            length = (q_t.square().sum(-1, keepdim=True) + PROJECTION_EPS) / (p.square().sum(-1, keepdim=True) + PROJECTION_EPS)
            q_t = p * length.sqrt()
        for i, m in enumerate(local):
            read, memories[i] = step(q_t.unsqueeze(2), t, m.gates, m.weights, memories[i], shard)
            y = y + read  # + sum_i f(W_i, M_t q_t) (TNT equation 7)
        outputs.append(y)
    return torch.cat(outputs, dim=2), TwoLevelState(shared, tuple(memories), M, position, state.shard_length)


def _rows(marks: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return marks.view(-1, 1, 1, 1)
