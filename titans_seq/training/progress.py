"""What a run shows while it trains: a bar on a terminal or in a notebook, a line now and then elsewhere."""

import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from titans_seq.progress import make_bar
from titans_seq.training.config import TrainingConfig
from titans_seq.training.metrics import WriteMetrics


class TrainingProgress(ProgressBar):
    """Steps done, loss in the domain's unit, tokens (or the domain's units) per second, an estimate of the time left.

    console: where to; None for standard output. every: seconds between two lines where there is no bar.
    """

    def __init__(self, config: TrainingConfig, metrics: WriteMetrics, console: Console | None = None, every: float = 10.0) -> None:
        super().__init__()
        self._config, self._metrics = config, metrics
        self._console = console or Console(highlight=False)
        self._every = every
        self._bar: Progress | None = None
        self._enabled = True
        self._first_step, self._start, self._shown = 0, 0.0, 0.0

    def disable(self) -> None:
        """Lightning calls it on all devices but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show it."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count the time."""
        self._first_step, self._start = trainer.global_step, time.monotonic()
        self._shown = self._start
        if self._enabled and (self._console.is_terminal or self._console.is_jupyter):
            columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
            self._bar = make_bar(*columns, console=self._console, transient=False)
            self._bar.add_task("", total=self._config.max_steps, completed=trainer.global_step, status="")
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Show the step."""
        self._show(trainer, pl_module, end=trainer.global_step >= self._config.max_steps)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say why no step follows."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], status="validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the result in a line of its own; the bar shows the step again."""
        metric = pl_module.model.metric
        value = self._metrics.last[f"validation_{metric.column}"]
        self._print(f"step {trainer.global_step}: validation {value:.4f} {metric.name}")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], status=self._status(trainer, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, trainer: pl.Trainer, pl_module: Any, end: bool) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, status=self._status(trainer, pl_module))
        elif end or time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            self._print(f"step {trainer.global_step}/{self._config.max_steps}  {self._status(trainer, pl_module)}")

    def _print(self, line: str) -> None:
        if self._enabled:
            self._console.print(line, soft_wrap=True)

    def _status(self, trainer: pl.Trainer, pl_module: Any) -> str:
        """Loss of the last row of metrics; speed and time left by what this process has done, validations and checkpoints included."""
        metric, done = pl_module.model.metric, trainer.global_step - self._first_step
        loss = self._metrics.last.get(f"train_{metric.column}")
        parts = [] if loss is None else [f"{loss:.4f} {metric.name}"]
        if done:
            seconds = (time.monotonic() - self._start) / done
            left = timedelta(seconds=round(seconds * (self._config.max_steps - trainer.global_step)))
            parts += [f"{self._config.tokens_per_step / seconds:,.0f} {metric.units}/s", f"{left} left"]
        return "  ".join(parts)
