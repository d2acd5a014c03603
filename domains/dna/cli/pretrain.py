"""`titans-seq dna pretrain`: from genomes to a model of the next base."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.dna.cli.options import Cache, Genomes
from domains.dna.config import DNAConfig, of_preset
from titans_seq.options import TOP_LEVEL, ConfigFile, configured
from titans_seq.training.config import TrainingConfig
from titans_seq.training.options import QuietRun, Resume, RunFolder, Size, say_where


@configured(model=of_preset, training=TrainingConfig)
def pretrain(
    genomes: Genomes,
    /,
    *,
    output: RunFolder,
    resume: Resume = False,
    validation_records: Annotated[
        list[str] | None, Parameter(help="Names of records to validate on, not trained on. Default: the last 5 % of every record.")
    ] = None,
    guard: Annotated[
        int,
        Parameter(help="Bases before the last 5 % that are not trained on either: a gap between the two.", validator=Number(gte=0)),
    ] = 1024,
    both_strands: Annotated[bool, Parameter(help="Train on the reverse complement of each record as well.")] = True,
    cache: Cache = None,
    preset: Size = "tiny",
    quiet: QuietRun = False,
    model: DNAConfig,
    training: Annotated[TrainingConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Train a nucleotide model on genomes. A run that was stopped goes on with the same command and --resume."""
    from domains.dna.train import pretrain as run

    folder = run(
        genomes,
        output,
        model,
        training,
        validation_records=validation_records or (),
        guard=guard,
        both_strands=both_strands,
        cache=cache,
        resume=resume,
        progress=not quiet,
    )
    say_where(folder, quiet)
