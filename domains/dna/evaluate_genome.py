"""What models of labels and of values along a genome are worth, on what is known of it. Memory does not grow with the genome but for a
byte a base and strand of labels, or 8 bytes a bin.

Shapes: V labels, the first of them none of the classes; bins of a genome.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from domains.dna.annotate import Advance, label_genome, profile_genome
from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from domains.dna.data.splits import by_fraction
from domains.dna.data.windows import whole
from domains.dna.heads import DNALabeller, DNAProfile
from domains.dna.metrics import PROFILE_SCORES, LabelCounts, profile_scores
from domains.dna.train import GUARD, VALIDATION_SHARE
from titans_seq.errors import UserError

MODEL = "model"


@dataclass(frozen=True)
class LabelEvaluation:
    """A labeller on stretches of a genome.

    Attributes:
        genome: its name.
        records: names of the records of the stretches.
        bases: that were scored, on each of two strands; those that are N are not.
        classes: names of the classes.
        counts: of labels and probabilities.
    """

    genome: str
    records: tuple[str, ...]
    bases: int
    classes: tuple[str, ...]
    counts: LabelCounts

    @property
    def scores(self) -> dict[str, dict[str, float | None]]:
        """Accuracy and MCC over all labels, of the most frequent label everywhere and of the model."""
        return {"majority": self.counts.majority_scores(), MODEL: self.counts.scores()}

    @property
    def of_classes(self) -> dict[str, dict[str, float | None]]:
        """`LabelCounts.class_scores` of each class."""
        return {name: self.counts.class_scores(i) for i, name in enumerate(self.classes, 1)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; confusion[label][said]: bases and strands."""
        head = {"genome": self.genome, "records": list(self.records), "bases": self.bases, "labels": ["none", *self.classes]}
        return {**head, "scores": self.scores, "classes": self.of_classes, "confusion": self.counts.confusion.tolist()}


@dataclass(frozen=True)
class ProfileEvaluation:
    """A profile model on stretches of a genome.

    Attributes:
        genome: its name.
        records: names of the records of the stretches.
        bin_width: bases of a bin.
        bins: that have a value, and were scored.
        scores: `profile_scores` of baselines and of the model.
    """

    genome: str
    records: tuple[str, ...]
    bin_width: int
    bins: int
    scores: dict[str, dict[str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        head = {"genome": self.genome, "records": list(self.records), "bin_width": self.bin_width, "bins": self.bins}
        return {**head, "scores": self.scores}


def stretches_of(genome: Genome, records: Sequence[str] = (), part: str | None = None) -> Intervals:
    """What of a genome is scored: the whole, the records of these names, or with part="validation" what `dna finetune` holds out unless it
    is told which records to: the last 5 % of each.

    Raises:
        UserError: there is no such record, both are given, or a genome has no such part.
    """
    if part is None:
        return whole(genome)[np.array([genome.record(name) for name in records])] if records else whole(genome)
    if part != "validation":
        raise UserError(f"a genome has no {part} part. Score the validation part, whole records by name, or another genome.")
    if records:
        raise UserError("the validation part is the last 5 % of every record. Name it, or records, not both.")
    return by_fraction(whole(genome), VALIDATION_SHARE, 0.0, GUARD).validation


def evaluate_labels(
    model: DNALabeller,
    genome: Genome,
    labels: Sequence[np.ndarray],
    stretches: Intervals,
    scratch: str,
    *,
    segment_length: int = 4096,
    window: int | None = None,
    advance: Advance = lambda bases: None,
) -> LabelEvaluation:
    """Score what `label_genome` says of a genome.

    Args:
        model: labels it.
        genome: what is read: the whole records of the stretches.
        labels: of each record (length, 2) uint8, of the model's classes (`label_strands`).
        stretches: the bases that are scored, on both strands; without those that are N.
        scratch, segment_length, window, advance: as of `label_genome`.
    """
    counts, bases = LabelCounts(1 + len(model.config.classes)), 0
    records = sorted(set(stretches.record.tolist()))
    for part in label_genome(model, genome, scratch, segment_length, advance, window, records):
        scored = _scored(stretches, part.record, part.start, part.stop)
        scored &= (genome.read(part.record, part.start, part.stop) & BASE_BITS) < N
        counts.add(labels[part.record][part.start : part.stop][scored].ravel(), part.probabilities[scored].reshape(-1, counts.labels))
        bases += int(scored.sum())
    if not bases:
        raise UserError(f"{genome.source}: every base that is to be scored is N.")
    return LabelEvaluation(genome.source.name, _names(genome, records), bases, model.config.classes, counts)


def evaluate_profile(
    model: DNAProfile,
    genome: Genome,
    values: Sequence[np.ndarray],
    stretches: Intervals,
    scratch: str,
    *,
    segment_length: int = 4096,
    window: int | None = None,
    advance: Advance = lambda bases: None,
) -> ProfileEvaluation:
    """Score what `profile_genome` says of a genome, beside the mean, and the share of G and C of each bin.

    Args:
        model: tells values.
        genome: what is read: the whole records of the stretches.
        values: of each record (bins,) float32, NaN where there is none (`bin_values`, with the model's `bin_width`).
        stretches: the bins that lie within them are scored.
        scratch, segment_length, window, advance: as of `profile_genome`.

    Raises:
        UserError: fewer than two bins have a value.
    """
    width, records = model.config.bin_width, sorted(set(stretches.record.tolist()))
    parts: list[np.ndarray] = []  # (3, bins) each: what is said, known, and the share of G and C
    for part in profile_genome(model, genome, scratch, segment_length, advance, window, records):
        first = part.start // width
        bins = values[part.record][first : first + len(part.values)]
        edges = np.arange(part.start, part.stop, width)
        scored = np.logical_and.reduceat(_scored(stretches, part.record, part.start, part.stop), edges - part.start) & ~np.isnan(bins)
        of_bases = np.isin(genome.read(part.record, part.start, part.stop) & BASE_BITS, (1, 2))  # C and G
        shares = np.add.reduceat(of_bases.astype(float), edges - part.start) / np.diff(np.append(edges, part.stop))
        parts.append(np.stack([part.values, bins, shares])[:, scored])
    told, truth, share = np.concatenate(parts, axis=1)
    if len(truth) < 2:
        raise UserError(f"{genome.source}: {len(truth)} of the bins that are to be scored have a value; at least two are needed.")
    slope, begin = np.polyfit(share, truth, 1) if np.ptp(share) else (0.0, truth.mean())
    ways = {"mean of these bins": np.full(len(truth), truth.mean()), "G and C, fitted to these bins": begin + slope * share, MODEL: told}
    scores = {name: profile_scores(truth, way) for name, way in ways.items()}
    return ProfileEvaluation(genome.source.name, _names(genome, records), width, len(truth), scores)


def _scored(stretches: Intervals, record: int, start: int, stop: int) -> np.ndarray:
    """Which of the bases `start` to `stop` - 1 of a record lie in a stretch, bool."""
    found = np.zeros(stop - start, bool)
    own = stretches[(stretches.record == record) & (stretches.stop > start) & (stretches.start < stop)]
    for a, b in zip(own.start.tolist(), own.stop.tolist(), strict=True):
        found[max(a - start, 0) : b - start] = True
    return found


def _names(genome: Genome, records: Sequence[int]) -> tuple[str, ...]:
    return tuple(genome.names[record] for record in records)


def print_labels(found: LabelEvaluation, console: Console | None = None) -> None:
    """The model beside the most frequent label; then each class."""
    console = console or Console()
    whole_view = Table(title=f"{found.genome}: {found.bases:,} bases, both strands", title_justify="left")
    _fill(whole_view, found.scores)
    console.print(whole_view)
    view = Table(title="each class against all else", title_justify="left")
    _fill(view, found.of_classes)
    console.print(view)
    console.print("share is what the area under precision and recall (auprc) is of a model that knows nothing.", highlight=False)


def print_profile(found: ProfileEvaluation, console: Console | None = None) -> None:
    """The model beside the baselines."""
    view = Table(title=f"{found.genome}: {found.bins:,} bins of {found.bin_width:,} bases", title_justify="left")
    _fill(view, found.scores, PROFILE_SCORES)
    (console or Console()).print(view)


def _fill(view: Table, rows: dict[str, dict[str, float | None]], columns: Sequence[str] | None = None) -> None:
    columns = columns or list(next(iter(rows.values())))
    for i, column in enumerate(("", *columns)):
        view.add_column(column, justify="right" if i else "left")
    for name, scores in rows.items():
        view.add_row(name, *("-" if scores[column] is None else f"{scores[column]:.4g}" for column in columns))
