"""Rows of metrics: from the training module to metrics.csv and every other logger."""

import csv
import os
import time
from pathlib import Path
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from titans_seq.training.checkpoints import is_due
from titans_seq.training.config import TrainingConfig
from titans_seq.training.trainable import Metric


class MetricsFile(Logger):
    """A CSV file that a resumed run goes on with: a row at a time, on the disk by the next checkpoint."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        super().__init__()
        self._path, self._columns = path, ["step", *columns]

    @property
    def name(self) -> str:
        """Of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one a run."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Not in this file: they are in the run's config.json."""

    def begin(self, step: int) -> list[dict[str, str]]:
        """Keep the rows up to `step`, whole ones of this file's columns, and give them; without any, begin the file."""
        rows = [row for row in read_metrics(self._path) if int(row["step"]) <= step] if self._path.is_file() else []
        temporary = self._path.with_name(self._path.name + ".unfinished")
        with temporary.open("w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        return rows

    def _writer(self, file: TextIO) -> csv.DictWriter:
        return csv.DictWriter(file, self._columns, restval="", extrasaction="ignore", lineterminator="\n")

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        with self._path.open("a", newline="") as file:
            self._writer(file).writerow({"step": step, **metrics})

    @rank_zero_only
    def save(self) -> None:
        """Have it on the disk."""
        with self._path.open("a") as file:
            os.fsync(file.fileno())


def read_metrics(path: str | Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; a last line that a kill cut off is left out."""
    lines = Path(path).read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [row for row in csv.DictReader(whole) if row["step"] and None not in row.values()]


class WriteMetrics(Callback):
    """Hands rows to all loggers: of training every `log_every` steps, the loss being the mean since the row before; of every validation.

    Columns: train_METRIC and validation_METRIC in the domain's unit, tokens (or the domain's units, read so far), learning_rate and
    gradient_norm (of the step, before clipping), tokens_per_second (since the row before, validations left out), seconds (of the whole run
    so far, what was done again after a stop left out), and where the run has epochs of `epoch_batches` batches the epoch, 1 ...
    """

    def __init__(self, config: TrainingConfig, epoch_batches: int | None = None) -> None:
        self._config, self._epoch_batches = config, epoch_batches
        self._epoch_steps = None if epoch_batches is None else -(-epoch_batches // config.accumulate)
        self._step, self._row_step, self._row_time, self._validation_start = 0, 0, 0.0, 0.0
        self._begin = 0.0  # of the run, had it never been stopped
        self.last: dict[str, float] = {}
        """The newest value of every column."""

    def columns(self, metric: Metric) -> list[str]:
        """Those of metrics.csv but for the step."""
        epoch = [] if self._epoch_batches is None else ["epoch"]
        of_step = [metric.units, f"train_{metric.column}", "learning_rate", "gradient_norm", f"{metric.units}_per_second"]
        return [*epoch, *of_step, f"validation_{metric.column}", "seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rows after the checkpoint that the run goes on from will be written anew."""
        self._step = self._row_step = trainer.global_step
        self._row_time = self._begin = time.perf_counter()
        for logger in trainer.loggers:
            if trainer.is_global_zero and isinstance(logger, MetricsFile):
                rows = logger.begin(trainer.global_step)
                self._begin -= float(rows[-1]["seconds"] or 0) if rows and "seconds" in rows[-1] else 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """A row, if one is due after a step."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        if not is_due(step, self._config.log_every, self._config.max_steps):
            return
        now = time.perf_counter()
        metric, read = pl_module.model.metric, self._units(step)
        self._write(
            trainer,
            {
                metric.units: read,
                f"train_{metric.column}": pl_module.mean(pl_module.window) * metric.factor,
                "learning_rate": pl_module.learning_rate,
                "gradient_norm": float(pl_module.gradient_norm),
                f"{metric.units}_per_second": (read - self._units(self._row_step)) / (now - self._row_time),
            },
        )
        pl_module.window.clear()
        self._row_step, self._row_time = step, now

    def _units(self, step: int) -> int:
        """Tokens, or the domain's units, that were read up to a step. An epoch's last step has fewer batches where they are not enough."""
        of_step = self._config.tokens_per_step
        if self._epoch_batches is None or self._epoch_steps is None:
            return step * of_step
        epochs, steps = divmod(step, self._epoch_steps)
        return epochs * self._epoch_batches * of_step // self._config.accumulate + steps * of_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Its time is not that of training."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A row."""
        self._row_time += time.perf_counter() - self._validation_start
        metric = pl_module.model.metric
        self._write(trainer, {f"validation_{metric.column}": pl_module.mean(pl_module.validation) * metric.factor})

    def _write(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        self.last |= row
        row["seconds"] = time.perf_counter() - self._begin
        if self._epoch_steps is not None:
            row["epoch"] = -(-trainer.global_step // self._epoch_steps)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
