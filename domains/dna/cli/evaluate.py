"""`titans-seq dna evaluate`: what a classifier is worth, beside baselines."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from domains.dna.cli.options import Cache, Columns, Quiet, Reference, Trained
from titans_seq.errors import UserError
from titans_seq.options import ConfigFile


def evaluate(
    model: Trained,
    data: Annotated[Path, Parameter(help="Labelled sequences, as of dna finetune.")],
    /,
    *,
    part: Annotated[
        Literal["train", "validation", "test"] | None, Parameter(help="Which part is scored. Default: the test, or else what there is.")
    ] = None,
    both_strands: Annotated[
        bool, Parameter(help="The mean of what is said of a sequence and of its reverse complement.", negative="")
    ] = False,
    output: Annotated[
        Path | None, Parameter(name=("--output", "-o"), help="File for the predictions, .csv or .parquet: a row a sequence.")
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object.", negative="")] = False,
    sequence_column: Columns = None,
    label_column: Columns = None,
    genome: Reference = None,
    cache: Cache = None,
    quiet: Quiet = False,
    config: ConfigFile = None,
) -> None:
    """Score a classifier on the test part of labelled sequences, beside length alone and k-mers, and say how much of it was seen before."""
    from titans_seq.outputs import check_folder, write_all

    if output is not None:
        if output.suffix not in (".csv", ".parquet") or output.is_dir():
            raise UserError(f"--output {output}: name a file that ends in .csv or .parquet.")
        check_folder("--output", output.parent)
    import torch

    from domains.dna.data.genome import open_genome
    from domains.dna.data.labelled_files import read_task
    from domains.dna.evaluate import evaluate as run
    from domains.dna.evaluate import print_evaluation
    from domains.dna.heads import DNAClassifier

    trained = DNAClassifier.from_pretrained(model, device="cuda" if torch.cuda.is_available() else "cpu")
    task = read_task(data, None if genome is None else open_genome(genome, cache, not quiet), sequence_column, label_column)
    found = run(trained, task, part, both_strands)
    if as_json:
        print(json.dumps(found.to_dict()))
    elif not quiet:
        print_evaluation(found)
    if output is not None:
        rows = found.predictions()
        for path in write_all(output.parent, {output.name: rows.write_csv if output.suffix == ".csv" else rows.write_parquet}):
            print(path, file=sys.stderr if as_json else sys.stdout)
