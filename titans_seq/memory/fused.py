"""The dual form in Triton, for NVIDIA GPUs: one kernel walks all chunks of a row and head, a second one walks back (docs/rule.md).

This module packs the operator's arguments for the kernels and makes two custom ops of them, so that autograd, `torch.compile` and
activation checkpointing see through. Triton is imported when an op first runs. With `TRITON_INTERPRET=1` the kernels run on CPU tensors.

Shapes: B batch, H heads, N chunks, C cells of a chunk, D head width. Weights of all layers are packed into SIZE numbers
(`titans_seq.memory.kernels.common`), a state is weights and momentum, (B, H, 2, SIZE).
"""

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_seq.memory.layout import Layout, choose_layout
from titans_seq.memory.operators import define_operators
from titans_seq.memory.rule import NORM_EPS
from titans_seq.memory.state import Gates, MemoryState, MemoryWeights

MAX_WIDTH = 128
MAX_EXPANSION = 4
MAX_CHUNK = 64
TILE = 32  # hidden units that a program holds at a time: a tile of D x 32 numbers of each layer
ON_CHIP = 2048  # numbers of a layer up to which the forward keeps the whole state in registers
HAS_TRITON = find_spec("triton") is not None  # found, not imported
PRECISION = {torch.bfloat16: "bf16", torch.float16: "tf32", torch.float32: "tf32x3"}  # of products; fp16 would overflow in the backward


def fused_memory(
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
    """Arguments and result as `neural_memory`, but q, k, v may be bf16 or fp16 beside float32 gates, weights and state.

    Raises:
        ValueError: the kernels do not do this; the message says what, and which form does.
    """
    problem = unsupported(q, gates, weights, chunk_size, gradient) or unavailable(q)
    if problem is not None:
        raise ValueError(f"impl='fused' {problem}. Use impl='chunkwise'")
    layout = choose_layout(q, chunk_size, None if state is None else state.position, mask, reset)
    sizes = Sizes.of(weights, chunk_size)
    first, beside_first = sizes.pack(weights.layers), len(weights.rest) > 0
    begin = torch.zeros_like(first) if beside_first else first  # the state's weights where they are the first state
    batch = q.shape[0]
    if state is None:
        points = anchor = begin.expand(batch, *begin.shape)
        momentum = torch.zeros_like(points)
    else:
        points, momentum, anchor = (sizes.pack(part) for part in (state.weights, state.momentum, state.anchor))
    restart, anchor_at = _events(layout, batch)
    if layout.restart is not None:
        rows = layout.restart[:, 0, None, None]
        points, anchor, momentum = torch.where(rows, begin, points), torch.where(rows, begin, anchor), torch.where(rows, 0, momentum)

    placed = [layout.place(x, 0.0).flatten(2, 3).contiguous() for x in (q, k, v)]
    chunks = len(layout.complete)
    active = q.new_ones(batch, chunks * chunk_size, dtype=torch.int8)
    if layout.active is not None:
        active = active * layout.active.flatten(1)
    cells = [layout.place(gate, fill).flatten(2) for layer in gates for gate, fill in zip(layer, (0.0, 1.0, 0.0), strict=True)]
    packed_gates = torch.stack(cells, dim=2)
    normed = weights.norm_scale is not None and weights.norm_shift is not None
    norm = torch.stack([weights.norm_scale, weights.norm_shift], dim=1) if normed else first.new_zeros(q.shape[1], 2, q.shape[3])  # type: ignore[list-item]

    inputs = (*placed, packed_gates, torch.stack([points, momentum], dim=2), anchor, first, norm)
    options = (list(sizes), math.isqrt(chunks - 1) + 1, normed, weights.residual, beside_first, weights.activation, surprise_clip or 0.0)
    arguments = (*(x.contiguous() for x in inputs), active, restart, anchor_at, *options)  # as `Arguments`
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    y, final, final_anchor, *_ = fused_chunks(*arguments, keep)
    points, momentum = final.unbind(2)
    if layout.restart is not None:
        rows = layout.restart[:, -1, None, None]
        points, momentum = torch.where(rows, begin, points), torch.where(rows, 0, momentum)
        final_anchor = torch.where(rows, begin, final_anchor)
    layers, momenta, anchors = (tuple(sizes.unpack(part)) for part in (points, momentum, final_anchor))
    y = layout.collect(y.unflatten(2, (chunks, chunk_size)))
    return y, MemoryState(layers, momenta, anchors, layout.position, chunk_size, beside_first)


def unsupported(q: Tensor, gates: Sequence[Gates], weights: MemoryWeights, chunk_size: int, gradient: str) -> str | None:
    """What of these arguments the kernels do not do, in words; None if they do all. Looks at no device and imports no triton."""
    depth, width, hidden = len(weights.layers), q.shape[-1], weights.layers[0].shape[-1]
    if gradient != "chunk":
        return f"takes gradients once a chunk, got gradient={gradient!r}"
    if depth > 2:
        return f"supports memories of depth 1 and 2, got {depth}"
    if any(gate.alpha.dim() > gate.eta.dim() for gate in gates):
        return "supports forgetting per head, got alpha per channel"
    if width > MAX_WIDTH:
        return f"supports head widths up to {MAX_WIDTH}, got {width}"
    if hidden > MAX_EXPANSION * width:
        return f"supports a hidden width up to {MAX_EXPANSION} times the head width {width}, got {hidden}"
    if chunk_size > MAX_CHUNK:
        return f"supports chunks of up to {MAX_CHUNK} tokens, got chunk_size={chunk_size}"
    return None


def unavailable(q: Tensor) -> str | None:
    """Why the kernels cannot run here on q, in words; None if they can."""
    if not HAS_TRITON:
        return "needs triton, which is not installed (torch's CUDA build brings it; on Linux `pip install triton` does as well)"
    if interpreting():
        return None
    if q.device.type != "cuda" or torch.version.hip is not None:
        return f"needs an NVIDIA GPU, got a tensor on {q.device} (TRITON_INTERPRET=1 runs the kernels on CPU, for tests)"
    if not torch.compiler.is_compiling() and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "needs an NVIDIA GPU of compute capability 8.0 or later"
    if q.dtype not in PRECISION:
        return f"computes in float32 at most, got {q.dtype}"
    return None


def interpreting() -> bool:
    """Whether Triton interprets its kernels on CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Sizes(NamedTuple):
    """The kernels' compile-time sizes (`titans_seq.memory.kernels.common`), padded to what tensor cores take."""

    cells: int  # C
    padded_cells: int  # CP
    width: int  # WIDTH
    padded_width: int  # D
    width_in: int  # unpadded hidden width, D at depth 1
    hidden: int  # HID
    tile: int  # HB, of the backward; the forward's is the whole width where the state fits on chip
    depth: int

    @classmethod
    def of(cls, weights: MemoryWeights, chunk_size: int) -> "Sizes":
        """Sizes for a memory and a chunk."""
        depth, (_, width, width_in) = len(weights.layers), weights.layers[0].shape
        padded = _power_of_two(width)
        if depth == 1:
            return cls(chunk_size, _power_of_two(chunk_size), width, padded, width, padded, padded, depth)
        whole = _power_of_two(width_in)
        tile = min(TILE, whole)
        hidden = whole if padded * whole <= ON_CHIP else -(-width_in // tile) * tile
        return cls(chunk_size, _power_of_two(chunk_size), width, padded, width_in, hidden, tile, depth)

    @property
    def size(self) -> int:
        """SIZE, numbers in all layers."""
        return self.depth * self.padded_width * self.hidden

    def pack(self, layers: Sequence[Tensor]) -> Tensor:
        """Layers (..., d_in, d_out) -> (..., SIZE), zeros in the padding."""
        flat = []
        for l, W in enumerate(layers):
            d_in, d_out = self._padded(l)
            flat.append(F.pad(W, (0, d_out - W.shape[-1], 0, d_in - W.shape[-2])).flatten(-2))
        return torch.cat(flat, dim=-1)

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """The reverse of `pack`."""
        parts = packed.split(self.padded_width * self.hidden, dim=-1)
        true = [(self.width, self.width_in), (self.width_in, self.width)] if self.depth == 2 else [(self.width, self.width)]
        return [W.unflatten(-1, self._padded(l))[..., : true[l][0], : true[l][1]] for l, W in enumerate(parts)]

    def _padded(self, l: int) -> tuple[int, int]:
        return (self.padded_width, self.hidden) if l + 1 < self.depth else (self.hidden, self.padded_width)

    def constants(self, backward: bool) -> dict[str, int]:
        """A kernel's compile-time sizes and its number of warps."""
        on_chip = self.depth == 1 or self.padded_width * self.hidden <= ON_CHIP
        tile = self.hidden if on_chip and not backward else self.tile
        names = {"C": self.cells, "CP": self.padded_cells, "WIDTH": self.width, "D": self.padded_width}
        names |= {"HID": self.hidden, "HB": tile, "SIZE": self.size, "DEPTH": self.depth}
        return names | {"num_warps": 4 if self.padded_width * tile <= 2048 else 8, "num_stages": 1}


def _power_of_two(n: int) -> int:
    """The power of two at or above n, at least 16: the smallest side of a product on tensor cores."""
    return max(16, 1 << (n - 1).bit_length())


def _events(layout: Layout, batch: int) -> tuple[Tensor, Tensor]:
    """What the kernels do between chunks: restart (B, N + 1) int8, and the chunk (B,) int32 whose first weights are the final anchor.

    -1 stands for the anchor that came in. Restarts before chunk 0 and behind the last chunk are left to the caller.
    """
    device = layout.position.device
    complete = [torch.full((batch,), c, device=device) if isinstance(c, bool) else c for c in layout.complete]
    begins = F.pad(torch.stack(complete, dim=1), (1, 0))  # (B, N + 1), the weights before chunk n are an anchor
    restart = torch.zeros_like(begins)
    if layout.restart is not None:
        restart[:, 1:-1] = layout.restart[:, 1:-1]
    chunk = torch.arange(begins.shape[1], dtype=torch.int32, device=device)
    return restart.to(torch.int8), torch.where(begins | restart, chunk, -1).amax(1)


def _target(q: Tensor) -> tuple[AbstractContextManager[Any], dict[str, str]]:
    """Where a kernel is launched, and the precision of its products."""
    if interpreting():
        return nullcontext(), {"PRECISION": "ieee", "EXACT": "ieee"}
    return torch.cuda.device(q.device), {"PRECISION": PRECISION[q.dtype], "EXACT": "tf32x3"}


class Arguments(NamedTuple):
    """Arguments of both operators, in their order; the shapes stand in `titans_seq.memory.kernels.forward`."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    state: Tensor
    anchor: Tensor
    first: Tensor
    norm: Tensor
    active: Tensor
    restart: Tensor
    anchor_at: Tensor
    sizes: list[int]
    every: int  # chunks from one kept state to the next
    normed: bool
    residual: bool
    to_first: bool  # forgetting draws to `first`, and state and anchor are less it
    activation: str
    clip: float

    @property
    def chunks(self) -> int:
        """N."""
        return self.restart.shape[1] - 1

    @property
    def segments(self) -> int:
        """States that are kept."""
        return -(-self.chunks // self.every)

    def differentiable(self) -> tuple[Tensor, ...]:
        """All tensors that have a gradient."""
        return self[:8]

    def launch(self, kernel: Any, tensors: Sequence[Tensor], numbers: Sequence[int], backward: bool, **constants: Any) -> None:
        """Run a kernel, one program a row and head."""
        context, precision = _target(self.q)
        flags = {"NORM": self.normed, "RESIDUAL": self.residual, "TO_FIRST": self.to_first}
        options = {"ACTIVATION": self.activation, "CLIP": self.clip, "EPS": NORM_EPS}
        batch, heads = self.q.shape[:2]
        sizes = Sizes(*self.sizes).constants(backward)
        with context:
            kernel[(batch * heads,)](*tensors, heads, self.chunks, *numbers, **sizes, **flags, **options, **precision, **constants)


SCHEMA = (
    "Tensor q, Tensor k, Tensor v, Tensor gates, Tensor state, Tensor anchor, Tensor first, Tensor norm, Tensor active, Tensor restart, "
    "Tensor anchor_at, int[] sizes, int every, bool normed, bool residual, bool to_first, str activation, float clip"
)


def _forward(*arguments: Any) -> list[Tensor]:
    """y, state and anchor after the stream; if `keep` also, for the backward, the state every `every` chunks, z, read and squares."""
    from titans_seq.memory.kernels.forward import forward_kernel

    a, keep = Arguments(*arguments[:-1]), arguments[-1]
    y, final, final_anchor, *kept = _forward_shapes(*arguments)
    final.copy_(a.state)
    final_anchor.copy_(a.anchor)
    unused = [a.state.new_empty(0)] * 4
    a.launch(
        forward_kernel,
        [a.q, a.k, a.v, a.gates, a.active, a.restart, a.anchor_at, final, a.anchor, a.first, a.norm, y, final_anchor, *(kept or unused)],
        [0, a.chunks, a.every, a.segments],
        backward=False,
        REPLAY=False,
        SAVE=keep,
    )
    return [y, final, final_anchor, *kept]


def _forward_shapes(*arguments: Any) -> list[Tensor]:
    a, keep = Arguments(*arguments[:-1]), arguments[-1]
    results = [torch.empty_like(a.q), torch.empty_like(a.state), torch.empty_like(a.anchor)]
    if not keep:
        return results
    batch, heads, cells, _ = a.q.shape
    states = a.state.new_empty(batch, heads, a.segments, 2, a.state.shape[-1])
    squares = a.state.new_empty(batch, heads, 2, cells if a.clip else 0)
    return [*results, states, a.state.new_empty(a.q.shape), a.state.new_empty(a.q.shape), squares]


def _backward(*arguments: Any) -> list[Tensor]:
    """Gradients of `Arguments.differentiable`. Segment by segment from the last: replay its states, then walk back."""
    from titans_seq.memory.kernels.backward import backward_kernel
    from titans_seq.memory.kernels.forward import forward_kernel

    a, (states, *kept), (d_y, d_state, d_anchor) = Arguments(*arguments[:-2]), *arguments[-2:]
    (batch, heads), sizes = a.q.shape[:2], Sizes(*a.sizes)
    d_tokens = [torch.empty_like(x) for x in (a.q, a.k, a.v, a.gates)]
    d_state = d_state.clone()
    d_anchor_in = torch.where((a.anchor_at < 0)[:, None, None], d_anchor, 0)
    d_first = torch.zeros_like(a.anchor)
    d_norm = a.norm.new_zeros(batch, *a.norm.shape)
    replayed = states.new_empty(batch, heads, a.every, *states.shape[3:])
    stash = states.new_empty(batch, heads, 4, sizes.padded_cells, sizes.hidden if sizes.depth == 2 else 0)
    d_results = [*d_tokens, d_state, d_anchor_in, d_first, d_norm]
    read = [a.q, a.k, a.v, a.gates, a.active, a.restart, a.anchor_at]
    for segment in range(a.segments - 1, -1, -1):
        start, stop = segment * a.every, min((segment + 1) * a.every, a.chunks)
        work = states[:, :, segment].clone()
        a.launch(
            forward_kernel,
            [*read, work, a.anchor, a.first, a.norm, a.q, d_anchor, replayed, *kept],  # y and the final anchor: not written in a replay
            [start, stop, 1, a.every],
            backward=False,
            REPLAY=True,
            SAVE=False,
        )
        a.launch(
            backward_kernel,
            [*read[:3], d_y, *read[3:], a.anchor, a.first, a.norm, replayed, *kept, d_anchor, stash, *d_results],
            [start, stop, a.every],
            backward=True,
        )
    return [*d_tokens, d_state, d_anchor_in, d_first.sum(0), d_norm.sum(0)]


def _backward_shapes(*arguments: Any) -> list[Tensor]:
    return [torch.empty_like(x) for x in Arguments(*arguments[:-2]).differentiable()]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    a = Arguments(*inputs[:-1])
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)
    ctx.shapes = [x.shape for x in output[:3]]
    ctx.options = a[11:]
    ctx.save_for_backward(*a[:11], *output[3:])


def _differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)  # once: activation checkpointing allows no second look
    likes = (saved[0], saved[4], saved[4])  # dtypes of y, state and anchor
    given = zip(gradients, ctx.shapes, likes, strict=False)
    d_after = [like.new_zeros(shape) if d is None else d.contiguous() for d, shape, like in given]
    found = fused_chunks_backward(*saved[:11], *ctx.options, saved[11:], d_after)
    return (*found, *[None] * (3 + len(ctx.options) + 1))


fused_chunks, fused_chunks_backward = define_operators(
    "fused",
    "fused_memory",
    SCHEMA,
    forward=_forward,
    forward_shapes=_forward_shapes,
    backward=_backward,
    backward_shapes=_backward_shapes,
    save=_save,
    differentiate=_differentiate,
)
