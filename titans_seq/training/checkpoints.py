"""Checkpoints of a run: written whole or not at all, read without unpickling anything, the newest whole one found."""

import logging
import os
import pickle
import re
import shutil
import signal
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from titans_seq.distributed.strategy import REST_NAME
from titans_seq.errors import UserError
from titans_seq.files import sync_folder
from titans_seq.training.config import TrainingConfig
from titans_seq.training.module import CHECKPOINT_FORMAT, CHECKPOINT_KEY

log = logging.getLogger("titans_seq")

_NAME = re.compile(r"step-\d+\.ckpt")
_LIGHTNING = re.compile(r"[2-9]\.[1-9]\d?\.\d{1,3}(\.?(post|dev|rc)\d{1,4})?", re.ASCII)
_TEMPORARY = ".unfinished"
_PARTS: dict[str, type] = {"model_type": str, "model": dict, "training": dict}


class WholeFileCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through a file beside the last one, synced to the disk and then renamed: a kill, or a power cut, leaves the
    old file or the new one. Loading takes tensors and plain values only, whatever it is asked for.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; its folder is made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + _TEMPORARY)
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """As `read_checkpoint`."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file, if it is there."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU: tensors and plain values.

    Raises:
        UserError: the file is missing, truncated, damaged in any byte that counts, or was not written by this package's training.
    """
    path = Path(path)
    path = path / REST_NAME if path.is_dir() else path  # sharded: tensors are in files beside it
    if not path.is_file():
        raise UserError(f"{path}: no such file. Name a checkpoint of a run, checkpoints/step-N.ckpt.")
    mend = "Delete it and resume: the newest whole checkpoint of the folder is taken."
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = _damaged_part(archive, path.stat().st_size)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True) if damaged is None else None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not a checkpoint of titans_seq: it holds more than tensors and plain values, and was not loaded."
        ) from error
    except Exception as error:  # whatever zipfile and torch trip over: neither has an error of its own for damage
        raise UserError(f"{path}: truncated, damaged or not a checkpoint ({type(error).__name__}: {error!s:.200}). {mend}") from error
    if damaged is not None:
        raise UserError(f"{path}: damaged ({damaged}). {mend}")
    ours = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if checkpoint is None or not isinstance(ours, dict):
        raise UserError(f"{path}: not a checkpoint of titans_seq's training. Name one of a run's folder, checkpoints/step-N.ckpt.")
    if type(ours.get("format")) is not int or ours["format"] != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path}: its format is {ours.get('format')!r:.40}, this version reads {CHECKPOINT_FORMAT}. Use the version that wrote it."
        )
    wrote = checkpoint.get("pytorch-lightning_version")  # it converts what was written before version 2
    whole = all(isinstance(ours.get(name), kind) for name, kind in _PARTS.items())
    if not whole or not isinstance(wrote, str) or not _LIGHTNING.fullmatch(wrote):
        raise UserError(f"{path}: damaged: it does not say what model, settings and version of Lightning it is of. {mend}")
    return checkpoint


def _damaged_part(archive: zipfile.ZipFile, size: int) -> str | None:
    """What is wrong with the archive of a file of `size` bytes; torch writes nothing compressed, and does not look at the checksums."""
    parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        return "its parts are larger than the file"
    wrong = archive.testzip()
    return None if wrong is None else f"the checksum of {wrong} is wrong"


def checkpoints_of(folder: str | Path) -> list[Path]:
    """Checkpoints of a folder, the newest (highest step) last. No folder: none."""
    return sorted((path for path in Path(folder).glob("*.ckpt") if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written, by its name."""
    return int(path.stem.removeprefix("step-"))


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint of a folder that is whole, None if there is none; each one passed over is named in the log."""
    for path in reversed(checkpoints_of(folder)):
        try:
            read_checkpoint(path)
        except UserError as error:
            log.warning("Passed over: %s", error)
        else:
            return path
    return None


def save_step(trainer: pl.Trainer, folder: Path, keep: int) -> None:
    """Write folder/step-N.ckpt of the step that is done, and remove all but the newest `keep` up to it."""
    trainer.save_checkpoint(folder / f"step-{trainer.global_step:08d}.ckpt", weights_only=False)  # the optimizer too
    if trainer.is_global_zero:
        # One of a later step is damaged: the run went on from before it.
        written = [path for path in checkpoints_of(folder) if step_of(path) <= trainer.global_step]
        for path in written[:-keep]:
            trainer.strategy.remove_checkpoint(path)


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill left half written."""
    for path in folder.glob(f"*{_TEMPORARY}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def sigterm_waits() -> Iterator[None]:
    """SIGTERM waits for `CheckpointEvery.on_train_start`, also in processes that are started meanwhile: Lightning's handler, set before it,
    would send a message that the other devices do not expect, and all would wait for one another.
    """
    _hold_sigterm_back(True)
    try:
        yield
    finally:
        _hold_sigterm_back(False)


def _hold_sigterm_back(hold: bool) -> None:
    """From the main thread, which is where signals are answered. Windows knows no such signals."""
    if os.name != "nt" and threading.current_thread() is threading.main_thread():
        signal.pthread_sigmask(signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK, {signal.SIGTERM})


class CheckpointEvery(Checkpoint):
    """Writes FOLDER/step-N.ckpt every `checkpoint_every` steps and at the last, after validation and metrics of its step. Keeps the newest
    `keep_checkpoints`.

    A process that is asked to end, by SIGTERM or Ctrl-C, writes one after the step that runs, then ends: all devices after the same step,
    whichever of them was asked. SIGTERM that comes before the first step waits for it (`sigterm_waits`). A second Ctrl-C ends at once.
    """

    def __init__(self, folder: Path, config: TrainingConfig, has_validation: bool) -> None:
        self._folder, self._config, self._has_validation = folder, config, has_validation
        self._step, self._saved = -1, -1
        self._asked_by: int | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove what a kill left half written."""
        if trainer.is_global_zero:
            remove_unfinished(self._folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What was loaded is saved. Lightning gives the signals back when it is done."""
        self._step = self._saved = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, self._ask_to_end)
        _hold_sigterm_back(False)

    def _ask_to_end(self, signum: int, frame: FrameType | None) -> None:
        if signum == self._asked_by == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked_by = signum  # first: another may come while this one is answered
        if signum == signal.SIGINT:
            log.warning("Ending after this step, with a checkpoint. Ctrl-C again ends at once.")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """After a step, unless a validation comes first."""
        step = trainer.global_step
        validation_first = self._has_validation and is_due(step, self._config.validate_every, self._config.max_steps)
        if step > self._step and not validation_first:
            self._after_step(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the validation."""
        self._after_step(trainer)

    def _after_step(self, trainer: pl.Trainer) -> None:
        """Save if a checkpoint is due, or if the end is asked for, which then comes."""
        self._step = trainer.global_step
        asked = trainer.strategy.reduce_boolean_decision(self._asked_by is not None, all=False)
        if self._step > self._saved and (asked or is_due(self._step, self._config.checkpoint_every, self._config.max_steps)):
            self._save(trainer)
        if asked and self._step < self._config.max_steps:
            raise KeyboardInterrupt if self._asked_by == signal.SIGINT else SIGTERMException

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        save_step(trainer, self._folder, self._config.keep_checkpoints)
        self._saved = trainer.global_step


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something happens after a step: every `every` steps, and after the last."""
    return step % every == 0 or step >= last
