"""`titans-seq dna annotate`: what a model says lies on a genome."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.dna.cli.options import Cache, Quiet, Trained
from titans_seq.errors import UserError
from titans_seq.options import ConfigFile

if TYPE_CHECKING:
    from domains.dna.annotate import Labelled
    from domains.dna.data.genome import Genome
    from domains.dna.heads import DNALabeller, DNAProfile

Positive = Number(gte=1)
Writers = dict[str, Callable[[Path], object]]


def annotate(
    model: Trained,
    genome: Annotated[Path, Parameter(help="FASTA (also .gz or bgzf), .2bit or GenBank; phix174 ships.")],
    /,
    *,
    output: Annotated[
        Path, Parameter(name=("--output", "-o"), help="Folder for labels.bed and labels.gff3, or of a profile for profile.bedgraph.")
    ],
    bases: Annotated[
        bool, Parameter(help="Of labels: write bases.parquet as well, the probability of each class at each base and strand.", negative="")
    ] = False,
    min_length: Annotated[int, Parameter(help="Of labels: bases that an interval has at least.", validator=Positive)] = 1,
    segment_length: Annotated[int, Parameter(help="Bases read at a time: speed and memory, not what is said.", validator=Positive)] = 4096,
    cache: Cache = None,
    quiet: Quiet = False,
    config: ConfigFile = None,
) -> None:
    """Label each base of a genome, and write the intervals of each label with strand and mean probability; or write a profile along it."""
    from titans_seq.outputs import check_folder, write_all

    check_folder("--output", output)
    import torch

    from domains.dna.data.genome import open_genome
    from domains.dna.heads import DNALabeller, DNAProfile
    from titans_seq.checkpoint import load_model

    loaded = load_model(model, device="cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(loaded, DNALabeller | DNAProfile):
        raise UserError(f"{model}: is a {type(loaded).__name__}, which says nothing of single bases. Train one: dna finetune --classes ..")
    opened = open_genome(genome, cache, not quiet)
    if isinstance(loaded, DNALabeller):
        writers = _label_writers(loaded, opened, bases, min_length, segment_length, quiet)
    else:
        writers = _profile_writers(loaded, opened, segment_length, quiet)
    for path in write_all(output, writers):
        print(path)


def _label_writers(model: "DNALabeller", genome: "Genome", bases: bool, min_length: int, segment_length: int, quiet: bool) -> Writers:
    """The first of them reads the genome, in the folder that it writes into; the others write what was gathered."""
    import polars as pl

    from domains.dna.annotate import Runs, label_genome, write_bases
    from domains.dna.data.region_files import write_bed, write_gff3

    classes = model.config.classes
    runs = Runs(genome, classes)

    def read(scratch: Path) -> "Iterator[Labelled]":
        with _progress(genome, 2, quiet) as advance:
            for labelled in label_genome(model, genome, scratch, segment_length, advance):
                runs.add(labelled)
                yield labelled

    def write_intervals(path: Path) -> None:
        if not bases:
            for _ in read(path.parent):
                pass
        write_bed(runs.table(min_length).with_columns((pl.col("score") * 1000).round()), path)  # BED counts to 1000

    writers: Writers = {"bases.parquet": lambda path: write_bases(read(path.parent), genome, classes, path)} if bases else {}
    return writers | {"labels.bed": write_intervals, "labels.gff3": lambda path: write_gff3(runs.table(min_length), path)}


def _profile_writers(model: "DNAProfile", genome: "Genome", segment_length: int, quiet: bool) -> Writers:
    from domains.dna.annotate import profile_genome, write_bedgraph

    def write(path: Path) -> None:
        with _progress(genome, model.encoder.strands, quiet) as advance:
            profiled = profile_genome(model, genome, path.parent, segment_length, advance)
            write_bedgraph(profiled, genome, model.config.bin_width, path)

    return {"profile.bedgraph": write}


@contextmanager
def _progress(genome: "Genome", strands: int, quiet: bool) -> Iterator[Callable[[int], object]]:
    """A bar, and what to tell how many bases were read."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("reading", total=strands * int(genome.lengths.sum()))
        yield partial(progress.advance, task)
