"""Tasks by name."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from domains.text.tasks.babilong import BabiLong, BabiLongConfig, BabiTask
from domains.text.tasks.books import Books
from domains.text.tasks.facts import Facts, FactsConfig
from domains.text.tasks.mad import Compression, FuzzyRecall, InContextRecall, Memorisation, SelectiveCopy
from domains.text.tasks.needles import PRESETS, NeedleConfig, Needles
from domains.text.tasks.recall import AssociativeRecall, InductionHeads, MultiQueryRecall
from domains.text.tasks.task import SymbolTask, Task
from domains.text.tasks.texts import TextTask
from domains.text.tasks.tracking import Copy, GroupWords, Parity
from domains.text.tokenizers import ByteTokenizer, Tokenizer
from titans_seq.config import Config
from titans_seq.errors import UserError

SYMBOL_TASKS: dict[str, tuple[type[SymbolTask], dict[str, Any]]] = {
    "mqar": (MultiQueryRecall, {}),
    "associative_recall": (AssociativeRecall, {}),
    "induction": (InductionHeads, {}),
    "mad_recall": (InContextRecall, {}),
    "mad_noisy_recall": (InContextRecall, {"symbols": 32, "noise_symbols": 16, "noise": 0.2}),
    "mad_fuzzy_recall": (FuzzyRecall, {}),
    "mad_memorisation": (Memorisation, {}),
    "mad_compression": (Compression, {}),
    "mad_selective_copy": (SelectiveCopy, {}),
    "selective_copy": (SelectiveCopy, {"length": 4096, "spread": "places"}),
    "copy": (Copy, {}),
    "parity": (Parity, {}),
    "group_words": (GroupWords, {}),
}
TEXT_TASKS: dict[str, tuple[type[TextTask], type[Config], dict[str, Any]]] = {
    "facts": (Facts, FactsConfig, {}),
    **{name: (Needles, NeedleConfig, settings) for name, settings in PRESETS.items()},
    **{f"babilong_{task}": (BabiLong, BabiLongConfig, {"task": task}) for task in get_args(BabiTask)},
}
TASKS = (*SYMBOL_TASKS, *TEXT_TASKS)


def load_task(name: str, tokenizer: Tokenizer | None = None, books: Books | Sequence[str | Path] | None = None, **settings: Any) -> Task:
    """A task by its name.

    Args:
        name: of `TASKS`.
        tokenizer: of a task of text; None for bytes.
        books: of a task of text that needs hay: files and folders.
        settings: fields of its configuration that are to have other values than `default_settings` gives.

    Raises:
        UserError: there is no such task, or a file cannot be used.
        ValueError: a setting is unknown or out of range.
    """
    if name in SYMBOL_TASKS:
        kind, defaults = SYMBOL_TASKS[name]
        return kind.from_dict(defaults | settings)
    if name not in TEXT_TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(TASKS)}."
        raise UserError(f"there is no task {name!r}. {hint}")
    task, config, defaults = TEXT_TASKS[name]
    hay = books if books is None or isinstance(books, Books) else Books.read(books)
    return task(name, config.from_dict(defaults | settings), tokenizer or ByteTokenizer(), hay)


def default_settings(name: str) -> dict[str, Any]:
    """The settings of a task with their defaults."""
    kind, defaults = SYMBOL_TASKS[name] if name in SYMBOL_TASKS else TEXT_TASKS[name][1:]
    return {field.name: defaults.get(field.name, field.default) for field in dataclasses.fields(kind)}


def summary(name: str) -> str:
    """What a task is, in a line."""
    text = (SYMBOL_TASKS[name][0] if name in SYMBOL_TASKS else TEXT_TASKS[name][0]).__doc__ or ""
    return " ".join(text.partition("\n\n")[0].split())
