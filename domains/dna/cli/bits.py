"""`titans-seq dna bits`: what a model needs to write a genome down."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.dna.cli.options import Cache, Genomes, QuietResult
from domains.dna.cli.reading import load, table_writer
from domains.dna.config import DNAConfig, of_preset
from titans_seq.errors import UserError
from titans_seq.options import ConfigFile, configured, refuse
from titans_seq.presets import Preset
from titans_seq.progress import progress

if TYPE_CHECKING:
    import polars as pl

    from domains.dna.bits import Reader
    from domains.dna.data.genome import Genome
    from domains.dna.model import TitansForDNA

Strand = Literal["forward", "reverse", "both"]
STRANDS: dict[Strand, tuple[int, ...]] = {"forward": (1,), "reverse": (-1,), "both": (1, -1)}
Positive = Number(gte=1)


def fresh_of_preset(preset: Preset) -> DNAConfig:
    """A model of this size that is trained in one pass."""
    config = of_preset(preset)
    return replace(config, titans=config.titans.for_carried_state())


@configured(fresh=fresh_of_preset)
def bits(
    genomes: Genomes,
    /,
    *,
    model: Annotated[
        str | None,
        Parameter(help="Folder of a trained model, or its name on the Hugging Face hub, owner/name. Default: none; see --train."),
    ] = None,
    learn: Annotated[bool, Parameter(help="Let the memory learn what it reads; else it stays as training left it.")] = True,
    train: Annotated[
        bool,
        Parameter(help="Train all weights as well, in the one pass: each segment is scored, then one step is taken on it.", negative=""),
    ] = False,
    learning_rate: Annotated[float, Parameter(help="Of --train.")] = 2e-3,
    strand: Annotated[Strand, Parameter(help="Which strand is read; of both the mean is given, and each by itself.")] = "forward",
    carry: Annotated[bool, Parameter(help="Go on from record to record, and file to file, with what was learned.")] = True,
    segment_length: Annotated[
        int, Parameter(help="Bases read at a time: speed and memory, not the bits; with --train also a step's length.", validator=Positive)
    ] = 1024,
    window: Annotated[
        int | None,
        Parameter(
            help="Bases of a row of windows and of a point of the plot. Default: 10,000, less where no record has a hundred of these.",
            validator=Positive,
        ),
    ] = None,
    output: Annotated[
        Path | None, Parameter(name=("--output", "-o"), help="Folder for records, windows and bits.png. Default: nothing is written.")
    ] = None,
    annotation: Annotated[
        Path | None, Parameter(help="What lies there, drawn below the bits: GFF3, GTF, BED or GenBank, such as the genome itself.")
    ] = None,
    features: Annotated[
        list[str] | None, Parameter(help="Of --annotation: kinds that are drawn. Default: CDS tRNA rRNA, or all that it has.")
    ] = None,
    file_format: Annotated[Literal["csv", "parquet"], Parameter(name="--format", help="Of the tables.")] = "csv",
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object a record.", negative="")] = False,
    cache: Cache = None,
    seed: Annotated[int, Parameter(help="Of the first weights, without --model.")] = 0,
    preset: Annotated[Preset, Parameter(help="Without --model: size of the one that --train begins with, which --fresh changes.")] = "tiny",
    quiet: QuietResult = False,
    fresh: DNAConfig,
    config: ConfigFile = None,
) -> None:
    """Say how many bits a base a model needs for each record: each base is predicted from those before it, in one pass. 2 is no model."""
    from titans_seq.outputs import check_folder, write_all

    if model is None and not train:
        raise UserError("an untrained model needs 2 bits for any base. Name one with --model, or train one in this pass with --train.")
    if output is None:
        refuse({"--annotation": annotation}, "is for the picture, which is drawn with --output alone")
    else:
        check_folder("--output", output)
    if annotation is None:
        refuse({"--features": features}, "are of an annotation, which --annotation names")
    import polars as pl

    from domains.dna.bits import WindowSums, by_record, mean_of_strands, per_base, usual_window
    from domains.dna.data.features import read_annotation
    from domains.dna.data.genome import open_genome, tell_ambiguous
    from domains.dna.plots import plot_bits
    from domains.dna.track import GENES, Layout, usual_kinds

    drawn = None if annotation is None else read_annotation(annotation)
    kinds = features or (GENES if drawn is None else usual_kinds(drawn))
    opened = [open_genome(path, cache, not quiet) for path in genomes]
    window = window or usual_window(opened)
    if drawn is not None:
        Layout(pl.concat([WindowSums(genome, window).table() for genome in opened])).place(drawn, kinds)  # raises before anything slow
    starting = partial(_model, model, fresh, seed)
    tables = [
        _windows(_reader(starting(), learn, learning_rate if train else None), opened, direction, segment_length, window, carry, quiet)
        for direction in STRANDS[strand]
    ]
    windows = tables[0] if len(tables) == 1 else mean_of_strands(*tables)
    records = per_base(by_record(windows))
    if as_json:
        for row in records.rows(named=True):
            print(json.dumps(row))
    else:
        _print(records, by_record(windows.with_columns(file=pl.lit("all"), record=pl.lit(""))))
    if not quiet and (note := tell_ambiguous(opened)):
        print(note, file=sys.stderr)
    if output is not None:
        writers: dict[str, Callable[[Path], object]] = {
            f"records.{file_format}": table_writer(records),
            f"windows.{file_format}": table_writer(per_base(windows)),
            "bits.png": partial(plot_bits, per_base(windows), annotation=drawn, features=kinds),
        }
        for path in write_all(output, writers):
            print(path, file=sys.stderr if as_json else sys.stdout)


def _model(name: str | None, fresh: DNAConfig, seed: int) -> "TitansForDNA":
    """The model that is named, or a new one."""
    if name is not None:
        return load(name)
    import torch

    from domains.dna.model import TitansForDNA

    torch.manual_seed(seed)
    return TitansForDNA(fresh).to("cuda" if torch.cuda.is_available() else "cpu")


def _reader(model: "TitansForDNA", learn: bool, learning_rate: float | None) -> "Reader":
    """A reader, of a model that is trained as it reads if there is a learning rate."""
    from domains.dna.bits import OnlineConfig, OnlineTrainer, Reader

    if learning_rate is None:
        return Reader(model, memory=learn)
    if not 0 < learning_rate < float("inf"):
        raise UserError(f"--learning-rate must be positive, got {learning_rate}.")
    return OnlineTrainer(model, memory=learn, config=OnlineConfig(learning_rate=learning_rate))


def _windows(
    reader: "Reader", genomes: "list[Genome]", strand: int, segment_length: int, window: int, carry: bool, quiet: bool
) -> "pl.DataFrame":
    """Bits of all windows of all genomes, read along a strand."""
    from domains.dna.bits import score_windows

    total = sum(int(genome.lengths.sum()) for genome in genomes)
    with progress("reading" if strand > 0 else "reading back", total, quiet) as advance:
        return score_windows(reader, genomes, window, strand, segment_length, carry, advance)


def _print(records: "pl.DataFrame", everything: "pl.DataFrame") -> None:
    """The records as lines, and if they are several all of them together."""
    import polars as pl

    from domains.dna.bits import per_base

    rows = pl.concat([records, per_base(everything)]) if records.height > 1 else records
    strands = "forward" in rows.columns
    print("bits per base" + ("    forward    reverse" if strands else "") + "          bases  record")
    for row in rows.rows(named=True):
        values = [row[name] for name in ("bits_per_base", "forward", "reverse") if name in row]
        shown = [("-" if value is None else f"{value:.4f}").rjust(width) for value, width in zip(values, (13, 11, 11), strict=False)]
        print(f"{''.join(shown)}  {row['bases']:13,}  {row['record']}" + (f" ({row['file']})" if row["record"] else "all"))
