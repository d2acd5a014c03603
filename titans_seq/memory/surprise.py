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

from titans_seq.memory.layout import Chunked, Workspace
from titans_seq.memory.rule import NORM_EPS, Rule, activate, activation_curvature, activation_vjp, row_products


class SurpriseGradients(NamedTuple):
    """Gradients by what the steps of a segment are made of, in the shapes of `ChunkSurprise`; mixing: `TokenSurprise` alone has it."""

    k: Tensor
    offset: Tensor
    slope: Tensor
    theta: list[Tensor]
    mixing: Tensor | None = None


class ChunkSurprise:
    """Steps with their gradients at the anchor. `write` makes them chunk by chunk; `adjoint` goes back, the last chunk first."""

    def __init__(
        self,
        rule: Rule,
        k: Tensor,
        offset: Tensor,
        slope: Tensor,
        theta: Sequence[Tensor],
        spaces: Sequence[Workspace],
        widths: Sequence[int],
        keep: bool,
    ) -> None:
        """Buffers of one segment, in `spaces` one a layer; keep: whether there will be an adjoint.

        k, offset: (n, R, C, D); slope: (R, 1, D). The loss's gradient by the last layer's (normed) output z is offset + slope z.
        theta: (n, R, C, 1) for each layer. widths: d_1 .. d_L.
        """

        def buffers(name: str, layers: int, keep: bool = True) -> list[Chunked]:
            pairs = zip(spaces[:layers], widths[:layers], strict=True)
            return [space.chunked(name, *k.shape[:-1], d, keep=keep) for space, d in pairs]

        self.rule, self.slope = rule, slope
        depth, self.buffers = len(theta), buffers
        self.offset = Chunked(offset)
        self.inputs = [Chunked(k), *buffers("u", depth - 1)]  # u_l
        self.pre_activations = buffers("key z", depth, keep)  # z_l
        self.backward_inputs = buffers("e", depth - 1, keep)  # e_l
        self.gradients = buffers("g", depth, keep)  # g_l
        self.normed: list[tuple[Tensor, Tensor, Tensor]] = []  # of each chunk: z_L normed, its mean, 1 / its standard deviation
        self.scales = [Chunked(-t) for t in theta]  # -theta; times clip once a chunk is written
        self.limit = None if rule.surprise_clip is None else k.new_tensor(rule.surprise_clip)
        if self.limit is not None:
            self.clips = [Chunked(torch.empty_like(t)) for t in theta]
            norms = [torch.linalg.vector_norm(k, dim=-1, keepdim=True), *(torch.empty_like(t) for t in theta[1:])]
            self.input_norms = [Chunked(norm) for norm in norms]

    def write(self, n: int, anchor: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
        """Fill the steps (R, C, d_out) of chunk n, one a layer, from its anchor (R, d_in, d_out), one a layer."""
        activation, last = self.rule.activation, len(steps) - 1
        for l, A in enumerate(anchor):
            z = torch.bmm(self.inputs[l].parts[n], A, out=self.pre_activations[l].parts[n])
            if l < last:
                activate(z, activation, out=self.inputs[l + 1].parts[n])
        g = self._loss_gradient(n, z)
        for l in range(last - 1, -1, -1):
            e = torch.bmm(g, anchor[l + 1].transpose(1, 2), out=self.backward_inputs[l].parts[n])
            g = activation_vjp(e, self.pre_activations[l].parts[n], activation, out=self.gradients[l].parts[n])
        if self.limit is not None:
            self._clip(n, self.limit)
        for g_l, scale, step in zip(self.gradients, self.scales, steps, strict=True):
            torch.mul(g_l.parts[n], scale.parts[n], out=step)

    def _loss_gradient(self, n: int, z: Tensor) -> Tensor:
        offset, g = self.offset.parts[n], self.gradients[-1].parts[n]
        if not self.rule.norm:
            return torch.addcmul(offset, z, self.slope, out=g)
        normed, mean, inverse_std = torch.native_layer_norm(z, z.shape[-1:], None, None, NORM_EPS)
        self.normed.append((normed, mean, inverse_std))
        return g.copy_(_norm_vjp(torch.addcmul(offset, normed, self.slope), z, mean, inverse_std))

    def _clip(self, n: int, limit: Tensor) -> None:
        """clip = limit / max(limit, |u| |g|), the norm of the outer product of u and g."""
        for l, (u, g, scale) in enumerate(zip(self.inputs, self.gradients, self.scales, strict=True)):
            norm_u = self.input_norms[l].parts[n]
            if l > 0:
                torch.linalg.vector_norm(u.parts[n], dim=-1, keepdim=True, out=norm_u)
            norm = torch.linalg.vector_norm(g.parts[n], dim=-1, keepdim=True).mul_(norm_u).clamp_(min=self.rule.surprise_clip)
            scale.parts[n].mul_(torch.div(limit, norm, out=self.clips[l].parts[n]))

    def prepare_adjoint(self) -> None:
        """What the adjoint needs and can have for all chunks at once."""
        hidden = [z.whole for z in self.pre_activations[:-1]]
        self.slopes, self.curvatures = self.buffers("slope", len(hidden)), self.buffers("curvature", len(hidden))
        for z, e, slope, curvature in zip(hidden, self.backward_inputs, self.slopes, self.curvatures, strict=True):
            activation_curvature(z, self.rule.activation, out=curvature.whole, work=slope.whole).mul_(e.whole)
            activation_vjp(z.new_ones(()).expand_as(z), z, self.rule.activation, out=slope.whole)
        self.d_offset = Chunked(torch.empty_like(self.offset.whole))
        self.any_clipped = False
        if self.limit is not None:
            self.clipped = [clip.whole < 1 for clip in self.clips]
            self.any_clipped = any(bool(clipped.any()) for clipped in self.clipped)
        if self.rule.norm:
            self._prepare_norm()

    def _prepare_norm(self) -> None:
        normed, _, inverse_std = (torch.stack(parts) for parts in zip(*self.normed, strict=True))  # (n, R, C, D or 1)
        surprise = torch.addcmul(self.offset.whole, normed, self.slope)
        toward_mean = inverse_std / -normed.shape[-1]
        along_d_g = torch.linalg.vecdot(surprise, normed).unsqueeze(-1) * toward_mean
        self.all_normed = normed
        self.norm_terms = list(zip(surprise * toward_mean, along_d_g, normed * toward_mean, strict=True))

    def adjoint(
        self, n: int, anchor: Sequence[Tensor], d_steps: Sequence[Tensor], d_inputs: Sequence[Tensor], d_anchor: Sequence[Tensor]
    ) -> None:
        """From gradients of chunk n's steps (R, C, d_out) add to those by the u_l (R, C, d_in) and by the anchor, in place."""
        g = [gradient.parts[n] for gradient in self.gradients]
        d_g = [d * scale.parts[n] for d, scale in zip(d_steps, self.scales, strict=True)]
        if self.any_clipped:
            self._clip_adjoint(n, d_steps, d_g, d_inputs)
        d_pre = []
        for l in range(len(g) - 1):  # back through g_1, g_2, ..
            d_pre.append(d_g[l] * self.curvatures[l].parts[n])
            d_e = d_g[l].mul_(self.slopes[l].parts[n])
            d_g[l + 1].baddbmm_(d_e, anchor[l + 1])
            d_anchor[l + 1].baddbmm_(d_e.transpose(1, 2), g[l + 1])
        d_z = self._loss_gradient_adjoint(n, d_g[-1])
        for l in range(len(g) - 1, -1, -1):  # back through z_L, z_{L-1}, ..
            d_anchor[l].baddbmm_(self.inputs[l].parts[n].transpose(1, 2), d_z)
            d_u = d_inputs[l].baddbmm_(d_z, anchor[l].transpose(1, 2))
            if l > 0:
                d_z = d_pre[l - 1].addcmul_(d_u, self.slopes[l - 1].parts[n])

    def _clip_adjoint(self, n: int, d_steps: Sequence[Tensor], d_g: Sequence[Tensor], d_inputs: Sequence[Tensor]) -> None:
        """Where the clip is below 1 the step is -theta limit g / (|u| |g|): neither the length of u nor that of g matters."""
        for l, d_step in enumerate(d_steps):
            u, g, clipped = self.inputs[l].parts[n], self.gradients[l].parts[n], self.clipped[l][n]
            along = torch.where(clipped, torch.linalg.vecdot(d_step, g).unsqueeze(-1) * self.scales[l].parts[n], 0)
            d_g[l].addcmul_(torch.where(clipped, along / g.square().sum(-1, keepdim=True), 0), g, value=-1)
            d_inputs[l].addcmul_(torch.where(clipped, along / u.square().sum(-1, keepdim=True), 0), u, value=-1)

    def _loss_gradient_adjoint(self, n: int, d_g: Tensor) -> Tensor:
        """Gradient by z_L from that by g_L = J surprise, where J = (I - 1 1^T / D - normed normed^T / D) / std is symmetric.

        surprise = offset + slope normed, and normed = (z - mean) / std depend on z as well.
        """
        d_offset = self.d_offset.parts[n]
        if not self.rule.norm:
            return d_offset.copy_(d_g) * self.slope
        to_normed, to_d_g, to_std = self.norm_terms[n]
        z, (normed, mean, inverse_std) = self.pre_activations[-1].parts[n], self.normed[n]
        d_offset.copy_(_norm_vjp(d_g, z, mean, inverse_std))  # J d_g
        d_normed = (d_g * to_d_g).addcmul_(to_normed, torch.linalg.vecdot(d_g, normed).unsqueeze(-1)).addcmul_(d_offset, self.slope)
        d_inverse_std = torch.linalg.vecdot(d_g, self.gradients[-1].parts[n]).unsqueeze(-1)
        return _norm_vjp(d_normed, z, mean, inverse_std).addcmul_(to_std, d_inverse_std)

    def finish_adjoint(self, d_steps: Sequence[Tensor], d_k: Tensor) -> SurpriseGradients:
        """After all chunks: d_steps (n, R, C, d_out) as they were given to `adjoint`, d_k (n, R, C, D) as it was added to."""
        z = self.all_normed if self.rule.norm else self.pre_activations[-1].whole
        d_slope = (self.d_offset.whole * z).sum((0, 2)).unsqueeze(1)  # (R, 1, D)
        work = self.buffers("g work", len(d_steps))
        d_scale = [row_products(d, g.whole, w.whole) for d, g, w in zip(d_steps, self.gradients, work, strict=True)]
        if self.limit is not None:
            d_scale = [d.mul_(clip.whole) for d, clip in zip(d_scale, self.clips, strict=True)]
        return SurpriseGradients(d_k, self.d_offset.whole, d_slope, [d.neg_() for d in d_scale])


def _norm_vjp(d: Tensor, z: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    """Gradient by z from that by the normed z (no scale, no shift), over the last dimension."""
    return torch.ops.aten.native_layer_norm_backward(d, z, z.shape[-1:], mean, inverse_std, None, None, [True, False, False])[0]
