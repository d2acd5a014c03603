"""Files of options, TOML, JSON or YAML: read strictly, a key that comes twice and a file that grows when it is read are refused."""

import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from titans_seq import strict_json
from titans_seq.errors import UserError

LARGEST_FILE = 1 << 16
"""In bytes."""
MOST_VALUES = 10_000
"""A file of YAML may name one value many times over."""
DEEPEST = 16


def read_values(path: Path) -> dict[str, Any]:
    """The options in a file whose name ends in .toml, .json, .yaml or .yml.

    Raises:
        UserError: another ending, no file, or nothing but options in sections can be read from it.
    """
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise UserError(f"--config {path}: the name must end in {', '.join(_PARSERS)}.")
    try:
        if not path.is_file():
            raise UserError(f"--config {path}: no such file. Check the path; it is looked up from {Path.cwd()}.")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"--config {path}: is larger than {LARGEST_FILE} bytes.")
        values = parse(path.read_bytes().decode("utf-8-sig"))  # a lone carriage return stays what it is
    except UserError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"--config {path}: not a {path.suffix.lower()[1:].upper()} file ({' '.join(str(error).split()):.300}).") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: holds a {type(values).__name__}, expected options by name.")
    _check_plain(path, values)
    return values


def _check_plain(path: Path, values: dict[Any, Any]) -> None:
    """Raise UserError unless all names are texts, lists hold plain values, and values are neither too many nor too deep."""
    waiting: list[tuple[Any, int]] = [(values, 0)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        value, depth = waiting.pop()
        if isinstance(value, dict):
            wrong = [key for key in value if not isinstance(key, str)]
            if wrong:
                raise UserError(f"--config {path}: the name {wrong[0]!r:.40} is no text; put it in quotes.")
        if isinstance(value, list | tuple | set) and any(isinstance(item, dict | list | tuple | set) for item in value):
            raise UserError(f"--config {path}: a list holds a section or a list; expected numbers and words in it.")
        if depth > DEEPEST:
            raise UserError(f"--config {path}: its values are nested more than {DEEPEST} deep.")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
        waiting += [(item, depth + 1) for item in inner]
    raise UserError(f"--config {path}: holds more than {MOST_VALUES} values.")


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses keys that come twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = Counter(keys).most_common(1)
            if twice and twice[0][1] > 1:
                raise ValueError(f"key {twice[0][0]!r:.100} comes twice")
            return super().construct_mapping(node, deep)

    try:
        values = yaml.load(text, Loader)  # a SafeLoader
    except (yaml.YAMLError, TypeError, AttributeError, KeyError, IndexError) as error:  # it also trips over tags that do not fit
        raise ValueError(str(error) or type(error).__name__) from error
    return {} if values is None else values  # nothing but comments


_PARSERS: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": strict_json.loads, ".yaml": _yaml, ".yml": _yaml}
