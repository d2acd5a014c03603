"""The mathematics that the fast forms share: the memory network, its gradient in closed form, and the coefficients of the dual form.

Shapes: C tokens of a chunk; `...` leading dimensions (batch, heads, perhaps chunks); d_in, d_out of a memory layer.
All functions are pure and differentiable, and take no autograd for the inner gradient.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_seq.memory.state import MemoryWeights

NORM_EPS = 1e-5


def activate(z: Tensor, activation: str) -> Tensor:
    """Activation between memory layers: the exact gelu, or silu."""
    return F.gelu(z) if activation == "gelu" else F.silu(z)


def activation_slope(z: Tensor, activation: str) -> Tensor:
    """Derivative of `activate` at z."""
    if activation == "gelu":
        density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return torch.special.ndtr(z) + z * density
    gate = torch.sigmoid(z)
    return gate * (1 + z * (1 - gate))


def memory_network(x: Tensor, weights: MemoryWeights, linear: Callable[[int, Tensor], Tensor]) -> Tensor:
    """M(x) for x (..., H, C, D), where `linear(l, input)` gives the product with layer l of the weights as they are for each token."""
    depth = len(weights.layers)
    z = linear(0, x)
    for l in range(1, depth):
        z = linear(l, activate(z, weights.activation))
    if weights.norm_scale is not None and weights.norm_shift is not None:
        z = F.layer_norm(z, z.shape[-1:], eps=NORM_EPS)
        z = z * weights.norm_scale.unsqueeze(-2) + weights.norm_shift.unsqueeze(-2)
    return x + z if weights.residual else z


class KeyGradients(NamedTuple):
    """grad_l of token s is the outer product of inputs[l][s] (d_in) and outputs[l][s] (d_out): rank one, never formed."""

    inputs: list[Tensor]  # u_{l-1}: (..., C, d_in)
    outputs: list[Tensor]  # g_l: (..., C, d_out)


def key_gradients(k: Tensor, v: Tensor, layers: Sequence[Tensor], weights: MemoryWeights) -> KeyGradients:
    """Gradient of || M(k) - v ||^2 for every token, at the given layers (..., d_in, d_out), in closed form.

    k, v: (..., C, D). One forward and one backward of the memory network over the chunk's keys.
    """
    inputs, pre_activations = [k], []
    for l, W in enumerate(layers):
        z = inputs[l] @ W
        pre_activations.append(z)
        if l + 1 < len(layers):
            inputs.append(activate(z, weights.activation))

    g = _loss_gradient(k, v, pre_activations[-1], weights)
    outputs = [g]
    for l in range(len(layers) - 1, 0, -1):
        g = (g @ layers[l].transpose(-1, -2)) * activation_slope(pre_activations[l - 1], weights.activation)
        outputs.insert(0, g)
    return KeyGradients(inputs, outputs)


def _loss_gradient(k: Tensor, v: Tensor, z: Tensor, weights: MemoryWeights) -> Tensor:
    """Gradient of the loss with respect to z, the last layer's output before norm and residual, (..., C, D)."""
    target = v - k if weights.residual else v
    if weights.norm_scale is None or weights.norm_shift is None:
        return 2 * (z - target)
    centred = z - z.mean(-1, keepdim=True)
    inverse_std = torch.rsqrt(centred.square().mean(-1, keepdim=True) + NORM_EPS)
    normed = centred * inverse_std
    scale, shift = weights.norm_scale.unsqueeze(-2), weights.norm_shift.unsqueeze(-2)
    d_normed = 2 * (normed * scale + shift - target) * scale
    mean, projection = d_normed.mean(-1, keepdim=True), (d_normed * normed).mean(-1, keepdim=True)
    return inverse_std * (d_normed - mean - normed * projection)


def clip_scale(gradients: KeyGradients, l: int, surprise_clip: float) -> Tensor:
    """Factor (..., C) that brings the Frobenius norm |u| |g| of each token's gradient of layer l down to at most `surprise_clip`."""
    u, g = gradients.inputs[l], gradients.outputs[l]
    norm = torch.linalg.vector_norm(u, dim=-1) * torch.linalg.vector_norm(g, dim=-1)
    return surprise_clip / norm.clamp(min=surprise_clip)


def segment_products(x: Tensor) -> Tensor:
    """P[t, j] = x_{j+1} x_{j+2} .. x_t for j <= t (1 on the diagonal), 0 above it; x (..., C) -> (..., C, C).

    A cumulative product down each column: no logarithm and no division, so factors of exactly 0 give right values and gradients.
    """
    size = x.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=x.device).tril(-1)
    return torch.where(below, x.unsqueeze(-1), 1.0).cumprod(-2).tril()


class ChunkCoefficients(NamedTuple):
    """How a chunk's first state and its gradients combine to the state at each token; the docstring of `chunk_coefficients` says how.

    d is 1 for forgetting per head, d_in for forgetting per channel. The step size theta is not in here: it scales the gradients.
    """

    decay: Tensor  # b: (..., C, d)
    momentum: Tensor  # f: (..., C, d)
    mixing: Tensor  # G without theta: (..., d, C, C)
    momentum_decay: Tensor  # m_C: (..., 1, 1)
    momentum_mixing: Tensor  # m_C / m_s: (..., C, 1)


def chunk_coefficients(alpha: Tensor, eta: Tensor, active: Tensor | None) -> ChunkCoefficients:
    """Coefficients of the dual form for one memory layer.

    With W, S the weights and momentum before the chunk, and r_s = theta_s grad_s:

        M_t = b_t W + f_t S - sum_{s<=t} G[t, s] r_s        S_C = m_C S - sum_s (m_C / m_s) r_s
        b_t = prod_{i<=t} (1 - alpha_i)      m_t = prod_{i<=t} eta_i
        f_t = sum_{j<=t} (b_t / b_j) m_j     G[t, s] = sum_{j=s..t} (b_t / b_j) (m_j / m_s)

    alpha: (..., C) or (..., C, d_in); eta: (..., C).
    active: (..., C) bool or None; a cell that is not active is no token: it must come with alpha 0, eta 1 and theta 0,
        and adds no momentum.
    """
    keep = 1 - (alpha.unsqueeze(-1) if alpha.dim() == eta.dim() else alpha)  # (..., C, d)
    decays = segment_products(keep.transpose(-1, -2))  # (..., d, C, C)
    if active is not None:
        decays = decays * active.unsqueeze(-2).unsqueeze(-3).to(decays.dtype)  # only tokens add their momentum
    momenta = segment_products(eta)  # (..., C, C)
    m = eta.cumprod(-1)  # (..., C)
    return ChunkCoefficients(
        decay=keep.cumprod(-2),
        momentum=(decays @ m.unsqueeze(-2).unsqueeze(-1)).squeeze(-1).transpose(-1, -2),
        mixing=decays @ momenta.unsqueeze(-3),
        momentum_decay=m[..., -1:].unsqueeze(-1),
        momentum_mixing=momenta[..., -1, :].unsqueeze(-1),
    )
