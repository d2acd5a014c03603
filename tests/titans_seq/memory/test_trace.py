"""`trace_memory`: what it says of a token is what the equations say, wherever the stream is cut and whatever stands at padding."""

import pytest
import torch

from tests.titans_seq.memory.test_layer import TOLERANCE, ablations, inputs, make_layer
from titans_seq import LocalMemoryConfig
from titans_seq.memory import frozen_memory, trace_memory
from titans_seq.memory.reference import loss_gradients

TWO_LEVELS = LocalMemoryConfig(chunk_sizes=(2,), shard_length=4)


@ablations
def test_surprise_is_the_norm_of_the_inner_gradient_wherever_the_stream_is_cut(options: dict) -> None:
    """Against autograd at the point that the state says, one token after the other."""
    layer, x = make_layer(**options), inputs(7)
    surprise = trace_memory(layer, x).surprise
    assert surprise.shape == (2, layer.heads, layer.config.depth, 7)
    _, k, v, _ = layer._project(x, None)
    state = layer.init_state(2)
    for t in range(7):
        points = layer.weights.at(state.memory.weights if layer.config.gradient == "token" else state.memory.anchor)
        for l, gradient in enumerate(loss_gradients(k[:, :, t], v[:, :, t], points, layer.weights)):
            torch.testing.assert_close(surprise[:, :, l, t], torch.linalg.matrix_norm(gradient), **TOLERANCE)
        torch.testing.assert_close(trace_memory(layer, x[:, t:], state).surprise, surprise[..., t:], **TOLERANCE)
        _, state = layer(x[:, t : t + 1], state)


@ablations
def test_sizes_are_those_of_the_state_and_gates_those_of_the_layer(options: dict) -> None:
    layer, x = make_layer(**options), inputs(6)
    trace = trace_memory(layer, x)
    state = None
    for t in range(6):
        _, state = layer(x[:, t : t + 1], state)
        for l, (W, S) in enumerate(zip(layer.weights.at(state.memory.weights), state.memory.momentum, strict=True)):
            torch.testing.assert_close(trace.weight_norm[:, :, l, t], torch.linalg.matrix_norm(W), **TOLERANCE)
            torch.testing.assert_close(trace.momentum_norm[:, :, l, t], torch.linalg.matrix_norm(S), **TOLERANCE)
    for l, gates in enumerate(layer.gates(x)):
        torch.testing.assert_close(trace.theta[:, :, l], gates.theta, rtol=0, atol=0)
        torch.testing.assert_close(trace.eta[:, :, l], gates.eta, rtol=0, atol=0)


@pytest.mark.parametrize("local", [None, TWO_LEVELS], ids=["one-level", "two-levels"])
def test_a_frozen_memory_has_learned_nothing_of_what_it_answers(local: LocalMemoryConfig | None) -> None:
    layer, x = make_layer(local=local), inputs(9)
    trace = trace_memory(layer, x)
    assert trace.learned.min() > 0
    with frozen_memory(layer):
        frozen = trace_memory(layer, x)
    assert frozen.learned.max() < 1e-12
    assert frozen.read.min() > 0
    assert torch.equal(frozen.weight_norm, frozen.weight_norm[..., :1].expand_as(frozen.weight_norm))


@pytest.mark.parametrize("local", [None, TWO_LEVELS], ids=["one-level", "two-levels"])
def test_padding_is_as_if_absent_and_a_document_begins_anew(local: LocalMemoryConfig | None) -> None:
    layer, x = make_layer(local=local), inputs(5, batch=1)
    expected, second = trace_memory(layer, x), trace_memory(layer, x[:, 2:])
    mask = torch.tensor([[False, True, False, True, True, True, True, False]])
    reset = torch.zeros_like(mask)
    padded = torch.full((1, 8, x.shape[2]), 1e6, dtype=x.dtype)
    padded[mask] = x[0]
    trace = trace_memory(layer, padded, mask=mask)
    assert trace.active.tolist() == [[True] * 5 + [False] * 3]
    reset[0, 4] = True
    documents = trace_memory(layer, padded, mask=mask, reset=reset)
    for name in ("surprise", "theta", "weight_norm", "momentum_norm", "read", "learned"):
        torch.testing.assert_close(getattr(trace, name)[..., :5], getattr(expected, name), **TOLERANCE)
        torch.testing.assert_close(getattr(documents, name)[..., :2], getattr(expected, name)[..., :2], **TOLERANCE)
        torch.testing.assert_close(getattr(documents, name)[..., 2:5], getattr(second, name), **TOLERANCE)
