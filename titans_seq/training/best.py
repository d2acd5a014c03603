"""The weights of the validation with the lowest loss."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from titans_seq.training.metrics import read_metrics


class KeepBest(Callback):
    """Keeps a checkpoint of the validation with the lowest loss so far, without the optimizer.

    It goes by the rows of metrics.csv, so that a resumed run knows the validations before it. It comes after the callback that writes them.

    path: of the checkpoint. metrics: the run's metrics.csv. column: of the loss in it.
    """

    def __init__(self, path: Path, metrics: Path, column: str) -> None:
        self._path, self._metrics, self._column = path, metrics, column

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, if no validation before was as good."""
        better = trainer.is_global_zero and (self._is_lowest(trainer.global_step) or not self._path.exists())
        if trainer.strategy.broadcast(better):
            trainer.save_checkpoint(self._path, weights_only=True)

    def _is_lowest(self, step: int) -> bool:
        """Whether the loss of this step's validation is below all before; rows of later steps are of a run that went on from this one."""
        rows: list[dict[str, Any]] = [row for row in read_metrics(self._metrics) if row[self._column] and int(row["step"]) <= step]
        *before, now = (float(row[self._column]) for row in rows)
        return now < min(before, default=math.inf)
