"""What is to be known of a set for classification before a score on it means anything: leaks between its parts, balance, baselines."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from domains.dna.baselines import baseline_scores
from domains.dna.data.labelled import LabelledSequences, Task, to_intervals
from domains.dna.data.splits import overlapping
from domains.dna.data.stretches import sharing_stretches
from domains.dna.metrics import SCORES
from titans_seq.errors import UserError

_LEAKS = ("exact", "exact_with_another_label", "reverse_complement", "overlapping", "sharing_32_bases")
_PAIRS = (("validation", "train"), ("test", "train"), ("test", "validation"))


def audit_task(task: Task, kmers: tuple[int, ...] = (4, 6)) -> dict[str, Any]:
    """Everything that can be said of a task without a model, as plain values for JSON.

    Returns:
        name, classes; parts: sequences, per_class, lengths (min, median, max) and repeats within each part; leaks: for each two parts, how
        many sequences of the first are in the second; baselines: `baseline_scores`.
    """
    parts = {name: _describe(part, len(task.classes)) for name, part in task.parts.items()}
    leaks = [
        {"part": later, "in": earlier, **_leaks(task.parts[later], task.parts[earlier])}
        for later, earlier in _PAIRS
        if later in parts and earlier in parts
    ]
    return {"name": task.name, "classes": list(task.classes), "parts": parts, "leaks": leaks, "baselines": baseline_scores(task, kmers)}


def _describe(part: LabelledSequences, classes: int) -> dict[str, Any]:
    lengths = part.lengths
    return {
        "sequences": len(part),
        "per_class": np.bincount(part.labels, minlength=classes).tolist(),
        "lengths": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
        "repeats": _repeats(part),
    }


def _repeats(part: LabelledSequences) -> dict[str, int]:
    """Sequences that equal an earlier one of the part, that equal the reverse complement of one, and the first with another label."""
    seen: dict[bytes, int] = {}
    exact = reverse = other_label = 0
    for key, reverse_key, label in zip(part.keys, part.reverse_keys, part.labels.tolist(), strict=True):
        if key in seen:
            exact += 1
            other_label += seen[key] != label
        elif reverse_key in seen:
            reverse += 1
        seen.setdefault(key, label)
    return {"exact": exact, "reverse_complement": reverse, "exact_with_another_label": other_label}


def _leaks(part: LabelledSequences, other: LabelledSequences) -> dict[str, int | None]:
    """How many sequences of `part` equal one of `other`; how many of these with another label; how many equal the reverse complement of
    one, but none itself; overlap one's place (None where that is not known); have 32 bases in a row, on either strand, in common with one.
    """
    labels: dict[bytes, set[int]] = {}
    for key, label in zip(other.keys, other.labels.tolist(), strict=True):
        labels.setdefault(key, set()).add(label)
    exact = [key in labels for key in part.keys]
    reverse = [there in labels and not found for there, found in zip(part.reverse_keys, exact, strict=True)]
    found = zip(part.keys, part.labels.tolist(), exact, strict=True)
    return {
        "exact": sum(exact),
        "reverse_complement": sum(reverse),
        "exact_with_another_label": sum(there and label not in labels[key] for key, label, there in found),
        "overlapping": _count_overlaps(part, other),
        "sharing_32_bases": int(sharing_stretches(part, other, 32).sum()),
    }


def _count_overlaps(part: LabelledSequences, other: LabelledSequences) -> int | None:
    if part.regions is None or other.regions is None:
        return None
    chromosomes = sorted({*part.regions["chrom"], *other.regions["chrom"]})
    return int(overlapping(to_intervals(part.regions, chromosomes), to_intervals(other.regions, chromosomes)).sum())


def write_audit(audit: dict[str, Any], path: str | Path) -> None:
    """The audit as JSON, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".titans-seq-") as folder:
            made = Path(folder) / "audit.json"
            made.write_text(json.dumps(audit, indent=2) + "\n")
            os.replace(made, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Name another file.") from error


def print_audit(audit: dict[str, Any], console: Console | None = None) -> None:
    """Three tables: the parts, what leaks between them, the baselines."""
    console = console or Console()
    for table in (_parts_table(audit), _leaks_table(audit), _baselines_table(audit)):
        if table.row_count:
            console.print(table)


def _parts_table(audit: dict[str, Any]) -> Table:
    classes = audit["classes"]
    table = _table(f"{audit['name']}: {len(classes)} classes", "part", "sequences", *classes[:12], "length", "repeats", "of rc")
    for name, part in audit["parts"].items():
        low, high = part["lengths"]["min"], part["lengths"]["max"]
        length = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        repeats = part["repeats"]
        counts = (f"{count:,}" for count in part["per_class"][:12])
        table.add_row(name, f"{part['sequences']:,}", *counts, length, f"{repeats['exact']:,}", f"{repeats['reverse_complement']:,}")
    return table


def _leaks_table(audit: dict[str, Any]) -> Table:
    table = _table("Sequences of a part that are in another", "part", "equal", "other label", "rc equal", "overlap", "share 32 bases")
    for leak in audit["leaks"]:
        size = audit["parts"][leak["part"]]["sequences"]
        cells = ("?" if leak[key] is None else f"{leak[key]:,} ({leak[key] / size:.1%})" for key in _LEAKS)
        table.add_row(f"{leak['part']} in {leak['in']}", *cells)
    return table


def _baselines_table(audit: dict[str, Any]) -> Table:
    found = audit["baselines"]
    table = _table(f"Baselines on the {found['evaluated_on']} part, fitted on {found['fitted_on']:,} sequences", "baseline", *SCORES)
    for name, scores in found["scores"].items():
        table.add_row(name, *("-" if scores[score] is None else f"{scores[score]:.3f}" for score in SCORES))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table
