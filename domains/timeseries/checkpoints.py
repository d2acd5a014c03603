"""What a forecaster's training keeps: the best weights so far, and checkpoints from which a stopped run goes on to the same weights."""

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, WeightAveraging
from torch import Tensor

from domains.timeseries.windows import BLOCK, Series
from titans_seq.training.checkpoints import CheckpointEvery
from titans_seq.training.metrics import WriteMetrics
from titans_seq.training.module import Tally

NOTHING_YET = sys.float_info.max
"""A loss that any is better than, and that a checkpoint may hold."""


class BestWeights(Checkpoint):
    """The lowest loss so far, its step and its weights, on the CPU: of validation, of an epoch's training where there is none.

    What begins in closed form, or is trained on, may never get better: with validation the weights before the first step count as well.
    Where there is a moving average of the weights, it is what is validated and kept. Losses are those that `metrics` has written.
    """

    def __init__(self, metrics: WriteMetrics, validating: bool) -> None:
        self.metrics, self.validating, self.resumed = metrics, validating, False
        self.loss, self.step = NOTHING_YET, 0
        self.weights: dict[str, Tensor] = {}

    @property
    def best_model_score(self) -> float:
        """The loss, under Lightning's name."""
        return self.loss

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing is better yet than what training begins with."""
        self.weights = _copied(pl_module)

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The loss before the first step, as the run validates."""
        if not self.validating or self.resumed:
            return
        tally = Tally()
        pl_module.eval()
        with trainer.precision_plugin.val_step_context():
            for batch in trainer.val_dataloaders:
                result = pl_module.loss(trainer.strategy.batch_to_device(batch), None)
                tally.add(result.loss, result.units)
        pl_module.train()
        self._offer(pl_module.mean(tally), pl_module, trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Of the epoch that was validated."""
        if self.validating:
            loss = self.metrics.last[f"validation_{pl_module.model.metric.column}"]
            self._offer(loss, _averaged(trainer, pl_module), trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Of the epoch, where nothing validates."""
        if not self.validating:
            loss = self.metrics.last[f"train_{pl_module.model.metric.column}"]
            self._offer(loss, _averaged(trainer, pl_module), trainer.global_step)

    def _offer(self, loss: float, module: torch.nn.Module, step: int) -> None:
        if loss < self.loss:
            self.loss, self.step, self.weights = loss, step, _copied(module)

    def state_dict(self) -> dict[str, Any]:
        """Loss, the step after which it was that, and weights."""
        return {"loss": self.loss, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.loss, self.step, self.weights = (state_dict[name] for name in ("loss", "step", "weights"))
        self.resumed = True


def _copied(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().to("cpu", copy=True) for name, x in module.state_dict().items()}


def _averaged(trainer: pl.Trainer, module: torch.nn.Module) -> torch.nn.Module:
    """The module with the moving average of its weights, if the run has one."""
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            average: torch.nn.Module = callback._average_model.module
            return average
    return module


class Patience(EarlyStopping):
    """Lightning's EarlyStopping, which also stays stopped: a run that had ended trains no further epoch when it is resumed."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask for the end again."""
        trainer.should_stop = trainer.should_stop or self.ended

    @property
    def ended(self) -> bool:
        """Whether it has asked for the end."""
        return bool(self.wait_count >= self.patience)

    def state_dict(self) -> dict[str, Any]:
        """The best loss and the epochs since."""
        return {"wait_count": self.wait_count, "best_score": min(float(self.best_score), NOTHING_YET)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.wait_count = state_dict["wait_count"]
        self.best_score = torch.tensor(state_dict["best_score"], dtype=torch.float64)


def ending(step: int, max_steps: int, best: BestWeights, patience: Patience | None) -> str:
    """How a training ended after `step` of `max_steps`, in a line: why before its last step, and which weights are kept."""
    if step < max_steps and patience is not None and patience.ended:
        how = f"Stopped at step {step} of {max_steps}, as none of the last {patience.patience} validations was better."
    else:
        how = f"Ended at step {step} of {max_steps}."
    if best.step == 0:
        why = "none was better in validation" if best.validating else "no epoch had a loss that is a number"
        return f"{how} Kept are the weights before the first step: {why}."
    return f"{how} Kept are the weights of step {best.step}, the best in {'validation' if best.validating else 'training'}."


class Checkpoints(CheckpointEvery):
    """Writes FOLDER/step-N.ckpt after every epoch, and as `CheckpointEvery` after the step that runs when the process is asked to end.

    The last epoch may be short. One whose weights are not finite is not worth keeping.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """After a step that does not end the epoch."""
        ends = trainer.is_last_batch or trainer.global_step >= self._config.max_steps
        if trainer.global_step > self._step and not ends:
            self._after_step(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch ends first."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After validation and all that looks at its loss: Lightning calls checkpoints last."""
        self._after_step(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if all(bool(torch.isfinite(x).all()) for x in trainer.lightning_module.state_dict().values()):
            super()._save(trainer)


def describe_data(series: Sequence[Series]) -> str:
    """The number of series, and a digest of all their values: by it a checkpoint knows its data."""
    digest = hashlib.sha256()
    for one in series:
        digest.update(f"{one.start} {one.static_real.tolist()} {one.static_cat.tolist()}".encode())
        for values in (one.target, *one.dynamic.values()):
            digest.update(f"{values.shape}".encode())
            for start in range(0, values.shape[1], BLOCK):
                digest.update(np.ascontiguousarray(values[:, start : start + BLOCK], dtype=np.float32).tobytes())
    return f"{len(series)} series, digest {digest.hexdigest()[:16]}"
