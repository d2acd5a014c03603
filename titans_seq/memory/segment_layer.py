"""One memory layer over a segment: how its weights and momentum take up steps and how they are read, and the adjoint of both.

With W, S before a chunk, u and step its tokens' inputs and steps (surprise.py), and the coefficients of rule.py; R is what the layer is
beside W, zero or W^0:

    z_t = x_t R + (b_t x_t) W + (f_t x_t) S + sum_{s<=t} P[t, s] step_s        P[t, s] = sum_i x[t, i] G[i, t, s] u[s, i]
    W' = b_C W + f_C S + sum_s (G[C, s] u_s)^T step_s                  S' = m_C S + sum_s (m_C / m_s u_s)^T step_s

Shape suffixes: n chunks, R rows (batch x heads), C cells of a chunk; d_in, d_out of the layer; d 1 or, for forgetting per channel, d_in.
"""

import torch
from torch import Tensor

from titans_seq.memory.layout import Chunked, Workspace
from titans_seq.memory.rule import ChunkCoefficients, mixed_scores, mixed_scores_vjp, row_products


class SegmentLayer:
    """State, steps and coefficients of one layer for the n chunks of a segment."""

    def __init__(self, W: Tensor, S: Tensor, rest: Tensor | None, c: ChunkCoefficients, space: Workspace, keep: bool) -> None:
        """W, S, rest (R, d_in, d_out) before the segment; coefficients with mixing (n, R, d, C, 2 + C); keep: as `Segment`."""
        self.rest = rest
        chunks, rows, channels, cells, _ = c.mixing.shape
        self.per_channel, self.space = channels > 1, space
        tokens = (chunks, rows, cells)
        self.mixing = c.mixing[..., 2:]  # G: (n, R, d, C, C)
        self.read_W, self.read_S = (c.mixing[..., i].transpose(-1, -2) for i in (0, 1))  # b, f: (n, R, C, d)
        self.write_W = Chunked(self.mixing[..., -1, :].transpose(-1, -2))  # G[C, s]: (n, R, C, d)
        self.write_S = Chunked(c.momentum[..., -1, 2:].unsqueeze(-1))  # m_C / m_s: (n, R, C, 1)
        self.b, self.f = (Chunked(c.mixing[..., -1, i].unsqueeze(-1)) for i in (0, 1))  # b_C, f_C: (n, R, d, 1)
        self.m = Chunked(c.momentum[..., -1:, 1:2])  # m_C: (n, R, 1, 1)
        self.W, self.S = (space.chunked(name, chunks + 1, *W.shape) for name in ("W", "S"))
        self.W.parts[0].copy_(W)
        self.S.parts[0].copy_(S)
        self.steps = space.chunked("steps", *tokens, W.shape[2])  # (n, R, C, d_out)
        self.update_W = space.chunked("update W", *tokens, W.shape[1], keep=keep)  # (n, R, C, d_in)
        self.update_S = space.chunked("update S", *tokens, W.shape[1], keep=keep)

    def advance(self, n: int, u: Tensor) -> None:
        """W and S after chunk n, whose steps are set, from its inputs u (R, C, d_in).

        The sum over the chunk as one matrix product, equation 17 of arXiv 2501.00663, of any layer and with momentum.
        """
        W, S, steps = self.W.parts[n], self.S.parts[n], self.steps.parts[n]
        to_W = torch.mul(u, self.write_W.parts[n], out=self.update_W.parts[n])
        to_S = torch.mul(u, self.write_S.parts[n], out=self.update_S.parts[n])
        after = torch.mul(W, self.b.parts[n], out=self.W.parts[n + 1]).addcmul_(S, self.f.parts[n])
        after.baddbmm_(to_W.transpose(1, 2), steps)
        torch.mul(S, self.m.parts[n], out=self.S.parts[n + 1]).baddbmm_(to_S.transpose(1, 2), steps)

    def set_queries(self, x: Tensor, u: Tensor) -> None:
        """What is read: all tokens' x, with the tokens' inputs u for their keys; x, u (n, R, C, d_in)."""
        self.x, self.u = x, u
        self.x_W = torch.mul(x, self.read_W, out=self.space("x W", *x.shape))
        self.x_S = torch.mul(x, self.read_S, out=self.space("x S", *x.shape))
        self.scores = x @ u.transpose(-1, -2)
        self.mixed = mixed_scores(self.scores, x, u, self.mixing)

    def read(self) -> Tensor:
        """z (n, R, C, d_out) of all tokens."""
        z = self.space("z", *self.steps.whole.shape)
        rows = [part.flatten(0, 1) for part in (self.x_W, self.W.whole[:-1], self.x_S, self.S.whole[:-1], self.mixed, self.steps.whole)]
        torch.bmm(rows[0], rows[1], out=z.flatten(0, 1)).baddbmm_(rows[2], rows[3]).baddbmm_(rows[4], rows[5])
        return z if self.rest is None else z.add_(self.x @ self.rest)

    # Adjoint: `set_queries`, `read_adjoint`, then `chunk_adjoint` from the last chunk to the first, then `coefficient_adjoint`

    def read_adjoint(self, d_z: Tensor, d_rest: Tensor | None) -> Tensor:
        """Gradient by x from that by z; those by steps, inputs and coefficients are begun with the reads' share, d_rest has it added."""
        x, space = self.x, self.space
        d_rows = d_z.flatten(0, 1)
        d_x_W, d_x_S, d_x, d_u = (space(name, *x.shape) for name in ("d x W", "d x S", "d x", "d u"))  # (n, R, C, d_in)
        for d, state in ((d_x_W, self.W), (d_x_S, self.S)):
            torch.bmm(d_rows, state.whole[:-1].flatten(0, 1).transpose(1, 2), out=d.flatten(0, 1))
        d_mixed = torch.bmm(d_rows, self.steps.whole.flatten(0, 1).transpose(1, 2)).unflatten(0, x.shape[:2])  # (n, R, C, C)
        d_G = mixed_scores_vjp(d_mixed, self.scores, x, self.u, self.mixing, d_x, d_u)
        d_read = [self._over_channels(d, x).transpose(-1, -2).unsqueeze(-1) for d in (d_x_W, d_x_S)]  # (n, R, d, C, 1)
        self.d_mixing = torch.cat([*d_read, d_G], dim=-1)
        self.d_z, self.d_u = Chunked(d_z), Chunked(d_u)
        self.d_steps = space.chunked("d steps", *d_z.shape)
        torch.bmm(self.mixed.flatten(0, 1).transpose(1, 2), d_rows, out=self.d_steps.whole.flatten(0, 1))
        self.x_W_parts, self.x_S_parts = self.x_W.unbind(0), self.x_S.unbind(0)
        self.d_update_W, self.d_update_S = (space.chunked(f"d update {name}", *x.shape) for name in "WS")
        self.d_carry: list[list[Tensor]] = []  # by b_C, f_C, m_C, the last chunk first: (R, d_in, d_out) summed over d_out
        d_x.addcmul_(d_x_W, self.read_W).addcmul_(d_x_S, self.read_S)
        if self.rest is not None and d_rest is not None:
            d_x += d_z @ self.rest.transpose(1, 2)
            x_of_row, d_z_of_row = (part.transpose(0, 1).flatten(1, 2) for part in (x, d_z))  # (R, n C, ..)
            d_rest.baddbmm_(x_of_row.transpose(1, 2), d_z_of_row)
        return d_x

    def chunk_adjoint(self, n: int, d_W: Tensor, d_S: Tensor) -> None:
        """d_W, d_S (R, d_in, d_out), in place, from after chunk n to before it; adds to the gradients of its steps and inputs."""
        steps = self.steps.parts[n]
        self.d_steps.parts[n].baddbmm_(self.update_W.parts[n], d_W).baddbmm_(self.update_S.parts[n], d_S)
        d_to_W = torch.bmm(steps, d_W.transpose(1, 2), out=self.d_update_W.parts[n])
        d_to_S = torch.bmm(steps, d_S.transpose(1, 2), out=self.d_update_S.parts[n])
        self.d_u.parts[n].addcmul_(d_to_W, self.write_W.parts[n]).addcmul_(d_to_S, self.write_S.parts[n])
        W, S, b, f, m = (x.parts[n] for x in (self.W, self.S, self.b, self.f, self.m))
        self.d_carry.append([torch.linalg.vecdot(d, x) for d, x in ((d_W, W), (d_W, S), (d_S, S))])
        d_S.mul_(m).addcmul_(d_W, f).baddbmm_(self.x_S_parts[n].transpose(1, 2), self.d_z.parts[n])
        d_W.mul_(b).baddbmm_(self.x_W_parts[n].transpose(1, 2), self.d_z.parts[n])

    def coefficient_adjoint(self) -> tuple[Tensor, Tensor]:
        """Gradients by mixing (n, R, d, C, 2 + C) and by the last row of momentum (n, R, 2 + C)."""
        d_b, d_f, d_m = (torch.stack(parts[::-1]) for parts in zip(*self.d_carry, strict=True))  # (n, R, d_in)
        if not self.per_channel:
            d_b, d_f = d_b.sum(-1, keepdim=True), d_f.sum(-1, keepdim=True)
        d_last = torch.stack([d_b, d_f], dim=-1)  # (n, R, d, 2)
        d_write_W = self._over_channels(self.d_update_W.whole, self.u).transpose(-1, -2)  # (n, R, d, C)
        self.d_mixing[..., -1, :] += torch.cat([d_last, d_write_W], dim=-1)
        d_write_S = row_products(self.d_update_S.whole, self.u, self.space("work", *self.u.shape)).squeeze(-1)  # (n, R, C)
        d_m = d_m.sum(-1, keepdim=True)
        return self.d_mixing, torch.cat([torch.zeros_like(d_m), d_m, d_write_S], dim=-1)

    def _over_channels(self, a: Tensor, b: Tensor) -> Tensor:
        """a b (n, R, C, d_in), summed over d_in where coefficients are shared by all channels."""
        return a * b if self.per_channel else row_products(a, b, self.space("work", *a.shape))
