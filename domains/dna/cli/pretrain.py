"""`titans-seq dna pretrain`: from genomes to a model of the next base."""

from typing import Annotated

from cyclopts import Parameter

from domains.dna.cli.options import Cache, Genomes, Guard, refuse_guard
from domains.dna.config import DNAConfig
from domains.dna.train import GUARD, settings_of
from titans_seq.options import TOP_LEVEL, ConfigFile, configured
from titans_seq.training.config import TrainingConfig
from titans_seq.training.options import QuietRun, Resume, RunFolder, Size, Start, say_where


@configured(model=settings_of, training=TrainingConfig)
def pretrain(
    genomes: Genomes,
    /,
    *,
    output: RunFolder,
    resume: Resume = False,
    start: Start = None,
    validation_records: Annotated[
        list[str] | None, Parameter(help="Names of records to validate on, not trained on. Default: the last 5 % of every record.")
    ] = None,
    guard: Guard = None,
    both_strands: Annotated[bool, Parameter(help="Train on the reverse complement of each record as well.")] = True,
    cache: Cache = None,
    preset: Size = None,
    quiet: QuietRun = False,
    model: DNAConfig,
    training: Annotated[TrainingConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Train a nucleotide model on genomes. A run that was stopped goes on with the same command and --resume."""
    from domains.dna.train import pretrain as run

    refuse_guard(guard, validation_records)
    folder = run(
        genomes,
        output,
        model,
        training,
        start=start,
        validation_records=validation_records or (),
        guard=GUARD if guard is None else guard,
        both_strands=both_strands,
        cache=cache,
        resume=resume,
        progress=not quiet,
    )
    say_where(folder, quiet)
