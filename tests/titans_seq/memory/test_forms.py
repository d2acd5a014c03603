"""The fast forms equal the reference in float64: outputs, state and every gradient; and each passes gradcheck."""

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from titans_seq.memory import MemoryState, read_memory

FAST = ("chunkwise", "fused", "recurrent")
CHUNKED = ("chunkwise", "fused")
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}

TO_FIRST = {"forgetting_towards": "first_state"}
OPTIONS = {
    "default": {},
    "no-norm": {"norm": False},
    "no-residual": {"residual": False},
    "bare": {"norm": False, "residual": False},
    "silu": {"activation": "silu"},
    "channelwise": {"channelwise": True},
    "no-momentum": {"momentum": False},
    "no-forgetting": {"forgetting": False},
    "clip": {"surprise_clip": 0.5},
    "state": {"with_state": True},
    "padded": {"ragged": True},
    "documents": {"boundaries": True},
    "events": {"with_state": True, "ragged": True, "boundaries": True, "surprise_clip": 1.0},
    "all": {"channelwise": True, "with_state": True, "ragged": True, "boundaries": True, "surprise_clip": 1.0},
    "to-first": TO_FIRST,
    "to-first-events": {"with_state": True, "ragged": True, "boundaries": True, "surprise_clip": 1.0, **TO_FIRST},
    "to-first-channelwise": {"channelwise": True, "with_state": True, **TO_FIRST},
}
TOKEN = {"depth": 1, "norm": False, "gradient": "token"}


def serves(impl: str, options: dict[str, Any]) -> bool:
    """Whether a form has these options."""
    return impl != "fused" or not (options.get("channelwise") or options.get("gradient") == "token")


def forms_with(options: dict[str, dict[str, Any]], forms: tuple[str, ...] = FAST) -> Any:
    """A test's parameters `impl` and `options`: every form with every one of these options that it has."""
    pairs = [pytest.param(impl, given, id=f"{impl}-{name}") for impl in forms for name, given in options.items() if serves(impl, given)]
    return pytest.mark.parametrize(("impl", "options"), pairs)


def tensors(y: Tensor, state: MemoryState) -> list[Tensor]:
    return [y, *state.weights, *state.momentum, *state.anchor]


def assert_same_result(actual: tuple[Tensor, MemoryState], expected: tuple[Tensor, MemoryState]) -> None:
    assert torch.equal(actual[1].position, expected[1].position)
    for a, b in zip(tensors(*actual), tensors(*expected), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def gradients(case: Any, impl: str, cotangents: list[Tensor]) -> dict[str, Tensor]:
    """Gradient of every leaf, of a random functional of the output and the whole final state."""
    leaves = case.leaves()
    result = tensors(*case.run(impl))
    total = sum((x * c).sum() for x, c in zip(result, cotangents, strict=True))
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def assert_same_gradients(case: Any, impl: str) -> None:
    expected_result = case.run("reference")
    assert_same_result(case.run(impl), expected_result)
    cotangents = [torch.randn_like(x) for x in tensors(*expected_result)]
    expected, actual = gradients(case, "reference", cotangents), gradients(case, impl, cotangents)
    for name, value in expected.items():
        assert torch.isfinite(value).all(), name
        torch.testing.assert_close(actual[name], value, **TOLERANCE, msg=lambda m, name=name: f"gradient of {name}: {m}")


@forms_with(OPTIONS)
@pytest.mark.parametrize("chunk_size", [1, 4, 16], ids="C{}".format)
@pytest.mark.parametrize("depth", [1, 2, 3, 4], ids="L{}".format)
def test_equals_reference_with_gradients(make_case: Any, depth: int, chunk_size: int, options: dict, impl: str) -> None:
    case = make_case(depth=depth, chunk_size=chunk_size, length=9, requires_grad=True, **options)
    assert_same_gradients(case, impl)


@pytest.mark.parametrize("impl", ["chunkwise", "recurrent"])
@pytest.mark.parametrize("options", [{}, {"channelwise": True}, {"momentum": False}, {"with_state": True, "ragged": True}], ids=str)
@pytest.mark.parametrize("chunk_size", [1, 4, 16], ids="C{}".format)
@pytest.mark.parametrize("residual", [True, False])
def test_token_gradients_equal_reference(make_case: Any, residual: bool, chunk_size: int, options: dict, impl: str) -> None:
    assert_same_gradients(make_case(chunk_size=chunk_size, length=9, requires_grad=True, residual=residual, **TOKEN, **options), impl)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 100], ids="T{}".format)
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (3, 1), (1, 3)])
def test_lengths_batches_heads(make_case: Any, batch: int, heads: int, length: int) -> None:
    case = make_case(batch=batch, heads=heads, length=length, width=5, expansion=3)
    for impl in FAST:
        assert_same_result(case.run(impl), case.run("reference"))


def test_token_gradients_do_not_depend_on_the_chunk_size(make_case: Any) -> None:
    case = make_case(length=37, **TOKEN)
    outputs = [case.run("chunkwise", chunk_size=size)[0] for size in (1, 5, 16, 64)]
    for y in outputs[1:]:
        torch.testing.assert_close(y, outputs[0], **TOLERANCE)


def test_token_gradients_without_momentum_are_gated_deltanet(make_case: Any) -> None:
    """arXiv 2412.06464, equation 10: S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T, with S = M^T.

    Its gradient is taken at the decayed memory a_t M, ours at M: the same map with a_t = 1 - alpha_t,
    2 theta_t = a_t b_t, and our v = v / a_t.
    """
    case = make_case(length=12, momentum=False, residual=False, **TOKEN)
    alpha, _, theta = case.gates[0]
    keep = (1 - alpha)[..., None]
    ours = type(case)(case.q, case.k, case.v / keep, case.gates, case.weights, case.options)
    y, _ = ours.run("chunkwise")
    M = case.weights.layers[0].expand(2, -1, -1, -1)
    for t in range(12):
        k, v, a = case.k[:, :, t, None], case.v[:, :, t, None], keep[:, :, t, None]
        b = 2 * theta[:, :, t, None, None] / a
        M = a * (M - b * k.transpose(-1, -2) @ (k @ M)) + b * k.transpose(-1, -2) @ v
        torch.testing.assert_close(y[:, :, t, None], case.q[:, :, t, None] @ M, **TOLERANCE)


@pytest.mark.parametrize("impl", FAST)
def test_keys_that_depend_on_the_state(make_case: Any, impl: str) -> None:
    """As in MAC, whose keys have read the memory: the inner gradient holds them fixed, the outer one does not."""
    case = make_case(length=5, chunk_size=2, with_state=True, requires_grad=True)
    assert case.state is not None
    read = case.state.anchor[0].mean((2, 3))[..., None, None] + case.state.weights[0].mean((2, 3))[..., None, None]  # (B, H, 1, 1)
    seen = dataclasses.replace(case, k=case.k + read, v=case.v * read)
    leaves = list(case.leaves().values())
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    expected, actual = (torch.autograd.grad(seen.run(form)[0].square().sum(), leaves, **options) for form in ("reference", impl))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def test_linear_memory_by_hand() -> None:
    """Two tokens, one number wide, worked on paper: W0 = 1, chunk of two, no norm, no residual."""
    from titans_seq.memory import Gates, MemoryWeights, neural_memory

    def token(*x: float) -> Tensor:
        return torch.tensor(x, dtype=torch.float64)[None, None]

    q, k, v = token(1, 2)[..., None], token(1, 3)[..., None], token(0, 1)[..., None]
    gates = [Gates(alpha=token(0.5, 0.25), eta=token(0.5, 0.5), theta=token(0.1, 0.2))]
    weights = MemoryWeights(layers=[torch.ones(1, 1, 1, dtype=torch.float64)], residual=False)
    # grad_1 = 2 * 1 * (1 - 0) = 2, S_1 = -0.2, M_1 = 0.5 - 0.2 = 0.3, y_1 = 0.3
    # grad_2 = 2 * 3 * (3 * 1 - 1) = 12 (taken at W0), S_2 = -0.1 - 2.4 = -2.5, M_2 = 0.75 * 0.3 - 2.5 = -2.275, y_2 = -4.55
    for impl in ("reference", *FAST):
        y, state = neural_memory(q, k, v, gates, weights, chunk_size=2, impl=impl)
        torch.testing.assert_close(y.flatten(), torch.tensor([0.3, -4.55], dtype=torch.float64))
        torch.testing.assert_close(state.momentum[0].item(), -2.5)


def test_forgetting_towards_the_first_state_by_hand() -> None:
    """The tokens of `test_linear_memory_by_hand`; beside half of M half of W0 = 1 is kept, then beside three quarters one."""
    from titans_seq.memory import Gates, MemoryWeights, neural_memory

    def token(*x: float) -> Tensor:
        return torch.tensor(x, dtype=torch.float64)[None, None]

    q, k, v = token(1, 2)[..., None], token(1, 3)[..., None], token(0, 1)[..., None]
    gates = [Gates(alpha=token(0.5, 0.25), eta=token(0.5, 0.5), theta=token(0.1, 0.2))]
    weights = MemoryWeights(layers=[torch.ones(1, 1, 1, dtype=torch.float64)], residual=False, forgetting_towards="first_state")
    # M_1 = 0.5 + 0.5 - 0.2 = 0.8, y_1 = 0.8; M_2 = 0.75 * 0.8 + 0.25 - 2.5 = -1.65, y_2 = -3.3
    for impl in ("reference", *FAST):
        y, state = neural_memory(q, k, v, gates, weights, chunk_size=2, impl=impl)
        torch.testing.assert_close(y.flatten(), torch.tensor([0.8, -3.3], dtype=torch.float64))
        torch.testing.assert_close(state.weights[0].item(), -2.65)  # beside W0
        torch.testing.assert_close(read_memory(q, weights, state.weights).flatten(), torch.tensor([-1.65, -3.3], dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"channelwise": True}], ids=str)
def test_without_forgetting_it_does_not_matter_what_it_draws_to(make_case: Any, options: dict) -> None:
    torch.manual_seed(0)
    case = make_case(forgetting=False, length=37, **options)
    to_first = dataclasses.replace(case, weights=dataclasses.replace(case.weights, **TO_FIRST))
    for impl in FAST:
        if not serves(impl, options):
            continue
        torch.testing.assert_close(to_first.run(impl)[0], case.run(impl)[0], **TOLERANCE)


@pytest.mark.parametrize("impl", FAST)
def test_much_forgetting_leaves_the_first_state(make_case: Any, impl: str) -> None:
    """Steps are nothing and half of what is there is forgotten with each token: a stream from anywhere ends at W^0."""
    case = make_case(length=80, with_state=True, forgetting_towards="first_state")
    gates = [type(g)(torch.full_like(g.alpha, 0.5), torch.zeros_like(g.eta), torch.zeros_like(g.theta)) for g in case.gates]
    y, state = dataclasses.replace(case, gates=gates).run(impl)
    torch.testing.assert_close(y[:, :, -1:], read_memory(case.q[:, :, -1:], case.weights), **TOLERANCE)
    assert max(W.abs().max() for W in state.weights) < 1e-20


@forms_with(
    {
        "deep": {"depth": 2},
        "to-first": TO_FIRST,
        "channelwise": {"depth": 1, "channelwise": True},
        "token": TOKEN,
        "clip-state": {"depth": 2, "surprise_clip": 1.0, "with_state": True},
    },
    ("reference", *FAST),
)
def test_gradcheck(make_case: Any, options: dict, impl: str) -> None:
    case = make_case(batch=1, heads=1, length=5, width=2, chunk_size=2, requires_grad=True, **options)
    leaves = list(case.leaves().values())
    assert torch.autograd.gradcheck(lambda *_: tuple(tensors(*case.run(impl))), leaves, atol=1e-6)


@forms_with({"by head": {}, "channelwise": {"channelwise": True}})
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gates_of_exactly_zero_and_one(make_case: Any, options: dict, eta: float, alpha: float, impl: str) -> None:
    """All gates, and single gates among others, at the ends of their range: finite, equal, and with the right gradients."""
    case = make_case(length=9, chunk_size=4, requires_grad=True, **options)
    with torch.no_grad():
        case.gates[0].alpha.fill_(alpha)
        case.gates[0].eta.fill_(eta)
        case.gates[0].theta.fill_(0.0)
        case.gates[1].alpha[:, :, 1::3] = alpha
        case.gates[1].eta[:, :, ::2] = eta
        case.gates[1].theta[:, :, 3] = 0.0
    assert_same_gradients(case, impl)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_split_equals_one_pass(make_case: Any, data: st.DataObject) -> None:
    """Pieces of any lengths, each by any form, with or without padding and document boundaries."""
    length = data.draw(st.integers(2, 24), label="length")
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4), label="cuts"))
    case = make_case(
        length=length,
        depth=data.draw(st.integers(1, 3), label="depth"),
        chunk_size=data.draw(st.integers(1, 9), label="chunk_size"),
        channelwise=data.draw(st.booleans(), label="channelwise"),
        ragged=data.draw(st.booleans(), label="ragged"),
        boundaries=data.draw(st.booleans(), label="boundaries"),
    )
    expected = case.run("reference")
    pieces, state = [], None
    forms = [impl for impl in ("reference", *FAST) if serves(impl, {"channelwise": case.gates[0].alpha.dim() == 4})]
    for start, stop in pairwise([0, *cuts, length]):
        impl = data.draw(st.sampled_from(forms))
        y, state = case.piece(start, stop).run(impl, state=state)
        pieces.append(y)
    assert_same_result((torch.cat(pieces, dim=2), state), expected)


@pytest.mark.parametrize("impl", FAST)
def test_gradients_flow_through_a_split(make_case: Any, impl: str) -> None:
    """Back-propagation through a carried state equals back-propagation through one pass; detach cuts it."""
    case = make_case(length=11, chunk_size=4, requires_grad=True)
    (whole,) = torch.autograd.grad(case.run(impl)[0].square().sum(), case.k)
    y1, state = case.piece(0, 6).run(impl)
    y2, _ = case.piece(6, 11).run(impl, state=state)
    (split,) = torch.autograd.grad(torch.cat([y1, y2], dim=2).square().sum(), case.k, retain_graph=True)
    torch.testing.assert_close(split, whole, **TOLERANCE)
    y2, _ = case.piece(6, 11).run(impl, state=state.detach())
    (cut,) = torch.autograd.grad(y2.square().sum(), case.k)
    assert cut[:, :, :6].abs().max() == 0
    assert cut[:, :, 6:].abs().max() > 0


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_padding_is_as_if_absent(make_case: Any, impl: str) -> None:
    """Left, right and inner padding of any content: the same reads and the same state as the row without it."""
    case = make_case(batch=1, length=9, chunk_size=4)
    y, state = case.run(impl)
    where = torch.tensor([1, 2, 4, 5, 6, 9, 10, 11, 13])  # of 15 cells

    def pad(x: Tensor) -> Tensor:
        padded = torch.full((*x.shape[:2], 15, *x.shape[3:]), torch.nan, dtype=x.dtype)
        padded[:, :, where] = x
        return padded

    padded = type(case)(pad(case.q), pad(case.k), pad(case.v), [type(g)(*map(pad, g)) for g in case.gates], case.weights, case.options)
    mask = torch.zeros(1, 15, dtype=torch.bool)
    mask[:, where] = True
    y_padded, state_padded = padded.run(impl, mask=mask)
    assert_same_result((y_padded[:, :, where], state_padded), (y, state))
    assert y_padded[:, :, [0, 3, 7, 8, 12, 14]].abs().max() == 0


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_documents_are_independent(make_case: Any, impl: str) -> None:
    """Packed documents read as if each were alone, whatever state came before the first boundary."""
    case = make_case(batch=1, length=12, chunk_size=5)
    reset = torch.zeros(1, 12, dtype=torch.bool)
    reset[:, [0, 3, 4]] = True
    y, state = case.run(impl, reset=reset)
    alone = [case.piece(a, b).run(impl) for a, b in ((0, 3), (3, 4), (4, 12))]
    assert_same_result((y, state), (torch.cat([part for part, _ in alone], dim=2), alone[-1][1]))


def test_a_boundary_on_the_last_masked_token_resets(make_case: Any) -> None:
    case = make_case(batch=2, length=6, chunk_size=4)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1]], dtype=torch.bool)
    reset = torch.tensor([[0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    for impl in FAST:
        result = case.run(impl, mask=mask, reset=reset)
        assert_same_result(result, case.run("reference", mask=mask, reset=reset))
    assert torch.equal(result[1].weights[0][0], case.weights.layers[0])
