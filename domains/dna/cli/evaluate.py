"""`titans-seq dna evaluate`: what a classifier, a labeller or a profile model is worth, beside baselines."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from domains.dna.cli.options import (
    Annotation,
    Cache,
    Columns,
    Profile,
    Quiet,
    Reference,
    SegmentLength,
    SkipOtherRecords,
    Trained,
    Window,
    refuse,
)
from domains.dna.cli.reading import of_genome
from titans_seq.errors import UserError
from titans_seq.options import ConfigFile
from titans_seq.outputs import check_folder
from titans_seq.progress import progress

if TYPE_CHECKING:
    import polars as pl

    from domains.dna.data.genome import Genome
    from domains.dna.data.labelled import Task
    from domains.dna.data.regions import Intervals
    from domains.dna.heads import DNAClassifier, DNALabeller, DNAProfile

Part = Literal["train", "validation", "test"]


def evaluate(
    model: Trained,
    data: Annotated[
        Path,
        Parameter(
            help="Labelled sequences, as of dna finetune; for models of labels and profiles a genome (phix174 and chloroplast ship)."
        ),
    ],
    /,
    *,
    part: Annotated[
        Part | None,
        Parameter(
            help="Of sequences: which part is scored. Default: the test, or else what there is. Of a genome: validation, the last 5 % of "
            "every record, which dna finetune holds out. Default: all of it."
        ),
    ] = None,
    both_strands: Annotated[
        bool, Parameter(help="Of sequences: the mean of what is said of one and of its reverse complement.", negative="")
    ] = False,
    output: Annotated[
        Path | None,
        Parameter(name=("--output", "-o"), help="Of sequences: file for the predictions, .csv or .parquet: a row a sequence."),
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object.", negative="")] = False,
    sequence_column: Columns = None,
    label_column: Columns = None,
    genome: Reference = None,
    annotation: Annotation = None,
    profile: Profile = None,
    records: Annotated[
        list[str] | None, Parameter(help="Of a genome: names of the records that are scored, such as those held out. Default: all.")
    ] = None,
    skip_other_records: SkipOtherRecords = False,
    segment_length: SegmentLength | None = None,
    window: Window = None,
    cache: Cache = None,
    quiet: Quiet = False,
    config: ConfigFile = None,
) -> None:
    """Score a trained model: a classifier on the test part of labelled sequences, beside length alone and k-mers, with what of it was seen
    before; a model of labels on a genome and its --annotation; a profile model on a genome and a bedGraph, --profile.
    """
    if output is not None:
        if output.suffix not in (".csv", ".parquet") or output.is_dir():
            raise UserError(f"--output {output}: name a file that ends in .csv or .parquet.")
        check_folder("--output", output.parent)
    import torch

    from domains.dna.data.features import read_annotation
    from domains.dna.data.genome import open_genome
    from domains.dna.data.labelled_files import read_task
    from domains.dna.data.values import read_values
    from domains.dna.evaluate_genome import stretches_of
    from domains.dna.heads import DNAClassifier, DNALabeller, DNAProfile
    from titans_seq.checkpoint import load_model

    trained = load_model(model, device="cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(trained, DNAClassifier | DNALabeller | DNAProfile):
        raise UserError(f"{model}: is a {type(trained).__name__}, which has no head to be scored. Train one: dna finetune.")
    of_sequences: dict[str, object] = {"--both-strands": both_strands or None, "--output": output, "--sequence-column": sequence_column}
    of_sequences |= {"--label-column": label_column, "--genome": genome}
    of_genomes: dict[str, object] = {"--annotation": annotation, "--profile": profile, "--records": records}
    of_genomes |= {"--segment-length": segment_length, "--window": window, "--skip-other-records": skip_other_records or None}
    if isinstance(trained, DNAClassifier):
        refuse(of_genomes, f"is of genomes, and {model} tells classes of sequences")
        reference = None if genome is None else open_genome(genome, cache, not quiet)
        _score_sequences(trained, read_task(data, reference, sequence_column, label_column), part, both_strands, output, as_json, quiet)
        return
    refuse(of_sequences, f"is of sequences, and {model} reads genomes (`dna annotate` writes what it says)")
    opened = open_genome(data, cache, not quiet)
    stretches = stretches_of(opened, records or (), part)
    how = {"segment_length": segment_length or 4096, "window": window}
    if isinstance(trained, DNALabeller):
        refuse({"--profile": profile}, f"is of profiles, and {model} tells labels of bases: give --annotation")
        source = annotation or data
        known = of_genome(read_annotation(source), opened, source, skip_other_records)
        _score_labels(trained, opened, known, source, stretches, how, as_json, quiet)
    else:
        refuse({"--annotation": annotation}, f"is of labels, and {model} tells values: give --profile")
        if profile is None:
            raise UserError(f"{model} tells values along a genome. Name with --profile a bedGraph of those that are known.")
        known = of_genome(read_values(profile), opened, profile, skip_other_records)
        _score_profile(trained, opened, known, profile, stretches, how, as_json, quiet)


def _score_sequences(
    model: "DNAClassifier", task: "Task", part: Part | None, both_strands: bool, output: Path | None, as_json: bool, quiet: bool
) -> None:
    from domains.dna.evaluate import evaluate as run
    from domains.dna.evaluate import print_evaluation
    from titans_seq.outputs import write_all

    found = run(model, task, part, both_strands)
    _show(found, print_evaluation, as_json, quiet)
    if output is not None:
        rows = found.predictions()
        for path in write_all(output.parent, {output.name: rows.write_csv if output.suffix == ".csv" else rows.write_parquet}):
            print(path, file=sys.stderr if as_json else sys.stdout)


def _score_labels(
    model: "DNALabeller",
    genome: "Genome",
    known: "pl.DataFrame",
    source: Path,
    stretches: "Intervals",
    how: dict[str, Any],
    as_json: bool,
    quiet: bool,
) -> None:
    from domains.dna.data.features import label_strands
    from domains.dna.evaluate_genome import evaluate_labels, print_labels

    labels = label_strands(genome, known, model.config.classes, source)
    with _reading(genome, stretches, 2, quiet) as (scratch, advance):
        found = evaluate_labels(model, genome, labels, stretches, scratch, advance=advance, **how)
    _show(found, print_labels, as_json, quiet)


def _score_profile(
    model: "DNAProfile",
    genome: "Genome",
    known: "pl.DataFrame",
    source: Path,
    stretches: "Intervals",
    how: dict[str, Any],
    as_json: bool,
    quiet: bool,
) -> None:
    from domains.dna.data.values import bin_values
    from domains.dna.evaluate_genome import evaluate_profile, print_profile

    values = bin_values(genome, known, model.config.bin_width, source)
    with _reading(genome, stretches, model.encoder.strands, quiet) as (scratch, advance):
        found = evaluate_profile(model, genome, values, stretches, scratch, advance=advance, **how)
    _show(found, print_profile, as_json, quiet)


@contextmanager
def _reading(genome: "Genome", stretches: "Intervals", strands: int, quiet: bool) -> Iterator[tuple[str, Callable[[int], object]]]:
    """A folder for what waits to be read, and a bar over the bases of the records that are."""
    bases = sum(int(genome.lengths[record]) for record in set(stretches.record.tolist()))
    with tempfile.TemporaryDirectory() as scratch, progress("reading", strands * bases, quiet) as advance:
        yield scratch, advance


def _show(found: Any, print_found: Callable[[Any], None], as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json.dumps(found.to_dict()))
    elif not quiet:
        print_found(found)
