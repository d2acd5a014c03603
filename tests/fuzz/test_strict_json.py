"""JSON from strangers: what Python's json reads, without what is no JSON, or a ValueError."""

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.strategies import LEAVES, TEXTS, TOKENS, VALUES, dumps, mutated_bytes, mutated_text
from titans_seq import strict_json

VALID = json.dumps({"a": [1, -2.5e3, True, None, "é\ud83d\ude00"], "b": {"a": {}, "c": []}, "d": '\\"\n'})


def check(text: str | bytes) -> None:
    try:
        value = strict_json.loads(text)
    except ValueError as error:
        assert 0 < len(str(error)) < 500, "a message, and a readable one"
        str(error).encode()
        return
    assert value == json.loads(text)
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert_unique(json.loads(text, object_pairs_hook=Pairs))


class Pairs(list[Any]):
    """An object as its pairs."""


def assert_unique(value: Any) -> None:
    """No object in `value` has a key twice."""
    if isinstance(value, Pairs):
        assert len({key for key, _ in value}) == len(value)
    for item in value if isinstance(value, list) else ():
        assert_unique(item[1] if isinstance(value, Pairs) else item)


@given(text=VALUES.map(dumps) | st.lists(TOKENS | TEXTS, max_size=8).map("".join) | st.text(max_size=30) | mutated_text(VALID))
def test_text(text: str) -> None:
    check(text)


@given(content=st.sampled_from(["utf-8", "utf-16", "utf-32", "utf-8-sig"]).flatmap(lambda form: mutated_bytes(VALID.encode(form))))
def test_bytes(content: bytes) -> None:
    check(content)


def _is_finite(value: Any) -> bool:
    return value != "<huge>" and not (isinstance(value, float) and not math.isfinite(value))


FINITE = LEAVES.filter(_is_finite)


@given(value=st.recursive(FINITE, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8))
def test_what_json_writes_is_read(value: Any) -> None:
    text = json.dumps(value)  # which joins lone surrogates that stand side by side
    assert strict_json.loads(text) == json.loads(text)
