"""`titans-seq dna annotate`: what a model says lies on a genome."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.dna.cli.options import Cache, Quiet, Trained
from titans_seq.options import ConfigFile

if TYPE_CHECKING:
    from domains.dna.annotate import Labelled

Positive = Number(gte=1)


def annotate(
    model: Trained,
    genome: Annotated[Path, Parameter(help="FASTA (also .gz or bgzf), .2bit or GenBank; phix174 ships.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="Folder for labels.bed and labels.gff3.")],
    bases: Annotated[
        bool, Parameter(help="Write bases.parquet as well: the probability of each class at each base and strand.", negative="")
    ] = False,
    min_length: Annotated[int, Parameter(help="Bases that an interval has at least; shorter ones are left out.", validator=Positive)] = 1,
    segment_length: Annotated[int, Parameter(help="Bases read at a time: speed and memory, not the labels.", validator=Positive)] = 4096,
    cache: Cache = None,
    quiet: Quiet = False,
    config: ConfigFile = None,
) -> None:
    """Label each base of a genome, and write the intervals of each label: BED and GFF3, with strand and mean probability."""
    from titans_seq.outputs import check_folder, write_all

    check_folder("--output", output)
    import polars as pl
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from domains.dna.annotate import Runs, label_genome, write_bases
    from domains.dna.data.genome import open_genome
    from domains.dna.data.region_files import write_bed, write_gff3
    from domains.dna.heads import DNALabeller

    labeller = DNALabeller.from_pretrained(model, device="cuda" if torch.cuda.is_available() else "cpu")
    opened = open_genome(genome, cache, not quiet)
    classes = labeller.config.classes
    runs = Runs(opened, classes)

    def read(scratch: Path) -> "Iterator[Labelled]":
        """The labels of all bases, counted as they come."""
        with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
            task = progress.add_task("reading both strands", total=2 * int(opened.lengths.sum()))
            for labelled in label_genome(labeller, opened, scratch, segment_length, partial(progress.advance, task)):
                runs.add(labelled)
                yield labelled

    def write_intervals(path: Path) -> None:
        if not bases:
            for _ in read(path.parent):
                pass
        table = runs.table(min_length)
        write_bed(table.with_columns((pl.col("score") * 1000).round()), path)  # BED counts to 1000

    writers: dict[str, Callable[[Path], object]] = {}
    if bases:
        writers["bases.parquet"] = lambda path: write_bases(read(path.parent), opened, classes, path)
    writers |= {"labels.bed": write_intervals, "labels.gff3": lambda path: write_gff3(runs.table(min_length), path)}
    for path in write_all(output, writers):
        print(path)
