"""Lightning's Trainer as every run has it: what it is made with, and what becomes of a run that is interrupted."""

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from titans_seq.distributed.strategy import make_strategy
from titans_seq.errors import UserError
from titans_seq.training.checkpoints import WholeFileCheckpointIO, checkpoints_of, sigterm_waits, step_of
from titans_seq.training.config import TrainingConfig
from titans_seq.training.metrics import MetricsFile, WriteMetrics
from titans_seq.training.module import TrainingModule
from titans_seq.training.progress import TrainingProgress

log = logging.getLogger("titans_seq")

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def trainer_settings(config: TrainingConfig, metrics: WriteMetrics, callbacks: Sequence[Callback], progress: bool) -> dict[str, Any]:
    """Arguments of Lightning's Trainer but for how long it trains, when it validates, and its loggers.

    callbacks: those of the run, which come after the moving average, the metrics and the bar.
    """
    average = [] if config.ema_decay is None else [EMAWeightAveraging(decay=config.ema_decay)]
    bar = [TrainingProgress(config, metrics)] if progress else []
    return {
        "accelerator": "gpu" if torch.cuda.is_available() else "cpu",  # positions and normalisation need float64, which others lack
        "devices": config.devices,
        "num_nodes": config.nodes,
        "strategy": make_strategy(config.strategy),
        "precision": PRECISIONS[config.precision],
        "accumulate_grad_batches": config.accumulate,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,  # the loggers' rows are written by WriteMetrics
        "callbacks": [*average, metrics, *bar, *callbacks],
        "plugins": [WholeFileCheckpointIO()],
        "enable_progress_bar": progress,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }


def make_loggers(path: Path, columns: list[str]) -> list[Logger]:
    """The file of metrics, and TensorBoard's folder beside it if that is installed."""
    loggers: list[Logger] = [MetricsFile(path, columns)]
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(str(path.parent), name="tensorboard", version=""))
    return loggers


def fit(trainer: pl.Trainer, module: TrainingModule, data: pl.LightningDataModule, checkpoint: Path | None, folder: Path | None) -> None:
    """Lightning's fit, from `checkpoint` on if there is one. An interrupted one is ended with a word on how to go on.

    folder: of the checkpoints that `CheckpointEvery` writes; None for a run without.

    Raises:
        KeyboardInterrupt, SystemExit: Ctrl-C; SIGTERM (status 143, after a checkpoint).
    """
    try:
        with quiet(), nullcontext() if folder is None else sigterm_waits():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:
        if trainer.is_global_zero and folder is not None:
            saved = checkpoints_of(folder)
            further = f"goes on from step {step_of(saved[-1])}" if saved else "starts anew: there is no checkpoint yet"
            log.warning("Stopped at step %d. The same command with --resume %s.", trainer.global_step, further)
        if isinstance(stop, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from stop
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes an exit of it
            raise KeyboardInterrupt from stop
        raise


def check_precision(config: TrainingConfig) -> None:
    """Raise UserError for what the machine does not have."""
    if config.precision == "16" and not torch.cuda.is_available():
        raise UserError("precision '16' scales its gradients on CUDA devices only, and there is none here. Use 'bf16' or '32'.")


def check_processes(config: TrainingConfig) -> None:
    """Raise UserError unless the processes that a launcher has started, if one did, are those of the settings."""
    started, expected = int(os.environ.get("WORLD_SIZE", 0)), config.devices * config.nodes
    if started not in (0, expected):
        raise UserError(
            f"{started} processes were started, but devices={config.devices} times nodes={config.nodes} is {expected}. "
            "Set --devices and --nodes to what the launcher starts."
        )


@contextmanager
def quiet() -> Iterator[None]:
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
