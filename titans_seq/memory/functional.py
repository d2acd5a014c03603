"""`neural_memory`: the operator by itself. Checks its arguments once, casts to the state's precision, and calls one of the forms."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from titans_seq.config import ACTIVATIONS, FORGETTING_TOWARDS, GRADIENTS, LARGEST
from titans_seq.memory import fused, native
from titans_seq.memory.chunkwise import chunkwise_memory
from titans_seq.memory.recurrent import recurrent_memory
from titans_seq.memory.reference import reference_memory
from titans_seq.memory.rule import memory_network
from titans_seq.memory.state import Gates, MemoryState, MemoryWeights

IMPLEMENTATIONS = ("auto", "chunkwise", "fused", "recurrent", "reference")


def neural_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Gates],
    weights: MemoryWeights,
    state: MemoryState | None = None,
    chunk_size: int = 16,
    impl: str = "auto",
    *,
    gradient: str = "chunk",
    surprise_clip: float | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, MemoryState]:
    """Read and write a neural long-term memory along a sequence (arXiv 2501.00663, section 3.1, equations 9 to 15).

    For every token t, with ell(M; k, v) = || M(k) - v ||^2 and t' the last token of the previous chunk:

        S_t = eta_t S_{t-1} - theta_t grad ell(M_{t'}; k_t, v_t)
        M_t = (1 - alpha_t) M_{t-1} + S_t        (+ alpha_t M_0 where forgetting draws to the first state)
        y_t = M_t(q_t)

    B batch, H heads, T tokens, D head width, L memory layers.

    Args:
        q, k, v: (B, H, T, D), floating point of one dtype. Computation and state are at least float32.
        gates: one `Gates(alpha, eta, theta)` per memory layer, each (B, H, T); alpha also (B, H, T, d_in of that layer).
        weights: the memory network; its layers are the first state W^0.
        state: of the stream so far (from an earlier call); None begins a stream. A stream may be cut anywhere.
        chunk_size: C >= 1. Another C is another function, except for gradient="token": use the same in training and evaluation.
        impl: "reference" (token by token, autograd; the oracle), "chunkwise" (the dual form in plain torch), "fused" (the same as one
            kernel: in Triton on NVIDIA GPUs, where products of bf16 inputs are taken in bf16, of fp16 in tf32; in C++ on CPUs, compiled
            when first used), "recurrent" (token by token, closed form, for decoding), or "auto", which asks `choose_implementation`. A
            named form never falls back to another. chunkwise and fused have a first derivative alone, by reverse mode; for others, and
            under torch.func, take recurrent.
        gradient: "chunk" takes gradients at the chunk's first state, as the paper; "token" at the freshest state M_{t-1}, for the linear
            memory (L = 1) without norm only.
        surprise_clip: largest Frobenius norm of a token's gradient, per layer and head; None for no clip.
        mask: (B, T) bool; a token that is False neither writes, decays nor advances the memory, and reads zero.
        reset: (B, T) bool; before a token that is True the memory is set back to W^0 (a document begins), also if it is masked.
            The number of chunks then depends on the data, so chunkwise with `reset` does not compile as one graph.

    Returns:
        y (B, H, T, D) in q's dtype, and the state after the last token (float32, or float64 for float64 inputs).

    Raises:
        ValueError: a shape, dtype or option does not fit; the message names the expected and the given.
    """
    _check(q, k, v, gates, weights, state, chunk_size, impl, gradient, surprise_clip, mask, reset)
    dtype = torch.promote_types(q.dtype, torch.float32)
    output_dtype = q.dtype
    if impl == "auto":
        impl = choose_implementation(q, gates, weights, chunk_size, gradient).impl
    in_triton = impl == "fused" and not _on_cpu(q)
    with torch.autocast(q.device.type, enabled=False):
        if not in_triton:  # Triton's kernels load low precision themselves
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        gates = [Gates(*(gate.to(dtype) for gate in layer)) for layer in gates]
        if mask is not None:  # what stands in a masked place, NaN included, must not reach values or gradients
            q, k, v = (torch.where(mask[:, None, :, None], x, 0) for x in (q, k, v))
            gates = [Gates(*(torch.where(_like(mask, gate), gate, 0) for gate in layer)) for layer in gates]
        weights = _cast(weights, dtype)
        state = None if state is None else state.to(dtype)
        options = {"gradient": gradient, "surprise_clip": surprise_clip, "mask": mask, "reset": reset}
        if impl in ("chunkwise", "fused"):
            form = chunkwise_memory if impl == "chunkwise" else fused.fused_memory if in_triton else native.native_memory
            y, state = form(q, k, v, gates, weights, state, chunk_size=chunk_size, **options)  # type: ignore[arg-type]
        else:
            token_by_token = reference_memory if impl == "reference" else recurrent_memory
            state = state or MemoryState.initial(weights, q.shape[0], chunk_size)
            y, state = token_by_token(q, k, v, gates, weights, state, **options)  # type: ignore[arg-type]
    return y.to(output_dtype), state


class Implementation(NamedTuple):
    """A form of the operator, and in a sentence why it was chosen."""

    impl: str
    reason: str


def choose_implementation(
    q: Tensor, gates: Sequence[Gates], weights: MemoryWeights, chunk_size: int = 16, gradient: str = "chunk"
) -> Implementation:
    """The form that `impl="auto"` runs for these arguments of `neural_memory`, and why."""
    if q.shape[2] == 1:
        return Implementation("recurrent", "A single token is one step, and needs no chunk.")
    if q.device.type == "cpu" and not _on_cpu(q):
        return Implementation("chunkwise", "TRITON_INTERPRET=1 interprets the fused form on CPU, which is slow.")
    kernels = native if _on_cpu(q) else fused
    problem = kernels.unsupported(q, gates, weights, chunk_size, gradient) or kernels.unavailable(q)
    if problem is not None:
        return Implementation("chunkwise", f"The fused form {problem}.")
    where, kind = ("a CPU", "compiled C++") if _on_cpu(q) else ("an NVIDIA GPU", "Triton")
    return Implementation("fused", f"The tensors are on {where}, and the {kind} kernels do all that is asked.")


def _on_cpu(q: Tensor) -> bool:
    """Whether the fused form of q is the one in C++; Triton's is for GPUs, and on CPU only where it is interpreted."""
    return q.device.type == "cpu" and not fused.interpreting()


def read_memory(q: Tensor, weights: MemoryWeights, layers: Sequence[Tensor] | None = None) -> Tensor:
    """y = M(q) from one state of the memory, without writing: q (B, H, T, D) -> (B, H, T, D) in q's dtype.

    layers: (B, H, d_in, d_out) each, as `MemoryState.weights`; None reads the first state W^0.

    Raises:
        ValueError: the shapes do not fit.
    """
    if q.dim() != 4:
        raise ValueError(f"q must be (B, H, T, D), got {_shape(q)}")
    _check_weights(q, weights, "chunk")
    if layers is not None:
        _check_layers(q, layers, weights)
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        weights = _cast(weights, dtype)
        current = weights.layers if layers is None else weights.at([W.to(dtype) for W in layers])
        return memory_network(q.to(dtype), weights, lambda l, x: x @ current[l]).to(q.dtype)


def _like(mask: Tensor, gate: Tensor) -> Tensor:
    """mask (B, T) with the dimensions of a gate (B, H, T) or (B, H, T, d_in)."""
    return mask.view(mask.shape[0], 1, mask.shape[1], *[1] * (gate.dim() - 3))


def _cast(weights: MemoryWeights, dtype: torch.dtype) -> MemoryWeights:
    norm = [None if x is None else x.to(dtype) for x in (weights.norm_scale, weights.norm_shift)]
    return MemoryWeights(
        layers=[W.to(dtype) for W in weights.layers],
        norm_scale=norm[0],
        norm_shift=norm[1],
        activation=weights.activation,
        residual=weights.residual,
        forgetting_towards=weights.forgetting_towards,
    )


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Gates],
    weights: MemoryWeights,
    state: MemoryState | None,
    chunk_size: int,
    impl: str,
    gradient: str,
    surprise_clip: float | None,
    mask: Tensor | None,
    reset: Tensor | None,
) -> None:
    _one_of("impl", impl, IMPLEMENTATIONS)
    _one_of("gradient", gradient, GRADIENTS)
    if q.dim() != 4:
        raise ValueError(f"q must be (B, H, T, D), got {_shape(q)}")
    if not q.is_floating_point():
        raise ValueError(f"q, k, v must be floating point, got {q.dtype}")
    for name, x in (("k", k), ("v", v)):
        _same_shape(name, x, q.shape)
        if x.dtype != q.dtype:
            raise ValueError(f"{name} must have q's dtype {q.dtype}, got {x.dtype}")
    if q.shape[2] == 0:
        raise ValueError("the sequence is empty: T must be at least 1")
    if not isinstance(chunk_size, int) or chunk_size > LARGEST:
        raise ValueError(f"chunk_size must be an integer up to {LARGEST}, got {chunk_size!r:.40}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if surprise_clip is not None and not 0 < surprise_clip < math.inf:
        raise ValueError(f"surprise_clip must be positive and finite, or None, got {surprise_clip}")
    for name, marks in (("mask", mask), ("reset", reset)):
        if marks is not None:
            _same_shape(name, marks, (q.shape[0], q.shape[2]))
            if marks.dtype != torch.bool:
                raise ValueError(f"{name} must be bool, got {marks.dtype}")
    _check_weights(q, weights, gradient)
    _check_gates(q, gates, weights)
    if gradient == "token" and weights.rest:
        raise ValueError("gradient='token' forgets towards zero alone: forgetting_towards='first_state' needs gradient='chunk'")
    if gradient == "token" and surprise_clip is not None:
        raise ValueError("gradient='token' solves a linear system over the chunk; surprise_clip must be None")
    if impl == "reference" and torch.is_inference_mode_enabled():
        raise ValueError("impl='reference' differentiates with autograd, which inference_mode forbids; use 'chunkwise' or 'recurrent'")
    if state is not None:
        _check_state(q, state, weights, chunk_size)


def _check_weights(q: Tensor, weights: MemoryWeights, gradient: str) -> None:
    heads, width = q.shape[1], q.shape[3]
    _one_of("activation", weights.activation, ACTIVATIONS)
    _one_of("forgetting_towards", weights.forgetting_towards, FORGETTING_TOWARDS)
    if len(weights.layers) == 0:
        raise ValueError("weights.layers is empty: the memory needs at least one layer")
    d_in = width
    for l, W in enumerate(weights.layers):
        last = l + 1 == len(weights.layers)
        if W.dim() != 3 or W.shape[0] != heads or W.shape[1] != d_in or (last and W.shape[2] != width):
            raise ValueError(f"weights.layers[{l}] must be (H={heads}, {d_in}, {width if last else 'any'}), got {_shape(W)}")
        _floating(f"weights.layers[{l}]", W)
        d_in = W.shape[2]
    if (weights.norm_scale is None) != (weights.norm_shift is None):
        raise ValueError("weights.norm_scale and weights.norm_shift: give both or neither")
    for name, x in (("norm_scale", weights.norm_scale), ("norm_shift", weights.norm_shift)):
        if x is not None:
            _same_shape(f"weights.{name}", x, (heads, width))
            _floating(f"weights.{name}", x)
    if gradient == "token" and (len(weights.layers) > 1 or weights.norm_scale is not None):
        raise ValueError("gradient='token' is for the linear memory: one layer, no norm. Use gradient='chunk' for others")


def _check_gates(q: Tensor, gates: Sequence[Gates], weights: MemoryWeights) -> None:
    if len(gates) != len(weights.layers):
        raise ValueError(f"gates: one Gates per memory layer, expected {len(weights.layers)}, got {len(gates)}")
    for l, layer in enumerate(gates):
        _same_shape(f"gates[{l}].eta", layer.eta, q.shape[:3])
        _same_shape(f"gates[{l}].theta", layer.theta, q.shape[:3])
        if layer.alpha.dim() == 4:
            _same_shape(f"gates[{l}].alpha", layer.alpha, (*q.shape[:3], weights.layers[l].shape[1]))
        else:
            _same_shape(f"gates[{l}].alpha", layer.alpha, q.shape[:3])
        for name, gate in layer._asdict().items():
            _floating(f"gates[{l}].{name}", gate)


def _check_state(q: Tensor, state: MemoryState, weights: MemoryWeights, chunk_size: int) -> None:
    if state.chunk_size != chunk_size:
        raise ValueError(f"state was made with chunk_size={state.chunk_size}, this call has chunk_size={chunk_size}")
    if state.beside_first != (len(weights.rest) > 0):
        made = "first_state" if state.beside_first else "zero"
        raise ValueError(f"state was made with forgetting_towards={made!r}, this memory has {weights.forgetting_towards!r}")
    for name in ("weights", "momentum", "anchor"):
        _check_layers(q, getattr(state, name), weights, name)
    _same_shape("state.position", state.position, (q.shape[0],))
    if state.position.dtype != torch.int64:
        raise ValueError(f"state.position must be int64, got {state.position.dtype}")
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled() and any(x.is_inference() for x in state.tensors()):
        raise ValueError("state was made under torch.inference_mode, and autograd cannot use it; go on with state.clone()")
    on_cpu = state.position.device.type == "cpu"  # elsewhere looking would wait for the device
    if on_cpu and not bool(((state.position >= 0) & (state.position < chunk_size)).all()):
        raise ValueError(f"state.position must be in [0, {chunk_size}), got {state.position.tolist()}")


def _check_layers(q: Tensor, layers: Sequence[Tensor], weights: MemoryWeights, name: str = "weights") -> None:
    expected = [(q.shape[0], *W.shape) for W in weights.layers]
    given = [tuple(W.shape) for W in layers]
    if expected != given:
        raise ValueError(f"state holds {name} of shapes {given}, this batch and memory need {expected}")
    for l, W in enumerate(layers):
        _floating(f"state.{name}[{l}]", W)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _same_shape(name: str, x: Tensor, expected: Sequence[int]) -> None:
    if tuple(x.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)}, got {_shape(x)}")


def _floating(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {x.dtype}")


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
