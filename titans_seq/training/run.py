"""A run from its first step to the model: resuming, the trainer, the model card. Its folder is that of folder.py."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from titans_seq.card import Card, command_line, versions
from titans_seq.distributed.checkpoint import read_model
from titans_seq.errors import UserError
from titans_seq.training.best import KeepBest
from titans_seq.training.checkpoints import CheckpointEvery, newest_checkpoint, read_checkpoint
from titans_seq.training.config import Choice, TrainingConfig
from titans_seq.training.folder import check_same_run, own_folder, write_settings
from titans_seq.training.metrics import WriteMetrics, read_metrics
from titans_seq.training.module import TrainingData, TrainingModule
from titans_seq.training.trainable import Metric
from titans_seq.training.trainer import check_precision, check_processes, fit, make_loggers, quiet, trainer_settings
from titans_seq.transfer import Beginning

log = logging.getLogger("titans_seq")

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
    begin: Beginning | None = None,
) -> Path:
    """Train a model in a folder of its own.

    Args:
        make_model: makes the domain's model (`Trainable`), called after seeding, and again for the one that is saved.
        make_data: makes what it is trained on.
        config: how.
        folder: the run's; made if it is not there.
        resume: go on from the newest whole checkpoint in `folder`; if there is none, start.
        progress: show it.
        begin: the weights that a new model begins with (`titans_seq.transfer.beginning_with`); a run that goes on began with the same.

    Returns:
        The folder of the trained model: the weights of the last checkpoint, or of the best validation (their average with ema_decay).

    Raises:
        UserError: `folder` holds a run and resume is False, or another process trains in it; the run to resume has other settings, model,
            data or kind of checkpoint; choose="best" without data to validate on; the processes that were started are not devices times
            nodes; the loss is not finite.
        KeyboardInterrupt, SystemExit: Ctrl-C; SIGTERM (status 143, after a checkpoint). Both can be resumed.
    """
    folder = Path(folder)
    check_precision(config)
    check_processes(config)
    began = {"start": None if begin is None else begin.identity}
    first = rank_zero_only.rank == 0  # others find what the first has begun
    with own_folder(folder, resume) if first else nullcontext():
        pl.seed_everything(config.seed, workers=True, verbose=False)
        model = make_model().train()
        checkpoint = newest_checkpoint(folder / "checkpoints") if resume else None
        if checkpoint is not None:
            began = check_same_run(checkpoint, model, config, began)
        elif resume and first:
            log.warning("%s: no whole checkpoint there; starting from the first step.", folder)
        if checkpoint is None and begin is not None:
            begin.give(model)
        data = make_data()
        if config.choose == "best" and not data.has_validation:
            raise UserError("choose='best' needs data to validate on, and there are none. Use 'last'.")
        if first:
            _warn(config)
            if progress and data.about:
                parameters, steps = sum(x.numel() for x in model.parameters()), config.max_steps
                print(f"{data.about}\nThe model has {parameters:,} parameters; {steps:,} step{'s'[: steps != 1]}.", flush=True)
        module = TrainingModule(model, config)
        module.run = began
        with quiet():
            trainer = make_trainer(config, folder, model.metric, data.has_validation, progress)
        if first:  # once the checkpoint and the data fit: a run that is refused keeps what it had
            trainer.callbacks.append(LambdaCallback(on_train_start=lambda *_: write_settings(folder, model, config)))
        fit(trainer, module, data, checkpoint, folder / "checkpoints")
        return _export(trainer, make_model, folder, data.card, config.choose)


def _warn(config: TrainingConfig) -> None:
    """Of settings that make sense, but hardly the one that was meant."""
    warmup = config.length_warmup_steps
    if warmup >= config.max_steps:
        log.warning(
            "length_warmup takes %d steps and the run has max_steps=%d: none of them has sequences of segment_length=%d.",
            *(warmup, config.max_steps, config.segment_length),
        )


def make_trainer(config: TrainingConfig, folder: Path, metric: Metric, has_validation: bool, progress: bool) -> pl.Trainer:
    """Of a run that is counted in steps."""
    metrics = WriteMetrics(config)
    callbacks: list[Callback] = [CheckpointEvery(folder / "checkpoints", config, has_validation)]
    if config.choose == "best":
        callbacks.insert(0, KeepBest(folder / "checkpoints" / BEST, folder / "metrics.csv", f"validation_{metric.column}"))
    return pl.Trainer(
        **trainer_settings(config, metrics, callbacks, progress),
        max_steps=config.max_steps,
        max_epochs=-1,
        val_check_interval=config.validate_every * config.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=None if has_validation else 0,
        logger=make_loggers(folder / "metrics.csv", metrics.columns(metric)),
    )


def _export(trainer: pl.Trainer, make_model: Callable[[], Any], folder: Path, card: Card, choose: Choice) -> Path:
    """Save the weights of the checkpoint that is chosen as the model: one way for a run that ends now, and for one that ended before."""
    if trainer.is_global_zero:
        path = folder / "checkpoints" / BEST if choose == "best" else newest_checkpoint(folder / "checkpoints")
        assert path is not None
        checkpoint = read_checkpoint(path)
        weights = read_model(path) if path.is_dir() else checkpoint["state_dict"]
        if choose == "best" and trainer.progress_bar_callback is not None:
            print(f"Kept are the weights of step {checkpoint['global_step']}, the best in validation.")
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
