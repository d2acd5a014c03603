"""The dual form in plain torch: exact, and never a weight matrix per token (docs/rule.md derives it).

Inside a chunk every gradient is taken at one point, so it is an outer product in closed form, and the memory at every token is the
chunk's first state plus a masked product of such outer products. Only chunks are sequential. The backward is derived by hand: the state
at the begin of every segment of a few chunks is kept, and each segment is done again, the last one first. Forward and backward are custom
operators, one node each for `torch.compile`; nothing here calls autograd, so the memory learns under `torch.inference_mode()`.

Shapes as in `titans_seq.memory.chunks`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from titans_seq.memory.chunks import Arguments, define_chunk_operators, memory_over_chunks
from titans_seq.memory.layout import Workspace
from titans_seq.memory.rule import Rule
from titans_seq.memory.segment import Segment, SegmentInputs, StateGradients
from titans_seq.memory.state import MemoryState


def _segment(
    a: Arguments,
    chunks: slice,
    W: Sequence[Tensor],
    S: Sequence[Tensor],
    anchor: Sequence[Tensor] | None,
    spaces: Sequence[Workspace],
    keep: bool,
) -> Segment:
    """The segment of these chunks, from the state before it."""
    complete: Sequence[bool | Tensor] = a.all_complete[chunks]
    if a.complete is not None:
        complete = a.complete[chunks].unbind(0)
    inputs = SegmentInputs(
        a.q[chunks],
        a.k[chunks],
        a.offset[chunks],
        a.slope,
        [x[chunks] for x in a.alpha],
        [x[chunks] for x in a.eta],
        [x[chunks] for x in a.theta],
        None if a.active is None else a.active[chunks],
        complete,
        None if a.restart is None else a.restart[chunks],
        a.first,
        a.rest,
    )
    return Segment(Rule(a.activation, a.norm, a.gradient, a.surprise_clip), inputs, W, S, anchor, spaces, keep)


def _workspaces(a: Arguments) -> list[Workspace]:
    """For the segments, one a layer."""
    return [Workspace(a.q) for _ in a.W]


def _forward(*arguments: Any) -> list[Tensor]:
    """z (N, R, C, D); a tensor a layer each: W, S and, if it is not W, the anchor after all blocks; what is kept for the backward."""
    a, keep = Arguments(*arguments[:-1]), arguments[-1]
    W, S, anchor, spaces = a.W, a.S, a.anchor or None, _workspaces(a)
    z = torch.empty_like(a.q)
    kept: list[list[Tensor]] = []
    for chunks in a.segments():
        if keep:
            kept.append([*W, *S, *(anchor or W)] if a.keeps_anchors else [*W, *S])
        segment = _segment(a, chunks, W, S, anchor, spaces, keep=False)
        segment.write()
        z[chunks] = segment.read()
        W, S = ([x.parts[-1].clone() for x in part] for part in zip(*((layer.W, layer.S) for layer in segment.layers), strict=True))
        anchor = None if segment.anchor_after is None else [A.clone() for A in segment.anchor_after]
    return [z, *W, *S, *(anchor or []), *(torch.stack(layer) for layer in zip(*kept, strict=True))]


def _backward(*arguments: Any) -> list[Tensor]:
    """Gradients by the tensors of `Arguments`, from what `_forward` kept and the gradients by its other results: the last arguments."""
    a, kept, d_after = Arguments(*arguments[:-2]), arguments[-2], arguments[-1]
    layers = len(a.W)
    d_z, d_W, d_S, d_anchor = d_after[0], *([x.clone() for x in d_after[1 + i * layers : 1 + (i + 1) * layers]] for i in range(3))
    d_state = StateGradients(d_W, d_S, d_anchor or None, *([torch.zeros_like(W) for W in part] for part in (a.first, a.rest)))
    d_gates = [[torch.empty_like(x) for x in gate] for gate in (a.alpha, a.eta, a.theta)]
    spaces = _workspaces(a)
    d_q, d_k, d_offset, d_slope = *(torch.empty_like(x) for x in a[:3]), torch.zeros_like(a.slope)
    for i, chunks in reversed(list(enumerate(a.segments()))):
        W, S, anchor = ([x[i] for x in kept[j * layers : (j + 1) * layers]] for j in range(3))
        if i == 0:
            anchor = a.anchor
        segment = _segment(a, chunks, W, S, anchor or None, spaces, keep=True)
        segment.write()
        d = segment.backward(d_z[chunks], d_state)
        d_q[chunks], d_k[chunks], d_offset[chunks] = d.q, d.k, d.offset
        d_slope += d.slope
        for whole, part in zip(d_gates, (d.alpha, d.eta, d.theta), strict=True):
            for x, y in zip(whole, part, strict=True):
                x[chunks] = y
    by_anchor = d_state.anchor or [torch.zeros_like(A) for A in a.anchor]
    return [d_q, d_k, d_offset, d_slope, *(x for gate in d_gates for x in gate), *d_W, *d_S, *by_anchor, *d_state.first, *d_state.rest]


memory_chunks, memory_chunks_backward = define_chunk_operators("chunkwise", "memory_chunks", _forward, _backward)


def chunkwise_memory(*arguments: Any, **options: Any) -> tuple[Tensor, MemoryState]:
    """Arguments and result as `neural_memory`."""
    return memory_over_chunks(memory_chunks, "chunkwise", *arguments, **options)
