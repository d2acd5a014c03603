"""The mathematics that the fast forms share: the memory network, its gradient in closed form, and the coefficients of the dual form.

Shapes: C tokens of a chunk; `...` leading dimensions (batch, heads, perhaps chunks); d_in, d_out of a memory layer.
None takes autograd for the inner gradient. `key_gradients`, `clip_scale` and `memory_network` are pure and differentiable: the recurrent
form is made of them. The others come with their derivative (`..._vjp`) and may be told where to write (`out`, `work`).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_seq.memory.state import MemoryWeights

NORM_EPS = 1e-5


class Rule(NamedTuple):
    """What the passes over the chunks have to know besides tensors."""

    activation: str
    norm: bool
    gradient: str
    surprise_clip: float | None


def activate(z: Tensor, activation: str, out: Tensor | None = None) -> Tensor:
    """Activation between memory layers: the exact gelu, or silu."""
    function = torch._C._nn.gelu if activation == "gelu" else torch._C._nn.silu
    return function(z, out=out)  # type: ignore[call-arg]


def activation_vjp(d: Tensor, z: Tensor, activation: str, out: Tensor | None = None) -> Tensor:
    """d times the derivative of `activate` at z, in one pass."""
    function = torch.ops.aten.gelu_backward if activation == "gelu" else torch.ops.aten.silu_backward
    return function(d, z) if out is None else function.grad_input(d, z, grad_input=out)


def activation_slope(z: Tensor, activation: str) -> Tensor:
    """Derivative of `activate` at z."""
    if activation == "gelu":
        density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return torch.special.ndtr(z) + z * density
    gate = torch.sigmoid(z)
    return gate * (1 + z * (1 - gate))


def activation_curvature(z: Tensor, activation: str, out: Tensor, work: Tensor) -> Tensor:
    """Second derivative of `activate` at z, in `out`; `work` is overwritten. Both of z's shape."""
    if activation == "gelu":  # exp(-z^2 / 2) (2 - z^2) / sqrt(2 pi)
        torch.mul(z, z, out=out)
        torch.mul(out, -0.5, out=work).exp_()
        return out.neg_().add_(2).mul_(work).mul_(1 / math.sqrt(2 * math.pi))
    gate = torch.sigmoid(z, out=work)  # gate (1 - gate) (2 + z (1 - 2 gate))
    torch.mul(gate, -2, out=out).add_(1).mul_(z).add_(2)
    return out.mul_(gate).mul_(1 - gate)


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


class ChunkCoefficients(NamedTuple):
    """How a chunk's first state (W, S) and its steps combine to the state at each token; `chunk_coefficients` says how.

    d is 1 for forgetting per head, d_in for forgetting per channel. The step size theta is not in here: it is part of the steps.
    """

    mixing: Tensor  # [b | f | G]: (..., d, C, 2 + C)
    momentum: Tensor  # [0 | m | m_t / m_s]: (..., C, 2 + C)


def chunk_coefficients(alpha: Tensor, eta: Tensor, active: Tensor | None) -> ChunkCoefficients:
    """Coefficients of the dual form for one memory layer (arXiv 2501.00663, equation 16 with the momentum of equation 18 put in).

    With W, S the weights and momentum before the chunk, and r_s the outer product of token s's input and step, -theta_s grad_s:

        M_t = b_t W + f_t S + sum_{s<=t} G[t, s] r_s        S_t = m_t S + sum_{s<=t} (m_t / m_s) r_s
        b_t = prod_{i<=t} (1 - alpha_i)      m_t = prod_{i<=t} eta_i
        f_t = sum_{j<=t} (b_t / b_j) m_j     G[t, s] = sum_{j=s..t} (b_t / b_j) (m_j / m_s)

    They are formed by the rule itself, row t of `momentum` as eta_t times row t - 1 plus token t's own, row t of `mixing` as 1 - alpha_t
    times row t - 1 plus row t of `momentum`: no logarithm and no division, so gates of exactly 0 and 1 are served.

    alpha: (..., C, 1 or d_in); eta: (..., C).
    active: (..., C) of alpha's dtype, 0 or 1, or None; a cell that is not active is no token: it must come with alpha 0, eta 1 and
        theta 0, and adds no momentum.
    """
    keep, eta = _by_token(1 - alpha).unsqueeze(-1), eta.movedim(-1, 0).unsqueeze(-1)  # (C, ..., d, 1), (C, ..., 1)
    cells = eta.shape[0]
    momentum = eta.new_zeros(*eta.shape[:-1], 2 + cells)
    momentum[..., 2:].diagonal(dim1=0, dim2=-1).fill_(1)
    momentum[0, ..., 1] = eta[0, ..., 0]
    _accumulate(momentum, eta, range(1, cells), -1)
    added = momentum if active is None else momentum * active.movedim(-1, 0).unsqueeze(-1)  # only tokens add their momentum
    mixing = added.unsqueeze(-2).repeat(*[1] * (added.dim() - 1), keep.shape[-2], 1)
    mixing[0, ..., :1] = keep[0]
    _accumulate(mixing, keep, range(1, cells), -1)
    return ChunkCoefficients(mixing.movedim(0, -2), momentum.movedim(0, -2))


def chunk_coefficients_vjp(
    c: ChunkCoefficients, alpha: Tensor, eta: Tensor, active: Tensor | None, d_mixing: Tensor, d_momentum: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by alpha and eta from those by `mixing` and by the last row of `momentum` (..., 2 + C): the recurrence backwards.

    What stands in d_mixing above the diagonal of G does not matter.
    """
    keep, eta = _by_token(1 - alpha).unsqueeze(-1), eta.movedim(-1, 0).unsqueeze(-1)
    last = eta.shape[0] - 1
    d_rows = d_mixing.movedim(-2, 0).contiguous()  # (C, ..., d, 2 + C)
    _accumulate(d_rows, keep, range(last - 1, -1, -1), 1)
    d_keep = torch.linalg.vecdot(d_rows, _before(c.mixing.movedim(-2, 0), 0))  # (C, ..., d)
    d_added = d_rows.sum(-2) if active is None else d_rows.sum(-2) * active.movedim(-1, 0).unsqueeze(-1)  # (C, ..., 2 + C)
    d_added[last] += d_momentum
    _accumulate(d_added, eta, range(last - 1, -1, -1), 1)
    d_eta = torch.linalg.vecdot(d_added, _before(c.momentum.movedim(-2, 0), 1))
    return -d_keep.movedim(0, -2), d_eta.movedim(0, -1)


def _by_token(x: Tensor) -> Tensor:
    """(..., C, d) -> (C, ..., d)."""
    return x.movedim(-2, 0)


def _accumulate(rows: Tensor, factors: Tensor, order: range, neighbour: int) -> None:
    """rows[t] += factor * rows[t + neighbour] in this order, in place; the factor is that of the later of the two tokens."""
    parts, by_token = rows.unbind(0), factors.unbind(0)
    for t in order:
        parts[t].addcmul_(parts[t + neighbour], by_token[max(t, t + neighbour)])


def _before(rows: Tensor, column: int) -> Tensor:
    """Row t - 1 in row t of (C, ..., 2 + C); before the first stands the chunk's first state, a one in its column."""
    first = torch.zeros_like(rows[:1])
    first[..., column] = 1
    return torch.cat([first, rows[:-1]])


def row_products(a: Tensor, b: Tensor, work: Tensor) -> Tensor:
    """Sum over the last dimension of a b, kept as a dimension of 1; `work`, of their shape, is overwritten."""
    return torch.mul(a, b, out=work).sum(-1, keepdim=True)


def mixed_scores(scores: Tensor, x: Tensor, u: Tensor, mixing: Tensor) -> Tensor:
    """P[t, s] = sum_i x[t, i] G[i, t, s] u[s, i], from scores x u^T; x, u (..., C, d_in), mixing (..., 1 or d_in, C, C) -> (..., C, C)."""
    if mixing.shape[-3] == 1:
        return scores * mixing.squeeze(-3)
    return (x.transpose(-1, -2).unsqueeze(-1) * mixing * u.transpose(-1, -2).unsqueeze(-2)).sum(-3)


def mixed_scores_vjp(d: Tensor, scores: Tensor, x: Tensor, u: Tensor, mixing: Tensor, d_x: Tensor, d_u: Tensor) -> Tensor:
    """Gradients of `mixed_scores` by x and u, into d_x and d_u (..., C, d_in), and by mixing, from that by its result d (..., C, C)."""
    if mixing.shape[-3] == 1:
        d_scores = (d * mixing.squeeze(-3)).flatten(0, -3)
        torch.bmm(d_scores, u.flatten(0, -3), out=d_x.flatten(0, -3))
        torch.bmm(d_scores.transpose(1, 2), x.flatten(0, -3), out=d_u.flatten(0, -3))
        return (d * scores).unsqueeze(-3)
    weighted = d.unsqueeze(-3) * mixing  # (..., d_in, C, C)
    x_column, u_row = x.transpose(-1, -2).unsqueeze(-1), u.transpose(-1, -2).unsqueeze(-2)
    d_x.copy_((weighted * u_row).sum(-1).transpose(-1, -2))
    d_u.copy_((weighted * x_column).sum(-2).transpose(-1, -2))
    return d.unsqueeze(-3) * x_column * u_row
