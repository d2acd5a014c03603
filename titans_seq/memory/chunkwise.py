"""The dual form in plain torch: exact, and never a weight matrix per token (docs/rule.md derives it).

Inside a chunk every gradient is taken at one point, so it is an outer product in closed form, and the memory at every token is the
chunk's first state plus a masked product of such outer products. Only chunks are sequential. The backward is derived by hand: the state
at the begin of every segment of a few chunks is kept, and each segment is done again, the last one first. Forward and backward are custom
operators, one node each for `torch.compile`; nothing here calls autograd, so the memory learns under `torch.inference_mode()`.

Shape suffixes: B batch, H heads, N chunks, R rows (batch x heads), C cells of a chunk, D head width; d_in, d_out of a memory layer. A large
chunk is several blocks (layout.py), each of which is a chunk here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from titans_seq.memory.layout import Layout, Workspace, choose_layout
from titans_seq.memory.operators import define_operators
from titans_seq.memory.rule import NORM_EPS, Rule
from titans_seq.memory.segment import Segment, SegmentInputs, StateGradients
from titans_seq.memory.state import Gates, MemoryState, MemoryWeights

SEGMENT_CHUNKS = 8  # between two states that are kept for the backward


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
    layout = choose_layout(q, chunk_size, None if state is None else state.position, mask, reset)
    made = state is None or reset is not None  # the first state is made only where it is used
    first = state if state is not None and not made else MemoryState.initial(weights, q.shape[0], chunk_size)
    begin = state or first
    arguments = _arguments(
        q, k, v, gates, weights, begin, first, layout, Rule(weights.activation, weights.norm_scale is not None, gradient, surprise_clip)
    )
    inputs = arguments.differentiable()
    if not torch.compiler.is_compiling() and any(forward_ad.unpack_dual(x).tangent is not None for x in inputs):
        raise ValueError("impl='chunkwise' has no forward-mode derivative; use impl='recurrent'")
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    z, *after = memory_chunks(*arguments, keep)
    y = layout.collect(_output(z, q, weights, layout))
    return y, _state_after(after, first, layout, chunk_size)


class Arguments(NamedTuple):
    """Arguments of the operators, in their order.

    q, k, offset, alpha, eta, theta, slope: as `SegmentInputs`, of all N chunks. W, S, anchor, first: as `Segment`; anchor may be empty
    (the weights are the anchor), first is empty without restarts. active (N, R or 1, C), complete and restart (N, R), or None.
    all_complete: N flags, whether the chunk ends with the block in all rows; empty where `complete` says it row by row.
    """

    q: Tensor
    k: Tensor
    offset: Tensor
    slope: Tensor
    alpha: list[Tensor]
    eta: list[Tensor]
    theta: list[Tensor]
    W: list[Tensor]
    S: list[Tensor]
    anchor: list[Tensor]
    first: list[Tensor]
    active: Tensor | None
    complete: Tensor | None
    restart: Tensor | None
    all_complete: list[bool]
    activation: str
    norm: bool
    gradient: str
    surprise_clip: float | None

    @property
    def ends_inside(self) -> bool:
        """Whether the anchor after all blocks is more than the weights."""
        return self.complete is not None or not self.all_complete[-1]

    @property
    def keeps_anchors(self) -> bool:
        """Whether the anchor before a segment may be more than the weights, the first segment aside."""
        return self.complete is not None or not all(self.all_complete[:-1])

    def differentiable(self) -> list[Tensor]:
        """All tensors that have a gradient."""
        return [*self[:4], *(x for part in self[4:11] for x in part)]

    def segments(self) -> list[slice]:
        """The chunks of every segment."""
        chunks = self.q.shape[0]
        return [slice(n, min(n + SEGMENT_CHUNKS, chunks)) for n in range(0, chunks, SEGMENT_CHUNKS)]

    def workspaces(self) -> list[Workspace]:
        """For the segments, one a layer."""
        return [Workspace(self.q) for _ in self.W]

    def segment(
        self,
        chunks: slice,
        W: Sequence[Tensor],
        S: Sequence[Tensor],
        anchor: Sequence[Tensor] | None,
        spaces: Sequence[Workspace],
        keep: bool,
    ) -> Segment:
        """The segment of these chunks, from the state before it."""
        complete: Sequence[bool | Tensor] = self.all_complete[chunks]
        if self.complete is not None:
            complete = self.complete[chunks].unbind(0)
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
        return Segment(Rule(self.activation, self.norm, self.gradient, self.surprise_clip), inputs, W, S, anchor, spaces, keep)


SCHEMA = (
    "Tensor q, Tensor k, Tensor offset, Tensor slope, Tensor[] alpha, Tensor[] eta, Tensor[] theta, Tensor[] W, Tensor[] S, "
    "Tensor[] anchor, Tensor[] first, Tensor? active, Tensor? complete, Tensor? restart, bool[] all_complete, str activation, bool norm, "
    "str gradient, float? surprise_clip"
)


def _forward(*arguments: Any) -> list[Tensor]:
    """z (N, R, C, D); a tensor a layer each: W, S and, if it is not W, the anchor after all blocks; what is kept for the backward."""
    a, keep = Arguments(*arguments[:-1]), arguments[-1]
    W, S, anchor, spaces = a.W, a.S, a.anchor or None, a.workspaces()
    z = torch.empty_like(a.q)
    kept: list[list[Tensor]] = []
    for chunks in a.segments():
        if keep:
            kept.append([*W, *S, *(anchor or W)] if a.keeps_anchors else [*W, *S])
        segment = a.segment(chunks, W, S, anchor, spaces, keep=False)
        segment.write()
        z[chunks] = segment.read()
        W, S = ([x.parts[-1].clone() for x in part] for part in zip(*((layer.W, layer.S) for layer in segment.layers), strict=True))
        anchor = None if segment.anchor_after is None else [A.clone() for A in segment.anchor_after]
    return [z, *W, *S, *(anchor or []), *(torch.stack(layer) for layer in zip(*kept, strict=True))]


def _forward_shapes(*arguments: Any) -> list[Tensor]:
    a, keep = Arguments(*arguments[:-1]), arguments[-1]
    kept = [*a.W, *a.S, *(a.W if a.keeps_anchors else [])] if keep else []
    after = [a.q, *a.W, *a.S, *(a.W if a.ends_inside else [])]
    return [*(torch.empty_like(x) for x in after), *(x.new_empty(len(a.segments()), *x.shape) for x in kept)]


def _backward(*arguments: Any) -> list[Tensor]:
    """Gradients by the tensors of `Arguments`, from what `_forward` kept and the gradients by its other results: the last arguments."""
    a, kept, d_after = Arguments(*arguments[:-2]), arguments[-2], arguments[-1]
    layers = len(a.W)
    d_z, d_W, d_S, d_anchor = d_after[0], *([x.clone() for x in d_after[1 + i * layers : 1 + (i + 1) * layers]] for i in range(3))
    d_state = StateGradients(d_W, d_S, d_anchor or None, [torch.zeros_like(W) for W in a.first])
    d_gates = [[torch.empty_like(x) for x in gate] for gate in (a.alpha, a.eta, a.theta)]
    spaces = a.workspaces()
    d_q, d_k, d_offset, d_slope = *(torch.empty_like(x) for x in a[:3]), torch.zeros_like(a.slope)
    for i, chunks in reversed(list(enumerate(a.segments()))):
        W, S, anchor = ([x[i] for x in kept[j * layers : (j + 1) * layers]] for j in range(3))
        if i == 0:
            anchor = a.anchor
        segment = a.segment(chunks, W, S, anchor or None, spaces, keep=True)
        segment.write()
        d = segment.backward(d_z[chunks], d_state)
        d_q[chunks], d_k[chunks], d_offset[chunks] = d.q, d.k, d.offset
        d_slope += d.slope
        for whole, part in zip(d_gates, (d.alpha, d.eta, d.theta), strict=True):
            for x, y in zip(whole, part, strict=True):
                x[chunks] = y
    by_anchor = d_state.anchor or [torch.zeros_like(A) for A in a.anchor]
    return [d_q, d_k, d_offset, d_slope, *(x for gate in d_gates for x in gate), *d_W, *d_S, *by_anchor, *d_state.first]


def _backward_shapes(*arguments: Any) -> list[Tensor]:
    return [torch.empty_like(x) for x in Arguments(*arguments[:-2]).differentiable()]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    a = Arguments(*inputs[:-1])
    results = 1 + len(a.W) * (3 if a.ends_inside else 2)
    ctx.mark_non_differentiable(*output[results:])
    ctx.set_materialize_grads(False)
    ctx.shapes = [x.shape for x in output[:results]]
    ctx.lengths = [len(part) for part in a[4:11]]
    ctx.options = a[14:]
    ctx.save_for_backward(*a.differentiable(), a.active, a.complete, a.restart, *output[results:])


def _differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    whole, lists, rest = _regroup(list(ctx.saved_tensors), ctx.lengths)
    marks, kept = rest[:3], rest[3:]
    given = zip(gradients, ctx.shapes, strict=False)
    d_after = [whole[0].new_zeros(shape) if d is None else d.contiguous() for d, shape in given]
    with torch.autocast(whole[0].device.type, enabled=False):
        found = memory_chunks_backward(*whole, *lists, *marks, *ctx.options, kept, d_after)
    by_whole, by_list, _ = _regroup(found, ctx.lengths)
    by_option: list[Any] = [[] if option == [] else None for option in ctx.options]  # torch takes an empty list for one of tensors
    return (*by_whole, *by_list, *[None] * len(marks), *by_option, None)


def _regroup(flat: list[Tensor], lengths: Sequence[int]) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor]]:
    """Four tensors, lists of these lengths, and the rest."""
    whole, rest, lists = flat[:4], flat[4:], []
    for length in lengths:
        lists.append(rest[:length])
        rest = rest[length:]
    return whole, lists, rest


memory_chunks, memory_chunks_backward = define_operators(
    "chunkwise",
    "memory_chunks",
    SCHEMA,
    forward=_forward,
    forward_shapes=_forward_shapes,
    backward=_backward,
    backward_shapes=_backward_shapes,
    save=_save,
    differentiate=_differentiate,
)


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

    def rows(layers: Sequence[Tensor]) -> list[Tensor]:
        """(B, H, d_in, d_out) -> (R, d_in, d_out)."""
        return [x.flatten(0, 1).contiguous() for x in layers]

    heads = q.shape[1]
    k_grid = grid(k, 0.0)
    offset, slope = _loss_terms(grid(v, 0.0) - k_grid if weights.residual else grid(v, 0.0), weights, q.shape[0])
    by_row = isinstance(layout.complete[0], Tensor)
    complete = torch.stack(layout.complete).repeat_interleave(heads, 1) if by_row else None  # type: ignore[arg-type]
    own_anchor = by_row or any(A is not W for A, W in zip(begin.anchor, begin.weights, strict=True))
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
        rows(begin.weights),
        rows(begin.momentum),
        rows(begin.anchor) if own_anchor else [],
        [] if layout.restart is None else rows(first.weights),
        None if active is None else active.to(q.dtype),
        complete,
        None if layout.restart is None else layout.restart[:, :-1].T.repeat_interleave(heads, 1),
        [] if by_row else list(layout.complete),  # type: ignore[arg-type]
        *rule,
    )


def _loss_terms(target: Tensor, weights: MemoryWeights, batch: int) -> tuple[Tensor, Tensor]:
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
    """The state from the operator's outputs: W, S and, where it is not the weights, the anchor, a tensor a layer."""
    layers = len(first.weights)
    parts = [x.unflatten(0, (first.batch_size, -1)) for x in after[: layers * (2 if layout.complete[-1] is True else 3)]]
    weights, momentum = tuple(parts[:layers]), tuple(parts[layers : 2 * layers])
    anchor = weights if layout.complete[-1] is True else tuple(parts[2 * layers :])
    state = MemoryState(weights, momentum, anchor, layout.position, chunk_size)
    if layout.restart is None:
        return state
    ended = first.where(layout.restart[:, -1], state)
    return MemoryState(ended.weights, ended.momentum, ended.anchor, layout.position, chunk_size)
