"""The folder of a run: one process at a time, never written over, resumed by the same run alone.

FOLDER/config.json        what was trained and how: command, model, training, versions
FOLDER/metrics.csv        `WriteMetrics`; with tensorboard installed also FOLDER/tensorboard
FOLDER/checkpoints/       step-N.ckpt, and best.ckpt with choose="best"
FOLDER/model/             the trained model, as save_pretrained writes it
FOLDER/.lock              held by the process that trains; stays, unlocked
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from titans_seq.card import command_line, versions
from titans_seq.config import flat
from titans_seq.errors import UserError
from titans_seq.outputs import check_no_run
from titans_seq.training.checkpoints import read_checkpoint
from titans_seq.training.config import TrainingConfig
from titans_seq.training.module import CHECKPOINT_KEY

FREE = ("max_steps", "compile", "validate_every", "checkpoint_every", "keep_checkpoints", "log_every", "devices", "nodes", "strategy")
"""Settings that a resumed run may change."""


@contextmanager
def own_folder(folder: Path, resume: bool, parts: Sequence[str] = ("metrics.csv", "checkpoints", "model")) -> Iterator[None]:
    """The folder, made if it is not there, for this process alone. The system frees the lock however the process ends.

    parts: patterns of files and folders, any of which shows that the folder holds a run.

    Raises:
        UserError: it is no folder, another process has it, it cannot be written into, or it holds a run and resume is False.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; a run needs a folder. Name another with --output.")
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another process is training in it. Wait for its end, or name another folder.") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written into ({error.strerror}). Name another folder.") from error
    try:
        if not resume:
            check_no_run(folder, parts)
        yield
    finally:
        lock.release()


def check_same_run(path: Path, model: Any, config: TrainingConfig, more: Mapping[str, Any]) -> dict[str, Any]:
    """Raise UserError unless the checkpoint is of this model and settings, but for those that may change (`FREE`), with steps to go.

    more: what else the run has, as `run` of `TrainingModule`. Returns it as the checkpoint has it.
    """
    if path.is_dir() != (config.strategy == "fsdp"):
        wrote, needed = ("with", "'fsdp'") if path.is_dir() else ("without", "'auto' or 'ddp'")
        raise UserError(f"{path}: written {wrote} strategy 'fsdp', not to be resumed with {config.strategy!r}. Resume with {needed}.")
    checkpoint = check_same_settings(path, model, {**config.to_dict(), **more})
    step = int(checkpoint["global_step"])
    if step > config.max_steps:
        raise UserError(
            f"{path}: is at step {step:,}, beyond max_steps={config.max_steps:,}. Resume with at least {step:,}, or name another folder."
        )
    said = checkpoint[CHECKPOINT_KEY]["training"]
    return {name: said[name] for name in more if name in said}  # runs of earlier versions say less


def check_same_settings(path: Path, model: Any, training: dict[str, Any], free: Sequence[str] = FREE) -> dict[str, Any]:
    """The checkpoint. Raises UserError unless it is of this model and was trained so, but for settings that may change (`free`)."""
    checkpoint = read_checkpoint(path)
    was = checkpoint[CHECKPOINT_KEY]
    free = [*free, *({"start"} - was["training"].keys())]  # of earlier versions
    now = {"model_type": model.model_type, **flat(model.config.to_dict(), "model."), **flat(_without(training, free), "training.")}
    then = {"model_type": was["model_type"], **flat(was["model"], "model."), **flat(_without(was["training"], free), "training.")}
    others = [name for name in sorted(now | then) if then.get(name) != now.get(name)]
    if others:
        changed = "; ".join(f"{name.replace('training.start', '--start')} was {then.get(name)!r}, is {now.get(name)!r}" for name in others)
        raise UserError(f"{path}: of a run with other settings: {changed}. Resume with those it had, or name another folder.")
    return checkpoint


def _without(training: dict[str, Any], free: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in training.items() if name not in free}


def write_settings(folder: Path, model: Any, config: TrainingConfig) -> None:
    """config.json of the run, whole or not at all."""
    content = {
        "command": command_line(),
        "model_type": model.model_type,
        "model": model.config.to_dict(),
        "training": config.to_dict(),
        "versions": versions("torch", "lightning"),
    }
    temporary = folder / "config.json.unfinished"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, folder / "config.json")
