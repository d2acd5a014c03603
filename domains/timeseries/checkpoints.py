"""What a forecaster's training keeps: the best weights so far, and checkpoints from which a killed run goes on to the same weights."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from torch.utils.data import DataLoader

from domains.timeseries.windows import BLOCK, RandomWindows, Series
from titans_seq.errors import UserError
from titans_seq.training.checkpoints import newest_checkpoint, read_checkpoint, remove_unfinished, save_step
from titans_seq.training.folder import check_same_settings
from titans_seq.training.module import CHECKPOINT_FORMAT, CHECKPOINT_KEY
from titans_seq.training.restore import check_form, check_random, check_trainer, random_state, set_random_state

KEEP = 2
"""Checkpoints of a run: the newest."""


class WindowLoader(DataLoader):
    """Batches of `RandomWindows`, whose state is the next epoch's number and the random numbers before it.

    Lightning saves it, but loads it only in the middle of an epoch: `load_state_dict` is called before the training.
    """

    def __init__(self, windows: RandomWindows) -> None:
        super().__init__(windows, batch_size=None)
        self.windows = windows
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Between two epochs."""
        return {"epoch": self.windows.epoch, "random": random_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`, when the next epoch begins: after all that a new process draws at its start."""
        self._restored = state

    def __iter__(self) -> Any:
        """The batches of the next epoch."""
        restored, self._restored = self._restored, None
        if restored is not None:
            self.windows.epoch = restored["epoch"]
            set_random_state(restored["random"])
        return super().__iter__()


class BestWeights(Checkpoint):
    """The lowest loss so far and its weights, on the CPU: of validation, of training where there is none.

    What begins in closed form, or is trained on, may never get better: with validation the weights before the first step count as well.
    """

    def __init__(self, validating: DataLoader | None) -> None:
        self.validating, self.resumed = validating, False
        self.loss = math.inf
        self.weights: dict[str, torch.Tensor] = {}

    @property
    def best_model_score(self) -> float:
        """The loss, under Lightning's name."""
        return self.loss

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The loss before the first step, as Lightning validates: the mean over series."""
        if self.validating is None or self.resumed:
            return
        pl_module.eval()
        total, count = 0.0, 0
        for batch in self.validating:
            size = len(batch["past_target"])
            total += size * float(pl_module.model.loss({name: x.to(pl_module.device) for name, x in batch.items()}))
            count += size
        pl_module.train()
        self._offer(total / count, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of the epoch that was validated."""
        if self.validating is not None and not trainer.sanity_checking:
            self._offer(float(trainer.callback_metrics["val_loss"]), pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of the epoch, where nothing validates."""
        if self.validating is None:
            self._offer(float(trainer.callback_metrics["train_loss"]), pl_module)

    def _offer(self, loss: float, module: pl.LightningModule) -> None:
        if loss < self.loss:
            self.loss = loss
            self.weights = {name: x.detach().to("cpu", copy=True) for name, x in module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Loss and weights."""
        return {"loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.loss, self.weights, self.resumed = state_dict["loss"], state_dict["weights"], True


class Patience(EarlyStopping):
    """Lightning's EarlyStopping, which also stays stopped: a run that had ended trains no further epoch when it is resumed."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask for the end again."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """The best loss and the epochs since."""
        return {"wait_count": self.wait_count, "best_score": float(self.best_score)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.wait_count = state_dict["wait_count"]
        self.best_score = torch.tensor(state_dict["best_score"], dtype=torch.float64)


class Checkpoints(Checkpoint):
    """Writes FOLDER/step-N.ckpt after every epoch and keeps the newest `KEEP`. One whose weights are not finite is not worth keeping.

    Args:
        folder: of the checkpoints.
        settings: how the run trains and on what, plain values; a run with others does not go on with its checkpoints.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    def newest(self, model: Any) -> Path | None:
        """The newest whole checkpoint, None if there is none.

        Raises:
            UserError: it is of another run.
        """
        path = newest_checkpoint(self.folder)
        if path is not None:
            check_same_settings(path, model, self.settings)
        return path

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove what a kill left half written."""
        remove_unfinished(self.folder)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After validation and all that looks at its loss: Lightning calls Checkpoints last."""
        if all(bool(torch.isfinite(x).all()) for x in pl_module.state_dict().values()):
            save_step(trainer, self.folder, KEEP)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say what the run is."""
        model = pl_module.model
        checkpoint[CHECKPOINT_KEY] = {
            "format": CHECKPOINT_FORMAT,
            "model_type": model.model_type,
            "model": model.config.to_dict(),
            "training": self.settings,
        }


def resume(path: Path, trainer: pl.Trainer, module: Any, loader: WindowLoader) -> None:
    """See, before any of it is used, that a run can go on with a checkpoint, and tell the loader where it does; the rest is Lightning's.

    Raises:
        UserError: the checkpoint does not have the form that this run writes.
    """
    checkpoint, weights = read_checkpoint(path), module.state_dict()
    try:
        check_form("state_dict", checkpoint.get("state_dict"), weights)
        check_trainer(checkpoint, module.model, module.training_config, trainer.fit_loop.state_dict())
        states = checkpoint.get("callbacks")
        for callback in trainer.callbacks:
            if isinstance(callback, BestWeights | Patience):
                like = {"loss": 0.0, "weights": weights} if isinstance(callback, BestWeights) else callback.state_dict()
                given = states.get(callback.state_key) if isinstance(states, dict) else None
                check_form(f"callbacks.{callback.state_key}", given, like)
        place = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
        check_random("combined_loader.random", place.get("random"))
        check_form("combined_loader", {**place, "random": None}, {"epoch": 0, "random": None})
    except ValueError as error:
        raise UserError(f"{path}: damaged, or not written by a run of these settings: {error}.") from error
    loader.load_state_dict(place)


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
