"""`titans-seq dna mutagenesis`: every base of a region changed to the three others."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from domains.dna.cli.bits import STRANDS, Strand
from domains.dna.cli.options import Cache, Quiet
from domains.dna.cli.reading import GenomeFile, Model, load, table_writer, warn_of_guessing
from domains.dna.cli.score_variants import Downstream
from domains.dna.settings import ReadingConfig
from titans_seq.options import TOP_LEVEL, ConfigFile, configured
from titans_seq.progress import progress

if TYPE_CHECKING:
    import polars as pl

_STRONGEST = 5
"""Bases that are named on the screen; the table has all."""


@configured(reading=ReadingConfig)
def mutagenesis(
    genome: GenomeFile,
    region: Annotated[str, Parameter(help="RECORD:START-END, counted from 1, the last base included; or a record's name.")],
    /,
    *,
    model: Model,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="Folder for the table and mutagenesis.png.")],
    downstream: Downstream = 128,
    strand: Annotated[Strand, Parameter(help="Which strand is read; of both the mean is given, and each by itself.")] = "both",
    file_format: Annotated[Literal["csv", "parquet"], Parameter(name="--format", help="Of the table.")] = "csv",
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object a change.", negative="")] = False,
    cache: Cache = None,
    quiet: Quiet = False,
    reading: Annotated[ReadingConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Change every base of a region to the three others, and score each change as `score-variants` does: a table, a heat map and a logo."""
    from titans_seq.outputs import check_folder, write_all

    check_folder("--output", output)
    from domains.dna.data.genome import open_genome
    from domains.dna.logo import plot_mutagenesis
    from domains.dna.mutagenesis import as_matrix, parse_region
    from domains.dna.mutagenesis import mutagenesis as run

    opened = open_genome(genome, cache, not quiet)
    record, start, stop = parse_region(region, opened)
    strands = STRANDS[strand]
    loaded = load(model)
    with progress("scoring", (stop - start) * len(strands), quiet) as advance:
        scores = run(*(loaded, opened, record, start, stop), downstream=downstream, strands=strands, config=reading, advance=advance)
    if as_json:
        for row in scores.rows(named=True):
            print(json.dumps(row))
    elif not quiet:
        _print(scores)
    if not quiet:
        warn_of_guessing(model)
    letters, matrix = as_matrix(scores)
    writers: dict[str, Callable[[Path], object]] = {
        f"mutagenesis.{file_format}": table_writer(scores),
        "mutagenesis.png": partial(plot_mutagenesis, letters, matrix, opened.names[record], start + 1),
    }
    for path in write_all(output, writers):
        print(path, file=sys.stderr if as_json else sys.stdout)


def _print(scores: "pl.DataFrame") -> None:
    """How many changes of how many bases have a score, the bases whose change matters most, and how to read it."""
    from domains.dna.mutagenesis import strongest

    scored = f"scored {scores['llr'].count():,} changes of {scores['pos'].n_unique():,} bases of {scores['chrom'][0]}"
    if scores["llr"].count() == 0:
        print(f"{scored}; the table's column reason says why.")
        return
    print(f"{scored}; those that matter most:")
    print("     position  base  mean llr  likeliest change")
    for pos, ref, mean, alt, llr in strongest(scores, _STRONGEST).iter_rows():
        print(f"{pos:13,}  {ref:>4}  {mean:+8.3f}  {alt} {llr:+.3f}")
    print("llr: log p(changed) / p(as it is), natural logarithm; negative where the model expects what is there.")
