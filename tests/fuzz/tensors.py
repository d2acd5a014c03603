"""What strangers send: files of tensors of other shapes, dtypes and values."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Changes = list[tuple[int, tuple[str, Any]]]

SHAPES = {
    "flat": torch.flatten,
    "a dimension more": lambda x: x[None],
    "one row": lambda x: x[:1],
    "no row": lambda x: x[:0],
    "four rows": lambda x: x.repeat(2, *[1] * (x.dim() - 1)),
    "narrow": lambda x: x[..., :1],
    "scalar": lambda x: x.new_zeros(()),
}
POSITIONS = [-(2**62), -1, 1, 3, 4, 6, 100, 2**40]
DTYPES = [torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
CHANGE = st.one_of(
    st.just(("missing", None)),
    st.tuples(st.just("dtype"), st.sampled_from(DTYPES)),
    st.tuples(st.just("shape"), st.sampled_from(sorted(SHAPES))),
    st.tuples(st.just("value"), st.tuples(st.integers(0, 10_000), st.sampled_from([0, 100, float("nan"), float("-inf")]))),
    st.tuples(st.just("position"), st.sampled_from(POSITIONS)),
)


def changed(x: Tensor, what: str, how: Any) -> Tensor | None:
    """x after one of `CHANGE`, as it is where that does not apply; None if it is missing."""
    match what:
        case "missing":
            return None
        case "dtype" if not x.is_complex():
            return x.to(how)
        case "shape" if x.dim():
            return SHAPES[how](x).contiguous()
        case "value" if x.numel() and x.is_floating_point():
            x = x.clone()
            x.view(-1)[how[0] % x.numel()] = how[1]
        case "position" if x.dtype == torch.int64:
            return torch.full_like(x, how)
    return x


CHANGES = st.lists(st.tuples(st.integers(0, 100), CHANGE), min_size=1, max_size=2)
"""One or two of the tensors, by their number modulo how many there are, and what becomes of them."""


def change_tensors(tensors: dict[str, Tensor], changes: Changes) -> dict[str, Tensor]:
    """`tensors` after `changes`."""
    tensors = dict(tensors)
    for number, change in changes:
        key = sorted(tensors)[number % len(tensors)]
        x = changed(tensors.pop(key), *change)
        if x is not None:
            tensors[key] = x
    return tensors
