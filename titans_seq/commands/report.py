"""What `info` and `doctor` find, on the screen or as JSON."""

import json
from collections.abc import Mapping
from typing import Any


def show(found: Mapping[str, Any], as_json: bool) -> None:
    """Print nested mappings as one JSON object, or as indented lines with the values in one column."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    rows = list(_rows(found, 0))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}".rstrip())


def _rows(found: Mapping[str, Any], depth: int) -> Any:
    for name, value in found.items():
        label = "  " * depth + str(name).replace("_", " " if depth == 0 else "_")
        if isinstance(value, Mapping) and value:
            yield label, ""
            yield from _rows(value, depth + 1)
        else:
            yield label, _text(value)


def _text(value: Any) -> str:
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
