"""What a classifier is worth on labelled sequences, beside what needs no network. Shapes: W sequences, K classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

from domains.dna.audit import audit_task
from domains.dna.data.labelled import PARTS, LabelledSequences, Task
from domains.dna.heads import DNAClassifier
from domains.dna.labelled_batches import SequenceItems, collate
from domains.dna.metrics import SCORES, classification_scores
from domains.dna.strands import reverse_complement
from titans_seq.errors import UserError

MODEL = "model"
BATCH_BASES = 1 << 16
"""Bases of a batch at most, padding included, where a sequence alone is not longer."""


@dataclass(frozen=True)
class Evaluation:
    """A classifier on a part of a task.

    Attributes:
        task: its name.
        part: which of its parts.
        classes: names of the classes.
        labels: (W,) int64.
        probabilities: (W, K) float64.
        audit: `audit_task`, whose baselines are of the same part.
    """

    task: str
    part: str
    classes: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    audit: dict[str, Any]

    @property
    def scores(self) -> dict[str, dict[str, float | None]]:
        """`classification_scores` of the baselines, if the task has a training part beside this one, and of the model."""
        baselines = self.audit["baselines"]
        beside = baselines["scores"] if baselines["evaluated_on"] == self.part else {}
        return {**beside, MODEL: classification_scores(self.labels, self.probabilities)}

    @property
    def leaks(self) -> list[dict[str, Any]]:
        """How many sequences of the part are in parts before it."""
        return [leak for leak in self.audit["leaks"] if leak["part"] == self.part]

    def to_dict(self) -> dict[str, Any]:
        """All but the single predictions, as plain values for JSON."""
        repeats = self.audit["parts"][self.part]["repeats"]
        head = {"task": self.task, "part": self.part, "classes": list(self.classes), "sequences": len(self.labels)}
        return {**head, "scores": self.scores, "repeats": repeats, "leaks": self.leaks}

    def predictions(self) -> pl.DataFrame:
        """A row a sequence, in the order of the part: row (from 1), label, predicted, and the probability of each class, p_CLASS."""
        names = np.array(self.classes, dtype=object)
        columns = {f"p_{name}": self.probabilities[:, i] for i, name in enumerate(self.classes)}
        predicted = names[self.probabilities.argmax(1)]
        rows = np.arange(1, len(self.labels) + 1)
        return pl.DataFrame({"row": rows, "label": names[self.labels].tolist(), "predicted": predicted.tolist(), **columns})


def evaluate(model: DNAClassifier, task: Task, part: str | None = None, both_strands: bool = False) -> Evaluation:
    """Score a classifier on a part of a task.

    Args:
        model: whose classes the task's must be among.
        task: what it is scored on.
        part: "train", "validation" or "test"; None for the last of these that there is, so that of a table by itself all of it is taken.
        both_strands: as `predict`.

    Raises:
        UserError: the task has no such part, or a class that the model does not know.
    """
    task = renumbered(task, model.config.classes)
    part = part or [name for name in PARTS if name in task.parts][-1]
    if part not in task.parts:
        raise UserError(f"{task.name}: has no {part} part. Those it has: {', '.join(task.parts)}.")
    sequences = task.parts[part]
    probabilities = predict(model, sequences, both_strands)
    seen = {"train": task.train, part: sequences}  # baselines are of this part, not of another
    audit = audit_task(Task(task.name, task.classes, **seen))
    return Evaluation(task.name, part, task.classes, sequences.labels, probabilities, audit)


def renumbered(task: Task, classes: tuple[str, ...]) -> Task:
    """The task with its labels as places in `classes`.

    Raises:
        UserError: it has a class that is not among them.
    """
    unknown = [name for name in task.classes if name not in classes]
    if unknown:
        named, known = ", ".join(repr(name[:40]) for name in unknown[:5]), ", ".join(classes[:20])
        raise UserError(f"{task.name}: has labels that the model does not know: {named}. It knows: {known}.")
    number = np.array([classes.index(name) for name in task.classes])
    parts = {name: LabelledSequences(x.codes, x.cu_seqlens, number[x.labels], x.regions) for name, x in task.parts.items()}
    return Task(task.name, classes, **parts)


@torch.inference_mode()
def predict(model: DNAClassifier, sequences: LabelledSequences, both_strands: bool = False) -> np.ndarray:
    """Probabilities (W, K) float64 of the classes of sequences, whose labels are not looked at.

    both_strands: the mean of what the model says of a sequence and of its reverse complement, which is the same of a model that reads both.
    """
    model.eval()
    device, found = next(model.parameters()).device, np.zeros((len(sequences), len(model.config.classes)))
    items = SequenceItems(sequences)
    for rows in _batches(sequences.lengths):
        batch = collate([items[i] for i in rows])
        codes, mask = batch["codes"].to(device), None if batch["mask"] is None else batch["mask"].to(device)
        said = model(codes, mask).double().softmax(-1)
        if both_strands:
            reverse = model(reverse_complement(codes), None if mask is None else mask.flip(1))
            said = (said + reverse.double().softmax(-1)) / 2
        found[rows] = said.cpu().numpy()
    return found


def _batches(lengths: np.ndarray) -> list[np.ndarray]:
    """Numbers of sequences of like length, so many that a batch has at most `BATCH_BASES` with its padding."""
    order, batches = np.argsort(-lengths, kind="stable"), []
    while len(order):
        count = max(1, BATCH_BASES // int(lengths[order[0]]))
        batches.append(order[:count])
        order = order[count:]
    return batches


def print_evaluation(found: Evaluation, console: Console | None = None) -> None:
    """The model beside the baselines; what was seen before."""
    console = console or Console()
    console.print(scores_table(found))
    for line in _notes(found):
        console.print(line, highlight=False, soft_wrap=True)


def scores_table(found: Evaluation) -> Table:
    """The model beside the baselines, as a table."""
    table = Table(title=f"{found.task}, {found.part} part: {len(found.labels):,} sequences", title_justify="left")
    for i, column in enumerate(("", *SCORES)):
        table.add_column(column, justify="right" if i else "left")
    for name, scores in found.scores.items():
        table.add_row(name, *("-" if scores[score] is None else f"{scores[score]:.3f}" for score in SCORES))
    return table


def _notes(found: Evaluation) -> list[str]:
    repeats = found.audit["parts"][found.part]["repeats"]
    notes = [
        f"Of these sequences {repeats['exact']:,} equal an earlier one, {repeats['reverse_complement']:,} the reverse complement of one."
    ]
    for leak in found.leaks:
        overlap = "" if leak["overlapping"] is None else f", {leak['overlapping']:,} overlap the place of one"
        notes.append(
            f"Of the {leak['in']} part {leak['exact']:,} equal a sequence, {leak['reverse_complement']:,} the reverse complement of "
            f"one{overlap}, {leak['sharing_32_bases']:,} share 32 bases with one."
        )
    if len(found.scores) == 1:
        notes.append("Baselines need a part to train on beside the part that is scored: name a folder of both.")
    return notes
