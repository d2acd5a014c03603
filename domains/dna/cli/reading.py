"""What the commands share that read with a trained model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from titans_seq.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from domains.dna.data.genome import Genome
    from domains.dna.model import TitansForDNA

Model = Annotated[str, Parameter(help="Folder of a trained model, or its name on the Hugging Face hub, owner/name.")]
GenomeFile = Annotated[Path, Parameter(help="FASTA (also .gz or bgzf), .2bit or GenBank file.")]


def load(name: str) -> "TitansForDNA":
    """The model that is named, on a GPU where there is one."""
    import torch

    from domains.dna.model import TitansForDNA

    return TitansForDNA.from_pretrained(name, device="cuda" if torch.cuda.is_available() else "cpu")


def warn_of_guessing(name: str) -> None:
    """Say on stderr that scores of the model mean nothing, where its card tells that in validation it as good as guessed."""
    from domains.dna.metrics import BITS_PER_BASE, OF_A_GUESS
    from titans_seq.card import read_metric
    from titans_seq.checkpoint import ALL_FILES, CARD_NAME
    from titans_seq.hub import locate

    path = locate(name, ALL_FILES, local_files_only=True) / CARD_NAME  # as loaded
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    bits = read_metric(text, f"{BITS_PER_BASE.name}, validation")
    if bits is not None and bits >= OF_A_GUESS:
        print(
            f"warning: {name} takes {bits:.3f} bits a base in validation, and a guess takes 2: it has learned next to nothing, and its "
            "scores mean nothing.",
            file=sys.stderr,
        )


def table_writer(rows: "pl.DataFrame") -> Callable[[Path], None]:
    """Writes CSV or Parquet, by the suffix of the file."""
    return lambda path: rows.write_parquet(path) if path.suffix == ".parquet" else rows.write_csv(path)


def of_genome(regions: "pl.DataFrame", genome: "Genome", source: Path, skip: bool) -> "pl.DataFrame":
    """The table of regions of a file without what lies on records that the genome lacks, where that is asked for (`SkipOtherRecords`).

    Raises:
        UserError: there are such regions and skip is False, or there are no others.
    """
    import polars as pl

    from domains.dna.data.regions import match_names, refuse

    there = pl.col("chrom").is_in(list(match_names(regions["chrom"].unique().to_list(), genome.names)))
    named = f"{', '.join(genome.names[:5])}{', ..' if len(genome) > 5 else ''}"
    if not regions.filter(there).height:
        raise UserError(
            f"{source}: no line of it is of a record of {genome.source}, which has {named}. Use the genome that it was made for."
        )
    if not skip:
        mend = "Use the genome that the file was made for, or leave such lines out with --skip-other-records"
        refuse(source, regions.filter(~there), "chrom", f"is no record of {genome.source}, which has {named}", mend)
    return regions.filter(there)
