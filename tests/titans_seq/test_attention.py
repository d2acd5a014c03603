"""Attention equals the naive T x T softmax in float64, cut anywhere, at any place of the stream, and never holds T x T numbers."""

import dataclasses
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from titans_seq import AttentionConfig
from titans_seq.attention import SegmentAttention, SlidingWindowAttention, rotate

DIM, HEADS, WIDTH = 12, 2, 8  # head_dim is not dim / num_heads
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def large_weights(module: torch.nn.Module) -> Any:
    """In float64, large enough that the softmax is far from uniform."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double()


def make_window(window: int, persistent: int = 3, **options: Any) -> SlidingWindowAttention:
    config = AttentionConfig(num_heads=HEADS, head_dim=WIDTH, sliding_window=window, persistent_tokens=persistent, **options)
    return large_weights(SlidingWindowAttention(DIM, config))


def make_segment(memory_tokens: int, length: int = 9, persistent: int = 3) -> SegmentAttention:
    sizes = {"segment_length": length, "persistent_tokens": persistent, "memory_tokens": memory_tokens}
    return large_weights(SegmentAttention(DIM, AttentionConfig(num_heads=HEADS, head_dim=WIDTH, **sizes)))


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)


def naive_rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Channels i and i + D/4 of the first half are one complex number, turned by position * base^(-i / (D/4))."""
    quarter = WIDTH // 4
    numbers = torch.complex(x[..., :quarter], x[..., quarter : 2 * quarter])
    angles = positions[:, None] * torch.tensor([base ** (-i / quarter) for i in range(quarter)], dtype=torch.float64)
    turned = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag, x[..., 2 * quarter :]], dim=-1)


def softmax_attention(layer: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Persistent tokens in front, then k, v under the (T, K) mask; all T x K logits at once."""
    persistent = torch.cat([torch.zeros_like(layer.persistent_keys), layer.persistent_keys], dim=-1)
    k = torch.cat([persistent.expand(k.shape[0], -1, -1, -1), k], dim=2)
    v = torch.cat([layer.persistent_values.expand(v.shape[0], -1, -1, -1), v], dim=2)
    visible = torch.cat([torch.ones(len(visible), persistent.shape[1], dtype=torch.bool), visible], dim=1)
    logits = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH)).masked_fill(~visible, -math.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2) @ layer.output.weight.T


def naive_window(layer: SlidingWindowAttention, x: Tensor) -> Tensor:
    positions = torch.arange(x.shape[1])
    q = heads(x @ layer.query.weight.T)
    k, v = (heads(part) for part in (x @ layer.key_value.weight.T).chunk(2, dim=-1))
    q, k = (naive_rotate(part, positions, layer.config.rope_base) for part in (q, k))
    distance = positions[:, None] - positions
    return softmax_attention(layer, q, k, v, (distance >= 0) & (distance < layer.config.sliding_window))


def naive_segment(layer: SegmentAttention, x: Tensor, memory: Tensor) -> Tensor:
    positions = torch.arange(x.shape[1])
    q = heads(x @ layer.query.weight.T)
    (k, v), (memory_k, memory_v) = (map(heads, (part @ layer.key_value.weight.T).chunk(2, dim=-1)) for part in (x, memory))
    q, k = (naive_rotate(part, positions, layer.config.rope_base) for part in (q, k))
    causal = positions <= positions[:, None]
    if layer.config.memory_tokens:
        memory_k = torch.cat([torch.zeros_like(memory_k[..., : WIDTH // 2]), memory_k[..., WIDTH // 2 :]], dim=-1)
        seen = torch.ones(len(positions), memory.shape[1], dtype=torch.bool)
    else:
        memory_k, seen = naive_rotate(memory_k, positions, layer.config.rope_base), causal
    k, v = torch.cat([memory_k, k], dim=2), torch.cat([memory_v, v], dim=2)
    return softmax_attention(layer, q, k, v, torch.cat([seen, causal], dim=1))


@pytest.mark.parametrize("persistent", [0, 3], ids="P{}".format)
@pytest.mark.parametrize(
    ("window", "length"),
    [(w, length) for w in (1, 2, 7) for length in sorted({1, max(1, w - 1), w, w + 1, 3 * w + 2})],
    ids="{}".format,
)
def test_window_equals_naive_attention(window: int, length: int, persistent: int) -> None:
    layer = make_window(window, persistent, rope_base=100.0)
    x = torch.randn(2, length, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], naive_window(layer, x), **TOLERANCE)


def test_window_gradients_equal_naive_attention() -> None:
    layer = make_window(4)
    x = torch.randn(2, 15, DIM, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    cotangent = torch.randn(2, 15, DIM, dtype=torch.float64)
    expected = torch.autograd.grad((naive_window(layer, x) * cotangent).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((layer(x)[0] * cotangent).sum(), inputs), expected, **TOLERANCE)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_split_of_the_window_equals_one_pass(data: st.DataObject) -> None:
    window = data.draw(st.integers(1, 8), label="window")
    length = data.draw(st.integers(2, 30), label="length")
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6), label="cuts"))
    layer = make_window(window, data.draw(st.sampled_from([0, 3]), label="persistent"))
    x = torch.randn(2, length, DIM, dtype=torch.float64)
    pieces, state = [], None
    for start, stop in pairwise([0, *cuts, length]):
        y, state = layer(x[:, start:stop], state)
        pieces.append(y)
        assert state.position.tolist() == [stop, stop]
        assert state.keys.shape[2] == state.values.shape[2] == window - 1
    torch.testing.assert_close(torch.cat(pieces, dim=1), layer(x)[0], **TOLERANCE)


def test_the_window_state_holds_no_more_than_it_says() -> None:
    """The cache is a copy, not a view that keeps the whole piece alive."""
    layer = make_window(4)
    _, state = layer(torch.randn(1, 1000, DIM, dtype=torch.float64))
    for part in (state.keys, state.values):
        assert part.untyped_storage().nbytes() == part.numel() * 8 == 3 * HEADS * WIDTH * 8


@pytest.mark.parametrize("persistent", [0, 3], ids="P{}".format)
def test_outputs_depend_on_relative_positions_only(persistent: int) -> None:
    """A stream that stands a million tokens further on goes on the same."""
    layer = make_window(6, persistent)
    x = torch.randn(2, 20, DIM, dtype=torch.float64)
    _, state = layer(x[:, :9])
    keys = rotate(state.keys, torch.full((5,), 1_000_000), layer.config.rope_base)
    far = dataclasses.replace(state, keys=keys, position=state.position + 1_000_000)
    torch.testing.assert_close(layer(x[:, 9:], far)[0], layer(x[:, 9:], state)[0], rtol=1e-8, atol=1e-8)


def test_only_the_window_counts() -> None:
    """Streams of other lengths with the same last 2 window - 1 tokens agree on the last window."""
    layer = make_window(5)
    end = torch.randn(1, 9, DIM, dtype=torch.float64)
    last = []
    for before in (0, 1, 4, 5, 33):
        y, _ = layer(torch.cat([torch.randn(1, before, DIM, dtype=torch.float64), end], dim=1))
        last.append(y[:, -5:])
    for y in last[1:]:
        torch.testing.assert_close(y, last[0], **TOLERANCE)


def test_rotary_positions_keep_float32_precision_after_a_million_tokens() -> None:
    """In float32 throughout: as far from float64 at position a million as at position zero."""
    layer = make_window(6)
    x = torch.randn(1, 12, DIM, dtype=torch.float64)
    expected, _ = layer(x)
    layer = layer.float()
    for start in (0, 1_000_000):
        y, _ = layer(x.float(), dataclasses.replace(layer.init_state(1), position=torch.tensor([start])))
        torch.testing.assert_close(y[:, 5:].double(), expected[:, 5:], rtol=1e-5, atol=1e-5)  # tokens whose window is of this call


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest storage that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in tree_iter(result):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


def test_the_window_never_holds_a_square_of_the_length() -> None:
    """Forward and backward at T = 4096 and window 32: what is held grows linearly, and is far from T x T."""
    layer = make_window(32).float()
    largest = {}
    for length in (2048, 4096):
        with Largest() as seen:
            layer(torch.randn(1, length, DIM))[0].square().sum().backward()
        largest[length] = seen.elements
    assert largest[4096] <= 4096 * HEADS * 2 * (2 * 32 + 3)  # keys of a block times its queries
    assert largest[4096] <= 2.1 * largest[2048]
    with Largest() as seen:  # and it would show
        naive_window(make_window(32), torch.randn(1, 256, DIM, dtype=torch.float64))
    assert seen.elements >= 256 * 256


@pytest.mark.parametrize("persistent", [0, 3], ids="P{}".format)
@pytest.mark.parametrize("memory_tokens", [0, 3], ids="M{}".format)
@pytest.mark.parametrize("length", [1, 2, 9], ids="T{}".format)
def test_segment_equals_naive_attention(length: int, memory_tokens: int, persistent: int) -> None:
    layer = make_segment(memory_tokens, persistent=persistent)
    x = torch.randn(2, length, DIM, dtype=torch.float64)
    memory = torch.randn(2, memory_tokens or length, DIM, dtype=torch.float64)
    y, state = layer(x, memory)
    torch.testing.assert_close(y, naive_segment(layer, x, memory), **TOLERANCE)
    assert state.position.tolist() == [length, length]
    assert state.keys.shape[2] == (9 + memory_tokens if memory_tokens else 2 * 9)


@pytest.mark.parametrize("memory_tokens", [0, 3], ids="M{}".format)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_split_of_the_segment_equals_one_pass(memory_tokens: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 9), label="length")
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1)), label="cuts"))
    layer = make_segment(memory_tokens)
    x = torch.randn(2, length, DIM, dtype=torch.float64)
    memory = torch.randn(2, memory_tokens or length, DIM, dtype=torch.float64)
    pieces, state = [], None
    for start, stop in pairwise([0, *cuts, length]):
        context = memory[:, start:stop] if memory_tokens == 0 else memory if start == 0 else None
        y, state = layer(x[:, start:stop], context, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), naive_segment(layer, x, memory), **TOLERANCE)
