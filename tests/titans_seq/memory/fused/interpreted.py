"""The kernels' numbers, interpreted on CPU. `test_fused.py` runs this file in a process of its own, with TRITON_INTERPRET=1.

float64 against the reference; float32, bf16 and fp16 within a budget taken from data: at most twice the error that the plain form makes in
that precision, and one rounding. The interpreter models neither tensor cores nor races: those are for the tests marked `gpu`.
"""

import dataclasses
import os
from typing import Any

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("set TRITON_INTERPRET=1 to run this file")

from triton.runtime import interpreter

from titans_seq.memory import Gates, MemoryState, fused


def patch_once() -> None:
    """Triton 3.7 patches its language again at every call of one kernel function by another; once a launch is enough, and far faster."""
    launch, patched = interpreter.GridExecutor.__call__, set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = id(self.fn.__globals__)
        if module not in patched:
            patched.add(module)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    def fresh_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    interpreter.GridExecutor.__call__ = fresh_launch


patch_once()

TO_FIRST = {"forgetting_towards": "first_state"}
SMALL = {"batch": 1, "heads": 2, "length": 10, "width": 16, "expansion": 1, "chunk_size": 4}
CASES = {
    "L1-bare": {"depth": 1, "norm": False, "residual": False},
    "L1": {"depth": 1},
    "L1-clip-state": {"depth": 1, "surprise_clip": 0.5, "with_state": True, "activation": "silu"},
    "L2": {"heads": 1, "length": 37, "chunk_size": 16, "expansion": 2},
    "L2-bare-silu": {"norm": False, "residual": False, "activation": "silu"},
    "L2-no-residual-state": {"residual": False, "with_state": True},
    "L2-no-norm-clip": {"norm": False, "surprise_clip": 0.5},
    "L2-padded-state": {"batch": 2, "heads": 1, "with_state": True, "ragged": True},
    "L2-documents-clip": {"batch": 2, "heads": 1, "boundaries": True, "ragged": True, "with_state": True, "surprise_clip": 0.3},
    "L2-odd-sizes": {"heads": 1, "width": 12, "expansion": 3, "chunk_size": 5, "length": 13, "surprise_clip": 1.0},
    "L2-chunk-32": {"heads": 1, "chunk_size": 32, "length": 63, "surprise_clip": 1.0},
    "L1-to-first": {"heads": 1, "depth": 1, "momentum": False, "activation": "silu", **TO_FIRST},
    "L1-to-first-bare-state": {"heads": 1, "depth": 1, "norm": False, "residual": False, "with_state": True, **TO_FIRST},
    "L2-to-first-clip": {"surprise_clip": 0.5, **TO_FIRST},
    "L2-to-first-bare-documents": {
        **{"batch": 2, "heads": 1, "norm": False, "residual": False},
        **{"boundaries": True, "ragged": True, "with_state": True, **TO_FIRST},
    },
}
TILED = {
    "tiled": {"heads": 1, "width": 16, "expansion": 3, "with_state": True},
    "tiled-clip": {"heads": 1, "width": 16, "expansion": 3, "with_state": True, "surprise_clip": 0.5},
    "tiled-clip-to-first": {"heads": 1, "width": 16, "expansion": 3, "with_state": True, "surprise_clip": 0.5, **TO_FIRST},
}
SLOW = {
    "L1-chunk-64": {"depth": 1, "chunk_size": 64, "length": 70, "surprise_clip": 1.0, "with_state": True},
    "L2-chunk-64": {"chunk_size": 64, "length": 130, "surprise_clip": 1.0},
    "L2-wide": {"width": 32, "expansion": 4, "length": 70, "chunk_size": 16, "surprise_clip": 1.0},
    "L1-documents": {"batch": 3, "depth": 1, "length": 30, "boundaries": True, "ragged": True, "with_state": True},
    "L2-chunk-1": {"chunk_size": 1, "length": 5, "with_state": True},
    "L1-to-first-documents": {"batch": 3, "depth": 1, "length": 30, "boundaries": True, "ragged": True, **TO_FIRST},
    "L2-to-first": {"batch": 2, "length": 19, "width": 12, "expansion": 3, "with_state": True, "surprise_clip": 1.0, **TO_FIRST},
}


def tensors(y: Tensor, state: MemoryState) -> list[Tensor]:
    return [y, *state.weights, *state.momentum, *state.anchor]


def results(case: Any, impl: str, cut: int | None = None) -> dict[str, Tensor]:
    """Output, final state, and the gradients of every leaf, by name; of two calls, if the stream is cut before a token."""
    y, state = case.piece(0, cut).run(impl)
    if cut is not None:
        y_after, state = case.piece(cut, None).run(impl, state=state)
        y = torch.cat([y, y_after], dim=2)
    found = tensors(y, state)
    generator = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype)).sum() for x in found)
    leaves = case.leaves()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    named = {f"result {i}": x.detach() for i, x in enumerate(found)} | dict(zip(leaves, gradients, strict=True))
    return named | {"position": state.position.double()}


def check(case: Any, cut: int | None = None) -> None:
    """Equal to the reference, in one call, in float64, relative to the largest number of each tensor."""
    expected, actual = results(case, "reference"), results(case, "fused", cut)
    for name, value in expected.items():
        error = (actual[name] - value).abs().max() / value.abs().max().clamp(min=1)
        assert error < 1e-9, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_equals_reference_with_gradients(make_case: Any, options: dict) -> None:
    check(make_case(requires_grad=True, **SMALL | options))


@pytest.mark.slow
@pytest.mark.parametrize("options", SLOW.values(), ids=SLOW.keys())
def test_more_equals_reference_with_gradients(make_case: Any, options: dict) -> None:
    check(make_case(requires_grad=True, **SMALL | options))


@pytest.mark.parametrize("options", TILED.values(), ids=TILED.keys())
def test_hidden_width_in_tiles(make_case: Any, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state in global memory and the hidden width, 48, in three tiles."""
    monkeypatch.setattr(fused, "TILE", 16)
    monkeypatch.setattr(fused, "ON_CHIP", 0)
    check(make_case(requires_grad=True, **SMALL | options))


@pytest.mark.parametrize("options", [{}, TO_FIRST], ids=str)
def test_a_boundary_on_the_last_masked_token_resets(make_case: Any, options: dict) -> None:
    marks = {"mask": torch.tensor([[True, True, False]]), "reset": torch.tensor([[False, False, True]])}
    check(make_case(requires_grad=True, **SMALL | {"heads": 1, "depth": 1, "length": 3} | marks | options))


def test_two_calls_are_one(make_case: Any) -> None:
    """A stream that is cut inside a chunk, whose state stands beside W^0."""
    check(make_case(requires_grad=True, **SMALL | {"heads": 1} | TO_FIRST), cut=6)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_gates_of_exactly_zero_and_one(make_case: Any, gate: float) -> None:
    case = make_case(requires_grad=True, **SMALL | {"heads": 1})
    with torch.no_grad():
        case.gates[0].alpha.fill_(gate)
        case.gates[0].eta[:, :, ::2] = gate
        case.gates[1].alpha[:, :, 1::3] = gate
        case.gates[1].eta.fill_(gate)
        case.gates[1].theta[:, :, 3] = 0.0
    check(case)


def converted(case: Any, dtype: torch.dtype) -> Any:
    """The case with every tensor as a leaf of another dtype."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().to(dtype).requires_grad_()

    weights = dataclasses.replace(
        case.weights,
        layers=[leaf(W) for W in case.weights.layers],
        norm_scale=leaf(case.weights.norm_scale),
        norm_shift=leaf(case.weights.norm_shift),
    )
    gates = [Gates(*map(leaf, layer)) for layer in case.gates]
    return type(case)(leaf(case.q), leaf(case.k), leaf(case.v), gates, weights, case.options)


@pytest.mark.parametrize(
    ("dtype", "options"), [(torch.float32, {}), (torch.bfloat16, {}), (torch.float16, {}), (torch.bfloat16, TO_FIRST)], ids=str
)
def test_error_budget(make_case: Any, dtype: torch.dtype, options: dict) -> None:
    case = make_case(requires_grad=True, dtype=dtype, **SMALL | {"length": 20} | options)
    exact = results(converted(case, torch.float64), "reference")
    plain, ours = results(case, "chunkwise"), results(case, "fused")
    for name, value in exact.items():
        errors = [(x[name].double() - value).norm() for x in (plain, ours)]
        rounding = torch.finfo(ours[name].dtype).eps * value.norm()
        assert errors[1] <= 3 * (errors[0] + rounding), f"{name}: {errors[1]:.2e}, plain {errors[0]:.2e}, rounding {rounding:.2e}"


def test_learns_under_inference_mode(make_case: Any) -> None:
    case = make_case(**SMALL)
    expected = case.run("fused")[0]
    with torch.inference_mode():
        assert torch.equal(case.run("fused")[0], expected)


def test_unwritten_memory_is_not_read(make_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every new tensor full of NaN the results stay the same."""
    case = make_case(requires_grad=True, **SMALL | {"surprise_clip": 0.5, "with_state": True})
    expected = results(case, "fused")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        actual = results(case, "fused")
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("options", [{}, {"with_state": True, "ragged": True, **TO_FIRST}], ids=str)
def test_compiles_as_one_graph(make_case: Any, options: dict) -> None:
    case = make_case(requires_grad=True, **SMALL | options)
    compiled = torch.compile(lambda: case.run("fused"), fullgraph=True, backend="aot_eager", dynamic=not options)
    (y, state), (y_eager, state_eager) = compiled(), case.run("fused")
    torch.testing.assert_close(y, y_eager)
    torch.testing.assert_close(state.momentum, state_eager.momentum)
    gradients = [torch.autograd.grad(x.sum(), (case.q, case.gates[0].alpha)) for x in (y, y_eager)]
    torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


def test_activation_checkpointing(make_case: Any) -> None:
    case = make_case(requires_grad=True, **SMALL)
    y = torch.utils.checkpoint.checkpoint(lambda: case.run("fused")[0], use_reentrant=False)
    gradients = [torch.autograd.grad(x.sum(), (case.q, case.weights.layers[0])) for x in (y, case.run("fused")[0])]
    torch.testing.assert_close(*gradients)


def test_ops_are_well_formed(make_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema, fake results, and tracing of both ops, with the arguments of a real call."""
    calls: dict[str, tuple] = {}

    def recorded(name: str, op: Any) -> Any:
        def call(*args: Any) -> Any:
            calls[name] = args
            return op(*args)

        return call

    forward, backward = fused.fused_chunks, fused.fused_chunks_backward
    monkeypatch.setattr(fused, "fused_chunks", recorded("forward", forward))
    monkeypatch.setattr(fused, "fused_chunks_backward", recorded("backward", backward))
    case = make_case(requires_grad=True, **SMALL | {"heads": 1, "length": 5, "surprise_clip": 0.5})
    case.run("fused")[0].sum().backward()
    detached = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in calls["forward"]]
    torch.library.opcheck(forward, tuple(detached))
    torch.library.opcheck(backward, calls["backward"])


def test_a_second_derivative_is_refused(make_case: Any) -> None:
    """It would miss what goes through the memory."""
    case = make_case(requires_grad=True, **SMALL | {"heads": 1, "length": 5})
    (first,) = torch.autograd.grad(case.run("fused")[0].square().sum(), case.k, create_graph=True)
    with pytest.raises(RuntimeError, match="impl='fused' has no second derivative"):
        torch.autograd.grad(first.sum(), case.k)
