"""The dual form in plain torch: exact, and never a weight matrix per token (docs/rule.md derives it).

Inside a chunk every gradient is taken at one point, so it is an outer product in closed form, and the memory at every token is the
chunk's first state plus a masked product of such outer products. Only chunks are sequential. Nothing here calls autograd, so the memory
learns under `torch.inference_mode()` and compiles; an outer backward goes through the plain operations.

Shape suffixes: B batch, H heads, N chunks, C cells of a chunk, D head width; layer tensors are (B, H, d_in, d_out).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from titans_seq.memory.layout import Layout, ragged_layout, uniform_layout
from titans_seq.memory.rule import (
    ChunkCoefficients,
    KeyGradients,
    chunk_coefficients,
    clip_scale,
    key_gradients,
    memory_network,
)
from titans_seq.memory.state import Gates, MemoryState, MemoryWeights


def chunkwise_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Gates],
    weights: MemoryWeights,
    state: MemoryState | None,
    *,
    chunk_size: int,
    gradient: str,
    surprise_clip: float | None,
    mask: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, MemoryState]:
    """Arguments and result as `neural_memory`."""
    layout = _layout(q, chunk_size, state, mask, reset)
    if state is None or reset is not None:
        first = MemoryState.initial(weights, q.shape[0], chunk_size)
    state = state or first
    q_BHNCD, k_BHNCD, v_BHNCD = (layout.place(x, 0.0) for x in (q, k, v))
    gates = [Gates(layout.place(a, 0.0), layout.place(e, 1.0), layout.place(t, 0.0)) for a, e, t in gates]
    chunk_gates = [_chunks_of_layer(layer, layout.active) for layer in gates]

    outputs = []
    for n, (q_n, k_n, v_n) in enumerate(zip(q_BHNCD.unbind(2), k_BHNCD.unbind(2), v_BHNCD.unbind(2), strict=True)):
        if layout.restart is not None:
            state = first.where(layout.restart[:, n], state)
        coefficients, theta = zip(*(layer[n] for layer in chunk_gates), strict=True)
        if gradient == "token":
            gradients = _token_gradients(k_n, v_n, coefficients[0], theta[0], weights, state)
        else:
            gradients = key_gradients(k_n, v_n, state.anchor, weights)
        steps = _scaled_gradients(gradients, theta, surprise_clip)
        outputs.append(_read(q_n, gradients.inputs, steps, coefficients, weights, state))
        state = _advance(gradients.inputs, steps, coefficients, state, layout.complete[n])
    if layout.restart is not None:
        state = first.where(layout.restart[:, -1], state)

    y = layout.collect(torch.stack(outputs, dim=2))
    return y, MemoryState(state.weights, state.momentum, state.anchor, layout.position, chunk_size)


def _layout(q: Tensor, chunk_size: int, state: MemoryState | None, mask: Tensor | None, reset: Tensor | None) -> Layout:
    """Rows that move together take the layout without gathers; looking at a position costs a graph break, so not while compiling."""
    length = q.shape[2]
    if mask is None and reset is None:
        if state is None:
            return uniform_layout(length, chunk_size, 0, torch.zeros(q.shape[0], dtype=torch.int64, device=q.device))
        if not torch.compiler.is_compiling():
            lowest, highest = state.position.aminmax()
            if lowest == highest:
                return uniform_layout(length, chunk_size, int(lowest), state.position)
    return ragged_layout(length, chunk_size, None if state is None else state.position, mask, reset, q)


class _PerChunk:
    """Coefficients and step sizes of one layer, formed when a chunk is reached: with forgetting per channel they are C x C x d_in."""

    def __init__(self, gates: Gates, active: Tensor | None) -> None:
        self.gates, self.active = gates, active

    def __getitem__(self, n: int) -> tuple[ChunkCoefficients, Tensor]:
        active = None if self.active is None else self.active[:, :, n]
        alpha, eta, theta = (gate[:, :, n] for gate in self.gates)
        return chunk_coefficients(alpha, eta, active), theta.unsqueeze(-1)


def _chunks_of_layer(gates: Gates, active: Tensor | None) -> Sequence[tuple[ChunkCoefficients, Tensor]] | _PerChunk:
    """(coefficients, theta (B, H, C, 1)) of each chunk, from gates (B, H, N, C)."""
    if gates.alpha.dim() > gates.eta.dim():
        return _PerChunk(gates, active)
    whole = chunk_coefficients(gates.alpha, gates.eta, active)
    chunks = zip(*(part.unbind(2) for part in whole), strict=True)
    return list(zip((ChunkCoefficients(*chunk) for chunk in chunks), gates.theta.unsqueeze(-1).unbind(2), strict=True))


def _scaled_gradients(gradients: KeyGradients, theta: Sequence[Tensor], surprise_clip: float | None) -> list[Tensor]:
    """theta_s g_{l,s}, clipped: with the layer's inputs, the steps r_s of every layer, (B, H, C, d_out)."""
    if surprise_clip is None:
        return [t * g for t, g in zip(theta, gradients.outputs, strict=True)]
    clips = [clip_scale(gradients, l, surprise_clip).unsqueeze(-1) for l in range(len(theta))]
    return [t * clip * g for t, clip, g in zip(theta, clips, gradients.outputs, strict=True)]


def _scores(x: Tensor, u: Tensor, mixing: Tensor) -> Tensor:
    """A[t, s] = sum_i x[t, i] G[i, t, s] u[s, i]; x, u (B, H, C, d_in), mixing (B, H, 1 or d_in, C, C) -> (B, H, C, C)."""
    if mixing.shape[-3] == 1:
        return (x @ u.transpose(-1, -2)) * mixing.squeeze(-3)
    return (x.transpose(-1, -2).unsqueeze(-1) * mixing * u.transpose(-1, -2).unsqueeze(-2)).sum(-3)


def _read(
    q: Tensor,
    inputs: Sequence[Tensor],
    steps: Sequence[Tensor],
    coefficients: Sequence[ChunkCoefficients],
    weights: MemoryWeights,
    state: MemoryState,
) -> Tensor:
    """y_t = M_t(q_t) for the chunk's tokens, (B, H, C, D)."""

    def linear(l: int, x: Tensor) -> Tensor:
        c = coefficients[l]
        from_state = (c.decay * x) @ state.weights[l] + (c.momentum * x) @ state.momentum[l]
        return from_state - _scores(x, inputs[l], c.mixing) @ steps[l]

    return memory_network(q, weights, linear)


def _advance(
    inputs: Sequence[Tensor],
    steps: Sequence[Tensor],
    coefficients: Sequence[ChunkCoefficients],
    state: MemoryState,
    complete: bool | Tensor,
) -> MemoryState:
    """The state after the chunk; the anchor moves on in rows whose chunk is complete."""
    layers, momentum = [], []
    for u, r, c, W, S in zip(inputs, steps, coefficients, state.weights, state.momentum, strict=True):
        last = c.mixing[..., -1, :].transpose(-1, -2)  # G[C, s]: (B, H, C, 1 or d_in)
        decay, carry = c.decay[..., -1, :].unsqueeze(-1), c.momentum[..., -1, :].unsqueeze(-1)
        layers.append(decay * W + carry * S - (u * last).transpose(-1, -2) @ r)
        momentum.append(c.momentum_decay * S - (u * c.momentum_mixing).transpose(-1, -2) @ r)
    if complete is True:
        anchor = layers
    elif complete is False:
        anchor = list(state.anchor)
    else:
        rows = complete[:, None, None, None]
        anchor = [torch.where(rows, W, A) for W, A in zip(layers, state.anchor, strict=True)]
    return MemoryState(tuple(layers), tuple(momentum), tuple(anchor), state.position, state.chunk_size)


def _token_gradients(k: Tensor, v: Tensor, c: ChunkCoefficients, theta: Tensor, weights: MemoryWeights, state: MemoryState) -> KeyGradients:
    """Gradients of the linear memory each at the freshest state M_{s-1}, all tokens of the chunk at once.

    g_s = 2 (k_s M_{s-1} - target_s), and M_{s-1} holds the steps before s, so the g solve a unit lower triangular system: the UT
    transform of DeltaNet (arXiv 2406.06484) with G[s-1, r] in place of its decay. With eta = 0 this is Gated DeltaNet
    (arXiv 2412.06464) up to a rescaling of theta and v.
    """
    before = ChunkCoefficients(  # the coefficients of token s - 1 in row s; the first row is the state itself
        decay=torch.cat([torch.ones_like(c.decay[..., :1, :]), c.decay[..., :-1, :]], dim=-2),
        momentum=torch.cat([torch.zeros_like(c.momentum[..., :1, :]), c.momentum[..., :-1, :]], dim=-2),
        mixing=torch.cat([torch.zeros_like(c.mixing[..., :1, :]), c.mixing[..., :-1, :]], dim=-2),
        momentum_decay=c.momentum_decay,
        momentum_mixing=c.momentum_mixing,
    )
    target = v - k if weights.residual else v
    from_state = (before.decay * k) @ state.weights[0] + (before.momentum * k) @ state.momentum[0]
    system = 2 * _scores(k, k, before.mixing) * theta.transpose(-1, -2)  # strictly lower: the diagonal of one is implied
    g = torch.linalg.solve_triangular(system, 2 * (from_state - target), upper=False, unitriangular=True)
    return KeyGradients([k], [g])
