"""Train a language model on text files: `python -m domains.text.train FILES -o FOLDER`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from domains.text.data import read_texts
from domains.text.model import TextConfig, TitansForCausalLM
from titans_seq.errors import UserError
from titans_seq.training.config import TrainingConfig

VALIDATION_SHARE = 0.05


def train(
    paths: Sequence[str | Path],
    output: str | Path,
    model: TextConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    validation: Sequence[str | Path] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train on text files and folders (`read_texts`) in the folder `output`.

    model, training: settings, None for the defaults. validation: texts to validate on; None for the last 5 % of every training document,
    which are then not trained on. resume, progress: as `titans_seq.training.run.train`.

    Returns:
        The folder of the trained model, for `TitansForCausalLM.from_pretrained`.

    Raises:
        UserError: files that cannot be used, or as `titans_seq.training.run.train`.
    """
    from titans_seq.training.loaders import document_loaders
    from titans_seq.training.module import TrainingData
    from titans_seq.training.run import train as run

    model, training = model or TextConfig(), training or TrainingConfig()
    documents = read_texts(paths)
    held_out = None if validation is None else read_texts(validation)
    if held_out is None:
        documents, held_out = documents.split(VALIDATION_SHARE)

    def make_data() -> TrainingData:
        return TrainingData(*document_loaders(documents, held_out if len(held_out.lengths) else None, training))

    return run(lambda: TitansForCausalLM(model), make_data, training, output, resume, progress)


def _command(
    paths: Annotated[list[Path], typer.Argument(help="Text files and folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")] = False,
    model: Annotated[Path | None, typer.Option(help="JSON file of a TextConfig.")] = None,
    training: Annotated[Path | None, typer.Option(help="JSON file of a TrainingConfig.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Steps, in place of the configuration's.")] = None,
) -> None:
    """Train a language model on bytes."""
    try:
        settings = TrainingConfig() if training is None else TrainingConfig.from_json(training.read_text())
        if max_steps is not None:
            warmup = min(settings.warmup_steps, max_steps)
            settings = dataclasses.replace(settings, max_steps=max_steps, warmup_steps=warmup)
        architecture = TextConfig() if model is None else TextConfig.from_json(model.read_text())
        typer.echo(train(paths, output, architecture, settings, resume=resume))
    except (UserError, OSError) as error:
        typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)


if __name__ == "__main__":
    typer.run(_command)
