"""Multiple choice and last words: what a model finds likely, on files as their authors publish them.

The wording is that of lm-evaluation-harness's tasks of these names, so that scores can be compared; `titans-seq text eval` runs those.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from domains.text.likelihood import Likelihood, encode_pair, likelihoods
from domains.text.model import TitansForCausalLM
from titans_seq import strict_json
from titans_seq.errors import UserError

_LETTERS = ("A", "B", "C", "D")
_CHOICES = re.compile(r"\s*".join(rf"\({letter}\) (.*?)" for letter in _LETTERS))


@dataclass(frozen=True)
class Question:
    """A context and the texts that may follow it after a space; `answer` is the number of the one that should."""

    context: str
    choices: tuple[str, ...]
    answer: int


class LastWords(NamedTuple):
    """accuracy: share of words whose tokens are all the likeliest ones. perplexity: exp of the mean nats a word."""

    accuracy: float
    perplexity: float


class MultipleChoice(NamedTuple):
    """Share of questions whose answer is the likeliest choice; and by nats a character, or a byte in UTF-8, without the space before it."""

    accuracy: float
    accuracy_by_characters: float
    accuracy_by_bytes: float


def ask(model: TitansForCausalLM, questions: Sequence[Question], batch_size: int = 16) -> list[list[Likelihood]]:
    """The likelihood of each choice of each question; its context is read once."""
    pairs = [encode_pair(model.tokenizer, one.context, f" {choice}") for one in questions for choice in one.choices]
    found = iter(likelihoods(model, pairs, batch_size))
    return [[next(found) for _ in one.choices] for one in questions]


def last_words(asked: Sequence[Sequence[Likelihood]]) -> LastWords:
    """Of questions with one choice, as LAMBADA's (arXiv 1606.06031).

    Raises:
        ValueError: there is none.
    """
    if not asked:
        raise ValueError("there must be at least one question")
    words = [one for (one,) in asked]
    return LastWords(float(np.mean([word.greedy for word in words])), float(np.exp(np.mean([word.nats for word in words]))))


def multiple_choice(questions: Sequence[Question], asked: Sequence[Sequence[Likelihood]]) -> MultipleChoice:
    """The first of equally likely choices counts.

    Raises:
        ValueError: there is none.
    """
    if not questions:
        raise ValueError("there must be at least one question")
    hits = np.zeros(3)
    for question, found in zip(questions, asked, strict=True):
        nats = np.array([one.nats for one in found])
        sizes = [len(choice) for choice in question.choices], [len(choice.encode()) for choice in question.choices]
        hits += [int(np.argmin(costs)) == question.answer for costs in (nats, nats / sizes[0], nats / sizes[1])]
    return MultipleChoice(*(hits / len(questions)).tolist())


def read_lambada(path: Path) -> list[Question]:
    """LAMBADA as OpenAI published it: JSON lines with a `text`, of which the last word is to be found.

    Raises:
        UserError: the file is not of that form; so of the others.
    """
    return [Question(*_halves(path, number, row["text"].rpartition(" ")), 0) for number, row in _rows(path, ("text",))]


def _halves(path: Path, number: int, parts: tuple[str, str, str]) -> tuple[str, tuple[str, ...]]:
    if not parts[0] or not parts[2]:
        raise UserError(f"{path}, line {number}: the text has no last word behind a space.")
    return parts[0], (parts[2],)


def read_piqa(path: Path, labels: Path) -> list[Question]:
    """PIQA: JSON lines with `goal`, `sol1` and `sol2`, and a file of labels, 0 or 1 a line."""
    answers = _text(labels).split()
    rows = list(_rows(path, ("goal", "sol1", "sol2")))
    if len(answers) != len(rows) or not {*answers} <= {"0", "1"}:
        raise UserError(f"{labels}: expected {len(rows)} lines of 0 or 1, one for each of {path}, got {len(answers)}.")
    texts = ((_prompt(row["goal"]), (row["sol1"], row["sol2"])) for _, row in rows)
    return [Question(*text, int(answer)) for text, answer in zip(texts, answers, strict=True)]


def read_arc(path: Path) -> list[Question]:
    """ARC: JSON lines with `question`, which holds a `stem` and `choices` of `text` and `label`, and the `answerKey`."""
    found = []
    for number, row in _rows(path, ("question", "answerKey")):
        try:
            choices = {choice["label"]: choice["text"] for choice in row["question"]["choices"]}
            answer = list(choices).index(row["answerKey"])
            found.append(Question(_prompt(row["question"]["stem"]), tuple(choices.values()), answer))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number}: is no question of ARC ({type(error).__name__}: {error}).") from error
    return found


def read_openbookqa(path: Path) -> list[Question]:
    """OpenBookQA: a table with tabs, whose `Choices` are "(A) .. (B) .. (C) .. (D) ..", and the `Answer Key`."""
    header, *lines = _text(path).splitlines() or [""]
    names, found = header.split("\t"), []
    for number, line in enumerate(lines, 2):
        row = dict(zip(names, line.split("\t"), strict=False))
        choices = _CHOICES.fullmatch(row.get("Choices", ""))
        if choices is None or row.get("Answer Key") not in _LETTERS or not row.get("Question Stem"):
            raise UserError(f"{path}, line {number}: is no question of OpenBookQA, with Question Stem, Choices and Answer Key.")
        found.append(Question(row["Question Stem"], choices.groups(), _LETTERS.index(row["Answer Key"])))
    return found


def _prompt(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _rows(path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of JSON lines that have these names, and the numbers of their lines."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = strict_json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: is no JSON ({error}).") from error
        missing = [name for name in names if not isinstance(row, dict) or name not in row]
        if missing:
            raise UserError(f"{path}, line {number}: lacks {', '.join(missing)}.")
        yield number, row
