"""A segment of the stream, some chunks long: forward and, from its first state, backward by hand (docs/rule.md derives it).

The state of a memory layer and the steps of a chunk stand in one stack [W; S; step], so that the read of every token and the update are one
matrix product each:

    z_t = [b_t x_t | f_t x_t | P_t] [W; S; step]        P[t, s] = sum_i x[t, i] G[i, t, s] u[s, i]
    [W'; S'] = [b_C W + f_C S; m_C S] + [G_C u | (m_C / m_s) u]^T step

Only writing goes chunk by chunk; reads, coefficients and everything else that no later chunk waits for are batched over the segment.

Shape suffixes: n chunks, R rows (batch x heads), C cells of a chunk, D head width; d_in, d_out of a memory layer; d 1 or d_in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from titans_seq.memory.rule import (
    ChunkCoefficients,
    Rule,
    activate,
    activation_vjp,
    chunk_coefficients,
    chunk_coefficients_vjp,
    mixed_scores,
    mixed_scores_vjp,
)
from titans_seq.memory.surprise import ChunkSurprise
from titans_seq.memory.token_surprise import TokenSurprise


@dataclass(frozen=True)
class SegmentInputs:
    """What a segment reads: q, k, offset (n, R, C, D); slope (R, 1, D); gates one a layer: alpha (n, R, C, d), eta and theta (n, R, C, 1).

    active: (n, R or 1, C) 0 or 1, cells with a token; None if all have one.
    complete: one entry a chunk, whether it ends with this segment's tokens: for all rows, or (R,) bool.
    restart: (n, R) bool, rows that go back to the `first` layers (R, d_in, d_out) before the chunk; None if none.
    """

    q: Tensor
    k: Tensor
    offset: Tensor
    slope: Tensor
    alpha: Sequence[Tensor]
    eta: Sequence[Tensor]
    theta: Sequence[Tensor]
    active: Tensor | None
    complete: Sequence[bool | Tensor]
    restart: Tensor | None
    first: Sequence[Tensor]


class SegmentGradients(NamedTuple):
    """Gradients by what `SegmentInputs` holds and by the state before the segment.

    anchor: None where the weights are the anchor.
    """

    q: Tensor
    k: Tensor
    offset: Tensor
    slope: Tensor
    alpha: list[Tensor]
    eta: list[Tensor]
    theta: list[Tensor]
    anchor: list[Tensor] | None


class Segment:
    """One segment: `write`, then `read`, then, if gradients are wanted, `backward`."""

    def __init__(self, rule: Rule, x: SegmentInputs, state: Sequence[Tensor], anchor: Sequence[Tensor] | None) -> None:
        """state: [W; S] before the segment, (R, 2 d_in, d_out) a layer. anchor: (R, d_in, d_out) a layer; None: the weights."""
        self.x, self.anchor = x, anchor
        self.chunks, rows, cells, _ = x.q.shape
        self.widths = [layer.shape[1] // 2 for layer in state]  # d_in
        outer = [*self.widths, x.q.shape[-1]]  # d_0 .. d_L
        self.activation, self.by_token = rule.activation, rule.gradient == "token"
        self.coefficients = [chunk_coefficients(a, e.squeeze(-1), x.active) for a, e in zip(x.alpha, x.eta, strict=True)]
        self.reads = [c.mixing[..., :2].permute(0, 1, 3, 4, 2) for c in self.coefficients]  # b, f: (n, R, C, 2, d)
        self.writes = [_write_coefficients(c) for c in self.coefficients]  # G_C, m_C / m_s: (n, R, C, 2, d)
        self.stacks = [x.q.new_empty(self.chunks + 1, rows, 2 * a + cells, b) for a, b in pairwise(outer)]
        self.updates = [x.q.new_empty(self.chunks, rows, cells, 2, d_in) for d_in in self.widths]  # u times writes
        torch.mul(x.k.unsqueeze(-2), self.writes[0], out=self.updates[0])
        self.surprise: ChunkSurprise | TokenSurprise
        if self.by_token:
            self.surprise = TokenSurprise(x.k, x.offset, x.theta[0], self.coefficients[0].mixing)
        else:
            self.surprise = ChunkSurprise(rule, x.k, x.offset, x.slope, x.theta, outer)
        for l, before in enumerate(state):
            self.state(l, 0).copy_(before)

    def state(self, l: int, n: int) -> Tensor:
        """[W; S] of layer l before chunk n (R, 2 d_in, d_out); after the segment with n = chunks."""
        return self.stacks[l][n, :, : 2 * self.widths[l]]

    def steps(self, l: int, n: int) -> Tensor:
        """Steps of chunk n in layer l, (R, C, d_out)."""
        return self.stacks[l][n, :, 2 * self.widths[l] :]

    def state_after(self) -> list[Tensor]:
        """[W; S] of every layer after the segment, (R, 2 d_in, d_out)."""
        return [self.state(l, self.chunks).clone() for l in range(len(self.widths))]

    def weights(self, n: int) -> list[Tensor]:
        """W of every layer before chunk n, (R, d_in, d_out)."""
        return [self.stacks[l][n, :, :d_in] for l, d_in in enumerate(self.widths)]

    # Forward

    def write(self) -> None:
        """All states and steps of the segment; `anchor_after` is the anchor behind it."""
        layers = range(len(self.widths))
        self.anchors: list[Sequence[Tensor] | None] = []  # of each chunk; None: the weights
        anchor = self.anchor
        for n in range(self.chunks):
            if self.x.restart is not None:
                anchor = self._restart(n, anchor)
            self.anchors.append(anchor)
            self.surprise.write(n, self._point(n), [self.steps(l, n) for l in layers])
            for l in layers:
                self._advance(l, n)
            anchor = self._anchor_after(n, anchor)
        self.anchor_after = anchor

    def _point(self, n: int) -> Sequence[Tensor]:
        """Where the gradients of chunk n are taken: at the anchor, or from [W; S] on for gradients at the freshest state."""
        if self.by_token:
            return [self.state(0, n)]
        return self.anchors[n] or self.weights(n)

    def _advance(self, l: int, n: int) -> None:
        """The state of layer l after chunk n."""
        d_in = self.widths[l]
        b, f, m = self._carry(l, n)
        state, after = self.state(l, n), self.state(l, n + 1)
        W, S = state[:, :d_in], state[:, d_in:]
        torch.mul(W, b, out=after[:, :d_in]).addcmul_(S, f)
        torch.mul(S, m, out=after[:, d_in:])
        update = self.updates[l][n]
        if l > 0:
            torch.mul(self.surprise.inputs[l][n].unsqueeze(-2), self.writes[l][n], out=update)
        after.baddbmm_(update.flatten(2).transpose(1, 2), self.steps(l, n))

    def _carry(self, l: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """b_C, f_C (R, d, 1) and m_C (R, 1, 1) of chunk n."""
        c = self.coefficients[l]
        return c.mixing[n, :, :, -1, :1], c.mixing[n, :, :, -1, 1:2], c.momentum[n, :, -1:, :1]

    def _anchor_after(self, n: int, anchor: Sequence[Tensor] | None) -> Sequence[Tensor] | None:
        complete = self.x.complete[n]
        if complete is True:
            return None
        before = anchor or self.weights(n)
        if complete is False:
            return before
        rows = complete[:, None, None]
        return [torch.where(rows, W, A) for W, A in zip(self.weights(n + 1), before, strict=True)]

    def _restart(self, n: int, anchor: Sequence[Tensor] | None) -> Sequence[Tensor]:
        """Rows that begin a document before chunk n go back to the first state."""
        assert self.x.restart is not None
        rows = self.x.restart[n, :, None, None]
        anchor = anchor or self.weights(n)
        for l, first in enumerate(self.x.first):
            state, d_in = self.state(l, n), self.widths[l]
            state[:, :d_in] = torch.where(rows, first, state[:, :d_in])
            state[:, d_in:].masked_fill_(rows, 0)
        return [torch.where(rows, first, A) for first, A in zip(self.x.first, anchor, strict=True)]

    def read(self) -> Tensor:
        """What the memory says to every token, before norm and residual: (n, R, C, D)."""
        x = self.x.q
        self.queries, self.scores, self.rows, self.pre_activations = [], [], [], []
        for l, d_in in enumerate(self.widths):
            stack, u = self.stacks[l][: self.chunks], self.surprise.inputs[l]
            rows = stack.new_empty(*x.shape[:-1], stack.shape[2])  # (n, R, C, 2 d_in + C)
            torch.mul(x.unsqueeze(-2), self.reads[l], out=rows[..., : 2 * d_in].unflatten(-1, (2, d_in)))
            scores = x @ u.transpose(-1, -2)
            rows[..., 2 * d_in :] = mixed_scores(scores, x, u, self.coefficients[l].mixing[..., 2:])
            z = rows @ stack
            self.queries.append(x)
            self.scores.append(scores)
            self.rows.append(rows)
            self.pre_activations.append(z)
            if l + 1 < len(self.widths):
                x = activate(z, self.activation)
        return z

    # Backward

    def backward(self, d_z: Tensor, d_state: Sequence[Tensor], d_anchor: Sequence[Tensor] | None, d_first: Sequence[Tensor]) -> SegmentGradients:
        """From gradients by the read (n, R, C, D) and by the state and anchor after the segment.

        d_state becomes, in place, the gradient by the state before the segment; d_first is added to, in place.
        """
        self.surprise.prepare_adjoint()
        d_q = self._read_adjoint(d_z)
        self.d_updates = [torch.empty_like(update) for update in self.updates]
        self.d_carries = [d_z.new_empty(3, *c.mixing.shape[:3]) for c in self.coefficients]  # by b_C, f_C, m_C: (3, n, R, d)
        for n in range(self.chunks - 1, -1, -1):
            d_anchor = self._chunk_adjoint(n, d_state, d_anchor)
            if self.x.restart is not None:
                d_anchor = self._restart_adjoint(n, d_state, d_anchor, d_first)
        self._input_adjoint(0, slice(None))
        surprise = self.surprise.finish_adjoint(self.d_steps, self.d_inputs[0])
        d_alpha, d_eta = zip(*(self._coefficient_adjoint(l) for l in range(len(self.widths))), strict=True)
        return SegmentGradients(d_q, surprise.k, surprise.offset, surprise.slope, list(d_alpha), list(d_eta), surprise.theta, d_anchor)

    def _read_adjoint(self, d_z: Tensor) -> Tensor:
        """Gradient by q; those by steps, inputs u and mixing coefficients are begun with the reads' share."""
        layers = len(self.widths)
        self.d_reads: list[Tensor] = [d_z] * layers  # by z_l of the reads
        self.d_steps, self.d_inputs, self.d_mixing = [d_z] * layers, [d_z] * layers, [d_z] * layers
        for l in range(layers - 1, -1, -1):
            self.d_reads[l] = d_z
            x, u, rows, mixing, state = self.queries[l], self.surprise.inputs[l], self.rows[l], self.coefficients[l].mixing, 2 * self.widths[l]
            d_rows = d_z @ self.stacks[l][: self.chunks].transpose(-1, -2)  # (n, R, C, 2 d_in + C)
            self.d_steps[l] = rows[..., state:].transpose(-1, -2) @ d_z
            d_x, self.d_inputs[l], d_G = mixed_scores_vjp(d_rows[..., state:], self.scores[l], x, u, mixing[..., 2:])
            d_state_rows = d_rows[..., :state].unflatten(-1, (2, self.widths[l]))  # (n, R, C, 2, d_in)
            d_read = _over_channels(d_state_rows * x.unsqueeze(-2), mixing)
            self.d_mixing[l] = torch.cat([d_read.permute(0, 1, 4, 2, 3), d_G], dim=-1)
            d_x = d_x + (d_state_rows * self.reads[l]).sum(-2)
            if l > 0:
                d_z = activation_vjp(d_x, self.pre_activations[l - 1], self.activation)
        return d_x

    def _chunk_adjoint(self, n: int, d_state: Sequence[Tensor], d_anchor: Sequence[Tensor] | None) -> Sequence[Tensor] | None:
        """Back over chunk n: d_state in place; returns the gradient by the anchor before it, None where that is part of d_state."""
        d_anchor = self._anchor_adjoint(n, d_state, d_anchor)
        layers = range(len(self.widths))
        for l in layers:
            self.d_steps[l][n].baddbmm_(self.updates[l][n].flatten(2), d_state[l])
            torch.bmm(self.steps(l, n), d_state[l].transpose(1, 2), out=self.d_updates[l][n].flatten(2))
            if l > 0:
                self._input_adjoint(l, n)
            self._state_adjoint(l, n, d_state[l])
        d_weights = [d[:, :d_in] for d, d_in in zip(d_state, self.widths, strict=True)]
        if self.anchors[n] is None and d_anchor is not None:
            for d, more in zip(d_weights, d_anchor, strict=True):
                d += more
            d_anchor = None
        elif self.anchors[n] is not None and d_anchor is None:
            d_anchor = [torch.zeros_like(d) for d in d_weights]
        d_point = d_state if self.by_token else d_anchor or d_weights
        self.surprise.adjoint(n, self._point(n), [d[n] for d in self.d_steps], [d[n] for d in self.d_inputs], d_point)
        return d_anchor

    def _anchor_adjoint(self, n: int, d_state: Sequence[Tensor], d_anchor: Sequence[Tensor] | None) -> Sequence[Tensor] | None:
        """The anchor after chunk n is the weights after it in rows where the chunk is complete, and the anchor before it in others."""
        complete = self.x.complete[n]
        if d_anchor is None or complete is False:
            return d_anchor
        rows = torch.ones_like(d_anchor[0][:, :1, :1], dtype=torch.bool) if complete is True else complete[:, None, None]
        for d, d_in, more in zip(d_state, self.widths, d_anchor, strict=True):
            d[:, :d_in] += torch.where(rows, more, 0)
        return None if complete is True else [torch.where(rows, 0, d) for d in d_anchor]

    def _state_adjoint(self, l: int, n: int, d_state: Tensor) -> None:
        """d_state (R, 2 d_in, d_out) from after chunk n to before it, but for the share of its anchor; gradients of b_C, f_C, m_C."""
        d_in = self.widths[l]
        self.d_carries[l][:, n] = _carry_adjoint(d_state, self.state(l, n), self.d_carries[l].shape[-1])
        b, f, m = self._carry(l, n)
        d_W, d_S = d_state[:, :d_in], d_state[:, d_in:]
        d_S.mul_(m).addcmul_(d_W, f)
        d_W.mul_(b)
        d_state.baddbmm_(self.rows[l][n, ..., : 2 * d_in].transpose(1, 2), self.d_reads[l][n])

    def _input_adjoint(self, l: int, n: int | slice) -> None:
        """Add what the updates of chunk n say to the gradient by layer l's inputs u."""
        by_weights, by_momentum = self.d_updates[l][n].unbind(-2)
        to_weights, to_momentum = self.writes[l][n].unbind(-2)
        self.d_inputs[l][n].addcmul_(by_weights, to_weights).addcmul_(by_momentum, to_momentum)

    def _restart_adjoint(
        self, n: int, d_state: Sequence[Tensor], d_anchor: Sequence[Tensor] | None, d_first: Sequence[Tensor]
    ) -> Sequence[Tensor] | None:
        assert self.x.restart is not None
        rows = self.x.restart[n, :, None, None]
        for l, (d, d_in) in enumerate(zip(d_state, self.widths, strict=True)):
            d_first[l].add_(torch.where(rows, d[:, :d_in], 0))
            d.masked_fill_(rows, 0)
            if d_anchor is not None:
                d_first[l].add_(torch.where(rows, d_anchor[l], 0))
                d_anchor[l].masked_fill_(rows, 0)
        return d_anchor

    def _coefficient_adjoint(self, l: int) -> tuple[Tensor, Tensor]:
        """Gradients by alpha (n, R, C, d) and eta (n, R, C, 1) of layer l."""
        d_mixing = self.d_mixing[l] + self.surprise.d_mixing if self.by_token else self.d_mixing[l]
        d_write = _over_channels(self.d_updates[l] * self.surprise.inputs[l].unsqueeze(-2), d_mixing)  # (n, R, C, 2, d)
        d_b, d_f, d_m = self.d_carries[l]
        d_mixing[..., -1, 0] += d_b
        d_mixing[..., -1, 1] += d_f
        d_mixing[..., -1, 2:] += d_write[..., 0, :].transpose(-1, -2)
        d_momentum = torch.cat([d_m.sum(-1, keepdim=True), d_write[..., 1, :].sum(-1)], dim=-1)  # (n, R, 1 + C)
        d_alpha, d_eta = chunk_coefficients_vjp(self.coefficients[l], self.x.active, d_mixing, d_momentum)
        return d_alpha, d_eta.unsqueeze(-1)


def _write_coefficients(c: ChunkCoefficients) -> Tensor:
    """G[C, s] and m_C / m_s of every token: (n, R, C, 2, d)."""
    last = c.mixing[..., -1, 2:].transpose(-1, -2)  # (n, R, C, d)
    return torch.stack([last, c.momentum[..., -1, 1:].unsqueeze(-1).expand_as(last)], dim=-2)


def _over_channels(x: Tensor, mixing: Tensor) -> Tensor:
    """Sum over the last dimension, d_in, where coefficients are shared by all channels."""
    return x.sum(-1, keepdim=True) if mixing.shape[2] == 1 else x


def _carry_adjoint(d_state: Tensor, state: Tensor, channels: int) -> Tensor:
    """Products of the gradient by [W'; S'] with [W; S], for b_C, f_C and m_C (its channels still to be summed): (3, R, d)."""
    d, x = d_state.unflatten(1, (2, -1)), state.unflatten(1, (2, -1))  # (R, 2, d_in, d_out)
    if channels == 1:
        products = torch.bmm(d.flatten(2), x.flatten(2).transpose(1, 2))  # (R, 2, 2)
        return torch.stack([products[:, 0, 0], products[:, 0, 1], products[:, 1, 1]]).unsqueeze(-1)
    return torch.stack([torch.linalg.vecdot(d[:, i], x[:, j]) for i, j in ((0, 0), (0, 1), (1, 1))])
