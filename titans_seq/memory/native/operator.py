"""The native kernels as operators: tensors to pointers, and what the kernels do not do."""

import ctypes
from collections.abc import Iterable, Sequence
from ctypes import POINTER, byref, c_double, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from titans_seq.config import ACTIVATIONS
from titans_seq.memory import chunks
from titans_seq.memory.chunks import Arguments, backward_shapes, define_chunk_operators, forward_shapes, memory_over_chunks
from titans_seq.memory.native import library
from titans_seq.memory.state import Gates, MemoryState, MemoryWeights

SMALLEST_SHARE = 2_000_000  # operations of a thread: starting one takes as long as some of these


def native_memory(q: Tensor, k: Tensor, v: Tensor, gates: Sequence[Gates], *arguments: Any, **options: Any) -> tuple[Tensor, MemoryState]:
    """Arguments and result as `neural_memory`.

    Raises:
        ValueError: the kernels do not do this, or cannot be had here; the message says what is missing, and which form does it.
    """
    problem = unsupported(q, gates, arguments[0], options["chunk_size"], options["gradient"]) or unavailable(q)
    if problem is not None:
        raise ValueError(f"impl='fused' {problem}. Use impl='chunkwise'")
    return memory_over_chunks(native_chunks, "fused", q, k, v, gates, *arguments, **options)


def unsupported(q: Tensor, gates: Sequence[Gates], weights: MemoryWeights, chunk_size: int, gradient: str) -> str | None:
    """What of these arguments the kernels do not do, in words; None if they do all."""
    if gradient != "chunk":
        return f"takes gradients once a chunk, got gradient={gradient!r}"
    if any(gate.alpha.dim() > gate.eta.dim() for gate in gates):
        return "supports forgetting per head, got alpha per channel"
    return None


def _problem(number: str) -> str | None:
    return library.problem(number)


# What torch.compiler.assume_constant_result does, which imports the compiler for a process that does not need it.
_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]


def unavailable(q: Tensor) -> str | None:
    """Why the kernels cannot run here on q, in words; None if they can. The first call compiles them, in a few seconds."""
    if q.device.type != "cpu":
        return f"needs a CPU, got a tensor on {q.device}"
    return _problem("double" if q.dtype == torch.float64 else "float")


SIZES = ("chunks", "rows", "cells", "depth", "segment", "threads", "activation", "norm")
FLAGS = ("active", "complete", "restart")
TENSORS = ("q", "k", "offset", "slope", *FLAGS, "z", "d_z", "d_q", "d_k", "d_offset", "d_slope")
LAYERS = ("alpha", "eta", "theta", "W", "S", "anchor", "first", "rest")
AFTER = ("W_after", "S_after", "anchor_after", "kept_W", "kept_S", "kept_anchor", "d_W_after", "d_S_after", "d_anchor_after")
LISTS = (*LAYERS, *AFTER, *(f"d_{name}" for name in LAYERS))  # a tensor a layer each


class Call(ctypes.Structure):
    """`titans::Arguments` of arguments.h."""

    _fields_ = (
        *((name, c_int64) for name in SIZES),
        ("clip", c_double),
        ("widths", POINTER(c_int64)),
        *((name, c_void_p) for name in TENSORS),
        *((name, POINTER(c_void_p)) for name in LISTS),
    )


def _forward(*arguments: Any) -> list[Tensor]:
    a, results = Arguments(*arguments[:-1]), forward_shapes(*arguments)
    z, parts = results[0], _by_layer(results[1:], len(a.W))
    names = ["W_after", "S_after", *(["anchor_after"] if a.ends_inside else []), "kept_W", "kept_S", "kept_anchor"]
    _run("forward", a, z=z, **dict(zip(names, parts, strict=False)))
    return results


def _backward(*arguments: Any) -> list[Tensor]:
    a, kept, d_after = Arguments(*arguments[:-2]), arguments[-2], arguments[-1]
    layers = len(a.W)
    given = dict(zip(("kept_W", "kept_S", "kept_anchor"), _by_layer(kept, layers), strict=False))
    given |= dict(zip(("d_W_after", "d_S_after", "d_anchor_after"), _by_layer(d_after[1:], layers), strict=False))
    results = backward_shapes(*arguments)
    d_q, d_k, d_offset, d_slope, *rest = results
    names = [
        "d_alpha",
        "d_eta",
        "d_theta",
        "d_W",
        "d_S",
        *(["d_anchor"] if a.anchor else []),
        *(["d_first"] if a.first else []),
        *(["d_rest"] if a.rest else []),
    ]
    tokens = {"d_z": d_after[0], "d_q": d_q, "d_k": d_k, "d_offset": d_offset, "d_slope": d_slope}
    _run("backward", a, **given, **tokens, **dict(zip(names, _by_layer(rest, layers), strict=True)))
    return results


def _by_layer(tensors: Sequence[Tensor], layers: int) -> list[Sequence[Tensor]]:
    """One part after another of a tensor a layer each."""
    return [tensors[i : i + layers] for i in range(0, len(tensors), layers)]


def _run(direction: str, a: Arguments, **more: Tensor | Sequence[Tensor]) -> None:
    """A pass over all chunks. Everything is contiguous but for the flags, which are brought to (N, R) and (N, R, C) here."""
    blocks, rows, cells, _ = a.q.shape
    complete = a.complete if a.complete is not None else torch.tensor(a.all_complete).unsqueeze(1)
    flags = {"complete": complete.expand(blocks, rows), "restart": a.restart}
    flags["active"] = None if a.active is None else a.active.bool().expand(blocks, rows, cells)
    given: dict[str, Any] = {name: flag.contiguous() for name, flag in flags.items() if flag is not None}
    given |= {name: value for name, value in a._asdict().items() if name in (*TENSORS, *LAYERS) and name not in FLAGS} | more
    widths = [a.q.shape[-1], *(W.shape[-1] for W in a.W)]
    call = Call(
        chunks=blocks,
        rows=rows,
        cells=cells,
        depth=len(a.W),
        segment=chunks.SEGMENT_CHUNKS,
        threads=_threads(a),
        activation=ACTIVATIONS.index(a.activation),
        norm=a.norm,
        clip=a.surprise_clip or 0.0,
        widths=(c_int64 * len(widths))(*widths),
    )
    for name, value in given.items():
        if name not in LISTS:
            setattr(call, name, value.data_ptr())
        elif len(value):
            setattr(call, name, _pointers(value))
    precision = {torch.float32: "float", torch.float64: "double"}[a.q.dtype]
    if getattr(library.library(precision), f"titans_{direction}")(byref(call)) != 0:
        raise MemoryError(f"the {direction} pass of the memory could not get its working memory")


def _pointers(tensors: Iterable[Tensor]) -> Any:
    addresses = [x.data_ptr() for x in tensors]
    return (c_void_p * len(addresses))(*addresses)


def _threads(a: Arguments) -> int:
    """As many as torch has, fewer where there is little to do."""
    tokens = a.q.shape[:3].numel()
    operations = 22 * tokens * sum(W.shape[-1] * W.shape[-2] for W in a.W)
    return max(1, min(torch.get_num_threads(), operations // SMALLEST_SHARE))


native_chunks, native_chunks_backward = define_chunk_operators("fused", "native_memory", _forward, _backward)
