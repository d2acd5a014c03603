"""What the operator promises besides its numbers: modes, dtypes, states on disk, and errors that say what to mend."""

import dataclasses
from typing import Any

import pytest
import torch

from tests.titans_seq.memory.test_forms import forms_with
from titans_seq.errors import UserError
from titans_seq.memory import Gates, MemoryState, MemoryWeights


@pytest.mark.parametrize("impl", ["auto", "chunkwise", "fused", "recurrent"])
def test_learns_under_inference_mode(make_case: Any, impl: str) -> None:
    case = make_case(length=7)
    expected = case.run(impl)[0]
    with torch.inference_mode():
        y, state = case.run(impl)
        y2, _ = case.run(impl, state=state)
    assert torch.equal(y, expected)
    assert not torch.allclose(y2, y)  # it remembers: the second reading is another


@pytest.mark.parametrize("impl", ["reference", "chunkwise", "fused", "recurrent"])
def test_no_grad_with_weights_that_require_grad(make_case: Any, impl: str) -> None:
    case = make_case(length=5, requires_grad=True)
    expected = case.run(impl)[0]
    with torch.no_grad():
        y, state = case.run(impl)
    assert torch.equal(y, expected)
    assert not y.requires_grad
    assert not state.weights[0].requires_grad


def test_reference_under_inference_mode_is_refused(make_case: Any) -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        make_case().run("reference")


@forms_with({str(options): options for options in ({}, {"with_state": True}, {"ragged": True}, {"channelwise": True})})
def test_compiles_as_one_graph(make_case: Any, options: dict, impl: str) -> None:
    """Forward and backward through torch.compile(fullgraph=True) equal eager."""
    case = make_case(length=3 if impl == "recurrent" else 6, chunk_size=4, requires_grad=True, **options)
    compiled = torch.compile(lambda: case.run(impl), fullgraph=True, backend="aot_eager")
    (y, state), (y_eager, state_eager) = compiled(), case.run(impl)
    torch.testing.assert_close(y, y_eager)
    torch.testing.assert_close(state.momentum, state_eager.momentum)
    for a, b in zip(
        torch.autograd.grad(y.sum(), (case.q, case.k)),
        torch.autograd.grad(y_eager.sum(), (case.q, case.k)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


@pytest.mark.parametrize("impl", ["chunkwise", "fused", "recurrent", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_compute_in_float32(make_case: Any, dtype: torch.dtype, impl: str) -> None:
    """The result is that of float32 arithmetic on the rounded inputs, rounded once at the end; the state stays float32."""
    case = make_case(dtype=dtype, length=20)
    y, state = case.run(impl)
    assert y.dtype == dtype
    assert {x.dtype for x in (*state.weights, *state.momentum, *state.anchor)} == {torch.float32}
    wide = type(case)(
        *(x.float() for x in (case.q, case.k, case.v)),
        [Gates(*(g.float() for g in layer)) for layer in case.gates],
        MemoryWeights(
            layers=[W.float() for W in case.weights.layers],
            norm_scale=case.weights.norm_scale.float(),
            norm_shift=case.weights.norm_shift.float(),
        ),
    )
    assert torch.equal(y, wide.run(impl)[0].to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(case.run(impl)[0], y)


@pytest.mark.parametrize("impl", ["fused", "chunkwise"])
def test_auto_takes_what_serves(make_case: Any, impl: str) -> None:
    one, many = (make_case(length=length, with_state=True, channelwise=impl == "chunkwise") for length in (1, 5))
    assert torch.equal(one.run("auto")[0], one.run("recurrent")[0])
    assert torch.equal(many.run("auto")[0], many.run(impl)[0])


def test_state_saves_and_resumes_bit_for_bit(make_case: Any, tmp_path: Any) -> None:
    case = make_case(length=21, chunk_size=4, dtype=torch.float32)
    _, state = case.piece(0, 10).run("chunkwise")
    state.save(tmp_path / "stream.safetensors")
    loaded = MemoryState.load(tmp_path / "stream.safetensors")
    assert loaded.chunk_size == 4
    expected, actual = (case.piece(10, 21).run("chunkwise", state=s) for s in (state, loaded))
    assert torch.equal(actual[0], expected[0])
    assert all(map(torch.equal, actual[1].weights, expected[1].weights))


def test_state_operations(make_case: Any) -> None:
    case = make_case(batch=3, length=6, chunk_size=4, requires_grad=True)
    _, state = case.run("chunkwise")
    picked = state.select(torch.tensor([2, 0, 2]))
    assert torch.equal(picked.weights[1], state.weights[1][[2, 0, 2]])
    assert picked.position.tolist() == [2, 2, 2]
    assert not any(x.requires_grad for x in state.detach().weights)
    assert state.to(torch.float32).weights[0].dtype == torch.float32
    assert state.to(torch.float32).position.dtype == torch.int64
    per_row = sum(W[0].numel() for W in case.weights.layers) * 2  # two heads
    assert state.nbytes == 3 * (3 * sum(W.numel() for W in case.weights.layers) * 8 + 8), per_row


def test_a_cast_keeps_positions_that_the_dtype_could_not_hold() -> None:
    weights = MemoryWeights(layers=[torch.zeros(1, 2, 2)])
    state = dataclasses.replace(MemoryState.initial(weights, 1, 2048), position=torch.tensor([2047]))
    moved = state.to(torch.bfloat16)
    assert moved.weights[0].dtype == torch.bfloat16
    assert moved.position.dtype == torch.int64
    assert moved.position.item() == 2047  # bfloat16 would say 2048


def test_state_does_not_grow(make_case: Any) -> None:
    sizes = set()
    state = None
    for length in (1, 3, 16, 50):
        _, state = make_case(length=length, chunk_size=4).run("chunkwise", state=state)
        sizes.add(state.nbytes)
    assert len(sizes) == 1


def test_loading_what_is_no_state_is_refused(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    with pytest.raises(UserError, match="no such file"):
        MemoryState.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        MemoryState.load(tmp_path / "text.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="not of a state"):
        MemoryState.load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"impl": "fast"}, r"impl must be one of 'auto'.*got 'fast'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"gradient": "token"}, "gradient='token' is for the linear memory"),
        ({"surprise_clip": 0.0}, "surprise_clip must be positive"),
        ({"surprise_clip": float("inf")}, "surprise_clip must be positive and finite, or None, got inf"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, r"mask must have shape \(2, 13\), got \(2, 3\)"),
        ({"mask": torch.ones(2, 13)}, "mask must be bool"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_options(make_case: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_case().run(**{"impl": "auto", **options})


def test_bad_shapes_name_expected_and_given(make_case: Any) -> None:
    case = make_case()
    with pytest.raises(ValueError, match=r"k must have shape \(2, 2, 13, 4\), got \(2, 2, 12, 4\)"):
        type(case)(case.q, case.k[:, :, 1:], case.v, case.gates, case.weights).run("auto")
    with pytest.raises(ValueError, match="one Gates per memory layer, expected 2, got 1"):
        type(case)(case.q, case.k, case.v, case.gates[:1], case.weights).run("auto")
    weights = MemoryWeights(layers=[case.weights.layers[0], case.weights.layers[0]])
    with pytest.raises(ValueError, match=r"weights.layers\[1\] must be \(H=2, 8, 4\)"):
        type(case)(case.q, case.k, case.v, case.gates, weights).run("auto")
    with pytest.raises(ValueError, match="T must be at least 1"):
        case.piece(0, 0).run("auto")
    with pytest.raises(ValueError, match="q, k, v must be floating point"):
        type(case)(case.q.long(), case.k, case.v, case.gates, case.weights).run("auto")
    _, state = case.run("auto", chunk_size=8)
    with pytest.raises(ValueError, match="state was made with chunk_size=8, this call has chunk_size=16"):
        case.run("auto", state=state, chunk_size=16)
    with pytest.raises(ValueError, match="state holds weights of shapes"):
        make_case(batch=3).run("auto", state=state, chunk_size=8)


def test_what_does_not_go_with_forgetting_towards_the_first_state_is_refused(make_case: Any) -> None:
    """Weights beside W^0 taken for the weights, or the other way, would be a wrong answer of the right shape."""
    to_first, to_zero = (make_case(length=6, forgetting_towards=towards) for towards in ("first_state", "zero"))
    for case, other in ((to_first, to_zero), (to_zero, to_first)):
        _, state = case.run("auto")
        with pytest.raises(ValueError, match=r"state was made with forgetting_towards='[a-z_]*', this memory has '[a-z_]*'"):
            other.run("auto", state=state)
    with pytest.raises(ValueError, match="forgetting_towards='first_state' needs gradient='chunk'"):
        make_case(depth=1, norm=False, gradient="token", forgetting_towards="first_state").run("auto")
    with pytest.raises(ValueError, match="forgetting_towards must be one of 'zero', 'first_state', got 'nowhere'"):
        make_case(forgetting_towards="nowhere").run("auto")


@pytest.mark.parametrize("impl", ["reference", "chunkwise", "fused", "recurrent"])
def test_bad_states_are_refused_at_the_edge(make_case: Any, impl: str) -> None:
    case = make_case(length=6, chunk_size=4)
    _, state = case.run("chunkwise")
    narrow = tuple(S[:, :, 1:] for S in state.momentum)
    for changes, message in (
        ({"momentum": narrow}, "state holds momentum of shapes"),
        ({"anchor": ()}, r"state holds anchor of shapes \[\]"),
        ({"position": state.position[:1]}, r"state.position must have shape \(2,\), got \(1,\)"),
        ({"position": state.position.double()}, "state.position must be int64, got torch.float64"),
        ({"position": state.position + 9}, r"state.position must be in \[0, 4\), got \[11, 11\]"),
        ({"position": state.position - 3}, r"state.position must be in \[0, 4\), got \[-1, -1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            case.run(impl, state=dataclasses.replace(state, **changes))


@pytest.mark.parametrize("impl", ["chunkwise", "fused", "recurrent"])
def test_a_state_of_inference_mode_goes_on_in_training_as_a_copy(make_case: Any, impl: str) -> None:
    case = make_case(length=6, chunk_size=4, requires_grad=True)
    with torch.inference_mode():
        _, state = case.run("chunkwise")
    with pytest.raises(ValueError, match=r"go on with state.clone\(\)"):
        case.run(impl, state=state)
    y, _ = case.run(impl, state=state.clone())
    y.sum().backward()
    assert case.k.grad.abs().max() > 0
