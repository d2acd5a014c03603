"""A task over lengths and depths: rows, files and pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from domains.text.config import GenerationConfig
from domains.text.context import begin, extend
from domains.text.generate import generate
from domains.text.tasks.evaluate import Result, Scores, results
from domains.text.tasks.task import Examples, Task, generator
from domains.text.tasks.texts import Question, TextTask
from domains.text.tasks.train import check_reads

BINS = 5
"""Of depths."""


@dataclass(frozen=True)
class Row:
    """Of a length. written: mean score of what the model wrote, None if it was not asked to. depths: (answers found, examples) of each
    fifth of the depth; None where the task has no depth. scale_forgetting: what the model's forgetting was multiplied with, None if it was
    left as trained.
    """

    length: int
    scores: Scores
    written: float | None = None
    depths: tuple[tuple[float, int], ...] | None = None
    scale_forgetting: float | None = None

    def values(self) -> dict[str, Any]:
        """Plain, for a table; without what no row of the task can have."""
        values = {"length": self.length, **asdict(self.scores), "written": self.written, "scale_forgetting": self.scale_forgetting}
        optional = ("bytes", "written", "scale_forgetting")
        return {name: value for name, value in values.items() if value is not None or name not in optional}


def evaluate_lengths(
    model: Any,
    task: Task,
    lengths: Sequence[int],
    count: int,
    seed: int,
    written: bool = False,
    on_read: Callable[[int], None] = lambda tokens: None,
) -> list[Row]:
    """`evaluate_length` at each of them, once there is an example of each (`at_lengths`)."""
    return [evaluate_length(model, now, count, seed, written, on_read) for now in at_lengths(model, task, lengths, seed)]


def at_lengths(model: Any, task: Task, lengths: Sequence[int], seed: int) -> list[Task]:
    """The task at each length. That the model reads it is looked at, and the first example of each is made: what cannot be is said before
    minutes go to the others.

    Raises:
        ValueError: a length does not fit.
        UserError: the model has other tokens, or no example can be made.
    """
    check_reads(model, task)
    tasks = [task.at_length(length) for length in lengths]
    for now in tasks:
        Examples(now, seed, 1, "test")[0]
    return tasks


def evaluate_length(
    model: Any, task: Task, count: int, seed: int, written: bool = False, on_read: Callable[[int], None] = lambda tokens: None
) -> Row:
    """`evaluate` as a row; written: a task of text also by what the model writes."""
    found = list(results(model, task, Examples(task, seed, count, "test"), on_read=on_read))
    if not isinstance(task, TextTask):
        return Row(task.length, Scores.of(found, task))
    questions = [task.question(generator(seed, "test", i)) for i in range(count)]
    score = float(np.mean([task.score(q, answer(model, task, q, on_read)) for q in questions])) if written else None
    return Row(task.length, Scores.of(found, task), score, _by_depth(questions, found))


def answer(model: Any, task: TextTask, question: Question, on_read: Callable[[int], None] = lambda tokens: None) -> str:
    """What the model writes after the prompt, the likeliest token each time, at most as many as the task keeps free for it."""
    context = extend(model, begin(model), task.tokenizer.encode_batch([question.prompt]), on_read)
    most = max(1, min(128, task.reserve))
    return generate(model, [""], GenerationConfig(temperature=0.0, max_tokens=most), context)[0].text


def _by_depth(questions: Sequence[Question], found: Sequence[Result]) -> tuple[tuple[float, int], ...] | None:
    if any(question.depth is None for question in questions):
        return None
    place = np.minimum((np.array([question.depth for question in questions], float) * BINS).astype(int), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    right = np.bincount(place, weights=[one.found / one.answers for one in found], minlength=BINS)
    return tuple((float(r) / c if c else float("nan"), int(c)) for r, c in zip(right, counts.tolist(), strict=True))


def depth_shares(rows: Sequence[Row]) -> np.ndarray:
    """The needle map: (`BINS`, lengths) answers found by depth and length, as `plots.plot_depths` draws them; NaN where none was asked.

    Raises:
        ValueError: the task has no depth.
    """
    if any(row.depths is None for row in rows):
        raise ValueError("the task has no depth: its answers depend on several places")
    return np.array([[share for share, _ in row.depths or ()] for row in rows]).T


def example_rows(task: Task, seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Test examples as plain values, one for each line of a file."""
    for i, example in enumerate(Examples(task, seed, count, "test")):
        if not isinstance(task, TextTask):
            yield {"index": i, "inputs": example.inputs.tolist(), "targets": example.targets.tolist()}
            continue
        question = task.question(generator(seed, "test", i))
        yield {
            "index": i,
            "input": question.prompt.removesuffix(question.prefix),
            "answer_prefix": question.prefix,
            "outputs": list(question.answers),
            "length": task.size(question),
            "bytes": len(question.prompt.encode()),
            "depth": question.depth,
        }


def write_report(folder: Path, name: str, rows: Sequence[Row]) -> None:
    """scores.csv and lengths.png; depths.csv and depths.png where the task has depths."""
    import polars as pl

    from domains.text.plots import plot_depths, plot_lengths
    from titans_seq.outputs import write_all

    def csv(values: Sequence[dict[str, Any]], path: Path) -> None:
        pl.DataFrame(values).write_csv(path)

    lengths = [row.length for row in rows]
    writers: dict[str, Callable[[Path], object]] = {
        "scores.csv": partial(csv, [row.values() for row in rows]),
        "lengths.png": partial(plot_lengths, lengths, [row.scores.answers for row in rows], name),
    }
    if all(row.depths is not None for row in rows):
        grid = [
            {"length": row.length, "depth_from": k / BINS, "depth_to": (k + 1) / BINS, "examples": size, "answers": share}
            for row in rows
            for k, (share, size) in enumerate(row.depths or ())
        ]
        writers |= {"depths.csv": partial(csv, grid), "depths.png": partial(plot_depths, lengths, depth_shares(rows), name)}
    write_all(folder, writers)
