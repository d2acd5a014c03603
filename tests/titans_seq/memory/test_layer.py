"""`NeuralMemory`: one meaning for every split and form, gates that start and stay where they should, and streams without an end."""

import ctypes
import math
import os
import platform
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from titans_seq import LocalMemoryConfig, MemoryConfig, NeuralMemory
from titans_seq.memory import MemoryLayerState, frozen_memory, scale_forgetting

DIM = 8
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
ABLATIONS = {
    "default": {},
    "no-momentum": {"momentum": False},
    "no-forgetting": {"forgetting": "none"},
    "channel-forgetting": {"forgetting": "channel", "gate_rank": 3},
    "forgetting-to-first": {"forgetting_towards": "first_state"},
    "no-convolution": {"convolution_width": 1},
    "depth-1": {"depth": 1},
    "depth-3": {"depth": 3, "activation": "silu"},
    "no-norm": {"norm": False},
    "no-residual": {"residual": False},
    "clip": {"surprise_clip": 0.5},
    "token-gradients": {"depth": 1, "norm": False, "gradient": "token"},
    "one-head": {"num_heads": 1, "head_dim": 3},
}
ablations = pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS.keys())


def make_layer(**options: Any) -> NeuralMemory:
    """In float64, with chunks of 4 and large random gate weights, so that the gates differ from token to token."""
    layer = NeuralMemory(DIM, MemoryConfig(**{"num_heads": 2, "expansion": 2, "chunk_size": 4, "max_step": 0.05, **options}))
    for name, parameter in layer.named_parameters():
        if name.startswith(("momentum_and_step", "forgetting")):
            torch.nn.init.normal_(parameter, std=0.7)
    return layer.double()


def inputs(length: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64)


def tensors(state: MemoryLayerState) -> list[Tensor]:
    memory = state.memory
    return [state.convolution, *memory.weights, *memory.momentum, *memory.anchor, memory.position]


def assert_same_state(actual: MemoryLayerState, expected: MemoryLayerState) -> None:
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


@ablations
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_any_split_equals_one_pass(options: dict, data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 15), label="length")
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=5), label="cuts"))
    layer, x = make_layer(**options), inputs(length)
    expected, expected_state = layer(x)
    pieces, state = [], None
    for start, stop in pairwise([0, *cuts, length]):
        y, state = layer(x[:, start:stop], state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, **TOLERANCE)
    assert_same_state(state, expected_state)


@ablations
def test_the_forms_agree_with_gradients(options: dict) -> None:
    """Outputs, states and the gradient of every parameter and of the input, through the layer, across a cut."""
    layer, x = make_layer(**options), inputs(11).requires_grad_()
    leaves = {"x": x, **dict(layer.named_parameters())}
    cotangent = torch.randn(2, 11, DIM, dtype=torch.float64)
    results = {}
    for impl in ("reference", "chunkwise", "recurrent"):
        y1, state = layer(x[:, :5], impl=impl)
        y2, state = layer(x[:, 5:], state, impl=impl)
        y = torch.cat([y1, y2], dim=1)
        results[impl] = y, state, torch.autograd.grad((y * cotangent).sum(), list(leaves.values()), materialize_grads=True)
    expected, expected_state, expected_gradients = results.pop("reference")
    for impl, (y, state, gradients) in results.items():
        torch.testing.assert_close(y, expected, **TOLERANCE)
        assert_same_state(state, expected_state)
        for name, actual, gradient in zip(leaves, gradients, expected_gradients, strict=True):
            torch.testing.assert_close(actual, gradient, **TOLERANCE, msg=lambda m, where=f"{impl}, {name}": f"gradient of {where}: {m}")


@ablations
def test_every_parameter_learns(options: dict) -> None:
    """The gradient of each parameter is finite and not zero, and so is each row of the first state's."""
    layer = make_layer(**options)
    layer(inputs(20))[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-9, name
        if name.startswith("first_state"):
            assert (parameter.grad.abs().amax(-1) > 0).all(), name


def test_parameters_are_those_that_the_options_need() -> None:
    """Nothing is made that an option switches off."""
    names = {name for name, _ in make_layer(norm=False, forgetting="none", depth=1).named_parameters()}
    assert names == {
        *("qkv.weight", "convolution.weight", "gate.weight", "output_norm.weight", "output.weight"),
        *("first_state.0", "momentum_and_step.weight", "momentum_and_step.bias"),
    }


@pytest.mark.parametrize(("width", "depth"), [(16, 2), (64, 2), (64, 3)])
def test_what_enters_an_activation_at_the_start_has_variance_one(width: int, depth: int) -> None:
    layer = NeuralMemory(256, MemoryConfig(num_heads=256 // width, depth=depth))
    keys = torch.nn.functional.normalize(torch.randn(layer.heads, 500, width), dim=-1)
    assert (keys @ layer.first_state[0]).var().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("forgetting", ["head", "channel"])
def test_gates_start_near_their_configured_values(forgetting: str) -> None:
    """On inputs of unit size as the block's norm gives them: alpha, eta as configured, theta at a tenth of its bound."""
    config = MemoryConfig(num_heads=2, depth=3, forgetting=forgetting, initial_forgetting=0.02, initial_momentum=0.7, max_step=0.3)
    layer = NeuralMemory(64, config)
    gates = layer.gates(torch.randn(2, 100, 64))
    assert len(gates) == 3
    for alpha, eta, theta in gates:
        assert eta.shape == theta.shape == alpha.shape[:3] == (2, 2, 100)
        for gate, expected in ((alpha, 0.02), (eta, 0.7), (theta, 0.03)):
            torch.testing.assert_close(gate.mean(), torch.tensor(expected), rtol=0.1, atol=0)
            torch.testing.assert_close(gate, torch.full_like(gate, expected), rtol=1.0, atol=0)


def test_gates_that_are_switched_off_are_zero() -> None:
    gates = make_layer(momentum=False, forgetting="none").gates(inputs(5))
    assert all(gate.eta.abs().max() == 0 and gate.alpha.abs().max() == 0 for gate in gates)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("forgetting", ["head", "channel"])
def test_gates_stay_in_their_range_for_any_input(forgetting: str, scale: float) -> None:
    layer = make_layer(forgetting=forgetting, max_step=0.01).float()
    for alpha, eta, theta in layer.gates(scale * inputs(50).float()):
        assert alpha.min() >= 0
        assert alpha.max() <= 1
        assert eta.min() >= 0
        assert eta.max() <= 1
        assert theta.min() >= 0
        assert theta.max() <= 0.01


def test_learns_under_inference_mode() -> None:
    """The same as in training; and a second reading of the same tokens is another."""
    layer, x = make_layer(), inputs(20)
    expected, _ = layer(x)
    with torch.inference_mode():
        y, state = layer(x)
        again, after = layer(x, state)
    assert torch.equal(y, expected)
    assert not torch.allclose(again, y)
    assert not torch.allclose(after.memory.weights[0], state.memory.weights[0])


def test_the_memory_recalls_what_it_was_told() -> None:
    """The inner loss falls: after a second reading the memory maps the keys closer to the values than after the first."""
    layer, x = NeuralMemory(32, MemoryConfig(num_heads=2, depth=1, norm=False, forgetting="none", max_step=0.5)), torch.randn(1, 16, 32)
    mixed, _ = layer._convolve(layer.qkv(x), None)
    k, v = torch.nn.functional.silu(mixed).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)[1:]
    k = torch.nn.functional.normalize(k, dim=-1)
    losses, state = [], None
    with torch.inference_mode():
        for _ in range(4):
            _, state = layer(x, None if state is None else MemoryLayerState(state.memory, torch.zeros_like(state.convolution)))
            losses.append((k + k @ state.memory.weights[0] - v).square().sum().item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("value", [0.0, 1.0])
@ablations
def test_constant_input_gives_finite_gradients(options: dict, value: float) -> None:
    layer = make_layer(**options)
    x = torch.full((1, 10, DIM), value, dtype=torch.float64, requires_grad=True)
    y, state = layer(x)
    (y.sum() + sum(W.sum() for W in state.memory.weights)).backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters() if parameter.grad is not None)


def test_a_read_leaves_the_memory_alone_and_sees_one_token_at_a_time() -> None:
    layer, x = make_layer(), inputs(7)
    _, state = layer(inputs(10))
    before = [part.clone() for part in tensors(state)]
    y = layer.read(x, state.memory.weights)
    assert all(map(torch.equal, tensors(state), before))
    torch.testing.assert_close(layer.read(x[:, 3:4], state.memory.weights), y[:, 3:4], **TOLERANCE)
    assert not torch.allclose(layer.read(x, None), y)


def test_low_precision_keeps_a_float32_memory() -> None:
    """Under bf16 autocast, and for a bf16 layer: outputs near float32's, the memory itself in float32."""
    layer = NeuralMemory(32, MemoryConfig(num_heads=2, expansion=2))
    x = torch.randn(2, 100, 32)
    expected, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(x[:, :39])
        y2, state = layer(x[:, 39:], state)
    low, low_state = layer.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    for result, memory in ((torch.cat([y, y2], dim=1), state.memory), (low, low_state.memory)):
        assert {part.dtype for part in (*memory.weights, *memory.momentum, *memory.anchor)} == {torch.float32}
        error = (result.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < 0.03


# Streams without an end. The rows are one batch, so that each is a stream of its own and all are read at the cost of one.

WIDTH = 32
ROWS = ("random", "constant", "zero", "alternating", "huge")
PIECE = 8192
CASES = {"default": {}, "linear": {"depth": 1, "norm": False}, "depth-3": {"depth": 3}}


def stream_piece(start: int, length: int) -> Tensor:
    """Tokens start to start + length of every row, (5, length, 32)."""
    random = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(start))
    constant = torch.linspace(-1, 1, WIDTH).expand(length, WIDTH)
    sign = 1.0 - 2.0 * ((start + torch.arange(length)) % 2).unsqueeze(1)
    return torch.stack([random, constant, torch.zeros_like(random), sign * constant, 1e4 * random])


@dataclass
class Stream:
    """What was seen, piece by piece: the largest output and weight of each row (NaN stays NaN), bytes of the state, of the process."""

    outputs: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    state_bytes: list[int] = field(default_factory=list)
    process_bytes: list[int] = field(default_factory=list)


def resident_bytes() -> int:
    """Memory of this process now, without what the allocator keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def read_stream(options: dict, tokens: int) -> Stream:
    torch.manual_seed(0)
    layer = NeuralMemory(WIDTH, MemoryConfig(num_heads=2, expansion=2, **options)).eval()
    seen, state = Stream(), None
    with torch.inference_mode():
        for start in range(0, tokens, PIECE):
            y, state = layer(stream_piece(start, min(PIECE, tokens - start)), state)
            seen.outputs.append(y.abs().amax((1, 2)))
            seen.weights.append(torch.stack([W.abs().amax((1, 2, 3)) for W in state.memory.weights]).amax(0))
            seen.state_bytes.append(state.nbytes)
            del y
            if platform.libc_ver()[0] == "glibc":
                seen.process_bytes.append(resident_bytes())
    return seen


@pytest.fixture(scope="module")
def streams() -> dict[tuple[str, int], Stream]:
    """Each stream is read once for all tests of it."""
    return {}


def stream_of(streams: dict[tuple[str, int], Stream], case: str, tokens: int) -> Stream:
    if (case, tokens) not in streams:
        streams[case, tokens] = read_stream(CASES[case], tokens)
    return streams[case, tokens]


lengths = pytest.mark.parametrize(
    ("case", "tokens"),
    [
        ("default", 131_072),
        ("linear", 65_536),
        ("depth-3", 65_536),
        pytest.param("default", 1_000_000, marks=pytest.mark.slow),
    ],
    ids=lambda x: f"{x:,}" if isinstance(x, int) else x,
)


@lengths
@pytest.mark.parametrize("row", ROWS)
def test_endless_stream_stays_bounded(streams: dict, row: str, case: str, tokens: int) -> None:
    """Finite, and no larger than what the row's size allows: weights below 100, outputs below 100 times the input's."""
    seen, i = stream_of(streams, case, tokens), ROWS.index(row)
    outputs, weights = torch.stack(seen.outputs)[:, i], torch.stack(seen.weights)[:, i]
    scale = max(1.0, stream_piece(0, 64)[i].abs().max().item())
    assert torch.isfinite(outputs).all(), f"first in piece {int((~torch.isfinite(outputs)).int().argmax())}"
    assert torch.isfinite(weights).all(), f"first in piece {int((~torch.isfinite(weights)).int().argmax())}"
    assert outputs.max() < 100 * scale
    assert weights.max() < 100 * scale


@lengths
def test_endless_stream_takes_constant_memory(streams: dict, case: str, tokens: int) -> None:
    """The state has the same size after every piece, and the process does not grow after the first pieces."""
    seen = stream_of(streams, case, tokens)
    assert len(set(seen.state_bytes)) == 1
    if not seen.process_bytes:
        pytest.skip("needs Linux with glibc")
    assert max(seen.process_bytes[2:]) < max(seen.process_bytes[:2]) + 8 * 2**20


@torch.inference_mode()
@pytest.mark.parametrize("forgetting", ["head", "channel", "none"])
def test_the_largest_steps_token_by_token_let_nothing_grow(forgetting: Literal["head", "channel", "none"]) -> None:
    """All gates wide open: a step of 1 and a forgetting of a half would leave -1.5 of what is stored."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"depth": 1, "norm": False, "residual": False, "momentum": False, "gradient": "token"}
    layer = NeuralMemory(WIDTH, MemoryConfig(num_heads=2, max_step=1.0, forgetting=forgetting, initial_forgetting=0.5, **options)).eval()
    layer.momentum_and_step.bias.fill_(20)
    state, first = None, layer.init_state(5).memory.weights[0].abs().max()
    for start in range(0, 20_000, 4_000):
        y, state = layer(stream_piece(start, 4_000), state)
        assert torch.isfinite(y).all()
        assert state.memory.weights[0][:4].abs().max() < 100 * first


@pytest.mark.parametrize("local", [None, LocalMemoryConfig(chunk_sizes=(2,), shard_length=4)], ids=["one-level", "two-levels"])
def test_a_frozen_memory_reads_what_it_knew_and_learns_nothing(local: LocalMemoryConfig | None) -> None:
    layer, x = make_layer(local=local, convolution_width=1), inputs(9)
    plain, _ = layer(x)
    with frozen_memory(layer):
        y, state = layer(x)
    first = layer.init_state(2)
    torch.testing.assert_close(layer.snapshot(state)[:2], layer.snapshot(first)[:2], rtol=0, atol=0)
    if local is None:
        torch.testing.assert_close(y, layer.read(x, None), **TOLERANCE)
    assert not torch.allclose(y, plain, rtol=1e-3)
    torch.testing.assert_close(layer(x)[0], plain, rtol=0, atol=0)  # afterwards it learns again


@pytest.mark.parametrize("local", [None, LocalMemoryConfig(chunk_sizes=(2,), shard_length=4)], ids=["one-level", "two-levels"])
@pytest.mark.parametrize("forgetting", ["head", "channel"])
def test_forgetting_is_scaled_and_nothing_else(forgetting: str, local: LocalMemoryConfig | None) -> None:
    """The odds of every alpha, of all levels; and back again all is as it was."""
    layer, x = make_layer(forgetting=forgetting, local=local), inputs(9)
    memories = [layer, *(layer.local or ())]
    before, plain = [memory.gates(x) for memory in memories], layer(x)[0]
    scale_forgetting(torch.nn.Sequential(layer), 0.01)
    for memory, gates in zip(memories, before, strict=True):
        for (alpha, eta, theta), (scaled, *others) in zip(gates, memory.gates(x), strict=True):
            torch.testing.assert_close(scaled * (1 - alpha), 0.01 * alpha * (1 - scaled), **TOLERANCE)
            assert all(map(torch.equal, others, (eta, theta)))
    assert not torch.allclose(layer(x)[0], plain, rtol=1e-4)
    scale_forgetting(layer, 100)
    torch.testing.assert_close(layer(x)[0], plain, **TOLERANCE)
    scale_forgetting(layer, 1e40)
    assert all(alpha.min() > 0.9 and alpha.max() <= 1 for memory in memories for alpha, *_ in memory.gates(x))


@pytest.mark.parametrize("factor", [0, -1, math.inf, math.nan])
def test_forgetting_is_scaled_by_a_positive_number(factor: float) -> None:
    with pytest.raises(ValueError, match="factor must be a positive number, got"):
        scale_forgetting(make_layer(), factor)


def test_what_never_forgets_is_not_scaled() -> None:
    for model in (make_layer(forgetting="none"), torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="no memory of the model forgets"):
            scale_forgetting(model, 0.01)
