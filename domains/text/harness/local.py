"""The data of the tasks beside this file, from files of one's own: called by lm-evaluation-harness with what a task's YAML says.

Paths are those below a folder, `data`, which `titans-seq text eval --data` names, or `text` in the folder that TITANS_SEQ_DATA names.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from domains.text.questions import Question, read_arc, read_lambada, read_openbookqa, read_piqa
from titans_seq.errors import UserError

SPLITS = ("train", "validation", "test")
_HEADING = re.compile(r"^(?= = [^=]+ = $)", re.MULTILINE)


def lambada(**given: Any) -> dict[str, Dataset]:
    """Rows of a context and the last word, with the space before it; `read_lambada`."""
    return _splits(given, lambda path: [{"context": one.context, "target": f" {one.choices[0]}"} for one in read_lambada(path)])


def arc(**given: Any) -> dict[str, Dataset]:
    """Rows of context, choices and the number of the answer; `read_arc`."""
    return _splits(given, lambda path: _rows(read_arc(path)))


def openbookqa(**given: Any) -> dict[str, Dataset]:
    """As `arc`; `read_openbookqa`."""
    return _splits(given, lambda path: _rows(read_openbookqa(path)))


def piqa(labels: str, **given: Any) -> dict[str, Dataset]:
    """As `arc`; `read_piqa`, with `labels` for the one split."""
    return _splits(given, lambda path: _rows(read_piqa(path, _folder(given) / labels)))


def wikitext(**given: Any) -> dict[str, Dataset]:
    """Rows of a `page`: an article of a file of WikiText, which begins with its title, " = .. = "."""
    return _splits(given, lambda path: [{"page": page} for page in _HEADING.split(_read(path)) if page.strip()])


def _rows(questions: list[Question]) -> list[dict[str, Any]]:
    return [{"context": one.context, "choices": list(one.choices), "answer": one.answer} for one in questions]


def _splits(given: dict[str, Any], read: Callable[[Path], list[dict[str, Any]]]) -> dict[str, Dataset]:
    return {split: Dataset.from_list(read(_folder(given) / given[split])) for split in SPLITS if split in given}


def _folder(given: dict[str, Any]) -> Path:
    if given.get("data"):
        return Path(given["data"])
    if os.environ.get("TITANS_SEQ_DATA"):
        return Path(os.environ["TITANS_SEQ_DATA"]) / "text"
    raise UserError("no folder of data: name it, --data FOLDER, or set TITANS_SEQ_DATA to a folder whose `text` it is.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
