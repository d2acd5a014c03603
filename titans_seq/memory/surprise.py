"""The steps of a segment's tokens and their adjoint: the inner gradient of the chunkwise form, and its derivative by hand.

For token s of a chunk whose gradients are taken at the layers A_1 .. A_L (the anchor): u_1 = k_s, z_l = u_l A_l, u_{l+1} = act(z_l), and
back again g_L = gradient of the loss with respect to z_L, e_l = g_{l+1} A_{l+1}^T, g_l = e_l act'(z_l). The token's step in layer l is the
outer product of u_l and step_l = -theta clip g_l.

Shape suffixes: n chunks of the segment, R rows (batch x heads), C cells of a chunk, D head width; d_in, d_out of a memory layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from titans_seq.memory.rule import NORM_EPS, Rule, activate, activation_curvature, activation_vjp


class SurpriseGradients(NamedTuple):
    """Gradients by what the steps of a segment are made of, in the shapes of `ChunkSurprise`."""

    k: Tensor
    offset: Tensor
    slope: Tensor
    theta: list[Tensor]


class ChunkSurprise:
    """Steps with their gradients at the anchor. `write` makes them chunk by chunk; `adjoint` goes back, the last chunk first."""

    def __init__(self, rule: Rule, k: Tensor, offset: Tensor, slope: Tensor, theta: Sequence[Tensor], widths: Sequence[int]) -> None:
        """Buffers of one segment.

        k, offset: (n, R, C, D); slope: (R, 1, D). The loss's gradient by the last layer's (normed) output z is offset + slope z.
        theta: (n, R, C, 1) for each layer. widths: d_0 .. d_L.
        """
        self.rule, self.offset, self.slope = rule, offset, slope
        self.theta = torch.stack(list(theta), dim=1)  # (n, L, R, C, 1)
        self.depth = len(theta)
        tokens = k.shape[:-1]
        self.inputs = [k, *(k.new_empty(*tokens, d) for d in widths[1:-1])]  # u_l
        self.pre_activations = [k.new_empty(*tokens, d) for d in widths[1:]]  # z_l
        self.backward_inputs = [k.new_empty(*tokens, d) for d in widths[1:-1]]  # e_l
        self.gradients = [k.new_empty(*tokens, d) for d in widths[1:]]  # g_l
        self.normed: list[tuple[Tensor, Tensor, Tensor]] = []  # z_L normed, its mean, 1 / its standard deviation
        self.clip = torch.ones_like(self.theta)
        self.input_norms, self.gradient_norms = torch.empty_like(self.theta), torch.empty_like(self.theta)
        torch.linalg.vector_norm(k, dim=-1, keepdim=True, out=self.input_norms[:, 0])

    def write(self, n: int, anchor: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
        """Fill the steps (R, C, d_out) of chunk n, one a layer, from its anchor (R, d_in, d_out), one a layer."""
        last = self.depth - 1
        for l, A in enumerate(anchor):
            z = torch.bmm(self.inputs[l][n], A, out=self.pre_activations[l][n])
            if l < last:
                activate(z, self.rule.activation, out=self.inputs[l + 1][n])
        g = self._loss_gradient(n)
        for l in range(last - 1, -1, -1):
            e = torch.bmm(g, anchor[l + 1].transpose(1, 2), out=self.backward_inputs[l][n])
            g = activation_vjp(e, self.pre_activations[l][n], self.rule.activation, out=self.gradients[l][n])
        scale = self._scale(n)
        for l, step in enumerate(steps):
            torch.mul(self.gradients[l][n], scale[l], out=step)

    def _loss_gradient(self, n: int) -> Tensor:
        z, g = self.pre_activations[-1][n], self.gradients[-1][n]
        if not self.rule.norm:
            return torch.addcmul(self.offset[n], z, self.slope, out=g)
        normed, mean, inverse_std = torch.native_layer_norm(z, z.shape[-1:], None, None, NORM_EPS)
        self.normed.append((normed, mean, inverse_std))
        return g.copy_(_norm_vjp(torch.addcmul(self.offset[n], normed, self.slope), z, mean, inverse_std))

    def _scale(self, n: int) -> Tensor:
        """-theta clip of chunk n, (L, R, C, 1)."""
        limit = self.rule.surprise_clip
        if limit is None:
            return -self.theta[n]
        for l in range(self.depth):
            torch.linalg.vector_norm(self.gradients[l][n], dim=-1, keepdim=True, out=self.gradient_norms[n, l])
            if l > 0:
                torch.linalg.vector_norm(self.inputs[l][n], dim=-1, keepdim=True, out=self.input_norms[n, l])
        norm = (self.input_norms[n] * self.gradient_norms[n]).clamp_(min=limit)
        return torch.div(limit, norm, out=self.clip[n]) * -self.theta[n]

    def prepare_adjoint(self) -> None:
        """What the adjoint needs and can have for all chunks at once."""
        hidden = range(self.depth - 1)
        self.scale = -self.theta * self.clip
        self.slopes = [activation_vjp(torch.ones_like(z), z, self.rule.activation) for z in self.pre_activations[:-1]]
        self.curvatures = [
            activation_curvature(self.pre_activations[l], self.rule.activation).mul_(self.backward_inputs[l]) for l in hidden
        ]
        self.d_offset = torch.empty_like(self.offset)
        clipped = self.clip < 1
        self.clipped = torch.where(clipped, -self.scale, 0) if bool(clipped.any()) else None
        if self.rule.norm:
            normed, _, inverse_std = (torch.stack(parts) for parts in zip(*self.normed, strict=True))  # (n, R, C, D or 1)
            surprise = torch.addcmul(self.offset, normed, self.slope)
            projection = (surprise * normed).mean(-1, keepdim=True)
            self.norm_terms = (normed, surprise, -inverse_std, -inverse_std * projection, normed * inverse_std / -normed.shape[-1])

    def adjoint(
        self, n: int, anchor: Sequence[Tensor], d_steps: Sequence[Tensor], d_inputs: Sequence[Tensor], d_anchor: Sequence[Tensor]
    ) -> None:
        """From gradients of chunk n's steps (R, C, d_out) add to those of the u_l (R, C, d_in), in place, and of the anchor."""
        d_g = [d_step * scale for d_step, scale in zip(d_steps, self.scale[n].unbind(0), strict=True)]
        if self.clipped is not None:
            self._clip_adjoint(n, d_steps, d_g, d_inputs)
        d_pre = []
        for l in range(self.depth - 1):  # back through g_1, g_2, ..
            d_pre.append(d_g[l] * self.curvatures[l][n])
            d_e = d_g[l].mul_(self.slopes[l][n])
            d_g[l + 1].baddbmm_(d_e, anchor[l + 1])
            d_anchor[l + 1].baddbmm_(d_e.transpose(1, 2), self.gradients[l + 1][n])
        d_z = self._loss_gradient_adjoint(n, d_g[-1])
        for l in range(self.depth - 1, -1, -1):  # back through z_L, z_{L-1}, ..
            d_anchor[l].baddbmm_(self.inputs[l][n].transpose(1, 2), d_z)
            d_u = d_inputs[l].baddbmm_(d_z, anchor[l].transpose(1, 2))
            if l > 0:
                d_z = d_pre[l - 1].addcmul_(d_u, self.slopes[l - 1][n])

    def _clip_adjoint(self, n: int, d_steps: Sequence[Tensor], d_g: Sequence[Tensor], d_inputs: Sequence[Tensor]) -> None:
        """clip = limit / (|u| |g|) where it is below 1."""
        assert self.clipped is not None
        for l, d_step in enumerate(d_steps):
            g, u, factor = self.gradients[l][n], self.inputs[l][n], self.clipped[n, l]
            along = factor * torch.linalg.vecdot(d_step, g).unsqueeze(-1)
            d_g[l].addcmul_(torch.where(factor == 0, 0, along / self.gradient_norms[n, l].square()), g)
            d_inputs[l].addcmul_(torch.where(factor == 0, 0, along / self.input_norms[n, l].square()), u)

    def _loss_gradient_adjoint(self, n: int, d_g: Tensor) -> Tensor:
        """Gradient by z_L from that by g_L = J(z) surprise(z), J = (I - 1 1^T / D - normed normed^T / D) / std, symmetric."""
        if not self.rule.norm:
            self.d_offset[n] = d_g
            return d_g * self.slope
        normed, surprise, minus_inverse_std, projection, toward_mean = (term[n] for term in self.norm_terms)
        z, (_, mean, inverse_std) = self.pre_activations[-1][n], self.normed[n]
        d_surprise = self.d_offset[n].copy_(_norm_vjp(d_g, z, mean, inverse_std))
        along = torch.linalg.vecdot(d_g, normed).unsqueeze(-1).mul_(minus_inverse_std).div_(normed.shape[-1])
        d_normed = (d_g * projection).addcmul_(along, surprise).addcmul_(d_surprise, self.slope)
        d_inverse_std = torch.linalg.vecdot(d_g, self.gradients[-1][n]).unsqueeze(-1)
        return _norm_vjp(d_normed, z, mean, inverse_std).addcmul_(toward_mean, d_inverse_std)

    def finish_adjoint(self, d_steps: Sequence[Tensor], d_k: Tensor) -> SurpriseGradients:
        """After all chunks: d_steps (n, R, C, d_out) as they were given to `adjoint`, d_k (n, R, C, D) as it was added to."""
        z = self.norm_terms[0] if self.rule.norm else self.pre_activations[-1]
        d_slope = (self.d_offset * z).sum((0, 2)).unsqueeze(1)
        d_scale = [torch.linalg.vecdot(d, g).unsqueeze(-1) for d, g in zip(d_steps, self.gradients, strict=True)]
        d_theta = [d.mul_(clip).neg_() for d, clip in zip(d_scale, self.clip.unbind(1), strict=True)]
        return SurpriseGradients(d_k, self.d_offset, d_slope, d_theta)


def _norm_vjp(d: Tensor, z: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    """Gradient by z from that by the normed z (no scale, no shift), over the last dimension."""
    return torch.ops.aten.native_layer_norm_backward(d, z, z.shape[-1:], mean, inverse_std, None, None, [True, False, False])[0]
