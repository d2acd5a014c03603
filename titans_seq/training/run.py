"""A run from its first step to the model: the trainer, resuming, interruptions, the model card. Its folder is that of folder.py."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from titans_seq.card import Card, command_line, versions
from titans_seq.distributed.checkpoint import read_model
from titans_seq.distributed.strategy import make_strategy
from titans_seq.errors import UserError
from titans_seq.training.best import KeepBest
from titans_seq.training.checkpoints import (
    CheckpointEvery,
    WholeFileCheckpointIO,
    checkpoints_of,
    newest_checkpoint,
    read_checkpoint,
    sigterm_waits,
    step_of,
)
from titans_seq.training.config import Choice, TrainingConfig
from titans_seq.training.folder import check_same_run, own_folder, write_settings
from titans_seq.training.metrics import MetricsFile, WriteMetrics, read_metrics
from titans_seq.training.module import TrainingData, TrainingModule
from titans_seq.training.progress import TrainingProgress

log = logging.getLogger("titans_seq")

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
BEST = "best.ckpt"
_EVALUATIONS: dict[Choice, str] = {
    "last": "At the end of the run. Training: the mean over its last steps, while the weights changed.",
    "best": "Of the step with the best validation, by which it was chosen. Training: the mean over steps before it.",
}


def train(
    make_model: Callable[[], Any],
    make_data: Callable[[], TrainingData],
    config: TrainingConfig,
    folder: str | Path,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train a model in a folder of its own.

    Args:
        make_model: makes the domain's model (`Trainable`), called after seeding, and again for the one that is saved.
        make_data: makes what it is trained on.
        config: how.
        folder: the run's; made if it is not there.
        resume: go on from the newest whole checkpoint in `folder`; if there is none, start.
        progress: show it.

    Returns:
        The folder of the trained model: the weights of the last checkpoint, or of the best validation (their average with ema_decay).

    Raises:
        UserError: `folder` holds a run and resume is False, or another process trains in it; the run to resume has other settings, model,
            data or kind of checkpoint; choose="best" without data to validate on; the processes that were started are not devices times
            nodes; the loss is not finite.
        KeyboardInterrupt, SystemExit: Ctrl-C; SIGTERM (status 143, after a checkpoint). Both can be resumed.
    """
    folder = Path(folder)
    _check_precision(config)
    _check_processes(config)
    first = rank_zero_only.rank == 0  # others find what the first has begun
    with own_folder(folder, resume) if first else nullcontext():
        pl.seed_everything(config.seed, workers=True, verbose=False)
        model = make_model().train()
        checkpoint = newest_checkpoint(folder / "checkpoints") if resume else None
        if checkpoint is not None:
            check_same_run(checkpoint, model, config)
        elif resume and first:
            log.warning("%s: no whole checkpoint there; starting from the first step.", folder)
        data = make_data()
        if config.choose == "best" and not data.has_validation:
            raise UserError("choose='best' needs data to validate on, and there are none. Use 'last'.")
        if first:
            write_settings(folder, model, config)
        module = TrainingModule(model, config)
        with _quiet():
            trainer = make_trainer(config, folder, model.metric.column, data.has_validation, progress)
            _fit(trainer, module, data, checkpoint, folder)
        return _export(trainer, make_model, folder, data.card, config.choose)


def make_trainer(config: TrainingConfig, folder: Path, metric_column: str, has_validation: bool, progress: bool) -> pl.Trainer:
    """The one place where a Trainer is made."""
    metrics = WriteMetrics(config)
    callbacks: list[Callback] = [metrics, CheckpointEvery(folder / "checkpoints", config, has_validation)]
    if config.choose == "best":
        callbacks.insert(1, KeepBest(folder / "checkpoints" / BEST, folder / "metrics.csv", f"validation_{metric_column}"))
    if config.ema_decay is not None:
        callbacks.insert(0, EMAWeightAveraging(decay=config.ema_decay))
    if progress:
        callbacks.insert(-1, TrainingProgress(config, metrics))
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv", WriteMetrics.columns(metric_column))]
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(str(folder), name="tensorboard", version=""))
    return pl.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",  # rotary positions need float64, which others lack
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=make_strategy(config.strategy),
        precision=PRECISIONS[config.precision],
        max_steps=config.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulate,
        val_check_interval=config.validate_every * config.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=None if has_validation else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,  # the loggers' rows are written by WriteMetrics
        logger=loggers,
        callbacks=callbacks,
        plugins=[WholeFileCheckpointIO()],
        enable_progress_bar=progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _fit(trainer: pl.Trainer, module: TrainingModule, data: TrainingData, checkpoint: Path | None, folder: Path) -> None:
    """Lightning's fit; an interrupted one is ended with a word on how to go on."""
    try:
        with sigterm_waits():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:
        if trainer.is_global_zero:
            saved = checkpoints_of(folder / "checkpoints")
            further = f"goes on from step {step_of(saved[-1])}" if saved else "starts anew: there is no checkpoint yet"
            log.warning("Stopped at step %d. The same command with --resume %s.", trainer.global_step, further)
        if isinstance(stop, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from stop
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes an exit of it
            raise KeyboardInterrupt from stop
        raise


def _export(trainer: pl.Trainer, make_model: Callable[[], Any], folder: Path, card: Card, choose: Choice) -> Path:
    """Save the weights of the checkpoint that is chosen as the model: one way for a run that ends now, and for one that ended before."""
    if trainer.is_global_zero:
        path = folder / "checkpoints" / BEST if choose == "best" else newest_checkpoint(folder / "checkpoints")
        assert path is not None
        checkpoint = read_checkpoint(path)
        weights = read_model(path) if path.is_dir() else checkpoint["state_dict"]
        model = make_model()  # whole: the one that was trained may be sharded
        model.load_state_dict({name.removeprefix("model."): x for name, x in weights.items()})
        model.save_pretrained(folder / "model", card=_filled(card, model, folder, checkpoint["global_step"], choose))
    trainer.strategy.barrier()
    return folder / "model"


def _filled(card: Card, model: Any, folder: Path, step: int, choose: Choice) -> Card:
    """A domain's card with what the run knows; scores are those of metrics.csv, so that a resumed run has them all."""
    rows, column = [row for row in read_metrics(folder / "metrics.csv") if int(row["step"]) <= step], model.metric.column
    metrics: dict[str, float | int] = {}
    for kind, name in (("validation", "validation"), ("train", "training")):
        scores = [row[f"{kind}_{column}"] for row in rows if row[f"{kind}_{column}"]]
        metrics |= {f"{model.metric.name}, {name}": float(scores[-1])} if scores else {}
    tokens = [int(row["tokens"]) for row in rows if row["tokens"]]
    return replace(
        card,
        metrics={**card.metrics, **metrics, "steps": step, "tokens read": tokens[-1] if tokens else 0},
        evaluation=card.evaluation or _EVALUATIONS[choose],
        command=card.command or command_line(),
        versions=card.versions or versions("torch", "lightning"),
    )


def _check_precision(config: TrainingConfig) -> None:
    if config.precision == "16" and not torch.cuda.is_available():
        raise UserError("precision '16' scales its gradients on CUDA devices only, and there is none here. Use 'bf16' or '32'.")


def _check_processes(config: TrainingConfig) -> None:
    """Raise UserError unless the processes that a launcher has started, if one did, are those of the settings."""
    started, expected = int(os.environ.get("WORLD_SIZE", 0)), config.devices * config.nodes
    if started not in (0, expected):
        raise UserError(
            f"{started} processes were started, but devices={config.devices} times nodes={config.nodes} is {expected}. "
            "Set --devices and --nodes to what the launcher starts."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notices on devices and tips, and its advice on loaders that are made as they are on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`.*")
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight.*")  # norms under autocast: float32 weights
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
