"""`titans-seq dna annotate`: what a model says lies on a genome."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.dna.cli.options import Cache, Quiet, SegmentLength, Trained, Window
from titans_seq.errors import UserError
from titans_seq.options import ConfigFile, refuse
from titans_seq.progress import progress

if TYPE_CHECKING:
    from domains.dna.annotate import Labelled
    from domains.dna.data.genome import Genome
    from domains.dna.heads import DNALabeller, DNAProfile

Positive = Number(gte=1)
Writers = dict[str, Callable[[Path], object]]


def annotate(
    model: Trained,
    genome: Annotated[Path, Parameter(help="FASTA (also .gz or bgzf), .2bit or GenBank; phix174 and chloroplast ship.")],
    /,
    *,
    output: Annotated[
        Path, Parameter(name=("--output", "-o"), help="Folder for labels.bed and labels.gff3, or of a profile for profile.bedgraph.")
    ],
    bases: Annotated[
        bool, Parameter(help="Of labels: write bases.parquet as well, the probability of each class at each base and strand.", negative="")
    ] = False,
    min_length: Annotated[
        int | None, Parameter(help="Of labels: bases that an interval has at least. Default: 1.", validator=Positive)
    ] = None,
    segment_length: SegmentLength = 4096,
    window: Window = None,
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
        writers = _label_writers(loaded, opened, bases, min_length or 1, segment_length, window, quiet)
    else:
        refuse(
            {"--bases": bases or None, "--min-length": min_length},
            f"is of labels, and {model} tells values: profile.bedgraph has a line a bin",
        )
        writers = _profile_writers(loaded, opened, segment_length, window, quiet)
    for path in write_all(output, writers):
        print(path)


def _label_writers(
    model: "DNALabeller", genome: "Genome", bases: bool, min_length: int, segment_length: int, window: int | None, quiet: bool
) -> Writers:
    """The first of them reads the genome, in the folder that it writes into; the others write what was gathered."""
    import polars as pl

    from domains.dna.annotate import Runs, label_genome, write_bases
    from domains.dna.data.region_files import write_bed, write_gff3

    classes = model.config.classes
    runs = Runs(genome, classes)

    def read(scratch: Path) -> "Iterator[Labelled]":
        with progress("reading", 2 * int(genome.lengths.sum()), quiet) as advance:
            for labelled in label_genome(model, genome, scratch, segment_length, advance, window):
                runs.add(labelled)
                yield labelled

    def write_intervals(path: Path) -> None:
        if not bases:
            for _ in read(path.parent):
                pass
        write_bed(runs.table(min_length).with_columns((pl.col("score") * 1000).round()), path)  # BED counts to 1000

    writers: Writers = {"bases.parquet": lambda path: write_bases(read(path.parent), genome, classes, path)} if bases else {}
    return writers | {"labels.bed": write_intervals, "labels.gff3": lambda path: write_gff3(runs.table(min_length), path)}


def _profile_writers(model: "DNAProfile", genome: "Genome", segment_length: int, window: int | None, quiet: bool) -> Writers:
    from domains.dna.annotate import profile_genome, write_bedgraph

    def write(path: Path) -> None:
        with progress("reading", model.encoder.strands * int(genome.lengths.sum()), quiet) as advance:
            profiled = profile_genome(model, genome, path.parent, segment_length, advance, window)
            write_bedgraph(profiled, genome, model.config.bin_width, path)

    return {"profile.bedgraph": write}
