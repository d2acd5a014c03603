"""JSON from strangers: `loads` refuses what Python's json takes although it is no JSON, or not what was meant."""

import json
import math
from typing import Any, NoReturn


def loads(text: str | bytes) -> Any:
    """As `json.loads`, but a key that comes twice, NaN, an infinity, or a number too large for a float is refused.

    Raises:
        ValueError: the text is not JSON, is refused, or nests too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {key!r:.100} comes twice")
        values[key] = value
    return values


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is too large")
    return value
