"""The dual form in plain torch: exact, and never a weight matrix per token (docs/rule.md derives it).

Inside a chunk every gradient is taken at one point, so it is an outer product in closed form, and the memory at every token is the
chunk's first state plus a masked product of such outer products. Only chunks are sequential. The backward is derived by hand: the state
at the begin of every segment of a few chunks is kept, and each segment is done again, the last one first. Forward and backward are custom
operators, one node each for `torch.compile`; nothing here calls autograd, so the memory learns under `torch.inference_mode()`.

Shape suffixes: B batch, H heads, N chunks, R rows (batch x heads), C cells of a chunk, D head width; d_in, d_out of a memory layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_seq.memory.layout import Layout, ragged_layout, uniform_layout
from titans_seq.memory.rule import NORM_EPS, Rule
from titans_seq.memory.segment import Segment, SegmentInputs
from titans_seq.memory.state import Gates, MemoryState, MemoryWeights

SEGMENT_TOKENS = 128  # between two states that are kept for the backward


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
    first = MemoryState.initial(weights, q.shape[0], chunk_size)
    begin = state or first
    arguments = _arguments(q, k, v, gates, weights, begin, first, layout, Rule(weights.activation, weights.norm_scale is not None, gradient, surprise_clip))
    z, *after = memory_chunks(*arguments, torch.is_grad_enabled())
    y = layout.collect(_output(z, q, weights, layout))
    return y, _state_after(after, first, layout, chunk_size)


class Arguments(NamedTuple):
    """Arguments of the operators, in their order.

    q, k, offset, alpha, eta, theta, slope: as `SegmentInputs`, of all N chunks. state, anchor, first: as `Segment`; anchor may be empty
    (the weights are the anchor), first is empty without restarts. active (N, R or 1, C), complete and restart (N, R), or None.
    last_complete: whether the last chunk is complete, where `complete` is None and all others are.
    """

    q: Tensor
    k: Tensor
    offset: Tensor
    slope: Tensor
    alpha: list[Tensor]
    eta: list[Tensor]
    theta: list[Tensor]
    state: list[Tensor]
    anchor: list[Tensor]
    first: list[Tensor]
    active: Tensor | None
    complete: Tensor | None
    restart: Tensor | None
    last_complete: bool
    activation: str
    norm: bool
    gradient: str
    surprise_clip: float | None

    @property
    def keeps_anchor(self) -> bool:
        """Whether the anchor after all chunks is more than the weights."""
        return self.complete is not None or not self.last_complete

    def segments(self) -> list[slice]:
        """The chunks of every segment."""
        chunks, _, cells, _ = self.q.shape
        size = max(1, SEGMENT_TOKENS // cells)
        return [slice(n, min(n + size, chunks)) for n in range(0, chunks, size)]

    def segment(self, chunks: slice, state: Sequence[Tensor], anchor: Sequence[Tensor] | None) -> Segment:
        """The segment of these chunks, from the state before it."""
        complete: list[bool | Tensor] = [True] * (chunks.stop - chunks.start)
        if self.complete is not None:
            complete = list(self.complete[chunks].unbind(0))
        elif chunks.stop == self.q.shape[0]:
            complete[-1] = self.last_complete
        inputs = SegmentInputs(
            self.q[chunks],
            self.k[chunks],
            self.offset[chunks],
            self.slope,
            [x[chunks] for x in self.alpha],
            [x[chunks] for x in self.eta],
            [x[chunks] for x in self.theta],
            None if self.active is None else self.active[chunks],
            complete,
            None if self.restart is None else self.restart[chunks],
            self.first,
        )
        return Segment(Rule(self.activation, self.norm, self.gradient, self.surprise_clip), inputs, state, anchor)


SCHEMA = (
    "Tensor q, Tensor k, Tensor offset, Tensor slope, Tensor[] alpha, Tensor[] eta, Tensor[] theta, Tensor[] state, Tensor[] anchor, "
    "Tensor[] first, Tensor? active, Tensor? complete, Tensor? restart, bool last_complete, str activation, bool norm, str gradient, "
    "float? surprise_clip"
)


def _forward(*arguments: Any) -> list[Tensor]:
    """[z (N, R, C, D), state after all chunks, anchor if it is not the weights, what is kept for the backward], a tensor a layer each."""
    a, keep = Arguments(*arguments[:-1]), arguments[-1]
    state, anchor = a.state, a.anchor or None
    z = torch.empty_like(a.q)
    kept: list[list[Tensor]] = []
    for chunks in a.segments():
        if keep:
            kept.append([*state, *(anchor or [])] if a.complete is not None else state)
        segment = a.segment(chunks, state, anchor)
        segment.write()
        z[chunks] = segment.read()
        state, anchor = segment.state_after(), segment.anchor_after
    last_anchor = [A.clone() for A in anchor] if anchor is not None else []
    return [z, *state, *last_anchor, *(torch.stack(layer) for layer in zip(*kept, strict=True))]


def _forward_shapes(*arguments: Any) -> list[Tensor]:
    a, keep = Arguments(*arguments[:-1]), arguments[-1]
    anchor = [S.new_empty(S.shape[0], S.shape[1] // 2, S.shape[2]) for S in a.state]
    kept = [*a.state, *anchor] if a.complete is not None else a.state
    count = len(a.segments())
    return [
        torch.empty_like(a.q),
        *(torch.empty_like(S) for S in a.state),
        *(anchor if a.keeps_anchor else []),
        *(x.new_empty(count, *x.shape) for x in kept if keep),
    ]


def _backward(*arguments: Any) -> list[Tensor]:
    """Gradients by q, k, offset, slope, alpha, eta, theta, state, anchor, first, from those by `_forward`'s z, state and anchor.

    The last arguments are what was kept, and these gradients.
    """
    a, (kept, d_after) = Arguments(*arguments[:-2]), arguments[-2:]
    layers = len(a.state)
    d_z, d_state, d_anchor = d_after[0], [d.clone() for d in d_after[1 : 1 + layers]], [d.clone() for d in d_after[1 + layers :]] or None
    d_q, d_k, d_offset, d_slope = (torch.zeros_like(x) for x in a[:4])
    d_alpha, d_eta, d_theta = ([torch.empty_like(x) for x in gate] for gate in (a.alpha, a.eta, a.theta))
    d_first = [torch.zeros_like(W) for W in a.first]
    for i, chunks in reversed(list(enumerate(a.segments()))):
        state, anchor = [x[i] for x in kept[:layers]], [x[i] for x in kept[layers:]]
        segment = a.segment(chunks, state, anchor or (a.anchor if i == 0 else None) or None)
        segment.write()
        segment.read()
        d = segment.backward(d_z[chunks], d_state, d_anchor, d_first)
        d_q[chunks], d_k[chunks], d_offset[chunks] = d.q, d.k, d.offset
        d_slope += d.slope
        for whole, part in zip((*d_alpha, *d_eta, *d_theta), (*d.alpha, *d.eta, *d.theta), strict=True):
            whole[chunks] = part
        d_anchor = d.anchor
    d_anchor = [] if not a.anchor else d_anchor or [torch.zeros_like(A) for A in a.anchor]
    return [d_q, d_k, d_offset, d_slope, *d_alpha, *d_eta, *d_theta, *d_state, *d_anchor, *d_first]


def _backward_shapes(*arguments: Any) -> list[Tensor]:
    a = Arguments(*arguments[:-2])
    return [torch.empty_like(x) for x in _differentiable(a)]


def _differentiable(a: Arguments) -> list[Tensor]:
    return [*a[:4], *(x for part in a[4:10] for x in part)]


memory_chunks = torch.library.custom_op("titans_seq::memory_chunks", _forward, mutates_args=(), schema=f"({SCHEMA}, bool keep) -> Tensor[]")
memory_chunks_backward = torch.library.custom_op(
    "titans_seq::memory_chunks_backward",
    _backward,
    mutates_args=(),
    schema=f"({SCHEMA}, Tensor[] kept, Tensor[] gradients) -> Tensor[]",
)
memory_chunks.register_fake(_forward_shapes)
memory_chunks_backward.register_fake(_backward_shapes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    a = Arguments(*inputs[:-1])
    outputs = 1 + len(a.state) * (2 if a.keeps_anchor else 1)
    kept = output[outputs:]
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.outputs = [(x.shape, x.dtype) for x in output[:outputs]]
    ctx.lengths = [len(part) for part in a[4:10]]
    ctx.options = a[13:]
    ctx.save_for_backward(*_differentiable(a), a.active, a.complete, a.restart, *kept)


def _differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    tensors, parts = saved[:4], []
    rest = saved[4:]
    for length in ctx.lengths:
        parts.append(rest[:length])
        rest = rest[length:]
    marks, kept = rest[:3], rest[3:]
    d_outputs = [
        tensors[0].new_zeros(shape) if d is None else d for d, (shape, _) in zip(gradients[: len(ctx.outputs)], ctx.outputs, strict=True)
    ]
    found = memory_chunks_backward(*tensors, *parts, *marks, *ctx.options, kept, d_outputs)
    by_tensor, rest, by_part = found[:4], found[4:], []
    for length in ctx.lengths:
        by_part.append(rest[:length])
        rest = rest[length:]
    return (*by_tensor, *by_part, *[None] * (len(marks) + len(ctx.options) + 1))


memory_chunks.register_autograd(_differentiate, setup_context=_save)


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Gates],
    weights: MemoryWeights,
    begin: MemoryState,
    first: MemoryState,
    layout: Layout,
    rule: Rule,
) -> Arguments:
    def grid(x: Tensor, fill: float) -> Tensor:
        """(B, H, T, ...) -> (N, R, C, ...)."""
        return layout.place(x, fill).movedim(2, 0).flatten(1, 2).contiguous()

    heads = q.shape[1]
    k_grid = grid(k, 0.0)
    offset, slope = _loss_gradient(grid(v, 0.0) - k_grid if weights.residual else grid(v, 0.0), weights, q.shape[0])
    last_complete = layout.complete[-1]
    complete = None if isinstance(last_complete, bool) else torch.stack(layout.complete).repeat_interleave(heads, 1)  # type: ignore[arg-type]
    own_anchor = complete is not None or any(A is not W for A, W in zip(begin.anchor, begin.weights, strict=True))
    active = None if layout.active is None else layout.active.transpose(0, 2).squeeze(1)  # (N, B or 1, C)
    if active is not None and active.shape[1] > 1:
        active = active.repeat_interleave(heads, 1)
    return Arguments(
        grid(q, 0.0),
        k_grid,
        offset,
        slope,
        [grid(gate.alpha if gate.alpha.dim() == 4 else gate.alpha.unsqueeze(-1), 0.0) for gate in gates],
        [grid(gate.eta.unsqueeze(-1), 1.0) for gate in gates],
        [grid(gate.theta.unsqueeze(-1), 0.0) for gate in gates],
        [torch.cat([W, S], dim=2).flatten(0, 1) for W, S in zip(begin.weights, begin.momentum, strict=True)],
        [A.flatten(0, 1) for A in begin.anchor] if own_anchor else [],
        [] if layout.restart is None else [W.flatten(0, 1) for W in first.weights],
        None if active is None else active.to(q.dtype),
        complete,
        None if layout.restart is None else layout.restart[:, :-1].T.repeat_interleave(heads, 1),
        last_complete if isinstance(last_complete, bool) else True,
        *rule,
    )


def _loss_gradient(target: Tensor, weights: MemoryWeights, batch: int) -> tuple[Tensor, Tensor]:
    """offset (N, R, C, D) and slope (R, 1, D): the loss's gradient by the normed output z is offset + slope z."""
    if weights.norm_scale is None or weights.norm_shift is None:
        return -2 * target, target.new_full((target.shape[1], 1, target.shape[3]), 2.0)
    scale, shift = (x.repeat(batch, 1).unsqueeze(1) for x in (weights.norm_scale, weights.norm_shift))  # (R, 1, D)
    return 2 * scale * (shift - target), 2 * scale.square()


def _output(z: Tensor, q: Tensor, weights: MemoryWeights, layout: Layout) -> Tensor:
    """Norm and residual: z (N, R, C, D) -> y (B, H, N, C, D)."""
    z = z.unflatten(1, q.shape[:2]).movedim(0, 2)
    if weights.norm_scale is not None and weights.norm_shift is not None:
        z = F.layer_norm(z, z.shape[-1:], eps=NORM_EPS)
        z = z * weights.norm_scale[:, None, None] + weights.norm_shift[:, None, None]
    return z + layout.place(q, 0.0) if weights.residual else z


def _state_after(after: Sequence[Tensor], first: MemoryState, layout: Layout, chunk_size: int) -> MemoryState:
    """The state from the operator's outputs: [W; S] a layer, then the anchor a layer where it is not the weights."""
    batch, layers = first.batch_size, len(first.weights)
    stacks = [S.unflatten(0, (batch, -1)) for S in after[:layers]]
    weights, momentum = zip(*(stack.chunk(2, dim=2) for stack in stacks), strict=True)
    keeps_anchor = layout.complete[-1] is not True
    anchor = tuple(A.unflatten(0, (batch, -1)) for A in after[layers : 2 * layers]) if keeps_anchor else weights
    state = MemoryState(weights, momentum, anchor, layout.position, chunk_size)
    if layout.restart is None:
        return state
    ended = first.where(layout.restart[:, -1], state)
    return MemoryState(ended.weights, ended.momentum, ended.anchor, layout.position, chunk_size)


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
