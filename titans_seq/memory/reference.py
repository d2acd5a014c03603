"""The oracle: the paper's equations token by token, gradients of the inner loss by autograd. Slow, short, obviously right.

Nothing here is shared with the fast forms, so that agreement with them means something.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_seq.memory.state import Gates, MemoryState, MemoryWeights


def memory(x: Tensor, layers: Sequence[Tensor], weights: MemoryWeights) -> Tensor:
    """M(x) for one token a row: x (B, H, D), layers (B, H, d_in, d_out)."""
    z = x
    for l, W in enumerate(layers):
        if l > 0:
            z = F.gelu(z) if weights.activation == "gelu" else F.silu(z)
        z = (z.unsqueeze(-2) @ W).squeeze(-2)
    if weights.norm_scale is not None and weights.norm_shift is not None:
        z = F.layer_norm(z, z.shape[-1:], eps=1e-5) * weights.norm_scale + weights.norm_shift
    return x + z if weights.residual else z


def loss_gradients(k: Tensor, v: Tensor, layers: Sequence[Tensor], weights: MemoryWeights) -> tuple[Tensor, ...]:
    """grad of ell(M; k, v) = || M(k) - v ||^2 with respect to each layer, by autograd (arXiv 2501.00663, equation 12).

    At aliases of the layers: k and v may depend on them as well (MAC's do), and are held fixed.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        points = [W.view_as(W) if differentiable and W.requires_grad else W.detach().requires_grad_() for W in layers]
        loss = (memory(k, points, weights) - v).square().sum()
        return torch.autograd.grad(loss, points, create_graph=differentiable)


def reference_memory(
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
    """Arguments and result as `neural_memory`; float64 throughout if the inputs are."""
    first = MemoryState.initial(weights, q.shape[0], state.chunk_size)
    outputs = []
    for t in range(q.shape[2]):
        if reset is not None:
            state = first.where(reset[:, t], state)
        token_gates = [Gates(*(gate[:, :, t] for gate in layer)) for layer in gates]
        y, after = _step(q[:, :, t], k[:, :, t], v[:, :, t], token_gates, weights, state, gradient, surprise_clip)
        if mask is not None:
            after = after.where(mask[:, t], state)
            y = torch.where(mask[:, t, None, None], y, 0)
        state = after
        outputs.append(y)
    return torch.stack(outputs, dim=2), state


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Gates],
    weights: MemoryWeights,
    state: MemoryState,
    gradient: str,
    surprise_clip: float | None,
) -> tuple[Tensor, MemoryState]:
    """One token a row: q, k, v (B, H, D); gates (B, H) each, alpha also (B, H, d_in).

        S_t = eta_t S_{t-1} - theta_t grad ell(M_{t'}; k_t, v_t)        M_t = (1 - alpha_t) M_{t-1} + S_t

    of arXiv 2501.00663; without forgetting that is equation 9, without momentum as well equation 8. Where forgetting draws to the first
    state, alpha_t M_0 is added, and the state holds M_t - M_0.
    """
    to_first = weights.forgetting_towards == "first_state"
    rest = list(weights.layers) if to_first else [torch.zeros_like(W) for W in weights.layers]  # what forgetting draws to
    points = [W + A for W, A in zip(rest, state.weights if gradient == "token" else state.anchor, strict=True)]  # M_{t'}
    momentum, layers = [], []
    for l, grad in enumerate(loss_gradients(k, v, points, weights)):
        if surprise_clip is not None:
            norm = torch.linalg.vector_norm(grad, dim=(-2, -1), keepdim=True)
            grad = grad * (surprise_clip / norm.clamp(min=surprise_clip))
        alpha, eta, theta = gates[l].alpha, gates[l].eta[..., None, None], gates[l].theta[..., None, None]
        alpha = alpha[..., None, None] if alpha.dim() == 2 else alpha[..., None]
        momentum.append(eta * state.momentum[l] - theta * grad)  # S_t: equation 14 (equation 10), in chunks equation 18
        before = rest[l] + state.weights[l]
        layers.append((1 - alpha) * before + alpha * rest[l] + momentum[l])  # M_t: equation 13
    y = memory(q, layers, weights)  # y_t = M_t(q_t): equation 15
    layers = [M - W for M, W in zip(layers, rest, strict=True)]

    position = (state.position + 1) % state.chunk_size
    finished = (position == 0)[:, None, None, None]
    anchor = tuple(torch.where(finished, W, A) for W, A in zip(layers, state.anchor, strict=True))
    return y, MemoryState(tuple(layers), tuple(momentum), anchor, position, state.chunk_size, to_first)
