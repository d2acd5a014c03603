"""`neural_memory` and the helpers for packed rows: a result that is finite and of the right shape, or a ValueError."""

from dataclasses import replace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from titans_seq import cu_seqlens_to_reset, document_ids_to_reset
from titans_seq.memory import Gates, MemoryState, MemoryWeights, neural_memory

DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "bool", "complex64", "uint8"]
HUGE = [-(2**63), -(2**31) - 1, -1, 0, 1, 2, 5, 7, 2**31, 2**63 - 1]


@st.composite
def integer_tensors(draw: st.DrawFn) -> Tensor:
    """Of any shape up to three dimensions, any dtype, with values near 0 and at the ends of their range."""
    shape = draw(st.lists(st.integers(0, 6), max_size=3))
    count = int(torch.Size(shape).numel())
    values = draw(st.lists(st.integers(0, 7) | st.sampled_from(HUGE), min_size=count, max_size=count))
    if draw(st.booleans()):
        values.sort()
    tensor = torch.tensor(values, dtype=torch.int64).reshape(shape)
    dtype = getattr(torch, draw(st.sampled_from(["int64", "int64", "int64", "int32", "int16", *DTYPES])))
    return tensor.to(dtype)


@given(cu_seqlens=integer_tensors(), length=st.integers(-2, 8))
def test_cu_seqlens(cu_seqlens: Tensor, length: int) -> None:
    try:
        reset = cu_seqlens_to_reset(cu_seqlens, length)
    except ValueError:
        return
    assert reset.shape == (1, length)
    ends = cu_seqlens.tolist()
    assert (reset.nonzero()[:, 1]).tolist() == sorted({end for end in ends if end < length})


@given(ids=integer_tensors())
def test_document_ids(ids: Tensor) -> None:
    try:
        reset = document_ids_to_reset(ids)
    except ValueError:
        return
    assert reset.shape == ids.shape
    for row, marks in zip(ids.tolist(), reset.tolist(), strict=True):
        assert marks == [i == 0 or row[i] != row[i - 1] for i in range(len(row))]


def arguments(batch: int = 2, heads: int = 2, length: int = 5, width: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A valid call: a memory of two layers with norm, gates in their ranges, a clip, a state from a call before."""
    hidden = 2 * width
    q, k, v = (torch.randn(batch, heads, length, width, dtype=dtype) for _ in range(3))
    layers = [torch.randn(heads, a, b, dtype=dtype) / a**0.5 for a, b in ((width, hidden), (hidden, width))]
    gates = [Gates(*(scale * torch.rand(batch, heads, length, dtype=dtype) for scale in (1.0, 1.0, 0.1))) for _ in layers]
    norm = torch.ones(heads, width, dtype=dtype)
    weights = MemoryWeights(layers=layers, norm_scale=norm, norm_shift=torch.zeros_like(norm))
    state = MemoryState.initial(weights, batch, 4)
    tensors: dict[str, Any] = {"q": q, "k": k, "v": v, "gates": gates, "weights": weights, "state": state, "chunk_size": 4}
    marks = {"mask": torch.rand(batch, length) > 0.2, "reset": torch.rand(batch, length) > 0.8}
    return {**tensors, **marks, "surprise_clip": 10.0, "impl": "auto", "gradient": "chunk"}


CHANGES = {
    "cut": lambda x: x[..., :-1] if x.dim() else x,
    "one row": lambda x: x[:1] if x.dim() else x,
    "no row": lambda x: x[:0] if x.dim() else x,
    "flat": lambda x: x.flatten(),
    "more": lambda x: x[None],
    "scalar": lambda x: x.new_zeros(()),
    "transposed": lambda x: x.transpose(0, -1) if x.dim() else x,
    "huge": lambda x: x if x.dtype == torch.bool else x * 1e20,
    "zero": lambda x: x * 0,
    "none": lambda x: None,
    **{name: (lambda x, name=name: x if x.is_complex() else x.to(getattr(torch, name))) for name in DTYPES},
}
OPTIONS = {
    "chunk_size": st.sampled_from([-1, 0, 1, 3, 4, 64, 65, 2**40, 2**40 + 15, 2**63 - 1, 2**63, 2**200, 2.5, None]),
    "impl": st.sampled_from(["auto", "chunkwise", "recurrent", "fused", "reference", "", "Chunkwise"]),
    "gradient": st.sampled_from(["chunk", "token", "", "Chunk"]),
    "surprise_clip": st.sampled_from([None, 1.0, 0.0, -1.0, float("nan"), float("inf"), 1e-30]),
    "state": st.none(),
    "mask": st.none(),
    "reset": st.none(),
}


@given(data=st.data())
def test_neural_memory(data: st.DataObject) -> None:
    """A valid call with one to three arguments of another shape, dtype or value."""
    sizes = {name: data.draw(st.integers(1, 3), label=name) for name in ("batch", "heads", "length", "width")}
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    given = arguments(**sizes, dtype=dtype)
    steady = True  # whether the result must be finite: values and steps are within the ranges that are asked for
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(["q", "k", "v", "mask", "reset", "gates", "layers", "norm", "state", "position", *OPTIONS]))
        if name in OPTIONS and data.draw(st.booleans()):
            given[name] = data.draw(OPTIONS[name])
            steady &= name != "surprise_clip" or given[name] == 1.0
            continue
        kind = data.draw(st.sampled_from(sorted(CHANGES)))
        change = CHANGES[kind]
        steady &= kind != "huge"
        if name in ("q", "k", "v", "mask", "reset") and given[name] is not None:
            given[name] = change(given[name]) if kind != "none" or name in ("mask", "reset") else given[name]
        elif kind in ("none", "huge"):
            continue
        elif name == "gates":
            part = data.draw(st.sampled_from(Gates._fields))
            given["gates"] = [given["gates"][0]._replace(**{part: change(getattr(given["gates"][0], part))}), *given["gates"][1:]]
        elif name == "layers":
            layers = given["weights"].layers
            given["weights"] = replace(given["weights"], layers=[*layers[:-1], change(layers[-1])])
        elif name == "norm":
            given["weights"] = replace(given["weights"], norm_scale=change(given["weights"].norm_scale))
        elif given["state"] is not None:
            state = given["state"]
            parts = {"position": change(state.position)} if name == "position" else {"momentum": tuple(map(change, state.momentum))}
            given["state"] = replace(state, **parts)
    check(given, steady)


def check(given: dict[str, Any], steady: bool) -> None:
    q = given["q"]
    try:
        y, state = neural_memory(**given)
    except ValueError as error:
        assert len(str(error)) < 2000
        return
    assert y.shape == q.shape
    assert y.dtype == q.dtype
    if steady and q.dtype != torch.float16:
        assert all(torch.isfinite(x).all() for x in (y, *state.tensors()))


@given(data=st.data())
def test_what_is_no_number_stays_in_its_row_and_head(data: st.DataObject) -> None:
    """NaN of one stream reaches no other stream, no earlier chunk, and nothing at all where the token is masked."""
    given = arguments(batch=2, heads=2, length=5)
    given |= {"reset": None, "state": None, "impl": data.draw(st.sampled_from(["chunkwise", "recurrent"]))}
    name, value = data.draw(st.sampled_from("qkv")), data.draw(st.sampled_from([float("nan"), float("inf"), float("-inf")]))
    row, head, token = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1)), data.draw(st.integers(0, 4))
    masked = data.draw(st.booleans())
    given["mask"] = torch.ones(2, 5, dtype=torch.bool)
    given["mask"][row, token] = not masked
    clean, _ = neural_memory(**given)
    given[name] = given[name].clone()
    given[name][row, head, token, 0] = value
    y, _ = neural_memory(**given)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[row, head, token // 4 * 4 :] = not masked
    torch.testing.assert_close(y[~touched], clean[~touched])
