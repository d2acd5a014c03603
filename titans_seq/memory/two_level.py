"""The two-level memory of TNT (arXiv 2511.07343): a global memory along the whole stream, local memories that begin anew at every shard.

Local memories carry nothing from shard to shard, so the shards of a sequence are rows of one batch (shards.py): their sequential steps are
those of one shard. docs/rule.md has the equations and what they cost.

Shapes: B batch, H heads, T tokens, D head width, S tokens of a shard, n shards.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_seq.memory.functional import _check, neural_memory, read_memory
from titans_seq.memory.shards import Shards, cut_into_shards
from titans_seq.memory.state import Gates, LocalMemory, MemoryState, MemoryWeights, TwoLevelState
from titans_seq.memory.two_level_reference import PROJECTION_EPS, two_level_reference

PROJECTION_CHUNK = 64


def two_level_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Gates],
    weights: MemoryWeights,
    local: Sequence[LocalMemory],
    state: TwoLevelState | None = None,
    chunk_size: int = 2048,
    shard_length: int = 2048,
    impl: str = "auto",
    *,
    query_projection: bool = True,
    gradient: str = "chunk",
    surprise_clip: float | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, TwoLevelState]:
    """Read and write a global memory V and local memories W_1 .. W_N along a sequence (arXiv 2511.07343, equations 5 to 7).

    Each memory follows the rule of `neural_memory`, with its own gates, first state and chunk length, and the same k and v. Before token
    t = 0 mod S every local memory is set back to its first state and its momentum to zero; t counts the tokens of a row's document. With
    M_t the sum of ``k k^T / |k|^2`` over the shard's keys up to k_t:

        y_t = V_t(q_t) + sum_i W_{i,t}(M_t q_t)

    Different from the paper:
        - It reads V as of its last chunk boundary; here both levels read the state at each token, the one rule of this package.
        - Its equations have neither forgetting nor momentum; here every level has both (gates of 0 switch them off).
        - M_t q_t grows with the number of keys (to a length of S for keys that are all alike), far from the unit keys that a memory is
          written with. Its direction is kept and its length set back to that of q_t.
        - Equation 7 begins the sum at the local chunk, its text and appendix at the shard; here it is the shard, one M_t for all.

    Args:
        q, k, v: (B, H, T, D), floating point of one dtype. Computation and state are at least float32.
        gates, weights: of the global memory, as `neural_memory` takes them.
        local: gates, weights and chunk length of each local memory, at least one.
        state: of the stream so far; None begins a stream. A stream may be cut anywhere.
        chunk_size: C of the global memory.
        shard_length: S >= 1, tokens after which the local memories begin anew.
        impl: form of the operator, see `neural_memory`; "reference" goes token by token through both levels.
        query_projection: False reads the local memories with q_t itself.
        gradient, surprise_clip: as `neural_memory`, for every level.
        mask: (B, T) bool; a token that is False neither writes nor advances any memory nor its shard, and reads zero.
        reset: (B, T) bool; before a token that is True every memory is set back and a shard begins (a document begins), also if it is
            masked. The number of shards then depends on the data.

    Returns:
        y (B, H, T, D) in q's dtype, and the state after the last token (float32, or float64 for float64 inputs).

    Raises:
        ValueError: a shape, dtype or option does not fit; the message names the expected and the given.
    """
    options: dict[str, Any] = {"gradient": gradient, "surprise_clip": surprise_clip}
    marks: dict[str, Any] = {"mask": mask, "reset": reset}
    _check_levels(q, k, v, gates, weights, local, state, chunk_size, shard_length, impl, query_projection, **options, **marks)
    dtype, output_dtype = torch.promote_types(q.dtype, torch.float32), q.dtype
    if state is None and impl == "reference":
        sizes = [memory.chunk_size for memory in local]
        all_weights = [memory.weights for memory in local]
        state = TwoLevelState.initial(weights, all_weights, q.shape[0], chunk_size, sizes, shard_length, query_projection)
    state = None if state is None else state.to(dtype)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        if impl == "reference":
            assert state is not None
            if mask is not None:  # what stands in a masked place, NaN included, must not reach values or gradients
                q, k, v = (_at_tokens(x, mask) for x in (q, k, v))
                gates, local = _gates_at_tokens(gates, mask), [m._replace(gates=_gates_at_tokens(m.gates, mask)) for m in local]
            y, state = two_level_reference(q, k, v, gates, weights, local, state, **options, **marks)
            return y.to(output_dtype), state
        options["impl"] = impl
        y, shared = neural_memory(q, k, v, gates, weights, None if state is None else state.shared, chunk_size, **options, **marks)
        parts = cut_into_shards(q, shard_length, None if state is None else state.position, mask, reset)
        y_local, memories, projection = _local_memories(q, k, v, local, state, parts, query_projection, **options)
    return (y + y_local).to(output_dtype), TwoLevelState(shared, memories, projection, parts[-1].position, shard_length)


def read_two_level(q: Tensor, weights: MemoryWeights, local: Sequence[MemoryWeights], parts: Sequence[Tensor]) -> Tensor:
    """y = V(q) + sum_i W_i(M q) from one state, without writing: q (B, H, T, D) -> (B, H, T, D) in q's dtype.

    parts: as `TwoLevelState.parts`; without the projection, if its state has none.

    Raises:
        ValueError: the shapes or the number of parts do not fit.
    """
    depth = len(weights.layers)
    levels = depth * (1 + len(local))
    if len(parts) not in (levels, levels + 1):
        raise ValueError(f"parts: {depth} tensors for each of {1 + len(local)} memories and perhaps a projection, got {len(parts)}")
    y = read_memory(q, weights, parts[:depth])
    if len(parts) > levels:
        projection = parts[-1]
        with torch.autocast(q.device.type, enabled=False):
            q = _at_length_of(q.to(projection.dtype), q.to(projection.dtype) @ projection).to(q.dtype)
    for i, w in enumerate(local, start=1):
        y = y + read_memory(q, w, parts[i * depth : (i + 1) * depth])
    return y


def _local_memories(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    local: Sequence[LocalMemory],
    state: TwoLevelState | None,
    parts: Sequence[Shards],
    query_projection: bool,
    **options: Any,
) -> tuple[Tensor, tuple[MemoryState, ...], Tensor | None]:
    """Sum of the local reads (B, H, T, D), the local memories and the projection after the last token."""
    memories: Sequence[MemoryState | None] = [None] * len(local) if state is None else state.local
    firsts = [MemoryState.initial(m.weights, 1, m.chunk_size).to(q.dtype) for m in local]
    projection, no_keys = None if state is None else state.projection, q.new_zeros(1, q.shape[1], q.shape[3], q.shape[3])
    outputs = []
    for shards in parts:
        q_s, k_s, v_s = map(shards.place, (q, k, v))  # (B n, H, S, D)
        goes_on = shards.goes_on is not False
        if query_projection:
            carried = shards.before(projection, no_keys) if goes_on and projection is not None else None
            q_s, summed = _project(q_s, k_s, carried)
            projection = shards.after(summed, no_keys)
        y, after = torch.zeros_like(q_s), []
        for m, memory, first in zip(local, memories, firsts, strict=True):
            gates = [Gates(*map(shards.place, layer)) for layer in m.gates]
            begin = _each(shards.before, memory, first) if goes_on and memory is not None else None
            read, written = neural_memory(q_s, k_s, v_s, gates, m.weights, begin, m.chunk_size, mask=shards.filled, **options)
            y = y + read
            after.append(_each(shards.after, written, first))
        memories = after
        outputs.append(shards.collect(y))
    return torch.cat(outputs, dim=2), tuple(m for m in memories if m is not None), projection


def _each(function: Callable[[Tensor, Tensor], Tensor], state: MemoryState, first: MemoryState) -> MemoryState:
    """`function` of every tensor of a state and the same one of the first state."""
    firsts = iter(first.tensors())
    return state.map(lambda x: function(x, next(firsts)))


def _project(q: Tensor, k: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor]:
    """M_t q_t at the length of q_t, and M after the last token: causal linear attention, all chunks of it at once.

    q, k: (B, H, T, D). carried: M before the first token, (B, H, D, D), None for zero.
    """
    length, width = q.shape[2:]
    size = min(length, PROJECTION_CHUNK)
    padding = (0, 0, 0, -length % size)
    unit = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + PROJECTION_EPS)
    q_c, k_c = (F.pad(x, padding).unflatten(2, (-1, size)) for x in (q, unit))  # (B, H, N, C, D)
    own = k_c.transpose(-1, -2) @ k_c  # (B, H, N, D, D)
    if carried is None:
        carried = own.new_zeros(*own.shape[:2], width, width)
    through = torch.cat([carried.unsqueeze(2), own], dim=2).cumsum(2)  # M before each chunk, and after the last
    p = q_c @ through[:, :, :-1] + (q_c @ k_c.transpose(-1, -2)).tril() @ k_c
    return _at_length_of(q, p.flatten(2, 3)[:, :, :length]), through[:, :, -1]


def _at_length_of(q: Tensor, p: Tensor) -> Tensor:
    """p (.., D) scaled to the length of q (.., D); where both vanish the factor is 1, where p alone does the result is 0."""
    return p * ((q.square().sum(-1, keepdim=True) + PROJECTION_EPS) / (p.square().sum(-1, keepdim=True) + PROJECTION_EPS)).sqrt()


def _at_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """x (B, H, T, ..), zero where mask (B, T) is False."""
    return torch.where(mask.view(len(mask), 1, -1, *[1] * (x.dim() - 3)), x, 0)


def _gates_at_tokens(gates: Sequence[Gates], mask: Tensor) -> list[Gates]:
    return [Gates(*(_at_tokens(gate, mask) for gate in layer)) for layer in gates]


def _check_levels(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Gates],
    weights: MemoryWeights,
    local: Sequence[LocalMemory],
    state: TwoLevelState | None,
    chunk_size: int,
    shard_length: int,
    impl: str,
    query_projection: bool,
    gradient: str,
    surprise_clip: float | None,
    mask: Tensor | None,
    reset: Tensor | None,
) -> None:
    """Each level by the single-level checks, and what joins them."""
    if not local:
        raise ValueError("local: at least one local memory; for none use neural_memory")
    if shard_length < 1:
        raise ValueError(f"shard_length must be at least 1, got {shard_length}")
    states: Sequence[MemoryState | None] = [None] * len(local)
    if state is not None:
        if state.shard_length != shard_length:
            raise ValueError(f"state was made with shard_length={state.shard_length}, this call has shard_length={shard_length}")
        if len(state.local) != len(local):
            raise ValueError(f"state holds {len(state.local)} local memories, this call has {len(local)}")
        if (state.projection is not None) != query_projection:
            raise ValueError(f"state was made with query_projection={not query_projection}, this call has {query_projection}")
        states = state.local
    shared = None if state is None else state.shared
    _check(q, k, v, gates, weights, shared, chunk_size, impl, gradient, surprise_clip, mask, reset)
    if state is not None:
        _check_position(state.position, q.shape[0], shard_length)
    if state is not None and state.projection is not None:
        expected = (*q.shape[:2], q.shape[3], q.shape[3])
        if tuple(state.projection.shape) != expected or not state.projection.is_floating_point():
            given = f"{tuple(state.projection.shape)} {state.projection.dtype}"
            raise ValueError(f"state.projection must be {expected} and floating point, got {given}")
    for memory, memory_state in zip(local, states, strict=True):
        _check(q, k, v, memory.gates, memory.weights, memory_state, memory.chunk_size, impl, gradient, surprise_clip, mask, reset)


def _check_position(position: Tensor, batch: int, shard_length: int) -> None:
    if tuple(position.shape) != (batch,) or position.dtype != torch.int64:
        raise ValueError(f"state.position must be ({batch},) torch.int64, got {tuple(position.shape)} {position.dtype}")
    if torch.compiler.is_compiling() or position.device.type != "cpu":  # looking would break the graph, or wait for the device
        return
    if not bool(((position >= 0) & (position <= shard_length)).all()):
        raise ValueError(f"state.position must be in [0, {shard_length}], got {position.tolist()}")
