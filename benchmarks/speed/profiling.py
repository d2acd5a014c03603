"""Where the time of the chunkwise operator goes: torch's profiler, self CPU time by kind of operation."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.cells import BACKWARD, FORWARD, Cell, Limits
from benchmarks.speed.measure import run_once
from benchmarks.speed.report import Report
from benchmarks.speed.subjects import make_call

PRODUCTS, ACTIVATION, NORM, ELEMENTWISE, COPIES = "matrix products", "activation", "norm and sums", "elementwise", "copies and memory"
PYTHON = "python, dispatch, autograd"
GROUPS = {
    PRODUCTS: ("mm bmm addmm baddbmm addbmm matmul linear dot einsum linalg_solve_triangular",),
    ACTIVATION: ("gelu silu sigmoid gelu_backward silu_backward sigmoid_backward erf tanh exp",),
    NORM: (
        "layer_norm native_layer_norm native_layer_norm_backward rms_norm rsqrt mean sum var var_mean norm",
        "linalg_vector_norm cumsum cumprod amax max",
    ),
    COPIES: (
        "copy_ clone cat stack contiguous fill_ zero_ zeros zeros_like empty empty_like to _to_copy empty_strided new_zeros new_empty",
        "ones ones_like constant_pad_nd pad index index_select gather resize_ new_empty_strided slice_backward select_backward",
        "expand_copy tril triu new_full full full_like",
    ),
    PYTHON: (
        "view reshape transpose permute expand select slice unsqueeze squeeze unbind split narrow unfold as_strided _unsafe_view t",
        "flatten unflatten detach chunk _reshape_alias alias mT numpy_T movedim expand_as view_as result_type item",
        "_local_scalar_dense is_nonzero lift_fresh",
    ),
}
KIND = {f"aten::{name}": group for group, lines in GROUPS.items() for line in lines for name in line.split()}


def kind(name: str) -> str:
    """The group of a profiled operation; views and autograd's nodes compute nothing, what is left is elementwise."""
    found = KIND.get(name) or KIND.get(name.rstrip("_"))  # baddbmm_ is baddbmm in place
    return found or (ELEMENTWISE if name.startswith("aten::") else PYTHON)


def profile_cell(cell: Cell, limits: Limits) -> Report:
    """One profiled run after three timed ones, in this process. The profiler itself slows small operations down: both times are given."""
    torch.set_num_threads(limits.threads)
    call, backward = make_call(cell), cell.mode != FORWARD
    run_once(call, backward)
    seconds = statistics.median(run_once(call, backward)[0] for _ in range(3))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        begin = time.perf_counter()
        run_once(call, backward)
        wall = time.perf_counter() - begin
    groups: Counter[str] = Counter()
    names: Counter[str] = Counter()
    calls = 0
    for event in found.key_averages():
        groups[kind(event.key)] += event.self_cpu_time_total / 1e6
        names[event.key] += event.self_cpu_time_total / 1e6
        calls += event.count if event.key.startswith("aten::") else 0
    groups[PYTHON] += max(0.0, wall - sum(groups.values()))
    return {
        "label": cell.label,
        "mode": cell.mode,
        "tokens": cell.tokens,
        "seconds": seconds,
        "profiled_seconds": wall,
        "operations_called": calls,
        "groups": dict(groups.most_common()),
        "largest": dict(names.most_common(15)),
    }


def profile_operator(limits: Limits, tokens: int = 4096, sizes: Sequence[tuple[int, int]] = ((4, 16), (4, 64))) -> Report:
    """Forward, and forward + backward, of the chunkwise form at each (expansion, chunk size)."""
    cells = [Cell("chunkwise", mode, tokens, expansion=E, chunk_size=C) for E, C in sizes for mode in (FORWARD, BACKWARD)]
    return {"threads": limits.threads, "runs": [profile_cell(cell, limits) for cell in cells]}
