"""Padding is as if it were absent, and a packed document as if it were alone: outputs, states and gradients, in every variant.

The oracle runs every document of every row by itself, without padding, through the same model.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from titans_seq import (
    AttentionConfig,
    LocalMemoryConfig,
    MemoryConfig,
    NeuralMemory,
    Titans,
    TitansConfig,
    TitansState,
    cu_seqlens_to_reset,
    document_ids_to_reset,
)
from titans_seq.attention import SlidingWindowAttention
from titans_seq.packing import LeftAligned, token_positions

DIM, BATCH = 8, 3
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
VARIANTS = {"lmm": ("lmm", 0), "mac": ("mac", 0), "mac-3-tokens": ("mac", 3), "mag": ("mag", 0), "mal": ("mal", 0)}
variants = pytest.mark.parametrize("name", VARIANTS)


def make_model(name: str, layers: int = 2, **memory: object) -> Titans:
    """In float64, windows and segments of 5, chunks of 4; weights large enough that every part matters."""
    variant, memory_tokens = VARIANTS[name]
    attention = AttentionConfig(num_heads=2, sliding_window=5, segment_length=5, persistent_tokens=1, memory_tokens=memory_tokens)
    options = {"num_heads": 2, "expansion": 2, "chunk_size": 4, "max_step": 0.05, **memory}
    model = Titans(TitansConfig(dim=DIM, num_layers=layers, variant=variant, memory=MemoryConfig(**options), attention=attention))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def marks(data: st.DataObject, length: int, name: str, probable: bool) -> Tensor:
    """(BATCH, length) bool."""
    bits = st.integers(0, 3).map(lambda n: n > 0) if probable else st.integers(0, 3).map(lambda n: n == 0)
    row = st.lists(bits, min_size=length, max_size=length)
    return torch.tensor(data.draw(st.lists(row, min_size=BATCH, max_size=BATCH), label=name))


def alone(model: Titans, x: Tensor, mask: Tensor, reset: Tensor | None) -> tuple[Tensor, list[TitansState]]:
    """Each document of each row by itself: outputs (B, T, dim), zero at padding, and the state after the last document of each row."""
    rows, states = [], []
    for b in range(len(x)):
        document = torch.zeros_like(mask[b], dtype=torch.int64) if reset is None else reset[b].long().cumsum(0)
        y, state = torch.zeros_like(x[b]), model.init_state(1)
        for d in range(int(document[-1]) + 1):
            places = ((document == d) & mask[b]).nonzero().flatten()
            state = model.init_state(1)
            if len(places):
                piece, state = model(x[b : b + 1, places])
                y = y.index_put((places,), piece[0])
        rows.append(y)
        states.append(state)
    return torch.stack(rows), states


def in_pieces(model: Titans, x: Tensor, cuts: list[int], mask: Tensor, reset: Tensor | None) -> tuple[Tensor, TitansState]:
    pieces, state = [], model.init_state(len(x))
    for start, stop in pairwise([0, *cuts, x.shape[1]]):
        y, state = model(x[:, start:stop], state, mask=mask[:, start:stop], reset=None if reset is None else reset[:, start:stop])
        pieces.append(y)
    return torch.cat(pieces, dim=1), state


def assert_rows(state: TitansState, expected: list[TitansState]) -> None:
    for b, row in enumerate(expected):
        for a, e in zip(state.select(torch.tensor([b])).tensors(), row.tensors(), strict=True):
            torch.testing.assert_close(a, e, **TOLERANCE)


def gradients(y: Tensor, model: Titans, x: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    return torch.autograd.grad((y * cotangent).sum(), [x, *model.parameters()], materialize_grads=True)


GARBAGE = st.sampled_from([math.nan, math.inf, 1e30])


@variants
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_padding_and_packing_in_a_stream(name: str, data: st.DataObject) -> None:
    """Padding and boundaries anywhere, the stream cut anywhere, garbage at padding: as each document alone."""
    length = data.draw(st.integers(1, 17), label="length")
    mask = marks(data, length, "mask", probable=True)
    reset = marks(data, length, "reset", probable=False) if data.draw(st.booleans(), label="packed") else None
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4), label="cuts")) if length > 1 else []
    model, x = make_model(name), torch.randn(BATCH, length, DIM, dtype=torch.float64)
    spoilt = torch.where(mask.unsqueeze(-1), x, data.draw(GARBAGE, label="garbage"))
    with torch.inference_mode():
        expected, states = alone(model, x, mask, reset)
        y, state = in_pieces(model, spoilt, cuts, mask, reset)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    assert_rows(state, states)


@variants
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_gradients(name: str, packed: bool, data: st.DataObject) -> None:
    """Of every parameter and of x, with garbage at padding, through a cut."""
    length = 13
    mask = marks(data, length, "mask", probable=True)
    mask[0, 3] = True  # some token, so that there is a gradient
    reset = marks(data, length, "reset", probable=False) if packed else None
    model, x = make_model(name), torch.randn(BATCH, length, DIM, dtype=torch.float64).requires_grad_()
    expected = gradients(alone(model, x, mask, reset)[0], model, x)
    spoilt = torch.where(mask.unsqueeze(-1), x, math.nan)
    actual = gradients(in_pieces(model, spoilt, [data.draw(st.integers(1, 12), label="cut")], mask, reset)[0], model, x)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@variants
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_unequal_lengths_begins_and_goes_on(name: str, side: str) -> None:
    """Prompts of 12, 7 and 1 tokens in one batch, then ten tokens one by one, in which rows end: what text generation does."""
    model, lengths = make_model(name), torch.tensor([12, 7, 1])
    places = torch.arange(12).expand(3, -1)
    prompt = places < lengths[:, None] if side == "right" else places >= 12 - lengths[:, None]
    ends = torch.arange(10) < torch.tensor([[10], [4], [0]])
    mask, x = torch.cat([prompt, ends], dim=1), torch.randn(3, 22, DIM, dtype=torch.float64)
    with torch.inference_mode():
        expected, states = alone(model, x, mask, None)
        y, state = model(x[:, :12], mask=prompt)
        outputs = [y]
        for t in range(12, 22):
            y, state = model(x[:, t : t + 1], state, mask=mask[:, t : t + 1])
            outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, **TOLERANCE)
    assert_rows(state, states)


@variants
def test_rows_of_unequal_streams_go_on_without_a_mask(name: str) -> None:
    """After unequal prompts a batch goes on by one token and by many: MAC's rows then stand at different places of their segments."""
    model, x = make_model(name), torch.randn(3, 30, DIM, dtype=torch.float64)
    mask = torch.cat([torch.arange(12) < torch.tensor([[12], [7], [1]]), torch.ones(3, 18, dtype=torch.bool)], dim=1)
    with torch.inference_mode():
        expected, states = alone(model, x, mask, None)
        y, state = model(x[:, :12], mask=mask[:, :12])
        first, state = model(x[:, 12:13], state)
        rest, state = model(x[:, 13:], state)
    torch.testing.assert_close(torch.cat([y, first, rest], dim=1), expected, **TOLERANCE)
    assert_rows(state, states)


@variants
def test_no_token_sees_another_document(name: str) -> None:
    """Another first document, huge: nothing changes in the second, no bit of it; and the gradient does not reach over."""
    model = make_model(name)
    reset = cu_seqlens_to_reset(torch.tensor([0, 7, 16]), 16)
    x = torch.randn(1, 16, DIM, dtype=torch.float64).requires_grad_()
    y, state = model(x, reset=reset)
    (gradient,) = torch.autograd.grad(y[:, 7:].square().sum(), x)
    assert gradient[:, :7].abs().max() == 0
    assert (gradient[:, 7:].abs().amax(-1) > 0).all()
    changed = torch.cat([1e6 * torch.randn(1, 7, DIM, dtype=torch.float64), x[:, 7:]], dim=1)
    z, state_z = model(changed, reset=reset)
    assert torch.equal(z[:, 7:], y[:, 7:])
    assert all(map(torch.equal, state_z.tensors(), state.tensors()))


@variants
def test_a_full_mask_and_no_reset_change_nothing(name: str) -> None:
    model, x = make_model(name), torch.randn(2, 13, DIM, dtype=torch.float64)
    every, none = torch.ones(2, 13, dtype=torch.bool), torch.zeros(2, 13, dtype=torch.bool)
    expected, expected_state = model(x)
    for options in ({"mask": every}, {"reset": none}, {"mask": every, "reset": none}):
        y, state = model(x, **options)
        torch.testing.assert_close(y, expected, **TOLERANCE)
        assert_rows(state, [expected_state.select(torch.tensor([b])) for b in range(2)])


MEMORIES = {
    "channel": {"forgetting": "channel"},
    "no-convolution": {"convolution_width": 1},
    "token-gradients": {"depth": 1, "norm": False, "gradient": "token", "surprise_clip": None},
    "two-levels": {"local": LocalMemoryConfig(chunk_sizes=(2,), shard_length=6)},
}


@pytest.mark.parametrize(("options", "name"), [*((o, "mag") for o in MEMORIES.values()), (MEMORIES["two-levels"], "mac-3-tokens")], ids=str)
def test_other_memories(options: dict, name: str) -> None:
    model, x = make_model(name, **options), torch.randn(BATCH, 14, DIM, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    mask, reset = torch.rand(BATCH, 14, generator=generator) < 0.7, torch.rand(BATCH, 14, generator=generator) < 0.2
    with torch.inference_mode():
        expected, states = alone(model, x, mask, reset)
        y, state = in_pieces(model, x, [5], mask, reset)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    assert_rows(state, states)


def test_a_wide_window_is_as_full_as_the_document() -> None:
    """Windows wider than the input, and of one token."""
    for window in (1, 2, 40):
        layer = SlidingWindowAttention(DIM, AttentionConfig(num_heads=2, sliding_window=window)).double()
        x = torch.randn(1, 17, DIM, dtype=torch.float64)
        y, state = layer(x[:, :11], reset=document_ids_to_reset(torch.tensor([[0] * 4 + [1] * 7])))
        z, state = layer(x[:, 11:], state)
        expected, expected_state = layer(x[:, 4:])
        torch.testing.assert_close(torch.cat([y[:, 4:], z], dim=1), expected, **TOLERANCE)
        torch.testing.assert_close(state.keys, expected_state.keys, **TOLERANCE)
        assert state.position.tolist() == [13]


def test_the_memory_layer_takes_padding_anywhere() -> None:
    layer = NeuralMemory(DIM, MemoryConfig(num_heads=2, chunk_size=4)).double()
    x, mask = torch.randn(1, 9, DIM, dtype=torch.float64), torch.tensor([[False, True, False, True, True, True, False, True, False]])
    y, state = layer(torch.where(mask.unsqueeze(-1), x, math.nan), mask=mask)
    expected, expected_state = layer(x[:, mask[0]])
    torch.testing.assert_close(y[:, mask[0]], expected, **TOLERANCE)
    assert (y[~mask] == 0).all()
    for a, e in zip(state.tensors(), expected_state.tensors(), strict=True):
        torch.testing.assert_close(a, e, **TOLERANCE)
    for marks_of in ("mask", "reset"):
        with pytest.raises(ValueError, match=rf"{marks_of} must be \(1, 9\) torch.bool, .* got \(1, 8\) torch.bool"):
            layer(x, **{marks_of: mask[:, 1:]})


def test_rows_move_to_the_front_and_back() -> None:
    mask = torch.tensor([[False, True, False, True], [True, True, True, True], [False, False, False, False]])
    reset = torch.tensor([[False, False, True, False], [True, False, False, True], [False, True, True, False]])
    aligned = LeftAligned(mask, reset)
    x = torch.arange(1.0, 13.0).view(3, 4, 1)
    assert aligned.take(x).squeeze(-1).tolist() == [[2, 4, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0]]
    assert aligned.put(aligned.take(x)).squeeze(-1).tolist() == [[0, 2, 0, 4], [5, 6, 7, 8], [0, 0, 0, 0]]
    assert aligned.mask.long().sum(1).tolist() == [2, 4, 0]
    assert aligned.reset.tolist() == [[False, True, False, False], [True, False, False, True], [True, False, False, False]]
    positions, end = token_positions(torch.tensor([3, 3, 3]), 4, aligned.mask, aligned.reset)
    assert [row[:n] for row, n in zip(positions.tolist(), (2, 4, 0), strict=True)] == [[3, 0], [0, 1, 2, 0], []]
    assert end.tolist() == [1, 1, 0]


def test_forms_of_packed_sequences() -> None:
    expected = [[True, False, True, True, False]]
    assert cu_seqlens_to_reset(torch.tensor([0, 2, 3, 3, 5], dtype=torch.int32), 5).tolist() == expected
    assert document_ids_to_reset(torch.tensor([[4, 4, 0, 9, 9]])).tolist() == expected
    for wrong, message in (
        ([0, 2, 4], r"from 0 to length=5 .*, got \[0, 2, 4\]"),
        ([1, 5], r"from 0 to length=5 .*, got \[1, 5\]"),
        ([0, 3, 2, 5], r"without falling, got \[0, 3, 2, 5\]"),
        ([0.0, 5.0], r"must be \(N \+ 1 >= 2,\) integers, got \(2,\) torch.float32"),
        ([5], r"got \(1,\) torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            cu_seqlens_to_reset(torch.tensor(wrong), 5)
    with pytest.raises(ValueError, match=r"without falling, got \[0, 5, 3, 5\]"):  # unsigned differences do not fall
        cu_seqlens_to_reset(torch.tensor([0, 5, 3, 5], dtype=torch.uint8), 5)
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=f"integers, got .* {dtype}"):
            cu_seqlens_to_reset(torch.tensor([0, 1]).to(dtype), 1)
        with pytest.raises(ValueError, match=f"integers, got .* {dtype}"):
            document_ids_to_reset(torch.tensor([[0, 1]]).to(dtype))
    with pytest.raises(ValueError, match=r"document_ids must be \(B, T\) integers, got \(3,\) torch.int64"):
        document_ids_to_reset(torch.tensor([0, 1, 1]))


@variants
def test_bad_marks_name_expected_and_given(name: str) -> None:
    model, x = make_model(name), torch.randn(2, 6, DIM, dtype=torch.float64)
    good = torch.ones(2, 6, dtype=torch.bool)
    for option in ("mask", "reset"):
        for wrong, shown in (
            (good[:, :5], r"\(2, 5\) torch.bool"),
            (good[0], r"\(6,\) torch.bool"),
            (good.long(), r"\(2, 6\) torch.int64"),
        ):
            with pytest.raises(ValueError, match=rf"{option} must be \(2, 6\) torch.bool, .*got {shown}"):
                model(x, **{option: wrong})
    empty = good.clone()
    empty[1] = False
    with pytest.raises(ValueError, match=r"mask must have a token in each row that begins a stream, got none in rows \[1\]"):
        model(x, mask=empty)
    _, state = model(x)
    y, after = model(x, state, mask=empty)  # a row that has ended may rest
    assert (y[1] == 0).all()
    last = torch.tensor([1])
    assert all(map(torch.equal, after.select(last).tensors(), state.select(last).tensors()))


@pytest.mark.parametrize("name", [pytest.param("mac", marks=pytest.mark.slow), "mag"])
def test_padding_and_unequal_rows_compile_as_one_graph(name: str) -> None:
    """A padded prompt, then a token for one of the rows."""
    model, x = make_model(name, layers=1), torch.randn(2, 7, DIM, dtype=torch.float64)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    state, expected_state = None, None
    with torch.no_grad():
        for piece, mask in ((x[:, :6], torch.arange(6) < torch.tensor([[6], [4]])), (x[:, 6:], torch.tensor([[False], [True]]))):
            y, state = compiled(piece, state, mask=mask)
            expected, expected_state = model(piece, expected_state, mask=mask)
            torch.testing.assert_close(y, expected, **TOLERANCE)
    assert_rows(state, [expected_state.select(torch.tensor([b])) for b in range(2)])
    torch._dynamo.reset()
