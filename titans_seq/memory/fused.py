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
    first = sizes.pack(weights.layers)
    batch = q.shape[0]
    if state is None:
        points = anchor = first.expand(batch, *first.shape)
        momentum = torch.zeros_like(points)
    else:
        points, momentum, anchor = (sizes.pack(part) for part in (state.weights, state.momentum, state.anchor))
    restart, anchor_at = _events(layout, batch)
    if layout.restart is not None:
        rows = layout.restart[:, 0, None, None]
        points, anchor, momentum = torch.where(rows, first, points), torch.where(rows, first, anchor), torch.where(rows, 0, momentum)

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
    save = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    y, final, final_anchor, *_ = _forward(
        *(x.contiguous() for x in inputs),
        active,
        restart,
        anchor_at,
        list(sizes),
        math.isqrt(chunks - 1) + 1,
        normed,
        weights.residual,
        weights.activation,
        surprise_clip or 0.0,
        save,
    )
    points, momentum = final.unbind(2)
    if layout.restart is not None:
        rows = layout.restart[:, -1, None, None]
        points, momentum = torch.where(rows, first, points), torch.where(rows, 0, momentum)
        final_anchor = torch.where(rows, first, final_anchor)
    layers, momenta, anchors = (tuple(sizes.unpack(part)) for part in (points, momentum, final_anchor))
    y = layout.collect(y.unflatten(2, (chunks, chunk_size)))
    return y, MemoryState(layers, momenta, anchors, layout.position, chunk_size)


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
    if _interpreting():
        return None
    if q.device.type != "cuda" or torch.version.hip is not None:
        return f"needs an NVIDIA GPU, got a tensor on {q.device} (TRITON_INTERPRET=1 runs the kernels on CPU, for tests)"
    if not torch.compiler.is_compiling() and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "needs an NVIDIA GPU of compute capability 8.0 or later"
    if q.dtype not in PRECISION:
        return f"computes in float32 at most, got {q.dtype}"
    return None


def _interpreting() -> bool:
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


def _launch(like: Tensor) -> tuple[AbstractContextManager[Any], dict[str, Any]]:
    """The context a kernel is launched in, and what every launch passes."""
    if _interpreting():
        return nullcontext(), {"PRECISION": "ieee", "EXACT": "ieee", "EPS": NORM_EPS}
    options = {"PRECISION": PRECISION[like.dtype], "EXACT": "tf32x3", "EPS": NORM_EPS}
    return torch.cuda.device(like.device), options


@torch.library.custom_op("titans_seq::fused_memory", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    state: Tensor,
    anchor: Tensor,
    first: Tensor,
    norm: Tensor,
    active: Tensor,
    restart: Tensor,
    anchor_at: Tensor,
    sizes: list[int],
    every: int,
    normed: bool,
    residual: bool,
    activation: str,
    clip: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, state, anchor) after the stream; with `save` also (checkpoints every `every` chunks, z, read, squares) for the backward."""
    from titans_seq.memory.kernels.forward import forward_kernel

    y, final, final_anchor, checkpoints, z, read, squares = _forward_empty(
        q, k, v, gates, state, anchor, first, norm, active, restart, anchor_at, sizes, every, normed, residual, activation, clip, save
    )
    final.copy_(state)
    final_anchor.copy_(anchor)
    chunks, heads, plan = restart.shape[1] - 1, q.shape[1], Sizes(*sizes)
    device, options = _launch(q)
    with device:
        forward_kernel[(q.shape[0] * heads,)](
            *(q, k, v, gates, active, restart, anchor_at, final, anchor, first, norm),
            *(y, final_anchor, checkpoints, z, read, squares),
            *(heads, chunks, 0, chunks, every, -(-chunks // every)),
            **plan.constants(backward=False),
            NORM=normed,
            RESIDUAL=residual,
            ACTIVATION=activation,
            CLIP=clip,
            REPLAY=False,
            SAVE=save,
            **options,
        )
    return y, final, final_anchor, checkpoints, z, read, squares


@_forward.register_fake
def _forward_empty(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    state: Tensor,
    anchor: Tensor,
    first: Tensor,
    norm: Tensor,
    active: Tensor,
    restart: Tensor,
    anchor_at: Tensor,
    sizes: list[int],
    every: int,
    normed: bool,
    residual: bool,
    activation: str,
    clip: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op's results, not yet computed."""
    results = (torch.empty_like(q), torch.empty_like(state), torch.empty_like(anchor))
    if not save:
        return *results, state.new_empty(0), state.new_empty(0), state.new_empty(0), state.new_empty(0)
    batch, heads, cells, _ = q.shape
    checkpoints = state.new_empty(batch, heads, -(-(restart.shape[1] - 1) // every), 2, state.shape[-1])
    squares = state.new_empty(batch, heads, 2, cells if clip else 0)
    return *results, checkpoints, state.new_empty(q.shape), state.new_empty(q.shape), squares


@torch.library.custom_op("titans_seq::fused_memory_backward", mutates_args=())
def _backward(
    d_y: Tensor,
    d_state: Tensor,
    d_anchor: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    anchor: Tensor,
    first: Tensor,
    norm: Tensor,
    active: Tensor,
    restart: Tensor,
    anchor_at: Tensor,
    checkpoints: Tensor,
    z: Tensor,
    read: Tensor,
    squares: Tensor,
    sizes: list[int],
    every: int,
    normed: bool,
    residual: bool,
    activation: str,
    clip: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (q, k, v, gates, state, anchor, first, norm). Segment by segment from the last: replay its states, then walk back."""
    from titans_seq.memory.kernels.backward import backward_kernel
    from titans_seq.memory.kernels.forward import forward_kernel

    batch, heads = q.shape[:2]
    chunks, plan = restart.shape[1] - 1, Sizes(*sizes)
    d_q, d_k, d_v, d_gates = (torch.empty_like(x) for x in (q, k, v, gates))
    d_state = d_state.clone()
    d_anchor_in = torch.where((anchor_at < 0)[:, None, None], d_anchor, 0)
    d_first = torch.zeros_like(anchor)
    d_norm = norm.new_zeros(batch, *norm.shape)
    states = checkpoints.new_empty(batch, heads, every, *checkpoints.shape[3:])
    stash = checkpoints.new_empty(batch, heads, 4, plan.padded_cells, plan.hidden if plan.depth == 2 else 0)
    device, options = _launch(q)
    options |= {"NORM": normed, "RESIDUAL": residual, "ACTIVATION": activation, "CLIP": clip}
    with device:
        for segment in range(checkpoints.shape[2] - 1, -1, -1):
            start, stop = segment * every, min((segment + 1) * every, chunks)
            work = checkpoints[:, :, segment].clone()
            forward_kernel[(batch * heads,)](
                *(q, k, v, gates, active, restart, anchor_at, work, anchor, first, norm),
                *(q, d_anchor, states, z, read, squares),  # y and the final anchor are not written in a replay
                *(heads, chunks, start, stop, 1, every),
                REPLAY=True,
                SAVE=False,
                **options,
                **plan.constants(backward=False),
            )
            backward_kernel[(batch * heads,)](
                *(q, k, v, d_y, gates, active, restart, anchor_at, anchor, norm, states, z, read, squares, d_anchor, stash),
                *(d_q, d_k, d_v, d_gates, d_state, d_anchor_in, d_first, d_norm),
                *(heads, chunks, start, stop, every),
                **options,
                **plan.constants(backward=True),
            )
    return d_q, d_k, d_v, d_gates, d_state, d_anchor_in, d_first.sum(0), d_norm.sum(0)


@_backward.register_fake
def _backward_empty(
    d_y: Tensor,
    d_state: Tensor,
    d_anchor: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    anchor: Tensor,
    first: Tensor,
    norm: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in (q, k, v, gates, d_state, anchor, first, norm))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, gates, _, anchor, first, norm, active, restart, anchor_at, *options, _ = inputs
    y, final, final_anchor, *saved = output
    ctx.save_for_backward(q, k, v, gates, anchor, first, norm, active, restart, anchor_at, *saved)
    ctx.options = options
    ctx.set_materialize_grads(False)
    ctx.like = (y.shape, final.shape, final_anchor.shape)


def _backward_of_op(ctx: Any, d_y: Tensor | None, d_state: Tensor | None, d_anchor: Tensor | None, *_: None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing allows no second look
    q, anchor = saved[0], saved[4]
    d_y = q.new_zeros(ctx.like[0]) if d_y is None else d_y.contiguous()
    d_state = anchor.new_zeros(ctx.like[1]) if d_state is None else d_state.contiguous()
    d_anchor = anchor.new_zeros(ctx.like[2]) if d_anchor is None else d_anchor.contiguous()
    gradients = _backward(d_y, d_state, d_anchor, *saved, *ctx.options)
    return *gradients, *(None,) * 10


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)
