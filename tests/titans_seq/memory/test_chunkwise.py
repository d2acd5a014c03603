"""What the chunkwise and the native form promise besides: segments, blocks, the backward as an operator, what is kept in memory."""

import dataclasses
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad

from tests.titans_seq.memory.test_forms import CHUNKED, OPTIONS, TOKEN, assert_same_gradients, assert_same_result, forms_with
from titans_seq import MemoryConfig
from titans_seq.memory import NeuralMemory, chunks, chunkwise, layout
from titans_seq.memory.native import operator

OPERATORS = {"chunkwise": (chunkwise, "memory_chunks"), "fused": (operator, "native_chunks")}
DEFAULT = {"chunk_size": 4, "length": 11, "requires_grad": True}


@forms_with(OPTIONS, CHUNKED)
@pytest.mark.parametrize("depth", [1, 2, 3], ids="L{}".format)
def test_several_segments_equal_reference(make_case: Any, monkeypatch: pytest.MonkeyPatch, depth: int, options: dict, impl: str) -> None:
    """Every state that is kept, and its adjoint, on the way: four segments of at most two chunks."""
    monkeypatch.setattr(chunks, "SEGMENT_CHUNKS", 2)
    case = make_case(**{**DEFAULT, "depth": depth, "chunk_size": 2, "length": 13, **options})
    assert_same_gradients(case, impl)


@pytest.mark.parametrize("residual", [True, False])
def test_several_segments_with_token_gradients(make_case: Any, monkeypatch: pytest.MonkeyPatch, residual: bool) -> None:
    monkeypatch.setattr(chunks, "SEGMENT_CHUNKS", 2)
    for options in ({}, {"channelwise": True}, {"with_state": True, "ragged": True, "boundaries": True}):
        assert_same_gradients(make_case(**{**DEFAULT, "length": 20, "residual": residual, **TOKEN, **options}), "chunkwise")


@forms_with(OPTIONS, CHUNKED)
def test_chunks_in_several_blocks_equal_reference(make_case: Any, monkeypatch: pytest.MonkeyPatch, options: dict, impl: str) -> None:
    """A chunk of six in blocks of two, three of them a segment: the anchor crosses blocks and segments."""
    monkeypatch.setattr(layout, "LARGEST_BLOCK", 2)
    monkeypatch.setattr(chunks, "SEGMENT_CHUNKS", 2)
    case = make_case(**{**DEFAULT, "chunk_size": 6, "length": 21, **options})
    assert_same_gradients(case, impl)


@forms_with(OPTIONS, CHUNKED)
def test_chunks_in_blocks_with_cells_to_spare_equal_reference(
    make_case: Any, monkeypatch: pytest.MonkeyPatch, options: dict, impl: str
) -> None:
    """A chunk of eleven in two blocks of six."""
    monkeypatch.setattr(layout, "LARGEST_BLOCK", 8)
    monkeypatch.setattr(chunks, "SEGMENT_CHUNKS", 2)
    case = make_case(**{**DEFAULT, "chunk_size": 11, "length": 25, **options})
    assert_same_gradients(case, impl)


def test_blocks_are_equal_parts_of_the_chunk_or_about_64() -> None:
    sizes = {1: 1, 16: 16, 63: 63, 64: 64, 65: 33, 100: 50, 128: 64, 1021: 64, 2048: 64, 2**40: 64}
    assert {size: layout.block_size(size) for size in sizes} == sizes


@pytest.mark.parametrize("impl", CHUNKED)
@pytest.mark.parametrize("options", [{}, {"ragged": True}, {"boundaries": True}], ids=["plain", "ragged", "boundaries"])
def test_the_grid_grows_with_the_tokens_not_with_the_chunk(make_case: Any, options: dict, impl: str) -> None:
    """Also for documents of a few tokens: each takes a block, not a chunk."""
    case = make_case(batch=2, length=9, chunk_size=2**40, **options)
    y, state = case.run(impl)
    found = layout.choose_layout(case.q, 2**40, None, case.options.get("mask"), case.options.get("reset"))
    assert len(found.complete) <= 9
    assert_same_result((y, state), case.run("recurrent"))


@pytest.mark.parametrize("impl", CHUNKED)
@pytest.mark.parametrize("chunk_size", [8, 11])
@pytest.mark.parametrize("at", [0, 3, 4, 5, 8])
def test_a_stream_cut_inside_a_large_chunk(make_case: Any, monkeypatch: pytest.MonkeyPatch, at: int, chunk_size: int, impl: str) -> None:
    monkeypatch.setattr(layout, "LARGEST_BLOCK", 4 if chunk_size == 8 else 8)
    case = make_case(length=19, chunk_size=chunk_size)
    expected = case.run("reference")
    if at == 0:
        assert_same_result(case.run(impl), expected)
        return
    y1, state = case.piece(0, at).run(impl)
    y2, state = case.piece(at, 19).run(impl, state=state)
    assert_same_result((torch.cat([y1, y2], dim=2), state), expected)


def views(x: Tensor) -> dict[str, Tensor]:
    """The same values in other layouts of memory."""
    padded = torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)
    return {"transposed": x.transpose(-1, -2).contiguous().transpose(-1, -2), "every other": padded[..., 0]}


@pytest.mark.parametrize("impl", CHUNKED)
@pytest.mark.parametrize("layout_name", ["transposed", "every other"])
def test_gradients_and_inputs_of_any_strides(make_case: Any, layout_name: str, impl: str) -> None:
    case = make_case(**DEFAULT)
    y, state = case.run(impl)
    leaves = list(case.leaves().values())
    cotangents = [torch.randn_like(y), torch.randn_like(state.weights[0]), torch.randn_like(state.momentum[1])]
    results = [y, state.weights[0], state.momentum[1]]
    expected = torch.autograd.grad(results, leaves, cotangents, retain_graph=True)
    strided = [views(c)[layout_name] for c in cotangents]
    assert not any(c.is_contiguous() for c in strided)
    for a, b in zip(torch.autograd.grad(results, leaves, strided), expected, strict=True):
        assert torch.equal(a, b)
    other = type(case)(*(views(x)[layout_name] for x in (case.q, case.k, case.v)), case.gates, case.weights, case.options)
    assert_same_result(other.run(impl), (y, state))


@pytest.mark.parametrize("impl", CHUNKED)
def test_zero_stride_gradients_and_inputs(make_case: Any, impl: str) -> None:
    """`y.sum()` sends back one number with strides of zero; expanded inputs get the sum over what they were expanded to."""
    case = make_case(**DEFAULT)
    one = [Tensor.requires_grad_(x[:1, :1].detach().clone()) for x in (case.q, case.k, case.v)]
    expanded = type(case)(*(x.expand(2, 2, -1, -1) for x in one), case.gates, case.weights, case.options)
    leaves = [*one, case.weights.layers[0]]
    actual, expected = (torch.autograd.grad(expanded.run(form)[0].sum(), leaves) for form in (impl, "reference"))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("impl", CHUNKED)
def test_a_second_backward(make_case: Any, impl: str) -> None:
    """With the graph retained the same gradients; without it torch's own error, not freed memory."""
    case = make_case(**DEFAULT)
    y, _ = case.run(impl)
    first, second = (torch.autograd.grad(y.sum(), case.k, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    torch.autograd.grad(y.sum(), case.k)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), case.k)


@pytest.mark.parametrize("impl", CHUNKED)
def test_derivatives_that_do_not_exist_are_refused(make_case: Any, impl: str) -> None:
    """A second derivative, and a forward-mode one, which would otherwise miss what goes through the memory."""
    case = make_case(**DEFAULT)
    (first,) = torch.autograd.grad(case.run(impl)[0].square().sum(), case.k, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.sum(), case.k)
    with forward_ad.dual_level(), pytest.raises(ValueError, match="no forward-mode derivative"):
        dataclasses.replace(case, k=forward_ad.make_dual(case.k.detach(), torch.ones_like(case.k))).run(impl)


@forms_with({"chunk": {}, "token": TOKEN}, CHUNKED)
def test_backward_inside_autocast_computes_in_full_precision(make_case: Any, options: dict, impl: str) -> None:
    case = make_case(**{**DEFAULT, **options, "dtype": torch.float32})
    expected = torch.autograd.grad(case.run(impl)[0].sum(), list(case.leaves().values()))
    y, _ = case.run(impl)
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(y.sum(), list(case.leaves().values()))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("impl", CHUNKED)
@pytest.mark.parametrize("needed", ["q", "theta_1", "W_0", "norm_scale"])
def test_a_gradient_that_is_wanted_alone(make_case: Any, needed: str, impl: str) -> None:
    case = make_case(**DEFAULT)
    everything = torch.autograd.grad(case.run(impl)[0].sum(), list(case.leaves().values()))
    expected = dict(zip(case.leaves(), everything, strict=True))[needed]
    for name, leaf in case.leaves().items():
        leaf.requires_grad_(name == needed)
    (actual,) = torch.autograd.grad(case.run(impl)[0].sum(), case.leaves()[needed])
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("impl", CHUNKED)
def test_one_node_for_the_compiler(make_case: Any, impl: str) -> None:
    """Forward and backward are one operator each, whatever the length."""
    case = make_case(**{**DEFAULT, "length": 40})
    names: dict[str, list[str]] = {"forward": [], "backward": []}

    def recorder(graph: str) -> Any:
        def record(module: torch.fx.GraphModule, inputs: Any) -> Any:
            names[graph] += [str(node.target) for node in module.graph.nodes if "titans_seq" in str(node.target)]
            return make_boxed_func(module.forward)

        return record

    backend = aot_autograd(fw_compiler=recorder("forward"), bw_compiler=recorder("backward"))
    y, _ = torch.compile(lambda: case.run(impl), fullgraph=True, backend=backend)()
    gradient = torch.autograd.grad(y.sum(), case.k)
    y_eager, _ = case.run(impl)
    torch.testing.assert_close(y, y_eager)
    torch.testing.assert_close(gradient, torch.autograd.grad(y_eager.sum(), case.k))
    name = {"chunkwise": "memory_chunks", "fused": "native_memory"}[impl]
    assert names == {"forward": [f"titans_seq.{name}.default"], "backward": [f"titans_seq.{name}_backward.default"]}


@pytest.mark.parametrize("impl", CHUNKED)
@pytest.mark.parametrize("options", [{}, {"with_state": True}, {"with_state": True, "ragged": True, "boundaries": True}], ids=str)
def test_operator_registration(make_case: Any, options: dict, impl: str) -> None:
    """Schema, shapes and strides for tracing, and autograd registration, by torch's own check; the first weights transposed."""
    case = make_case(**{**DEFAULT, "width": 2, "length": 5, "batch": 1, **options})
    strided = [views(W)["transposed"] for W in case.weights.layers]
    case = dataclasses.replace(case, weights=dataclasses.replace(case.weights, layers=strided))
    captured: list[tuple[Any, ...]] = []
    module, name = OPERATORS[impl]
    original = getattr(module, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, lambda *arguments: captured.append(arguments) or original(*arguments))
        case.run(impl)
    leaves = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.detach().requires_grad_(x.requires_grad), captured[0])
    torch.library.opcheck(original, leaves)


def kept_bytes(length: int, chunk_size: int) -> int:
    """Bytes that autograd keeps for the backward of one memory layer, each storage counted once."""
    torch.manual_seed(0)
    layer = NeuralMemory(32, MemoryConfig(num_heads=2, chunk_size=chunk_size))
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        layer(torch.randn(1, length, 32))
    return sum(storages.values())


@pytest.mark.parametrize("chunk_size", [4, 16])
def test_what_is_kept_grows_with_the_tokens_alone(chunk_size: int) -> None:
    """The same for every further token, and less than a state a chunk."""
    short, middle, long = (kept_bytes(length, chunk_size) for length in (512, 1024, 2048))
    per_token = (middle - short) / 512
    assert (long - middle) / 1024 == pytest.approx(per_token, rel=0.01)
    state = 4 * 2 * 2 * 2 * 16 * 64  # float32, heads, W and S, layers, D x h
    assert per_token < 32 * 4 * 40 + state / chunks.SEGMENT_CHUNKS / chunk_size * 1.01


def test_segments_bound_the_sequential_work(make_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward does every chunk once, backward once more: counted, for a length ten times another."""
    written: list[int] = []
    write = chunkwise.Segment.write
    monkeypatch.setattr(chunkwise.Segment, "write", lambda self: written.append(len(self.chunks)) or write(self))
    for length in (40, 400):
        written.clear()
        y, _ = make_case(**{**DEFAULT, "length": length}).run("chunkwise")
        assert sum(written) == length // 4
        y.sum().backward()
        assert sum(written) == 2 * length // 4
        assert max(written) <= chunks.SEGMENT_CHUNKS
