"""One token at a time, for decoding: constant cost and memory whatever has gone before; gradients in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor

from titans_seq.memory.rule import clip_scale, key_gradients, memory_network
from titans_seq.memory.state import Gates, MemoryState, MemoryWeights


def recurrent_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Gates],
    weights: MemoryWeights,
    state: MemoryState,
    *,
    gradient: str,
    surprise_clip: float | None,
    mask: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, MemoryState]:
    """Arguments and result as `neural_memory`."""
    if reset is not None:
        first = MemoryState.initial(weights, q.shape[0], state.chunk_size)
    outputs = []
    for t in range(q.shape[2]):
        if reset is not None:
            state = first.where(reset[:, t], state)
        q_t, k_t, v_t = (x[:, :, t : t + 1] for x in (q, k, v))  # (B, H, 1, D)
        token_gates = [Gates(*(gate[:, :, t] for gate in layer)) for layer in gates]
        after = _write(k_t, v_t, token_gates, weights, state, gradient, surprise_clip)
        if mask is not None:
            after = after.where(mask[:, t], state)
        state = after
        layers = weights.at(state.weights)
        y = memory_network(q_t, weights, lambda l, x, layers=layers: x @ layers[l])  # type: ignore[misc]
        outputs.append(y if mask is None else torch.where(mask[:, t, None, None, None], y, 0))
    return torch.cat(outputs, dim=2), state


def _write(
    k: Tensor,
    v: Tensor,
    gates: Sequence[Gates],
    weights: MemoryWeights,
    state: MemoryState,
    gradient: str,
    surprise_clip: float | None,
) -> MemoryState:
    """The state after one token a row: k, v (B, H, 1, D); gates (B, H) each, alpha also (B, H, d_in)."""
    gradients = key_gradients(k, v, weights.at(state.weights if gradient == "token" else state.anchor), weights)
    layers, momentum = [], []
    for l, (alpha, eta, theta) in enumerate(gates):
        size = -theta.unsqueeze(-1)  # (B, H, 1)
        if surprise_clip is not None:
            size = size * clip_scale(gradients, l, surprise_clip)
        step = size.unsqueeze(-1) * gradients.outputs[l]  # (B, H, 1, d_out)
        keep = 1 - (alpha.unsqueeze(-1) if alpha.dim() == 2 else alpha).unsqueeze(-1)  # (B, H, 1 or d_in, 1)
        momentum.append(torch.addcmul(eta[..., None, None] * state.momentum[l], gradients.inputs[l].transpose(-1, -2), step))
        layers.append(torch.addcmul(momentum[l], keep, state.weights[l]))
    position = (state.position + 1) % state.chunk_size
    finished = (position == 0)[:, None, None, None]
    anchor = tuple(torch.where(finished, W, A) for W, A in zip(layers, state.anchor, strict=True))
    return MemoryState(tuple(layers), tuple(momentum), anchor, position, state.chunk_size, state.beside_first)
