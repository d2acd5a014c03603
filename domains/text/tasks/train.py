"""Train a model on a task."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domains.text.config import TextConfig
from domains.text.start import language_model, take_over
from titans_seq.card import Card
from titans_seq.errors import UserError
from titans_seq.training.config import TrainingConfig

if TYPE_CHECKING:
    from domains.text.tasks.task import Task

TASK_NAME = "task.json"
"""In the folder of a model that was trained on a task: its name and settings."""
VALIDATION = 128


def train(
    task: "Task",
    output: str | Path,
    model: TextConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    start: str | Path | None = None,
    count: int | None = None,
    held_out: int = VALIDATION,
    make_model: Callable[[TextConfig], Any] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train on examples of a task in the folder `output`; those of its test with the same seed are not among them (`Task.distinct`).

    Args:
        task: as `load_task` makes it.
        output: the run's folder.
        model, training: settings, None for the defaults, of the model for those of `start`. Vocabulary, segments and the carried state are
            the task's to say.
        start: a trained model, folder or name on the hub, that is trained further; None for new weights. Its tokens must be the task's.
        count: examples that there are to train on; None for new ones at every step.
        held_out: examples of the validation, and of the test that training avoids.
        make_model: of the settings; None for Titans.
        resume, progress: as `titans_seq.training.run.train`.

    Returns:
        The folder of the trained model.

    Raises:
        UserError: as `titans_seq.training.run.train`.
    """
    from domains.text.tasks.batches import example_loaders
    from domains.text.tasks.task import Examples, examples
    from titans_seq.training.module import TrainingData
    from titans_seq.training.run import train as run
    from titans_seq.transfer import beginning_with

    training = training or TrainingConfig()
    training = replace(training, carry_state=False, segment_length=task.length or _longest(task, training.seed))
    model = model or (TextConfig() if start is None else language_model(start, "meta").config)
    settings = config_for(task, model)
    make = partial(make_model or _titans(task), settings)
    begin = beginning_with(start, make, take_over)

    def make_data() -> TrainingData:
        validation, test = (examples(task, training.seed, held_out, part) for part in ("validation", "test"))
        number = count if count is not None else training.max_steps * training.accumulate * training.batch_size
        items: Sequence[Any] = Examples(task, training.seed, number, "training", [*validation, *test])
        items = items if count is None else list(items)
        return TrainingData(*example_loaders(items, validation, training, fresh=count is None), _card(task, start))

    folder = run(make, make_data, training, output, resume, progress, begin)
    text = json.dumps({"task": task.name, "settings": task.settings(), "seed": training.seed}, indent=2)
    (folder / TASK_NAME).write_text(text + "\n", encoding="utf-8")
    return folder


def _longest(task: "Task", seed: int) -> int:
    """Tokens of an example of the validation, at most, where the task has no length of its own."""
    from domains.text.tasks.task import examples

    return max(len(example.inputs) for example in examples(task, seed, VALIDATION, "validation"))


def config_for(task: "Task", model: TextConfig) -> TextConfig:
    """The model's settings with the task's tokens."""
    return replace(model, vocabulary=task.vocabulary, end=task.end, tokenizer=task.tokenizer_identity)


def _titans(task: "Task") -> Callable[[TextConfig], Any]:
    from domains.text.model import TitansForCausalLM
    from domains.text.tasks.autoencoder import TitansAutoencoder
    from domains.text.tasks.texts import TextTask

    if isinstance(task, TextTask):
        return partial(TitansForCausalLM, tokenizer=task.tokenizer)  # which is saved with it
    return TitansAutoencoder if task.at_once else TitansForCausalLM


def check_reads(model: Any, task: "Task") -> None:
    """Raise UserError unless the model's tokens are the task's, and it is of the kind that the task asks for."""
    from domains.text.tasks.autoencoder import LastTokenDecoder

    had, needed = model.config, config_for(task, model.config)
    if had != needed:
        raise UserError(
            f"{task.name} has {needed.vocabulary} tokens ({needed.tokenizer}), the model {had.vocabulary} ({had.tokenizer}). "
            "Take a model that was trained on the task, or the task's settings that it was trained with."
        )
    if task.at_once and not isinstance(model, LastTokenDecoder):
        raise UserError(f"{task.name} needs a model that decodes the last token alone (LastTokenDecoder), not {type(model).__name__}.")


def _card(task: "Task", start: str | Path | None) -> Card:
    """What the model's README.md says of the task."""
    from titans_seq.transfer import told

    return Card(
        title=f"Trained on the task {task.name}",
        description=f"Answers {task.name}, and nothing else. `titans-seq text task evaluate MODEL` tests it, also at other lengths.",
        data=f"Examples made by titans_seq, with the settings `{json.dumps(task.settings())}`.{told(start)}",
    )
