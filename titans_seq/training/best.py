"""The weights of the validation with the lowest loss."""

import math
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from titans_seq.errors import UserError
from titans_seq.training.metrics import read_metrics


class KeepBest(Callback):
    """Keeps a checkpoint of the validation with the lowest loss so far.

    It goes by the rows of metrics.csv, so that a resumed run knows the validations before it. It comes after the callback that writes them.

    path: of the checkpoint. metrics: the run's metrics.csv. column: of the loss in it.
    """

    def __init__(self, path: Path, metrics: Path, column: str) -> None:
        self._path, self._metrics, self._column = path, metrics, column

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that the best of the validations before is there.

        Raises:
            UserError: it is not.
        """
        if trainer.is_global_zero and self._losses(trainer.global_step) and not self._path.exists():
            raise UserError(f"{self._path}: no such file: the best weights so far are gone. Start anew in another folder.")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, if no validation before was as good."""
        if trainer.strategy.broadcast(trainer.is_global_zero and self._is_lowest(trainer.global_step)):
            trainer.save_checkpoint(self._path, weights_only=False)  # with what an average of the weights puts in its place

    def _is_lowest(self, step: int) -> bool:
        """Whether the loss of this step's validation is below all before."""
        *before, now = self._losses(step)
        return now < min(before, default=math.inf)

    def _losses(self, step: int) -> list[float]:
        """Of the validations up to a step; those of later ones are of a run that went on from it before."""
        rows = read_metrics(self._metrics)
        return [float(row[self._column]) for row in rows if row[self._column] and int(row["step"]) <= step]
