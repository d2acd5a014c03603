"""Train models with heads, of classes of sequences, labels of bases, values of bins: from scratch, or from a model of the next base."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from domains.dna.data.genome import Genome, tell_ambiguous
from domains.dna.data.labelled import LabelledSequences, Task, hold_out
from domains.dna.data.regions import Intervals
from domains.dna.data.splits import Split, by_fraction, by_record
from domains.dna.data.windows import both_strands, consecutive_windows, overlapping_windows, whole, whole_units
from domains.dna.head_config import (
    VALIDATION_SHARE,
    ClassifierConfig,
    EncoderConfig,
    LabellerConfig,
    Pooling,
    ProfileConfig,
    ProfileLoss,
    encoder_of,
    finetuning,
)
from domains.dna.train import GUARD
from domains.dna.train import VALIDATION_SHARE as SHARE_OF_RECORDS
from titans_seq.errors import UserError
from titans_seq.training.config import TrainingConfig

if TYPE_CHECKING:
    import polars as pl

    from domains.dna.heads import DNAClassifier, DNALabeller, DNAProfile
    from domains.dna.labelled_batches import Item
    from titans_seq.card import Card

AUDIT_NAME = "audit.json"
Model = TypeVar("Model", "DNAClassifier", "DNALabeller", "DNAProfile")


def finetune_classifier(
    task: Task,
    output: str | Path,
    encoder: EncoderConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    pooling: Pooling = "mean",
    start: str | Path | None = None,
    validation_share: float = VALIDATION_SHARE,
    augment: bool = True,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train a classifier on a task (`read_task`) in the folder `output`, after an audit of the task, which is stored as audit.json in it.

    Args:
        task: what is learned. Nothing is learned or chosen from its test part.
        output: the run's folder.
        encoder, training: settings, None for the defaults; `segment_length` becomes the length of the longest sequence.
        pooling: of `ClassifierConfig`.
        start: folder or name of a `TitansForDNA` whose embedding and backbone are taken over; None to begin from scratch.
        validation_share: of the training part, held out by `hold_out` if the task has no validation part.
        augment: an encoder that reads one strand is trained on the reverse complements as well. One that reads both needs it not.
        resume, progress: as `titans_seq.training.run.train`; with progress the audit is printed, and at the end the model's scores beside
            those of the audit's baselines, on the same sequences.

    Returns:
        The folder of the trained model, for `DNAClassifier.from_pretrained`; it knows the sequences again (`domains.dna.seen`).

    Raises:
        UserError: the task or `start` cannot be used, or as `titans_seq.training.run.train`.
    """
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from domains.dna.audit import audit_task, print_audit, write_audit
    from domains.dna.heads import DNAClassifier
    from domains.dna.labelled_batches import SequenceItems
    from domains.dna.seen import remember
    from titans_seq.card import Card

    encoder, training = encoder or encoder_of(start), training or finetuning()
    if task.validation is None:
        task = hold_out(task, validation_share, training.seed)
    assert task.validation is not None
    training = replace(training, segment_length=max(int(part.lengths.max()) for part in (task.train, task.validation)))
    config = ClassifierConfig(encoder=encoder, classes=task.classes, pooling=pooling)
    mirrored = augment and encoder.strands == "forward"
    items = SequenceItems(task.train, mirrored), SequenceItems(task.validation)
    card = Card(
        title="Titans classifier of DNA",
        description=f"Tells {_listed(task.classes)} apart. `titans-seq dna evaluate MODEL DATA` scores it on labelled sequences.",
        data=f"{_describe(task, mirrored, start)} What leaks between the parts is in {AUDIT_NAME} of the run.",
        tags=("genomics",),
    )

    audit: dict[str, Any] = {}

    def keep_audit() -> None:
        if rank_zero_only.rank == 0:
            audit.update(audit_task(task))
            write_audit(audit, Path(output) / AUDIT_NAME)
            if progress:
                print_audit(audit)

    folder = _train(lambda: DNAClassifier(config), start, items, card, training, output, resume, progress, before=keep_audit)
    if rank_zero_only.rank == 0:
        remember(task.train, folder)
        if progress:
            _print_scores(folder, task, audit)
    return folder


def _print_scores(folder: Path, task: Task, audit: dict[str, Any]) -> None:
    """The model's scores beside those of the baselines of an audit."""
    import torch
    from rich.console import Console

    from domains.dna.evaluate import Evaluation, predict, scores_table
    from domains.dna.heads import DNAClassifier

    model = DNAClassifier.from_pretrained(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    part = audit["baselines"]["evaluated_on"]
    held_out = task.parts[part]
    Console().print(scores_table(Evaluation(task.name, part, task.classes, held_out.labels, predict(model, held_out), audit)))


def finetune_labeller(
    genome: Genome,
    regions: "pl.DataFrame",
    classes: Sequence[str],
    output: str | Path,
    encoder: EncoderConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    source: str | Path = "the table",
    column: str = "feature",
    start: str | Path | None = None,
    validation_records: Sequence[str] = (),
    guard: int = GUARD,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train a labeller of bases on a genome and what is known to lie on it, in windows of `segment_length` bases, in the folder `output`.

    Args:
        genome: what is read.
        regions: a table of regions (`read_annotation`); one without a strand counts on both.
        classes: kinds of regions to learn, the first counting where several overlap.
        output: the run's folder.
        encoder, training: settings, None for the defaults. An encoder that reads one strand is trained on either.
        source: what errors and the model card call the table.
        column: which column of it tells kinds.
        start: as of `finetune_classifier`.
        validation_records: names of records to validate on, not trained on; none for the last 5 % of every record.
        guard: bases before the last 5 % that are not trained on either.
        resume, progress: as `titans_seq.training.run.train`.

    Returns:
        The folder of the trained model, for `DNALabeller.from_pretrained`.

    Raises:
        UserError: genome, regions or `start` cannot be used, or as `titans_seq.training.run.train`.
    """
    from domains.dna.data.features import label_strands
    from domains.dna.heads import DNALabeller
    from domains.dna.labelled_batches import LabelledWindows
    from titans_seq.card import Card

    encoder, training = encoder or encoder_of(start), training or finetuning()
    labels = label_strands(genome, regions, classes, source, column)
    config = LabellerConfig(encoder=encoder, classes=tuple(classes))
    split, origin = _split(genome, validation_records, guard)
    training_windows = overlapping_windows(split.train, training.segment_length)
    windows = training_windows, consecutive_windows(split.validation, training.segment_length)
    if encoder.strands == "forward":
        windows = both_strands(windows[0]), both_strands(windows[1])
    items = LabelledWindows(genome, labels, windows[0]), LabelledWindows(genome, labels, windows[1])
    shares = ", ".join(f"{name} on {share:.1%}" for name, share in zip(classes, _shares(labels, len(classes)), strict=True))
    card = Card(
        title="Titans labeller of DNA",
        description=f"Tells for each base and strand what lies there: {_listed(classes)} or none. `titans-seq dna annotate MODEL FASTA` "
        "writes intervals.",
        data=_describe_genome(genome, source, training.segment_length, (split.train, split.validation), origin, start)
        + f"\n\nOf the bases and strands of the genome there is {shares}.",
        tags=("genomics",),
    )
    return _train(lambda: DNALabeller(config), start, items, card, training, output, resume, progress)


def finetune_profile(
    genome: Genome,
    table: "pl.DataFrame",
    output: str | Path,
    encoder: EncoderConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    bin_width: int = 32,
    loss: ProfileLoss = "poisson",
    source: str | Path = "the table",
    start: str | Path | None = None,
    validation_records: Sequence[str] = (),
    guard: int = GUARD,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train a model of values along a genome, in windows of `segment_length` bases, in the folder `output`.

    Args:
        genome: what is read.
        table: a value for each region (`read_values`); a bin has the mean of its bases, and does not count where none has a value.
        output: the run's folder.
        encoder, training: settings, None for the defaults; `segment_length` must be a multiple of `bin_width`.
        bin_width, loss: of `ProfileConfig`.
        source, start, validation_records, guard, resume, progress: as of `finetune_labeller`.

    Returns:
        The folder of the trained model, for `DNAProfile.from_pretrained`.

    Raises:
        UserError: genome, table or `start` cannot be used, or as `titans_seq.training.run.train`.
    """
    from domains.dna.data.values import bin_values
    from domains.dna.heads import DNAProfile
    from domains.dna.labelled_batches import ProfileWindows
    from titans_seq.card import Card

    encoder, training = encoder or encoder_of(start), training or finetuning()
    config = ProfileConfig(encoder=encoder, bin_width=bin_width, loss=loss)
    length = training.segment_length
    if length % bin_width:
        raise UserError(f"windows must be of whole bins: --segment-length {length} is no multiple of --bin-width {bin_width}.")
    if loss == "poisson" and (table["value"] < 0).any():
        raise UserError(f"{source}: has negative values, which are no counts. Take the loss 'mse'.")
    values = bin_values(genome, table, bin_width, source)
    split, origin = _split(genome, validation_records, guard)
    parts = [whole_units(spans, genome, bin_width) for spans in (split.train, split.validation)]
    windows = overlapping_windows(parts[0], length, bin_width), consecutive_windows(parts[1], length)
    for part, does in zip(windows, ("train on", "validate on"), strict=True):
        if not len(part):
            raise UserError(f"{genome.source}: no bin of {bin_width} bases is left to {does}. Take longer records, or smaller bins.")
    items = ProfileWindows(genome, values, windows[0], bin_width), ProfileWindows(genome, values, windows[1], bin_width)
    card = Card(
        title="Titans profile of DNA",
        description=f"Tells a value for each {bin_width:,} bases. `titans-seq dna annotate MODEL FASTA` writes a bedGraph.",
        data=_describe_genome(genome, source, length, (parts[0], parts[1]), origin, start),
        tags=("genomics",),
    )
    return _train(lambda: DNAProfile(config), start, items, card, training, output, resume, progress)


def _split(genome: Genome, validation_records: Sequence[str], guard: int) -> tuple[Split, str]:
    """What is trained and validated on, and what the card says of the second."""
    if validation_records:
        return by_record(genome, validation_records, ()), "records that were not trained on"
    of_each = f"the last {SHARE_OF_RECORDS:.0%} of each record, not trained on, nor {guard:,} bases before"
    return by_fraction(whole(genome), SHARE_OF_RECORDS, 0.0, guard), of_each


def _train(
    make: Callable[[], Model],
    start: str | Path | None,
    items: "tuple[Sequence[Item], Sequence[Item]]",
    card: "Card",
    training: TrainingConfig,
    output: str | Path,
    resume: bool,
    progress: bool,
    before: Callable[[], None] = lambda: None,
) -> Path:
    """Train a model on items and validate it on others. before: done once the run's folder is there."""
    from domains.dna.heads import take_over
    from domains.dna.labelled_batches import item_loaders
    from titans_seq.card import plain
    from titans_seq.training.module import TrainingData
    from titans_seq.training.run import train as run
    from titans_seq.transfer import beginning_with

    def make_data() -> TrainingData:
        before()
        return TrainingData(*item_loaders(*items, training), card, plain(card.data))

    return run(make, make_data, training, output, resume, progress, beginning_with(start, make, take_over))


def _shares(labels: "Sequence[np.ndarray]", classes: int) -> list[float]:
    """Of bases and strands the share that each class has."""
    counts = np.sum([np.bincount(x.ravel(), minlength=classes + 1) for x in labels], axis=0)
    return (counts[1:] / counts.sum()).tolist()


def _describe(task: Task, mirrored: bool, start: str | Path | None) -> str:
    def count(part: LabelledSequences) -> str:
        return f"{len(part):,} sequences, {int(part.lengths.sum()):,} bases"

    assert task.validation is not None
    strands = ", and their reverse complements" if mirrored else ""
    trained = f"Trained on {count(task.train)} of `{task.name}`{strands}.{_origin(start)}"
    return f"{trained}\n\nValidated on {count(task.validation)}."


def _describe_genome(
    genome: Genome, source: str | Path, length: int, parts: tuple[Intervals, Intervals], origin: str, start: str | Path | None
) -> str:
    trained, validated = (f"{int(part.lengths.sum()):,} bases" for part in parts)
    read = f"Trained on {trained} of `{genome.source.name}` with `{Path(source).name}`, in windows of {length:,}.{_origin(start)}"
    return "\n\n".join(filter(None, (read, f"Validated on {origin}: {validated}.", tell_ambiguous([genome]))))


def _origin(start: str | Path | None) -> str:
    return "" if start is None else f" Embedding and backbone began as those of `{Path(start).name}`."


def _listed(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(f"`{name}`" for name in names[:most]) + (f" and {len(names) - most} others" if len(names) > most else "")
