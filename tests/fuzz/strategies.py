"""What strangers send: JSON of every shape, and valid text and bytes with some damage."""

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

FEWER = settings(max_examples=settings().max_examples // 4)
"""For a subject that takes milliseconds an example and has four tests or more."""
HUGE = "<huge>"
"""Stands for an integer of more digits than Python writes (or hypothesis shows)."""
NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400]),
    st.floats(),
    st.sampled_from([HUGE, 0.0, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")]),
)
TEXTS = (
    st.text(max_size=8) | st.text(st.characters(categories=["Cs", "Cc"]), max_size=3) | st.sampled_from(["", "\ud800", "\0", "1", "true"])
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8)
"""JSON as Python values, with NaN, infinities, integers of any size and lone surrogates."""

TOKENS = st.sampled_from(
    [
        *("{", "}", "[", "]", ":", ",", '"', "'a'", "//", "\\", "\n", "\ufeff", "\u2028", "\u0661", '"\\ud800"', '"\\u0000"'),
        *("null", "true", "NaN", "-Infinity", "1e400", "-1e-400", "0x10", "1_000", "01", "1.", "9" * 5000, "[" * 5000, '{"a":' * 3000),
    ]
)


def dumps(value: Any) -> str:
    """JSON of `value`."""
    return json.dumps(value).replace(json.dumps(HUGE), "9" * 5000)


@st.composite
def mutated_values(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested dictionaries with one to three keys, or items of their lists, set to something else, removed, or added."""
    result = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(_dictionaries(result)))
        key = draw(st.sampled_from(sorted(part)) | TEXTS) if part else draw(TEXTS)
        if key in part and draw(st.integers(0, 4)) == 0:
            del part[key]
        elif isinstance(part.get(key), list) and part[key] and draw(st.booleans()):
            part[key][draw(st.integers(0, len(part[key]) - 1))] = draw(NUMBERS | VALUES)
        else:
            part[key] = draw(NUMBERS | VALUES)
    return result


def _dictionaries(value: dict[str, Any]) -> list[dict[str, Any]]:
    return [value, *(part for item in value.values() if isinstance(item, dict) for part in _dictionaries(item))]


@st.composite
def mutated_text(draw: st.DrawFn, valid: str) -> str:
    """`valid` with one to four stretches replaced by tokens or by another stretch of it (keys come twice, brackets miss)."""
    text = valid
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(len(text), start + 30)))
        other = draw(st.integers(0, len(valid)))
        copied = valid[other : draw(st.integers(other, min(len(valid), other + 60)))]
        text = text[:start] + draw(TOKENS | st.just(copied) | st.text(max_size=3)) + text[stop:]
    return text


@st.composite
def mutated_bytes(draw: st.DrawFn, valid: bytes, head: int | None = None) -> bytes:
    """`valid` with bytes flipped, cut out or put in, more often among its first `head`; or cut short."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        end = len(content) if head is None or draw(st.integers(0, 3)) == 0 else min(head, len(content))
        at = draw(st.integers(0, max(0, end - 1)))
        what = draw(st.sampled_from(["flip", "set", "cut", "insert", "remove"]))
        if what == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "set":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=1) | st.sampled_from([b"\0", b"\xff", b"9", b"-", b'"']))
        elif what == "cut":
            del content[at:]
        elif what == "insert":
            content[at:at] = draw(st.binary(max_size=9))
        else:
            del content[at : at + draw(st.integers(1, 9))]
    return bytes(content)
