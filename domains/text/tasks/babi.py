"""bAbI (arXiv 1502.05698): files of stories with questions, and how BABILong scores an answer."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from titans_seq.errors import UserError

_ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_YES_NO = ("no", "yes")
LABELS: dict[str, tuple[str, ...]] = {
    **{f"qa{n}": _ROOMS for n in (1, 2, 3, 4)},
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
    "qa6": _YES_NO,
    "qa7": ("none", "one", "three", "two"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa9": _YES_NO,
    "qa10": ("maybe", *_YES_NO),
}
"""Answers that each task has (BABILong's TASK_LABELS)."""


class Story(NamedTuple):
    """facts: sentences in order, other questions not among them. answer: as the file has it, "apple,milk" if it is a list. more: other
    questions after the same facts, with their answers. earlier: questions after fewer facts, how many, and their answers, in order."""

    facts: tuple[str, ...]
    question: str
    answer: str
    more: tuple[tuple[str, str], ...] = ()
    earlier: tuple[tuple[int, str, str], ...] = ()


def read_stories(path: Path) -> list[Story]:
    """A story for each question of a file of bAbI: the facts before it.

    Raises:
        UserError: the file cannot be read or is not of that form; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read as a file of bAbI ({getattr(error, 'strerror', None) or error}).") from error
    stories, facts, earlier = list[Story](), list[str](), list[tuple[int, str, str]]()
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"(\d+) (.+)", line.strip())
        if match is None:
            raise UserError(f'{path}, line {number}: must be "NUMBER SENTENCE", got {line!r:.80}.')
        if match[1] == "1":
            facts.clear()
            earlier.clear()
        text, *answer = match[2].split("\t")
        if answer:
            asked = text.strip(), answer[0].strip()
            stories.append(Story(tuple(facts), *asked, earlier=tuple(earlier)))
            earlier.append((len(facts), *asked))
        else:
            facts.append(text.strip())
    if not stories:
        raise UserError(f"{path}: holds no question.")
    return stories


def find_file(folder: Path, task: str, part: Literal["train", "test"] = "test") -> Path:
    """The file of a task: "qa1_.._test.txt" in the folder. (The script that comes with BABILong makes its tests of those of training.)

    Raises:
        UserError: there is none, or there are several.
    """
    found = sorted(folder.glob(f"{task}_*_{part}.txt"))
    if len(found) != 1:
        raise UserError(f"{folder}: must hold one {task}_.._{part}.txt of bAbI, found {len(found)}.")
    return found[0]


def compare_answers(target: str, output: str, question: str, task: str) -> bool:
    """Whether BABILong counts an output as right (babilong/metrics.py).

    Of its first sentence, in lower case, up to `<context>` and `<example>`: the labels of the task that it has anywhere in it, without
    those that the question has, must be the target and no other; for a list of answers, all of them and no other.

    As there, labels are parts of text, not words: "none" has "one" in it, so that in qa7 a right "none" never counts (the likelihood of
    answers, `Scores.answers`, knows no such trap), and "not" has "no".
    """
    output = output.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    labels = {label.lower() for label in LABELS[task]}
    said = {label for label in labels if label in output} - {label for label in labels if label in question.lower()}
    target = target.lower()
    wanted = set(target.split(",")) if "," in target and len(target) > 3 else {target}
    return said == wanted
