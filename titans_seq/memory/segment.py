"""A segment of the stream, some chunks long: forward and, from the state before it, backward by hand (docs/rule.md derives it).

Only writing goes chunk by chunk; reads, coefficients and whatever else no later chunk waits for are batched over the segment.

Shape suffixes: n chunks, R rows (batch x heads), C cells of a chunk, D head width; d_in, d_out of a memory layer; d 1 or d_in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from titans_seq.memory.layout import Workspace
from titans_seq.memory.rule import ChunkCoefficients, Rule, activate, activation_vjp, chunk_coefficients, chunk_coefficients_vjp
from titans_seq.memory.segment_layer import SegmentLayer
from titans_seq.memory.surprise import ChunkSurprise
from titans_seq.memory.token_surprise import TokenSurprise


class SegmentInputs(NamedTuple):
    """What a segment reads: q, k, offset (n, R, C, D); slope (R, 1, D); gates one a layer: alpha (n, R, C, d), eta and theta (n, R, C, 1).

    active: (n, R or 1, C) 0 or 1, cells with a token; None if all have one.
    complete: one entry a chunk, whether it ends with this segment's tokens: for all rows, or (R,) bool.
    restart: (n, R) bool, rows that go back to the `first` weights (R, d_in, d_out) before the chunk; None if none.
    rest: (R, d_in, d_out) a layer, what the memory's layers are beside W, anchor and first; empty for nothing.
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
    rest: Sequence[Tensor]


class StateGradients:
    """Gradients by W, S, first and rest (R, d_in, d_out) a layer, changed in place on the way back; by the anchor, None where that is the
    weights.
    """

    def __init__(
        self, W: Sequence[Tensor], S: Sequence[Tensor], anchor: Sequence[Tensor] | None, first: Sequence[Tensor], rest: Sequence[Tensor]
    ) -> None:
        self.W, self.S, self.anchor, self.first, self.rest = W, S, anchor, first, rest


class SegmentGradients(NamedTuple):
    """Gradients by what `SegmentInputs` holds."""

    q: Tensor
    k: Tensor
    offset: Tensor
    slope: Tensor
    alpha: list[Tensor]
    eta: list[Tensor]
    theta: list[Tensor]


class Segment:
    """One segment: `write`, then `read`; or, for gradients, `write`, then `backward`."""

    def __init__(
        self,
        rule: Rule,
        x: SegmentInputs,
        W: Sequence[Tensor],
        S: Sequence[Tensor],
        anchor: Sequence[Tensor] | None,
        spaces: Sequence[Workspace],
        keep: bool,
    ) -> None:
        """W, S, anchor: (R, d_in, d_out) a layer, before the segment; anchor None: the weights.

        spaces: one a layer, where the segment before had its buffers; what that segment returned must not be used any more.
        keep: whether `backward` will be called.
        """
        self.x, self.anchor, self.activation = x, anchor, rule.activation
        self.by_token = rule.gradient == "token"
        self.chunks = range(x.q.shape[0])
        self.coefficients = _coefficients(x)
        rest: Sequence[Tensor | None] = x.rest or [None] * len(W)
        self.layers = [SegmentLayer(*layer, keep) for layer in zip(W, S, rest, self.coefficients, spaces, strict=True)]
        self.surprise: ChunkSurprise | TokenSurprise
        if self.by_token:
            self.surprise = TokenSurprise(x.k, x.offset, x.theta[0], self.coefficients[0].mixing)
        else:
            self.surprise = ChunkSurprise(rule, x.k, x.offset, x.slope, x.theta, spaces, [A.shape[2] for A in W], keep)

    def write(self) -> None:
        """All states and steps of the segment; `anchor_after` is the anchor behind it."""
        self.anchors: list[Sequence[Tensor] | None] = []  # of each chunk; None: the weights
        anchor = self.anchor
        for n in self.chunks:
            if self.x.restart is not None:
                anchor = self._restart(n, anchor or self._weights(n), self.x.restart[n, :, None, None])
            self.anchors.append(anchor)
            self.surprise.write(n, self._point(n), [layer.steps.parts[n] for layer in self.layers])
            for layer, u in zip(self.layers, self.surprise.inputs, strict=True):
                layer.advance(n, u.parts[n])
            anchor = self._anchor_after(n, anchor)
        self.anchor_after = anchor

    def _weights(self, n: int) -> list[Tensor]:
        """W of every layer before chunk n."""
        return [layer.W.parts[n] for layer in self.layers]

    def _point(self, n: int) -> Sequence[Tensor]:
        """Where the gradients of chunk n are taken: the anchor, or W and S for gradients at the freshest state."""
        if self.by_token:
            return [self.layers[0].W.parts[n], self.layers[0].S.parts[n]]
        anchor = self.anchors[n] or self._weights(n)
        return [A + W for A, W in zip(anchor, self.x.rest, strict=True)] if self.x.rest else anchor

    def _anchor_after(self, n: int, anchor: Sequence[Tensor] | None) -> Sequence[Tensor] | None:
        complete = self.x.complete[n]
        if complete is True:
            return None
        before = anchor or self._weights(n)
        if complete is False:
            return before
        rows = complete[:, None, None]
        return [torch.where(rows, W, A) for W, A in zip(self._weights(n + 1), before, strict=True)]

    def _restart(self, n: int, anchor: Sequence[Tensor], rows: Tensor) -> Sequence[Tensor]:
        """Rows (R, 1, 1) that begin a document before chunk n go back to the first state."""
        for layer, first in zip(self.layers, self.x.first, strict=True):
            layer.W.parts[n].copy_(torch.where(rows, first, layer.W.parts[n]))
            layer.S.parts[n].masked_fill_(rows, 0)
        return [torch.where(rows, first, A) for first, A in zip(self.x.first, anchor, strict=True)]

    def read(self) -> Tensor:
        """What the memory says to every token, before norm and residual: (n, R, C, D)."""
        self._set_queries()
        return self.layers[-1].read()

    def _set_queries(self) -> None:
        """Of every layer, which is all of the read but for its last product."""
        self.pre_activations: list[Tensor] = []
        x = self.x.q
        for i, layer in enumerate(self.layers):
            if i > 0:
                self.pre_activations.append(self.layers[i - 1].read())
                x = activate(self.pre_activations[-1], self.activation, out=layer.space("x", *self.pre_activations[-1].shape))
            layer.set_queries(x, self.surprise.inputs[i].whole)

    def backward(self, d_z: Tensor, d: StateGradients) -> SegmentGradients:
        """From gradients by what `read` gives, and by the state after the segment; d becomes that by the state before it."""
        self._set_queries()
        for i in range(len(self.layers) - 1, -1, -1):
            d_x = self.layers[i].read_adjoint(d_z, d.rest[i] if d.rest else None)
            if i > 0:
                d_z = activation_vjp(d_x, self.pre_activations[i - 1], self.activation)
        self.surprise.prepare_adjoint()
        for n in reversed(self.chunks):
            self._chunk_adjoint(n, d)
        surprise = self.surprise.finish_adjoint([layer.d_steps.whole for layer in self.layers], self.layers[0].d_u.whole)
        d_coefficients = [layer.coefficient_adjoint() for layer in self.layers]
        if surprise.mixing is not None:
            d_coefficients[0][0].add_(surprise.mixing)
        d_alpha, d_eta = _coefficients_vjp(self.coefficients, self.x, d_coefficients)
        return SegmentGradients(d_x, surprise.k, surprise.offset, surprise.slope, d_alpha, d_eta, surprise.theta)

    def _chunk_adjoint(self, n: int, d: StateGradients) -> None:
        """Back over chunk n."""
        self._anchor_adjoint(n, d)
        for layer, d_W, d_S in zip(self.layers, d.W, d.S, strict=True):
            layer.chunk_adjoint(n, d_W, d_S)
        if self.anchors[n] is None:
            for d_W, d_A in zip(d.W, d.anchor or [], strict=False):
                d_W += d_A
            d.anchor = None
        elif d.anchor is None:
            d.anchor = [torch.zeros_like(d_W) for d_W in d.W]
        d_point = [d.W[0], d.S[0]] if self.by_token else d.anchor or d.W
        d_here = [torch.zeros_like(d_A) for d_A in d_point] if d.rest else d_point
        self.surprise.adjoint(
            n, self._point(n), [layer.d_steps.parts[n] for layer in self.layers], [layer.d_u.parts[n] for layer in self.layers], d_here
        )
        if d.rest:
            for d_rest, d_A, d_sum in zip(d.rest, d_point, d_here, strict=True):
                d_rest += d_sum
                d_A += d_sum
        if self.x.restart is not None:
            self._restart_adjoint(self.x.restart[n, :, None, None], d)

    def _anchor_adjoint(self, n: int, d: StateGradients) -> None:
        """The anchor after chunk n is the weights after it in rows where the chunk is complete, and the anchor before it in others."""
        complete = self.x.complete[n]
        if d.anchor is None or complete is False:
            return
        for d_W, d_A in zip(d.W, d.anchor, strict=True):
            d_W += d_A if complete is True else torch.where(complete[:, None, None], d_A, 0)
        d.anchor = None if complete is True else [torch.where(complete[:, None, None], 0, d_A) for d_A in d.anchor]

    def _restart_adjoint(self, rows: Tensor, d: StateGradients) -> None:
        """In these rows (R, 1, 1) the state before the chunk was the first state."""
        for d_first, d_x in (*zip(d.first, d.W, strict=True), *zip(d.first, d.anchor or [], strict=False)):
            d_first += torch.where(rows, d_x, 0)
        for d_x in (*d.W, *d.S, *(d.anchor or [])):
            d_x.masked_fill_(rows, 0)


def _coefficients(x: SegmentInputs) -> list[ChunkCoefficients]:
    """Of every layer; all at once where they have one shape, since their cost is in the number of operations."""
    if x.alpha[0].shape[-1] > 1:
        return [chunk_coefficients(alpha, eta.squeeze(-1), x.active) for alpha, eta in zip(x.alpha, x.eta, strict=True)]
    together = chunk_coefficients(torch.stack(list(x.alpha)), torch.stack(list(x.eta)).squeeze(-1), _of_layers(x.active))
    return [ChunkCoefficients(*layer) for layer in zip(*together, strict=True)]


def _coefficients_vjp(
    coefficients: Sequence[ChunkCoefficients], x: SegmentInputs, d: Sequence[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients by alpha (n, R, C, d) and eta (n, R, C, 1) of every layer, from those by mixing and the last row of momentum."""
    if x.alpha[0].shape[-1] > 1:
        layers = zip(coefficients, x.alpha, x.eta, d, strict=True)
        found = [chunk_coefficients_vjp(c, alpha, eta.squeeze(-1), x.active, *d_c) for c, alpha, eta, d_c in layers]
        return [d_alpha for d_alpha, _ in found], [d_eta.unsqueeze(-1) for _, d_eta in found]
    mixing, momentum, d_mixing, d_momentum = (torch.stack(parts) for pairs in (coefficients, d) for parts in zip(*pairs, strict=True))
    alpha, eta = torch.stack(list(x.alpha)), torch.stack(list(x.eta)).squeeze(-1)
    d_alpha, d_eta = chunk_coefficients_vjp(ChunkCoefficients(mixing, momentum), alpha, eta, _of_layers(x.active), d_mixing, d_momentum)
    return list(d_alpha), list(d_eta.unsqueeze(-1))


def _of_layers(active: Tensor | None) -> Tensor | None:
    """With a dimension for the layers in front."""
    return None if active is None else active.unsqueeze(0)
