"""Classes of sequences, on the tasks of GUE and of Genomic Benchmarks (`tasks`): `python -m benchmarks.dna.classification`.

k-mers under logistic regression (sizes never tuned, both listed), the CNN of Genomic Benchmarks, a transformer, and Titans. All networks
are trained on one path, `titans_seq.training`, for the same number of steps, but the CNN, whose steps cost a fifth or less, for five times
as many; --epochs takes as many steps as so many passes over a task's training part have. The weights are those with the lowest loss on the
validation part. With --scored validation the test part is left out of the task: that is how the rate of Titans was chosen; rates of the
others are usual ones.

Results are written after every measurement, and a run goes on where one was ended. `--table` prints them, and writes them into docs/dna.md.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from time import process_time
from typing import Any

import torch
from rich.table import Table

from benchmarks.dna.classifiers import BACKBONE, SUBJECTS, Subject, longest
from benchmarks.dna.tasks import GUE, TASKS, Split, find, load
from benchmarks.reporting import (
    RESULTS,
    Report,
    Section,
    add_table_option,
    environment,
    measured_at,
    names,
    print_table,
    progress_bar,
    publish,
    write_json,
)
from domains.dna.baselines import baseline_scores
from domains.dna.config import DNAConfig
from domains.dna.data.labelled import Task
from domains.dna.evaluate import predict
from domains.dna.labelled_batches import SequenceItems, item_loaders
from domains.dna.metrics import classification_scores
from domains.dna.train import pretrain
from titans_seq import strict_json
from titans_seq.errors import UserError
from titans_seq.training import TrainingConfig
from titans_seq.training.module import TrainingData
from titans_seq.training.run import train

OUTPUT = RESULTS / "dna_classification.json"
SECTION = Section("dna-classification")
STARTS = {
    "ecoli": Path("ecoli_k12") / "GCF_000005845.2_ASM584v2_genomic.fna.gz",
    "human": Path("human_chr9_1mb") / "Homo_sapiens.GRCh38.dna_sm.primary_assembly_chr9_1_1000000.fa",
}
"""What models of the next base are trained on, that others begin as."""
TRAINING = TrainingConfig(batch_size=64, max_steps=200, choose="best", log_every=100, keep_checkpoints=1, weight_decay=0.1)
PRETRAINING = TrainingConfig(learning_rate=2e-3, batch_size=16, segment_length=256, max_steps=500, validate_every=500)
SHOWN = ("auroc", "mcc", "accuracy", "auprc", "f1")


def settings(subject: Subject, steps: int) -> dict[str, Any]:
    """What a measurement depends on, beside task and seed."""
    training = {"rate": subject.rate, "steps": steps * subject.longer, "batch_size": TRAINING.batch_size, "mirrored": subject.mirrored}
    start = {} if subject.start is None else {"start": str(STARTS[subject.start]), "pretraining": PRETRAINING.to_dict()}
    return {**training, **start, **subject.architecture}


def steps_of(options: argparse.Namespace, task: Task) -> int:
    """Steps of training, before a subject's `longer`."""
    return options.steps if options.epochs is None else max(1, round(options.epochs * len(task.train) / TRAINING.batch_size))


def measure(subject: Subject, task: Task, seed: int, steps: int, start: Path | None, part: str) -> Report:
    """Train a network, and score it on the part."""
    of = settings(subject, steps)
    steps = of["steps"]
    training = replace(
        TRAINING,
        learning_rate=subject.rate,
        max_steps=steps,
        validate_every=max(1, steps // 4),
        checkpoint_every=steps,
        segment_length=longest(task),
        seed=seed,
    )
    items = SequenceItems(task.train, subject.mirrored), SequenceItems(task.validation)  # type: ignore[arg-type]
    begin = process_time()
    with tempfile.TemporaryDirectory() as temporary:
        made = lambda: subject.make(task, start)  # noqa: E731
        folder = train(made, lambda: TrainingData(*item_loaders(*items, training)), training, Path(temporary) / "run", progress=False)
        model = type(made()).from_pretrained(folder)
    trained = process_time() - begin
    scores = {}
    for name in dict.fromkeys(("validation", part)):
        sequences = task.parts[name]
        scores[name] = classification_scores(sequences.labels, predict(model, sequences, subject.mirrored))
    parameters = sum(p.numel() for p in model.parameters())
    return {"scores": scores, "parameters": parameters, "cpu_seconds": round(trained, 1), "settings": of}


class Pretrained:
    """Models of the next base, each trained when it is first asked for."""

    def __init__(self, data: Path, folder: Path, say: Callable[[str], None]) -> None:
        self._data, self._folder, self._say = data, folder, say

    def __call__(self, start: str) -> Path:
        """The folder of the model."""
        run = self._folder / start
        if not run.exists():
            self._say(f"pretraining on {start}")
            pretrain([self._data / "dna" / STARTS[start]], run, DNAConfig(titans=BACKBONE), PRETRAINING, cache=self._folder, progress=False)
        return run / "model"


def run(options: argparse.Namespace, found: Report) -> None:
    """Measure what is missing, task by task."""
    with progress_bar() as progress, tempfile.TemporaryDirectory() as temporary:
        bar = progress.add_task("", total=len(options.tasks) * (1 + len(options.subjects) * len(options.seeds)))
        pretrained = Pretrained(options.data, Path(temporary), lambda text: progress.update(bar, description=text))
        for name in options.tasks:
            for key, work, of in cells(name, options, pretrained):
                progress.update(bar, description=key)
                cell = found["cells"].get(key)
                if cell is None or (of is not None and cell["settings"] != of):
                    found["cells"][key] = {**work(), **_where()}
                    write_json(options.output, found)
                progress.advance(bar)


def cells(name: str, options: argparse.Namespace, pretrained: Pretrained) -> Iterator[tuple[str, Callable[[], Report], Report | None]]:
    """Of a task, each cell's key, what measures it, and the settings that one of the file must have been measured with."""
    for seed in options.seeds:
        task = load(options.data, name, seed)
        if options.scored == "validation":
            task = Task(task.name, task.classes, task.train, task.validation)
        if seed == options.seeds[0]:
            yield f"{name} | baselines", partial(_baselines, task, options.scored), None
        for key in options.subjects:
            subject, steps = SUBJECTS[key], steps_of(options, task)

            def work(subject: Subject = subject, task: Task = task, seed: int = seed, steps: int = steps) -> Report:
                start = None if subject.start is None else pretrained(subject.start)
                return measure(subject, task, seed, steps, start, options.scored)

            yield f"{name} | {key} | {seed}", work, settings(subject, steps)


def _baselines(task: Task, part: str) -> Report:
    return {"scores": {name: {part: scores} for name, scores in baseline_scores(task)["scores"].items()}}


def _where() -> Report:
    whole = environment("benchmarks.dna.classification")
    return {name: whole[name] for name in ("command", "date", "revision", "changes", "load")}


def rows(found: Report, part: str) -> dict[str, dict[str, list[Report]]]:
    """Label -> task -> scores of each seed."""
    made: dict[str, dict[str, list[Report]]] = {}
    for key, cell in found["cells"].items():
        task, kind, *_ = key.split(" | ")
        for label, scores in cell["scores"].items() if kind == "baselines" else ((SUBJECTS[kind].label, cell["scores"]),):
            if part in scores:
                made.setdefault(label, {}).setdefault(task, []).append(scores[part])
    order = [*(s.label for s in SUBJECTS.values())]
    return dict(sorted(made.items(), key=lambda row: order.index(row[0]) if row[0] in order else -1))


def entry(scores: Sequence[Report], name: str) -> str:
    values = [one[name] for one in scores if one[name] is not None]
    if not values:
        return "-"
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def markdown(found: Report) -> str:
    """The scores of the test parts, as tables, and how they came about: GUE, Genomic Benchmarks, and what was left out of the network."""
    seeds = sorted({key.split(" | ")[2] for key in found["cells"] if key.count("|") == 2})
    head = f"Bold is the highest of a column's first score. Seeds {', '.join(seeds)}. `python -m benchmarks.dna.classification`"
    parts = [f"{head}, {measured_at(found['cells'].values())}."]
    whole, ablated = ({**found, "cells": {k: c for k, c in found["cells"].items() if _is_ablation(k) == kind}} for kind in (False, True))
    for caption, split, columns, published in TABLES:
        tasks = [name for name in measured(whole) if TASKS[name].split == split]
        if tasks:
            parts += [*filter(None, [caption]), _markdown_table(whole, tasks, columns, published)]
    if ablated["cells"]:
        beside = {key: cell for key, cell in found["cells"].items() if _is_ablation(key) or key.split(" | ")[1] == "titans"}
        table_of_parts = _markdown_table({**found, "cells": beside}, measured(ablated), ("auroc", "mcc"))
        parts += ["What a part of the network is worth:", table_of_parts]
    return "\n\n".join(parts)


TABLES: tuple[tuple[str, Split, tuple[str, ...], str], ...] = (
    ("GUE, test parts as it has them:", "official", ("auroc", "mcc"), "*Caduceus-Ph, embeddings, published*"),
    ("", "official", ("accuracy", "auprc", "f1"), ""),
    ("Genomic Benchmarks, as Caduceus splits it:", "caduceus", ("accuracy", "auroc", "mcc"), "*Caduceus-Ph, published*"),
    ("Test parts of Genomic Benchmarks, split again here, comparable with nothing else:", "re-split", ("auroc", "mcc", "accuracy"), ""),
)
"""Caption, tasks, scores, and what the row of published values is called, if there is one."""


def _is_ablation(key: str) -> bool:
    subject = SUBJECTS.get(key.split(" | ")[1])
    return subject is not None and subject.ablation


def measured(found: Report) -> list[str]:
    """The tasks of the cells, in the order of `TASKS`."""
    there = {key.split(" | ")[0] for key in found["cells"]}
    return [name for name in TASKS if name in there]


def _markdown_table(found: Report, tasks: Sequence[str], columns: Sequence[str], published: str = "") -> str:
    made = {label: row for label, row in rows(found, "test").items() if any(task in row for task in tasks)}
    best = {task: max(_first(row[task], columns[0]) for row in made.values() if task in row) for task in tasks}
    lines = [f"| {' / '.join(columns)} | {' | '.join(tasks)} |", f"|{' --- |' * (1 + len(tasks))}"]
    for label, row in made.items():
        texts = [" / ".join(entry(row[task], column) for column in columns) if task in row else "-" for task in tasks]
        bold = [task in row and _first(row[task], columns[0]) == best[task] for task in tasks]
        lines.append(f"| {label} | {' | '.join(f'**{x}**' if leads else x for x, leads in zip(texts, bold, strict=True))} |")
    values = [TASKS[task].published for task in tasks]
    if published:
        lines.append(f"| {published} | {' | '.join('-' if value is None else f'{value:.3f}' for value in values)} |")
    return "\n".join(lines)


def _first(scores: Sequence[Report], name: str) -> float:
    return fmean(one[name] or 0.0 for one in scores)


def table(found: Report, part: str) -> Table:
    """All scores of a part, a line a task and way."""
    view = Table("task", "way", *SHOWN, title=f"{part} part")
    for label, row in rows(found, part).items():
        for task, scores in row.items():
            view.add_row(task, label, *(entry(scores, name) for name in SHOWN))
    return view


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dna.classification", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    usual = [key for key, subject in SUBJECTS.items() if not subject.ablation]
    add("--tasks", type=names, default=GUE, help=f"comma-separated: {', '.join(TASKS)} (default: those of GUE)")
    add("--subjects", type=names, default=usual, help=f"comma-separated: {', '.join(SUBJECTS)}")
    add("--seeds", type=lambda text: [int(x) for x in names(text)], default=[0, 1, 2], help="comma-separated")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=TRAINING.max_steps, help=f"of training (default: {TRAINING.max_steps})")
    length.add_argument("--epochs", type=float, help="in place of steps: so many passes over the training part (Caduceus: 10)")
    add("--scored", choices=("validation", "test"), default="test", help="the part that is scored; the other one is not looked at")
    data = Path(os.environ.get("TITANS_SEQ_DATA", "data"))
    add("--data", type=Path, default=data, help="folder with dna/gue or dna/genomic_benchmarks (default: $TITANS_SEQ_DATA)")
    add_table_option(parser, OUTPUT)
    options = parser.parse_args(arguments)
    for chosen, known in ((options.tasks, TASKS), (options.subjects, SUBJECTS)):
        unknown = [name for name in chosen if name not in known]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    found: Report = {**environment("benchmarks.dna.classification"), "published": {n: t.published for n, t in TASKS.items()}, "cells": {}}
    if options.output.exists():
        found["cells"] = strict_json.loads(options.output.read_text())["cells"]
    if options.table:
        publish(found, SECTION, markdown, partial(table, part="test"))
        return
    try:
        for name in options.tasks:
            find(options.data, name)
        torch.set_num_threads(1)
        run(options, found)
    except UserError as error:
        sys.exit(f"error: {error}")
    print_table(table(found, options.scored))


if __name__ == "__main__":
    main()
