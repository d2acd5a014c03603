"""Which names lm-evaluation-harness may have a task of, without importing it: its own index takes many seconds."""

import difflib
import re
from importlib.util import find_spec
from pathlib import Path

_WORD = re.compile(r"""[^\s"',\[\]{}]+""")
_NAME = re.compile(r"""\b(?:task|group|tag)["']?\s*:\s*(?:-\s*)?["']?([^\s"']+)""")
_OF_TASKS = ("", ".yaml", ".yml")
"""Endings of the files of tasks, and of what they include."""


def unknown_tasks(asked: list[str], folders: list[Path]) -> dict[str, list[str]]:
    """Of the names those that stand in no file of a task, neither in `folders` nor among the harness's own; each with names like it.

    A name that stands in one may still be something else's: the harness knows.
    """
    own = find_spec("lm_eval")
    words, names = set[str](), set[str]()
    for folder in folders:
        _read(folder, words, names)
    if own is not None and own.origin is not None and not words.issuperset(asked):
        _read(Path(own.origin).parent / "tasks", words, names)
    return {name: difflib.get_close_matches(name, names) for name in asked if name not in words}


def task_names(folders: list[Path]) -> set[str]:
    """Of tasks, groups and tags, as files in `folders` have them, be they good for the harness or not."""
    names = set[str]()
    for folder in folders:
        _read(folder, set(), names)
    return names


def _read(folder: Path, words: set[str], names: set[str]) -> None:
    for path in folder.rglob("*"):
        if path.suffix in _OF_TASKS and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            words.update(_WORD.findall(text))
            names.update(_NAME.findall(text))
