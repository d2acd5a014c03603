"""`titans-seq dna score-variants`: log-likelihood ratios of the variants of a VCF."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.dna.cli.bits import STRANDS, Strand
from domains.dna.cli.options import Cache, Quiet
from domains.dna.cli.reading import GenomeFile, Model, load, table_writer, warn_of_guessing
from domains.dna.settings import ReadingConfig
from titans_seq.errors import UserError
from titans_seq.options import TOP_LEVEL, ConfigFile, configured
from titans_seq.progress import progress

if TYPE_CHECKING:
    import polars as pl

Downstream = Annotated[
    int,
    Parameter(help="Bases behind the longer allele whose likelihood counts as well, in the direction of reading.", validator=Number(gte=0)),
]


@configured(reading=ReadingConfig)
def score_variants(
    vcf: Annotated[Path, Parameter(help="VCF file, plain, .gz or bgzf.")],
    genome: GenomeFile,
    /,
    *,
    model: Model,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="Folder for the VCF with scores in INFO, and variants.parquet.")],
    ref_mismatch: Annotated[
        Literal["error", "skip", "keep"],
        Parameter(help="Where REF is not what the genome holds: stop; give no score; or score REF as it is written."),
    ] = "error",
    downstream: Downstream = 128,
    strand: Annotated[Strand, Parameter(help="Which strand is read; of both the mean is given, and each by itself.")] = "both",
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object an alternative allele.", negative="")] = False,
    cache: Cache = None,
    quiet: Quiet = False,
    reading: Annotated[ReadingConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Score the variants of a VCF: log p(ALT)/p(REF), natural logarithm, of windows of equally many bases. Positive: ALT is likelier.

    Chromosomes are matched with and without "chr". An alternative without a score says why, in the VCF as TITANS_REASON.
    """
    from titans_seq.outputs import check_folder, write_all

    check_folder("--output", output)
    from domains.dna.data.genome import open_genome
    from domains.dna.data.region_files import read_regions
    from domains.dna.variants import score_variants as run
    from domains.dna.vcf import check_fields, is_packed, write_scores

    variants = read_regions(vcf, "vcf")
    check_fields(vcf)
    name = f"{_stem(vcf)}.scored.vcf{'.gz' if is_packed(vcf) else ''}"
    if (output / name).absolute() == vcf.absolute():
        raise UserError(f"--output {output}: {name} would be written over {vcf} itself. Name another folder.")
    opened, loaded = open_genome(genome, cache, not quiet), load(model)
    strands = STRANDS[strand]
    with progress("scoring", variants.height * len(strands), quiet) as advance:
        scores = run(
            *(loaded, opened, variants, vcf),
            ref_mismatch=ref_mismatch,
            downstream=downstream,
            strands=strands,
            config=reading,
            advance=advance,
        )
    how = f"model {model}, strand {strand}, context {reading.context_length:,}, downstream {downstream}"
    if as_json:
        for row in scores.rows(named=True):
            print(json.dumps(row))
    elif not quiet:
        _print(scores)
    if not quiet:
        warn_of_guessing(model)
    writers: dict[str, Callable[[Path], object]] = {
        name: partial(_write_vcf, write_scores, vcf, scores, how),
        "variants.parquet": table_writer(scores),
    }
    for path in write_all(output, writers):
        print(path, file=sys.stderr if as_json else sys.stdout)


def _write_vcf(write: Callable[..., None], vcf: Path, scores: "pl.DataFrame", how: str, path: Path) -> None:
    write(vcf, scores, path, how)


def _stem(path: Path) -> str:
    """The name of a VCF without .vcf, .gz and .bgz."""
    name = path.name
    for suffix in (".gz", ".bgz", ".vcf"):
        name = name.removesuffix(suffix)
    return name


def _print(scores: "pl.DataFrame") -> None:
    """How many alternatives have a score, why others have none, what the scores are, and how to read them."""
    import numpy as np

    from domains.dna.alleles import REASONS, count_reasons

    print(f"scored {scores['llr'].count():,} of {scores.height:,} alternative alleles")
    for reason, count in count_reasons(scores):
        print(f"{count:13,}  {reason}: {REASONS[reason]}")
    llr = scores["llr"].drop_nulls().to_numpy()
    if len(llr):
        low, middle, high = (f"{x:+.3f}" for x in np.quantile(llr, [0, 0.5, 1]))
        print(f"llr from {low} to {high}, median {middle}; {(llr < 0).sum():,} of them negative")
        print("llr: log p(ALT) / p(REF), natural logarithm; negative where ALT is less likely under the model.")
