"""The native kernels at sizes that fill vectors and leave a rest, in float32, over threads, and in memory that is not zero."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.titans_seq.memory.test_forms import TO_FIRST, assert_same_gradients, assert_same_result, tensors

SIZES = {
    "one vector": {"width": 16, "expansion": 1, "chunk_size": 16},
    "odd": {"width": 13, "expansion": 3, "chunk_size": 11},
    "wide": {"width": 40, "expansion": 4, "chunk_size": 19},
    "many tokens": {"width": 5, "expansion": 2, "chunk_size": 64},
}


@pytest.fixture(autouse=True, params=["fused"])
def impl(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("length", [1, 2, 63, 100])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_sizes(make_case: Any, sizes: dict, length: int) -> None:
    case = make_case(batch=1, length=length, requires_grad=True, surprise_clip=2.0, with_state=True, **sizes)
    assert_same_gradients(case, "fused")


def results(case: Any, impl: str) -> dict[str, Tensor]:
    """Output, final state, and the gradients of every leaf by a random functional of them, by name."""
    found = tensors(*case.run(impl))
    generator = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype)).sum() for x in found)
    leaves = case.leaves()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {f"result {i}": x.detach() for i, x in enumerate(found)} | dict(zip(leaves, gradients, strict=True))


def converted(case: Any, dtype: torch.dtype) -> Any:
    """The case with every tensor as a leaf of another dtype."""

    def leaf(x: Tensor | None) -> Any:
        return None if x is None else x.detach().to(dtype).requires_grad_()

    norm = {"norm_scale": leaf(case.weights.norm_scale), "norm_shift": leaf(case.weights.norm_shift)}
    weights = replace(case.weights, layers=[leaf(W) for W in case.weights.layers], **norm)
    gates = [type(layer)(*map(leaf, layer)) for layer in case.gates]
    return type(case)(leaf(case.q), leaf(case.k), leaf(case.v), gates, weights, case.options)


@pytest.mark.parametrize("options", [{}, {"activation": "silu"}, {"norm": False, "depth": 3}, {"surprise_clip": 0.5}, TO_FIRST], ids=str)
def test_error_budget_in_float32(make_case: Any, options: dict) -> None:
    """Error against float64 <= 2 x (error of the plain form in float32 + one rounding), in norm.

    With small steps: large ones make the memory multiply its roundings, and then they are as large as chance has it.
    """
    case = make_case(batch=4, heads=2, length=60, width=24, expansion=4, dtype=torch.float32, requires_grad=True, **options)
    with torch.no_grad():
        for layer in case.gates:
            layer.theta.div_(240)
    exact = results(converted(case, torch.float64), "reference")
    plain, ours = results(case, "chunkwise"), results(case, "fused")
    for name, value in exact.items():
        errors = [(x[name].double() - value).norm() for x in (plain, ours)]
        rounding = torch.finfo(torch.float32).eps * value.norm()
        assert errors[1] <= 2 * (errors[0] + rounding), f"{name}: {errors[1]:.2e}, plain {errors[0]:.2e}, rounding {rounding:.2e}"


def test_activations_in_float32_everywhere(make_case: Any) -> None:
    """A linear read of one hidden unit: gelu and silu from far below to far above zero, infinities and all."""
    points = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, -300.0, -88.0, 88.0, 300.0, 1e30])])
    for activation in ("gelu", "silu"):
        for dtype, limit in ((torch.float32, 2e-6), (torch.float64, 1e-14)):
            case = make_case(batch=1, heads=1, length=len(points), width=1, expansion=1, norm=False, residual=False, dtype=dtype)
            ones = torch.ones(1, 1, 1, dtype=dtype)
            still = [type(layer)(*(torch.zeros_like(gate) for gate in layer)) for layer in case.gates]
            weights = type(case.weights)(layers=[ones, ones], activation=activation, residual=False)
            x = points.to(dtype).view(1, 1, -1, 1).requires_grad_()
            y, _ = type(case)(x, x.detach() * 0, x.detach() * 0, still, weights).run("fused")
            exact = x.detach().double().requires_grad_()
            expected = getattr(torch.nn.functional, activation)(exact)
            scale = expected.detach().abs().clamp(min=1)
            assert ((y - expected).abs() / scale).max() < limit
            slopes = [torch.autograd.grad(z.sum(), at)[0] for z, at in ((y, x), (expected, exact))]
            assert (slopes[0] - slopes[1]).abs().max() < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_change_nothing(make_case: Any, dtype: torch.dtype) -> None:
    """More threads than rows share them evenly, bit for bit."""
    case = make_case(batch=3, heads=1, length=400, width=32, expansion=4, dtype=dtype, requires_grad=True)
    expected = results(case, "fused")
    before = torch.get_num_threads()
    try:
        for threads in (2, 5):
            torch.set_num_threads(threads)
            for name, value in results(case, "fused").items():
                assert torch.equal(value, expected[name]), name
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "options",
    [{}, {"ragged": True, "boundaries": True, "with_state": True, "surprise_clip": 0.5}, {"with_state": True, **TO_FIRST}],
    ids=str,
)
def test_unwritten_memory_is_not_read(make_case: Any, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every new tensor full of NaN the results stay the same."""
    case = make_case(requires_grad=True, chunk_size=4, **options)
    expected = results(case, "fused")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        actual = results(case, "fused")
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_a_row_that_is_not_finite_spoils_no_other(make_case: Any) -> None:
    """Rows share a thread's memory: NaN must not stay in it, not even in the padding of vectors."""
    case = make_case(batch=3, length=23, chunk_size=5, ragged=True, requires_grad=True)
    clean = results(case, "fused")
    with torch.no_grad():
        case.k[0] = torch.nan
        case.v[1] = torch.inf
    spoilt = results(case, "fused")
    assert spoilt["result 0"][0].isnan().any()
    for name, value in clean.items():
        if value.shape[0] == 3:  # by row of the batch
            assert torch.equal(spoilt[name][2], value[2]), name


def test_activation_checkpointing(make_case: Any) -> None:
    case = make_case(requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(lambda: case.run("fused")[0], use_reentrant=False)
    gradients = [torch.autograd.grad(x.sum(), (case.q, case.weights.layers[0])) for x in (y, case.run("fused")[0])]
    torch.testing.assert_close(*gradients)


def test_after_a_fork(make_case: Any) -> None:
    """No thread outlives a call, so a forked process, a data loader's for one, computes as well."""
    import multiprocessing

    case = make_case(length=200, width=32, dtype=torch.float32)
    expected = case.run("fused")
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send(case.run("fused")[0].numpy()))
    child.start()
    assert receive.poll(60)
    y = torch.from_numpy(receive.recv())
    child.join()
    assert_same_result((y, expected[1]), expected)
