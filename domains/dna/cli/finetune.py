"""`titans-seq dna finetune`: from labelled sequences, or a genome and its annotation, to a model with a head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.dna.cli.options import (
    Annotation,
    Cache,
    Guard,
    LabelColumn,
    Profile,
    Quiet,
    Reference,
    SequenceColumn,
    SkipOtherRecords,
    refuse_guard,
)
from domains.dna.cli.reading import of_genome
from domains.dna.head_config import VALIDATION_SHARE, EncoderConfig, Pooling, ProfileLoss, encoder_of, finetuning
from domains.dna.train import GUARD
from titans_seq.errors import UserError
from titans_seq.options import TOP_LEVEL, ConfigFile, configured, refuse
from titans_seq.presets import Preset
from titans_seq.training.config import TrainingConfig

Data = Annotated[
    Path,
    Parameter(
        help="Labelled sequences: a table (CSV, TSV, Parquet), or a folder or archive laid out as GUE or Genomic Benchmarks; "
        "with --classes or --profile a genome (FASTA, .2bit, GenBank; phix174 and chloroplast ship)."
    ),
]


@configured(model=encoder_of, training=finetuning)
def finetune(
    data: Data,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="Folder of the run: audit, checkpoints, metrics.csv, and the model.")],
    resume: Annotated[bool, Parameter(help="Go on from the newest checkpoint in the folder; without one, start.", negative="")] = False,
    start: Annotated[
        str | None,
        Parameter(help="Model of the next base whose weights are taken over: a folder that pretrain made, or owner/name on the hub."),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        Parameter(help="Of sequences: the mean of the features of all bases, or the largest of each (max). Default: mean."),
    ] = None,
    augment: Annotated[
        bool | None,
        Parameter(help="Of sequences, where the model reads one strand: train on the reverse complements as well. Default: yes."),
    ] = None,
    validation_share: Annotated[
        float | None,
        Parameter(
            help="Of sequences: share of the training part that is validated on, if there is no part for that. "
            f"Default: {VALIDATION_SHARE}."
        ),
    ] = None,
    sequence_column: SequenceColumn = None,
    label_column: LabelColumn = None,
    genome: Reference = None,
    classes: Annotated[
        list[str] | None,
        Parameter(help="Label each base of a genome: what is to be told, such as CDS tRNA. Where they overlap the first counts."),
    ] = None,
    annotation: Annotation = None,
    profile: Profile = None,
    bin_width: Annotated[int | None, Parameter(help="Of a profile: bases of a bin. Default: 32.", validator=Number(gte=1))] = None,
    profile_loss: Annotated[
        ProfileLoss | None, Parameter(help="Of a profile: poisson for counts, mse for any other values. Default: poisson.")
    ] = None,
    validation_records: Annotated[
        list[str] | None,
        Parameter(help="Of genomes: names of records to validate on, not trained on. Default: the last 5 % of every record."),
    ] = None,
    guard: Guard = None,
    skip_other_records: SkipOtherRecords = False,
    cache: Cache = None,
    preset: Annotated[Preset | None, Parameter(help="Without --start: size that the flags of --model then change. Default: tiny.")] = None,
    quiet: Quiet = False,
    model: EncoderConfig,
    training: Annotated[TrainingConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Train a classifier of sequences, after an audit of them; with --classes a model that labels each base of a genome, with --profile one
    that tells a value for each bin of it.
    """
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    head = "--classes" if classes is not None else "--profile" if profile is not None else None
    if classes is None and annotation is not None:
        raise UserError(f"--annotation {annotation}: say with --classes which of its kinds of regions are to be told, such as CDS tRNA.")
    if classes is not None and profile is not None:
        raise UserError("--classes and --profile are two models. Train one after the other.")
    if validation_share is not None and not 0 < validation_share < 1:
        raise UserError(f"--validation-share must be between 0 and 1, got {validation_share}.")
    of_sequences: dict[str, object] = {"--pooling": pooling, "--validation-share": validation_share, "--genome": genome}
    of_sequences |= {"--sequence-column": sequence_column, "--label-column": label_column}
    augmented = {} if augment is None else {"--augment" if augment else "--no-augment": True}
    of_genomes: dict[str, object] = {"--validation-records": validation_records, "--guard": guard}
    of_genomes |= {"--skip-other-records": skip_other_records or None}
    _refuse_streams(training)
    if head is None:
        refuse(of_genomes, "is of a genome, with --classes or --profile; without them DATA is labelled sequences")
        _refuse_of_sequences(augmented, model, training)
    else:
        refuse(of_sequences | augmented, f"is of labelled sequences, but with {head} a genome is read")
        refuse_guard(guard, validation_records)
    if profile is None:
        refuse({"--bin-width": bin_width, "--profile-loss": profile_loss}, "is of a profile, with --profile")
    how: dict[str, Any] = {"output": output, "encoder": model, "training": training}
    how |= {"start": start, "resume": resume, "progress": not quiet}
    held_out = {"validation_records": validation_records or (), "guard": GUARD if guard is None else guard}
    if classes is not None:
        folder = _train_labeller(data, annotation or data, classes, skip_other_records, cache, {**how, **held_out})
    elif profile is not None:
        how |= {"bin_width": bin_width or 32, "loss": profile_loss or "poisson"}
        folder = _train_profile(data, profile, skip_other_records, cache, {**how, **held_out})
    else:
        how |= {"pooling": pooling or "mean", "validation_share": validation_share or VALIDATION_SHARE, "augment": augment is not False}
        folder = _train_classifier(data, genome, sequence_column, label_column, cache, how)
    if rank_zero_only.rank == 0:
        print(folder if quiet else f"The model is in {folder}.")


def _train_classifier(
    data: Path, genome: Path | None, sequence_column: str | None, label_column: str | None, cache: Path | None, how: dict[str, Any]
) -> Path:
    from domains.dna.data.genome import open_genome
    from domains.dna.data.labelled_files import read_task
    from domains.dna.finetune import finetune_classifier

    reference = None if genome is None else open_genome(genome, cache, how["progress"])
    return finetune_classifier(read_task(data, reference, sequence_column, label_column), **how)


def _train_labeller(
    data: Path, source: Path, classes: list[str], skip_other_records: bool, cache: Path | None, how: dict[str, Any]
) -> Path:
    from domains.dna.data.features import read_annotation
    from domains.dna.data.genome import open_genome
    from domains.dna.finetune import finetune_labeller

    genome = open_genome(data, cache, how["progress"])
    regions = of_genome(read_annotation(source), genome, source, skip_other_records)
    return finetune_labeller(genome, regions, classes, source=source, **how)


def _train_profile(data: Path, source: Path, skip_other_records: bool, cache: Path | None, how: dict[str, Any]) -> Path:
    from domains.dna.data.genome import open_genome
    from domains.dna.data.values import read_values
    from domains.dna.finetune import finetune_profile

    genome = open_genome(data, cache, how["progress"])
    return finetune_profile(genome, of_genome(read_values(source), genome, source, skip_other_records), source=source, **how)


def _refuse_of_sequences(augmented: Mapping[str, object], model: EncoderConfig, training: TrainingConfig) -> None:
    """Refuse what changes nothing for sequences."""
    if training.segment_length != finetuning().segment_length:
        refuse({"--segment-length": training.segment_length}, "sequences are read whole, however long they are")
    if model.strands == "both":
        refuse(augmented, "a model of both strands takes a sequence and its reverse complement for one (--model.strands)")


def _refuse_streams(training: TrainingConfig) -> None:
    """Refuse settings of training on documents that are read on from segment to segment."""
    for name in ("carry_state", "document_length", "length_warmup"):
        value = getattr(training, name)
        if value != getattr(finetuning(), name):
            flag = "--no-carry-state" if value is False else f"--{name.replace('_', '-')}"
            given = True if value is False else list(value) if isinstance(value, tuple) else value
            refuse({flag: given}, "is of documents that are read on; a sequence or a window of a genome is read by itself")
