"""`titans-seq dna evaluate`: what a classifier, a labeller or a profile model is worth, beside baselines."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from cyclopts import Parameter

from domains.dna.cli.options import (
    Annotation,
    Cache,
    LabelColumn,
    Profile,
    QuietResult,
    Reference,
    SegmentLength,
    SequenceColumn,
    SkipOtherRecords,
    Trained,
    Window,
)
from domains.dna.cli.reading import of_genome
from titans_seq.errors import UserError
from titans_seq.options import ConfigFile, refuse
from titans_seq.outputs import check_file
from titans_seq.progress import progress

if TYPE_CHECKING:
    import numpy as np

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
            help="Of sequences: which part is scored. Default: the test, or else what there is; validation is what dna finetune held out, "
            "also where it is no part of its own. Of a genome: validation, the last 5 % of every record, which dna finetune holds out. "
            "Default: all of it."
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
    sequence_column: SequenceColumn = None,
    label_column: LabelColumn = None,
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
    quiet: QuietResult = False,
    config: ConfigFile = None,
) -> None:
    """Score a trained model: a classifier on the test part of labelled sequences, beside length alone and k-mers, with what of it was seen
    before; a model of labels on a genome and its --annotation; a profile model on a genome and a bedGraph, --profile.
    """
    if output is not None:
        check_file("--output", output, "scores.csv", [data, *data.glob("*")])
        if output.suffix not in (".csv", ".parquet"):
            raise UserError(f"--output {output}: name a file that ends in .csv or .parquet.")
    import torch

    from domains.dna.heads import DNAClassifier, DNALabeller, DNAProfile
    from titans_seq.checkpoint import load_model

    trained = load_model(model, device="cuda" if torch.cuda.is_available() else "cpu")
    of_sequences: dict[str, object] = {"--both-strands": both_strands or None, "--output": output, "--sequence-column": sequence_column}
    of_sequences |= {"--label-column": label_column, "--genome": genome}
    of_genomes: dict[str, object] = {"--annotation": annotation, "--profile": profile, "--records": records}
    of_genomes |= {"--segment-length": segment_length, "--window": window, "--skip-other-records": skip_other_records or None}
    if isinstance(trained, DNAClassifier):
        from domains.dna.data.genome import open_genome
        from domains.dna.data.labelled_files import read_task
        from domains.dna.seen import read_seen

        refuse(of_genomes, f"is of genomes, and {model} tells classes of sequences")
        seen = read_seen(Path(model))  # raises before anything slow
        reference = None if genome is None else open_genome(genome, cache, not quiet)
        task = read_task(data, reference, sequence_column, label_column)
        _score_sequences(trained, model, seen, task, part, both_strands, output, as_json)
    elif isinstance(trained, DNALabeller | DNAProfile):
        refuse(of_sequences, f"is of sequences, and {model} reads genomes (`dna annotate` writes what it says)")
        how = {"segment_length": segment_length or 4096, "window": window}
        known = _Known(data, annotation, profile, skip_other_records)
        _score_genome(trained, model, known, records or (), part, how, cache, as_json, quiet)
    else:
        raise UserError(f"{model}: is a {type(trained).__name__}, which has no head to be scored. Train one: dna finetune.")


def _score_sequences(
    model: "DNAClassifier",
    folder: str,
    seen: "np.ndarray | None",
    task: "Task",
    part: Part | None,
    both_strands: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    from domains.dna.evaluate import evaluate as run
    from domains.dna.evaluate import print_evaluation
    from domains.dna.seen import count_seen, split_again
    from titans_seq.outputs import write_all

    if part == "validation" and task.validation is None and seen is not None:
        task = split_again(task, seen)
    found = run(model, task, part, both_strands)
    again = count_seen(task.parts[found.part], seen)
    _show(found, print_evaluation, as_json, {"trained_on": again})
    if again:
        held_out = found.part == "train" and (task.validation is not None or again < len(found.labels))
        mend = " Those that were held out are scored with --part validation." if held_out else ""
        print(
            f"warning: {again:,} of these {len(found.labels):,} sequences are among those that {folder} was trained on: of them the scores "
            f"say how well it remembers, not what it has learned.{mend}",
            file=sys.stderr,
        )
    if output is not None:
        rows = found.predictions()
        for path in write_all(output.parent, {output.name: rows.write_csv if output.suffix == ".csv" else rows.write_parquet}):
            print(path, file=sys.stderr if as_json else sys.stdout)


class _Known(NamedTuple):
    """Files of a genome and of what is known to lie on it."""

    genome: Path
    annotation: Path | None
    profile: Path | None
    skip_other_records: bool


def _score_genome(
    model: "DNALabeller | DNAProfile",
    name: str,
    known: _Known,
    records: Sequence[str],
    part: Part | None,
    how: dict[str, Any],
    cache: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Labels or values of a genome, beside what is known of it."""
    from domains.dna.data.features import label_strands, read_annotation
    from domains.dna.data.genome import open_genome
    from domains.dna.data.values import bin_values, read_values
    from domains.dna.evaluate_genome import evaluate_labels, evaluate_profile, print_labels, print_profile, stretches_of
    from domains.dna.heads import DNALabeller

    genome = open_genome(known.genome, cache, not quiet)
    stretches, skip = stretches_of(genome, records, part), known.skip_other_records
    score: Callable[..., Any]
    show: Callable[[Any], None]
    if isinstance(model, DNALabeller):
        refuse({"--profile": known.profile}, f"is of profiles, and {name} tells labels of bases: give --annotation")
        source = known.annotation or known.genome
        regions = of_genome(read_annotation(source), genome, source, skip)
        labels = label_strands(genome, regions, model.config.classes, source)
        score, show, strands = partial(evaluate_labels, model, genome, labels), print_labels, 2
    else:
        refuse({"--annotation": known.annotation}, f"is of labels, and {name} tells values: give --profile")
        if known.profile is None:
            raise UserError(f"{name} tells values along a genome. Name with --profile a bedGraph of those that are known.")
        values = of_genome(read_values(known.profile), genome, known.profile, skip)
        bins = bin_values(genome, values, model.config.bin_width, known.profile)
        score, show, strands = partial(evaluate_profile, model, genome, bins), print_profile, model.encoder.strands
    with _reading(genome, stretches, strands, quiet) as (scratch, advance):
        found = score(stretches, scratch, advance=advance, **how)
    _show(found, show, as_json)


@contextmanager
def _reading(genome: "Genome", stretches: "Intervals", strands: int, quiet: bool) -> Iterator[tuple[str, Callable[[int], object]]]:
    """A folder for what waits to be read, and a bar over the bases of the records that are."""
    bases = sum(int(genome.lengths[record]) for record in set(stretches.record.tolist()))
    with tempfile.TemporaryDirectory() as scratch, progress("reading", strands * bases, quiet) as advance:
        yield scratch, advance


def _show(found: Any, print_found: Callable[[Any], None], as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    if as_json:
        print(json.dumps({**found.to_dict(), **(more or {})}))
    else:
        print_found(found)
