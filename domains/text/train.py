"""Train a language model on text files: `python -m domains.text.train FILES -o FOLDER`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from domains.text.data import read_texts
from domains.text.model import TextConfig, TitansForCausalLM
from titans_seq.config import ConfigError
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


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m domains.text.train", description="Train a language model on bytes.")
    parser.add_argument("paths", nargs="+", type=Path, help="text files and folders")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the folder")
    parser.add_argument("--model", type=Path, help="JSON file of a TextConfig")
    parser.add_argument("--training", type=Path, help="JSON file of a TrainingConfig")
    parser.add_argument("--max-steps", type=int, help="steps, in place of the configuration's")
    return parser.parse_args()


def main() -> None:
    """The command: exit status 2 and one line for settings and files that cannot be used."""
    given = _parse()
    try:
        settings = TrainingConfig() if given.training is None else TrainingConfig.from_json(given.training.read_text())
        if given.max_steps is not None:
            warmup = min(settings.warmup_steps, given.max_steps)
            settings = dataclasses.replace(settings, max_steps=given.max_steps, warmup_steps=warmup)
        architecture = TextConfig() if given.model is None else TextConfig.from_json(given.model.read_text())
        folder = train(given.paths, given.output, architecture, settings, resume=given.resume)
    except (UserError, OSError, ConfigError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"The model is in {folder}.")


if __name__ == "__main__":
    main()
