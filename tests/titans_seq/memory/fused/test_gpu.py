"""The fused form on a GPU, at sizes of real models: parity within a budget from data, and the same result every time."""

import dataclasses
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.limits import HANG

pytestmark = pytest.mark.gpu

TO_FIRST = {"forgetting_towards": "first_state"}
CASES = {
    "default": {},
    "wide": {"width": 128, "heads": 2},
    "narrow": {"width": 32, "expansion": 2},
    "linear": {"depth": 1},
    "bare-silu": {"norm": False, "residual": False, "activation": "silu", "surprise_clip": 1.0},
    "clip-state": {"surprise_clip": 1.0, "with_state": True},
    "padded-documents": {"with_state": True, "ragged": True, "boundaries": True},
    "chunk-64": {"chunk_size": 64, "length": 600},
    "chunk-5": {"chunk_size": 5, "length": 63},
    "to-first": TO_FIRST,
    "to-first-narrow": {"width": 32, "expansion": 2, "surprise_clip": 1.0, **TO_FIRST},
    "to-first-linear": {"depth": 1, **TO_FIRST},
    "to-first-padded-documents": {"with_state": True, "ragged": True, "boundaries": True, **TO_FIRST},
}


class Rounded(TorchDispatchMode):
    """Rounds the operands of every matrix product, as a plain low-precision model does."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            args = tuple(x.to(self.dtype).to(x.dtype) for x in args)
        return func(*args, **(kwargs or {}))


def moved(case: Any, dtype: torch.dtype, streams: torch.dtype) -> Any:
    """The case as leaves on the GPU: q, k, v in `streams`, all else in `dtype`."""

    def leaf(x: Tensor, to: torch.dtype = dtype) -> Tensor:
        return x.detach().to("cuda", to).requires_grad_()

    weights = case.weights
    norm = {} if weights.norm_scale is None else {"norm_scale": leaf(weights.norm_scale), "norm_shift": leaf(weights.norm_shift)}
    weights = dataclasses.replace(weights, layers=[*map(leaf, weights.layers)], **norm)
    gates = [type(layer)(*map(leaf, layer)) for layer in case.gates]
    options = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in case.options.items()}
    state = case.state
    if state is not None:
        parts = [tuple(map(leaf, part)) for part in (state.weights, state.momentum, state.anchor)]
        state = type(state)(*parts, state.position.cuda(), state.chunk_size, state.beside_first)
    q, k, v = (leaf(x, streams) for x in (case.q, case.k, case.v))
    return type(case)(q, k, v, gates, weights, options, state)


def results(case: Any, impl: str) -> dict[str, Tensor]:
    """Output, final state, and the gradients of every leaf, by name."""
    y, state = case.run(impl)
    found = [y, *state.weights, *state.momentum, *state.anchor]
    generator = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x)).sum() for x in found)
    leaves = case.leaves()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {f"result {i}": x.detach() for i, x in enumerate(found)} | dict(zip(leaves, gradients, strict=True))


def small_steps(make_case: Any, options: dict) -> Any:
    """A stable stream: steps for the mean of squares, long memory."""
    case = make_case(**{"heads": 4, "length": 100, "width": 64, "expansion": 4, "chunk_size": 16} | options)
    with torch.no_grad():
        for layer in case.gates:
            layer.theta.div_(case.q.shape[-1])
    return case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_error_budget(make_case: Any, options: dict, dtype: torch.dtype) -> None:
    """Error against float64 <= 2 x (error of the plain form with products in this precision + one rounding), in norm."""
    case = small_steps(make_case, options)
    streams = [x.to(dtype) for x in (case.q, case.k, case.v)]
    case = type(case)(*streams, case.gates, case.weights, case.options, case.state)
    exact = results(moved(case, torch.float64, torch.float64), "chunkwise")  # equal to the reference to 1e-9, and fast enough
    with Rounded(dtype):
        plain = results(moved(case, torch.float32, torch.float32), "chunkwise")
    ours = results(moved(case, torch.float32, dtype), "fused")
    for name, value in exact.items():
        errors = [(x[name].double() - value).norm() for x in (plain, ours)]
        rounding = torch.finfo(dtype).eps * value.norm()
        assert errors[1] <= 2 * (errors[0] + rounding), f"{name}: {errors[1]:.2e}, plain {errors[0]:.2e}, rounding {rounding:.2e}"


@pytest.mark.parametrize("options", [{}, {"width": 32, "expansion": 2}, {"depth": 1}, TO_FIRST, {"depth": 1, **TO_FIRST}], ids=str)
def test_the_same_result_over_fifty_runs(make_case: Any, options: dict) -> None:
    """Bit for bit: a race between the threads of a program would show."""
    case = moved(small_steps(make_case, {"length": 300, "surprise_clip": 1.0} | options), torch.float32, torch.bfloat16)
    expected = results(case, "fused")
    for _ in range(50):
        for name, value in results(case, "fused").items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on PATH")
    script = """
import torch
from titans_seq.memory import Gates, MemoryWeights, neural_memory
q, k, v = (torch.randn(1, 1, 40, 64, device="cuda", requires_grad=True) for _ in range(3))
gates = [Gates(*(torch.rand(1, 1, 40, device="cuda") * 0.01 for _ in range(3))) for _ in range(2)]
weights = MemoryWeights(layers=[torch.randn(1, 64, 256, device="cuda") / 8, torch.randn(1, 256, 64, device="cuda") / 16])
neural_memory(q, k, v, gates, weights, impl="fused")[0].sum().backward()
"""
    command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stdout + result.stderr
