"""`titans-seq text`: train a language model on files, and score files with it."""

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from cyclopts.validators import Number

from domains.text.config import TextConfig, of_preset
from titans_seq.options import TOP_LEVEL, ConfigFile, configured
from titans_seq.presets import Preset
from titans_seq.training.config import TrainingConfig

app = cyclopts.App(name="text", help="Language models on bytes: train one on files, and score files with it.")

Texts = Annotated[list[Path], Parameter(help="Files in UTF-8, and folders: all .txt, .text and .md files below them.")]


@app.command
@configured(model=of_preset, training=TrainingConfig)
def train(
    files: Texts,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="Folder of the run: checkpoints, metrics.csv, and the model.")],
    resume: Annotated[bool, Parameter(help="Go on from the newest checkpoint in the folder; without one, start.", negative="")] = False,
    validation: Annotated[
        list[Path] | None, Parameter(help="Files and folders to validate on. Default: the last 5 % of every file, not trained on.")
    ] = None,
    preset: Annotated[
        Preset, Parameter(help="Size that the flags of --model then change (their defaults here are tiny's). From 170m: the paper's.")
    ] = "tiny",
    quiet: Annotated[bool, Parameter(help="Print nothing but the folder of the model.", negative="")] = False,
    model: TextConfig,
    training: Annotated[TrainingConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Train a language model on texts. A run that was stopped goes on with the same command and --resume."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from domains.text.train import train as run

    folder = run(files, output, model, training, validation=validation, resume=resume, progress=not quiet)
    if rank_zero_only.rank == 0:
        print(folder if quiet else f"The model is in {folder}.")


@app.command
def score(
    model: Annotated[str, Parameter(help="Folder of a trained model, or its name on the Hugging Face hub, owner/name.")],
    files: Texts,
    /,
    *,
    segment_length: Annotated[
        int, Parameter(help="Bytes read at a time: speed and memory, not the score.", validator=Number(gte=1))
    ] = 1024,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object a file.", negative="")] = False,
) -> None:
    """Say how many bits a byte a model needs for each file; lower is better, 8 is what a file takes as it is."""
    import json

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from domains.text.data import read_texts
    from domains.text.model import TitansForCausalLM
    from domains.text.score import score as score_documents

    documents = read_texts(files)
    language_model = TitansForCausalLM.from_pretrained(model, device="cuda" if torch.cuda.is_available() else "cpu")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=int(documents.lengths.sum()) - len(documents.spans))
        scores = list(score_documents(language_model, documents, segment_length, lambda tokens: progress.advance(task, tokens)))
    if as_json:
        for one in scores:
            print(json.dumps({"file": str(one.path), "bytes": one.bytes, "bits_per_byte": one.bits_per_byte}))
        return
    rows = [(one.bits_per_byte, one.bytes, str(one.path)) for one in scores]
    if len(rows) > 1:
        count = sum(one.bytes for one in scores)
        rows.append((sum(one.bits_per_byte * one.bytes for one in scores) / count, count, "all"))
    print("bits per byte          bytes  file")
    for bits, size, name in rows:
        print(f"{bits:13.4f}  {size:13,}  {name}")
