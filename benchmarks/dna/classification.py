"""Classes of sequences, on GUE's tasks with their official splits: `python -m benchmarks.dna.classification`.

k-mers under logistic regression (sizes never tuned, both listed), the CNN of Genomic Benchmarks, a transformer, and Titans. All networks
are trained on one path, `titans_seq.training`, for the same number of steps, but the CNN, whose steps cost a fifth or less, for five times
as many. The weights are those with the lowest loss on the validation part. With --scored validation the test part is left out of the
task: that is how the rate of Titans was chosen; rates of the others are usual ones.

Results are written after every measurement, and a run goes on where one was ended. `--table` prints them, and writes them into docs/dna.md.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.dna.classifiers import BACKBONE, SUBJECTS, Subject, longest
from benchmarks.machine import ROOT
from benchmarks.reporting import RESULTS, Report, Section, environment, names, progress_bar, write_json
from domains.dna.baselines import baseline_scores
from domains.dna.config import DNAConfig
from domains.dna.data.labelled import Task
from domains.dna.data.labelled_files import read_task
from domains.dna.evaluate import predict
from domains.dna.labelled_batches import SequenceItems, item_loaders
from domains.dna.metrics import classification_scores
from domains.dna.train import pretrain
from titans_seq import strict_json
from titans_seq.training import TrainingConfig
from titans_seq.training.module import TrainingData
from titans_seq.training.run import train

OUTPUT = RESULTS / "dna_classification.json"
SECTION = Section("dna-classification")
TASKS = {
    "prom_core_tata": "prom/prom_core_tata",
    "prom_core_notata": "prom/prom_core_notata",
    "prom_core_all": "prom/prom_core_all",
    "tf/0": "tf/0",
    "tf/1": "tf/1",
    "tf/2": "tf/2",
}
GOALS = {"prom_core_tata": 0.810, "prom_core_notata": 0.896, "prom_core_all": 0.875, "tf/0": 0.880, "tf/1": 0.869, "tf/2": 0.825}
"""AUROC of a classifier on mean-pooled embeddings of Caduceus-Ph, not trained further (Nature Communications 2025, s41467-025-65823-8)."""
GENOME = Path("dna") / "ecoli_k12" / "GCF_000005845.2_ASM584v2_genomic.fna.gz"
TRAINING = TrainingConfig(batch_size=64, max_steps=200, choose="best", log_every=100, keep_checkpoints=1, weight_decay=0.1)
PRETRAINING = TrainingConfig(learning_rate=2e-3, batch_size=16, segment_length=256, max_steps=500, validate_every=500)
SHOWN = ("auroc", "mcc", "accuracy", "auprc", "f1")


def settings(subject: Subject, steps: int) -> dict[str, Any]:
    """What a measurement depends on, beside task and seed."""
    training = {"rate": subject.rate, "steps": steps * subject.longer, "batch_size": TRAINING.batch_size, "mirrored": subject.mirrored}
    return {**training, **subject.architecture}


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


def run(options: argparse.Namespace, found: Report) -> None:
    """Measure what is missing, task by task."""
    pretrained: list[Path] = []
    with progress_bar() as progress, tempfile.TemporaryDirectory() as temporary:
        bar = progress.add_task("", total=len(options.tasks) * (1 + len(options.subjects) * len(options.seeds)))

        def start() -> Path:
            if not pretrained:
                progress.update(bar, description="pretraining on E. coli")
                pretrained.append(
                    pretrain([options.data / GENOME], Path(temporary) / "ecoli", DNAConfig(titans=BACKBONE), PRETRAINING, progress=False)
                )
            return pretrained[0]

        for name in options.tasks:
            task = read_task(options.data / "dna" / "gue" / TASKS[name])
            if options.scored == "validation":
                task = Task(task.name, task.classes, task.train, task.validation)
            cells: dict[str, Callable[[], Report]] = {f"{name} | baselines": lambda task=task: _baselines(task, options.scored)}
            for key in options.subjects:
                subject = SUBJECTS[key]
                for seed in options.seeds:
                    cells[f"{name} | {key} | {seed}"] = lambda s=subject, t=task, n=seed: measure(
                        s, t, n, options.steps, start() if s.pretrained else None, options.scored
                    )
            for key, work in cells.items():
                progress.update(bar, description=key)
                if key not in found["cells"] or not _current(found["cells"][key], key, options.steps):
                    found["cells"][key] = {**work(), **_where()}
                    write_json(options.output, found)
                progress.advance(bar)


def _baselines(task: Task, part: str) -> Report:
    return {"scores": {name: {part: scores} for name, scores in baseline_scores(task)["scores"].items()}}


def _current(cell: Report, key: str, steps: int) -> bool:
    """Whether a cell of the file was measured with the settings of now."""
    parts = key.split(" | ")
    return len(parts) < 3 or cell["settings"] == settings(SUBJECTS[parts[1]], steps)


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
    """The scores of the test parts, as two tables, and how they came about."""
    revisions = sorted({cell["revision"][:10] for cell in found["cells"].values() if cell["revision"]})
    seeds = sorted({key.split(" | ")[2] for key in found["cells"] if key.count("|") == 2})
    head = f"Test parts as GUE has them; bold is the highest AUROC. Seeds {', '.join(seeds)}. `python -m benchmarks.dna.classification`"
    tables = (_markdown_table(found, columns) for columns in (("auroc", "mcc"), ("accuracy", "auprc", "f1")))
    return "\n\n".join([f"{head}, revision {', '.join(revisions)}.", *tables])


def _markdown_table(found: Report, columns: Sequence[str]) -> str:
    made, tasks = rows(found, "test"), [name for name in TASKS if any(key.startswith(f"{name} |") for key in found["cells"])]
    best = {task: max(_auroc(row[task]) for row in made.values() if task in row) for task in tasks}
    lines = [f"| {' / '.join(columns)} | {' | '.join(tasks)} |", f"|{' --- |' * (1 + len(tasks))}"]
    for label, row in made.items():
        texts = [" / ".join(entry(row[task], column) for column in columns) if task in row else "-" for task in tasks]
        bold = ["auroc" in columns and task in row and _auroc(row[task]) == best[task] for task in tasks]
        lines.append(f"| {label} | {' | '.join(f'**{x}**' if leads else x for x, leads in zip(texts, bold, strict=True))} |")
    if "auroc" in columns:
        lines.append(f"| *Caduceus-Ph, embeddings, published* | {' | '.join(f'{GOALS[task]:.3f}' for task in tasks)} |")
    return "\n".join(lines)


def _auroc(scores: Sequence[Report]) -> float:
    return fmean(one["auroc"] or 0.0 for one in scores)


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
    add("--tasks", type=names, default=list(TASKS), help=f"comma-separated: {', '.join(TASKS)}")
    add("--subjects", type=names, default=usual, help=f"comma-separated: {', '.join(SUBJECTS)}")
    add("--seeds", type=lambda text: [int(x) for x in names(text)], default=[0, 1, 2], help="comma-separated")
    add("--steps", type=int, default=TRAINING.max_steps, help="of training")
    add("--scored", choices=("validation", "test"), default="test", help="the part that is scored; the other one is not looked at")
    add(
        "--data", type=Path, default=Path(os.environ.get("TITANS_SEQ_DATA", "data")), help="folder with dna/gue (default: $TITANS_SEQ_DATA)"
    )
    add("--output", type=Path, default=OUTPUT)
    add("--table", action="store_true", help="measure nothing: print the results, and write them into docs/dna.md")
    options = parser.parse_args(arguments)
    for chosen, known in ((options.tasks, TASKS), (options.subjects, SUBJECTS)):
        unknown = [name for name in chosen if name not in known]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    found: Report = {**environment("benchmarks.dna.classification"), "goals": GOALS, "cells": {}}
    if options.output.exists():
        found["cells"] = strict_json.loads(options.output.read_text())["cells"]
    if options.table:
        SECTION.write(ROOT / "docs" / "dna.md", markdown(found))
    else:
        if not (options.data / "dna" / "gue").is_dir():
            sys.exit(f"error: {options.data} has no dna/gue; name the folder with --data")
        torch.set_num_threads(1)
        run(options, found)
    Console(highlight=False, width=None if os.isatty(1) else 160).print(table(found, options.scored))


if __name__ == "__main__":
    main()
