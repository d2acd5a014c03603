"""`titans-seq dna finetune`: from labelled sequences, or a genome and its annotation, to a model with a head."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.dna.cli.options import Cache, Columns, Quiet, Reference
from domains.dna.head_config import VALIDATION_SHARE, EncoderConfig, Pooling, ProfileLoss, encoder_of, finetuning
from titans_seq.errors import UserError
from titans_seq.options import TOP_LEVEL, ConfigFile, configured
from titans_seq.presets import Preset
from titans_seq.training.config import TrainingConfig

Data = Annotated[
    Path,
    Parameter(
        help="Labelled sequences: a table (CSV, TSV, Parquet), or a folder or archive laid out as GUE or Genomic Benchmarks; "
        "with --classes or --profile a genome (FASTA, .2bit, GenBank; phix174 ships)."
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
    pooling: Annotated[Pooling, Parameter(help="Of sequences: the mean of the features of all bases, or the largest of each.")] = "mean",
    augment: Annotated[
        bool, Parameter(help="Of sequences: train on the reverse complements as well, where the model reads one strand.")
    ] = True,
    validation_share: Annotated[
        float, Parameter(help="Of sequences: share of the training part that is validated on, if there is no part for that.")
    ] = VALIDATION_SHARE,
    sequence_column: Columns = None,
    label_column: Columns = None,
    genome: Reference = None,
    classes: Annotated[
        list[str] | None,
        Parameter(help="Label each base of a genome: what is to be told, such as CDS tRNA. Where they overlap the first counts."),
    ] = None,
    annotation: Annotated[
        Path | None, Parameter(help="With --classes: where these lie, GFF3, GTF, BED or GenBank. Default: DATA itself, a GenBank.")
    ] = None,
    profile: Annotated[
        Path | None, Parameter(help="Regress a value for each bin of a genome on those of this bedGraph: chrom, start, end, value.")
    ] = None,
    bin_width: Annotated[int, Parameter(help="With --profile: bases of a bin.", validator=Number(gte=1))] = 32,
    profile_loss: Annotated[ProfileLoss, Parameter(help="With --profile: poisson for counts, mse for any other values.")] = "poisson",
    validation_records: Annotated[
        list[str] | None,
        Parameter(help="Of genomes: names of records to validate on, not trained on. Default: the last 5 % of every record."),
    ] = None,
    guard: Annotated[
        int, Parameter(help="Of genomes: bases before the last 5 % that are not trained on either.", validator=Number(gte=0))
    ] = 1024,
    cache: Cache = None,
    preset: Annotated[Preset, Parameter(help="Without --start: size that the flags of --model then change.")] = "tiny",
    quiet: Quiet = False,
    model: EncoderConfig,
    training: Annotated[TrainingConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Train a classifier of sequences, after an audit of them; with --classes a model that labels each base of a genome, with --profile one
    that tells a value for each bin of it.
    """
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from domains.dna.data.features import read_annotation
    from domains.dna.data.genome import open_genome
    from domains.dna.data.labelled_files import read_task
    from domains.dna.data.values import read_values
    from domains.dna.finetune import finetune_classifier, finetune_labeller, finetune_profile

    if classes is None and annotation is not None:
        raise UserError(f"--annotation {annotation}: say with --classes which of its kinds of regions are to be told, such as CDS tRNA.")
    if classes is not None and profile is not None:
        raise UserError("--classes and --profile are two models. Train one after the other.")
    if not 0 < validation_share < 1:
        raise UserError(f"--validation-share must be between 0 and 1, got {validation_share}.")
    if classes is not None:
        folder = finetune_labeller(
            open_genome(data, cache, not quiet),
            read_annotation(annotation or data),
            classes,
            output,
            model,
            training,
            source=annotation or data,
            start=start,
            validation_records=validation_records or (),
            guard=guard,
            resume=resume,
            progress=not quiet,
        )
    elif profile is not None:
        folder = finetune_profile(
            open_genome(data, cache, not quiet),
            read_values(profile),
            output,
            model,
            training,
            bin_width=bin_width,
            loss=profile_loss,
            source=profile,
            start=start,
            validation_records=validation_records or (),
            guard=guard,
            resume=resume,
            progress=not quiet,
        )
    else:
        folder = finetune_classifier(
            read_task(data, None if genome is None else open_genome(genome, cache, not quiet), sequence_column, label_column),
            output,
            model,
            training,
            pooling=pooling,
            start=start,
            validation_share=validation_share,
            augment=augment,
            resume=resume,
            progress=not quiet,
        )
    if rank_zero_only.rank == 0:
        print(folder if quiet else f"The model is in {folder}.")
