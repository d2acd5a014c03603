"""The operator over chunks that the chunkwise and the native form compute: its arguments, its results, and how tokens get there and back.

Both take the same tensors on the grid of chunks and give the same results, so that what stands around them, autograd included, is here.

Shape suffixes: B batch, H heads, N chunks, R rows (batch x heads), C cells of a chunk, D head width; d_in, d_out of a memory layer. A large
chunk is several blocks (layout.py), each of which is a chunk here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from titans_seq.memory.layout import Layout, choose_layout
from titans_seq.memory.operators import define_operators
from titans_seq.memory.rule import NORM_EPS, Rule
from titans_seq.memory.state import Gates, MemoryState, MemoryWeights

SEGMENT_CHUNKS = 8  # between two states that are kept for the backward


def memory_over_chunks(
    operator: Callable[..., list[Tensor]],
    impl: str,
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
    """`neural_memory` by one of the operators of `define_chunk_operators`; impl: the form, as `neural_memory` names it."""
    layout = choose_layout(q, chunk_size, None if state is None else state.position, mask, reset, short=True)
    made = state is None or reset is not None  # the first state is made only where it is used
    first = state if state is not None and not made else MemoryState.initial(weights, q.shape[0], chunk_size)
    begin = state or first
    arguments = _arguments(
        q, k, v, gates, weights, begin, first, layout, Rule(weights.activation, weights.norm_scale is not None, gradient, surprise_clip)
    )
    inputs = arguments.differentiable()
    if not torch.compiler.is_compiling() and any(forward_ad.unpack_dual(x).tangent is not None for x in inputs):
        raise ValueError(f"impl={impl!r} has no forward-mode derivative; use impl='recurrent'")
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    z, *after = operator(*arguments, keep)
    y = layout.collect(_output(z, q, weights, layout))
    return y, _state_after(after, first, layout, chunk_size)


class Arguments(NamedTuple):
    """Arguments of the operators, in their order.

    q, k, offset, alpha, eta, theta, slope: as `SegmentInputs`, of all N chunks. W, S, anchor, first: as `Segment`; anchor may be empty
    (the weights are the anchor), first is empty without restarts. rest (R, d_in, d_out) a layer is what the memory's layers are beside W,
    anchor and first; empty for nothing. active (N, R or 1, C), complete and restart (N, R), or None.
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
    rest: list[Tensor]
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
        return [*self[:4], *(x for part in self[4:12] for x in part)]

    def segments(self) -> list[slice]:
        """The chunks of every segment."""
        chunks = self.q.shape[0]
        return [slice(n, min(n + SEGMENT_CHUNKS, chunks)) for n in range(0, chunks, SEGMENT_CHUNKS)]


SCHEMA = (
    "Tensor q, Tensor k, Tensor offset, Tensor slope, Tensor[] alpha, Tensor[] eta, Tensor[] theta, Tensor[] W, Tensor[] S, "
    "Tensor[] anchor, Tensor[] first, Tensor[] rest, Tensor? active, Tensor? complete, Tensor? restart, bool[] all_complete, "
    "str activation, bool norm, str gradient, float? surprise_clip"
)


def forward_shapes(*arguments: Any) -> list[Tensor]:
    """The forward's results, without values."""
    a, keep = Arguments(*arguments[:-1]), arguments[-1]
    kept = [*a.W, *a.S, *(a.W if a.keeps_anchors else [])] if keep else []
    after = [a.q, *a.W, *a.S, *(a.W if a.ends_inside else [])]
    return [*(torch.empty_like(x) for x in after), *(x.new_empty(len(a.segments()), *x.shape) for x in kept)]


def backward_shapes(*arguments: Any) -> list[Tensor]:
    """The backward's results, without values."""
    return [torch.empty_like(x) for x in Arguments(*arguments[:-2]).differentiable()]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    a = Arguments(*inputs[:-1])
    results = 1 + len(a.W) * (3 if a.ends_inside else 2)
    ctx.mark_non_differentiable(*output[results:])
    ctx.set_materialize_grads(False)
    ctx.shapes = [x.shape for x in output[:results]]
    ctx.lengths = [len(part) for part in a[4:12]]
    ctx.options = a[15:]
    ctx.save_for_backward(*a.differentiable(), a.active, a.complete, a.restart, *output[results:])


def _regroup(flat: list[Tensor], lengths: Sequence[int]) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor]]:
    """Four tensors, lists of these lengths, and the rest."""
    whole, rest, lists = flat[:4], flat[4:], []
    for length in lengths:
        lists.append(rest[:length])
        rest = rest[length:]
    return whole, lists, rest


def define_chunk_operators(
    impl: str, name: str, forward: Callable[..., list[Tensor]], backward: Callable[..., list[Tensor]]
) -> tuple[Callable[..., list[Tensor]], Callable[..., list[Tensor]]]:
    """titans_seq::NAME and titans_seq::NAME_backward over `Arguments`.

    forward: takes these and `keep`, whether a backward may follow; gives z (N, R, C, D), then a tensor (R, d_in, d_out) a layer each of
        W, S and, if `ends_inside`, the anchor after all blocks, and if `keep` (segments, R, d_in, d_out) each of W, S and, if
        `keeps_anchors`, the anchor before every segment.
    backward: takes `Arguments`, what the forward kept, and the gradients by its other results; gives those by `differentiable()`.
    """

    def differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
        whole, lists, rest = _regroup(list(ctx.saved_tensors), ctx.lengths)
        marks, kept = rest[:3], rest[3:]
        given = zip(gradients, ctx.shapes, strict=False)
        d_after = [whole[0].new_zeros(shape) if d is None else d.contiguous() for d, shape in given]
        with torch.autocast(whole[0].device.type, enabled=False):
            found = backward_operator(*whole, *lists, *marks, *ctx.options, kept, d_after)
        by_whole, by_list, _ = _regroup(found, ctx.lengths)
        by_option: list[Any] = [[] if option == [] else None for option in ctx.options]  # torch takes an empty list for one of tensors
        return (*by_whole, *by_list, *[None] * len(marks), *by_option, None)

    operator, backward_operator = define_operators(
        impl,
        name,
        SCHEMA,
        forward=forward,
        forward_shapes=forward_shapes,
        backward=backward,
        backward_shapes=backward_shapes,
        save=_save,
        differentiate=differentiate,
    )
    return operator, backward_operator


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
        [W.repeat(q.shape[0], 1, 1) for W in weights.rest],
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
    state = MemoryState(weights, momentum, anchor, layout.position, chunk_size, first.beside_first)
    if layout.restart is None:
        return state
    ended = first.where(layout.restart[:, -1], state)
    return replace(ended, position=layout.position)
