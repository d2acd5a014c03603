"""Train a nucleotide model on genomes."""

from collections.abc import Sequence
from pathlib import Path

from domains.dna.config import DNAConfig, of_preset
from titans_seq import transfer
from titans_seq.errors import UserError
from titans_seq.presets import Preset
from titans_seq.training.config import TrainingConfig

VALIDATION_SHARE = 0.05
"""Of each record, its end, that is validated on."""
_NAMED = 3
"""Records that are named on the screen; the card names more."""
GUARD = 1024
"""Bases before that which are not trained on either, so that the two do not touch."""


def settings_of(start: str | Path | None = None, preset: Preset | None = None) -> DNAConfig:
    """The settings of a trained nucleotide model, or else of one on the backbone that has a name.

    start: folder or name of the model; of its files the shapes are read alone. preset: None for tiny.

    Raises:
        UserError: there is no such model, or both are given.
    """

    def of_model(start: str | Path) -> DNAConfig:
        from domains.dna.model import TitansForDNA

        config: DNAConfig = TitansForDNA.from_pretrained(start, device="meta").config
        return config

    return transfer.settings_of(start, preset, of_preset, of_model)


def pretrain(
    genomes: Sequence[str | Path],
    output: str | Path,
    model: DNAConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    start: str | Path | None = None,
    validation_records: Sequence[str] = (),
    guard: int = GUARD,
    both_strands: bool = True,
    cache: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train on FASTA, .2bit and GenBank files (`open_genome`) in the folder `output`.

    Args:
        genomes: the files.
        output: the run's folder.
        model, training: settings, None for the defaults, of the model for those of `start`.
        start: a trained model, folder or name on the hub, that is trained further; None for new weights.
        validation_records: names of records to validate on, not trained on; none for the last 5 % of every record.
        guard: bases before the last 5 % that are not trained on either, so that the two do not touch.
        both_strands: train on the reverse complement of each record as well. Validation reads the strand that the files hold.
        cache: as `open_genome`.
        resume, progress: as `titans_seq.training.run.train`.

    Returns:
        The folder of the trained model, for `TitansForDNA.from_pretrained`.

    Raises:
        UserError: files that cannot be used, or as `titans_seq.training.run.train`.
    """
    from domains.dna.data.genome import open_genome, tell_ambiguous
    from domains.dna.documents import split_ends, split_records
    from domains.dna.model import BEGIN, TitansForDNA
    from titans_seq.card import Card, plain

    settings, training = model or (DNAConfig() if start is None else settings_of(start)), training or TrainingConfig()

    def make_model() -> TitansForDNA:
        return TitansForDNA(settings)

    begin = transfer.beginning_with(start, make_model, transfer.take_all)
    opened = [open_genome(path, cache, progress) for path in genomes]
    if validation_records:
        documents, held_out = split_records(opened, validation_records, both_strands)
        origin = "Validated on records that were not trained on:"
    else:
        documents, held_out = split_ends(opened, VALIDATION_SHARE, guard, both_strands)
        origin = f"Validated on the last {VALIDATION_SHARE:.0%} of each record, not trained on, nor {guard:,} bases before:"
    for part, does in ((documents, "train on"), (held_out, "validate on")):
        if part.bases == 0:
            raise UserError(f"{', '.join(map(str, genomes))}: every base to {does} is N. Take records with bases, for validation by name.")

    def about(**named: int) -> str:
        trained = f"Trained on {documents.describe(**named)}{transfer.told(start)}"
        parts = trained, f"{origin} {held_out.describe(**named)}", tell_ambiguous(opened)
        return "\n\n".join(filter(None, parts))

    card = Card(
        title="Titans nucleotide model",
        description="Predicts the next base of DNA. `titans-seq dna bits FASTA --model MODEL` says how well it predicts a genome.",
        data=about(),
        tags=("genomics",),
    )

    from titans_seq.training.loaders import document_loaders  # Lightning takes seconds, after the errors of files
    from titans_seq.training.module import TrainingData
    from titans_seq.training.run import train as run

    def make_data() -> TrainingData:
        return TrainingData(*document_loaders(documents, held_out, training, begin=BEGIN), card, plain(about(named=_NAMED)))

    return run(make_model, make_data, training, output, resume, progress, begin)
