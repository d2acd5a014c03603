"""The Lightning module that trains a forecaster: the package's own, with what a forecaster draws and how it diverges."""

import logging
from pathlib import Path
from typing import Any

import torch
from gluonts.core.component import validated

from domains.timeseries.checkpoints import BestWeights, Patience
from domains.timeseries.config import ForecasterConfig
from domains.timeseries.model import TitansForecaster
from titans_seq.errors import UserError
from titans_seq.state import State
from titans_seq.training.checkpoints import newest_checkpoint
from titans_seq.training.config import TrainingConfig
from titans_seq.training.folder import check_same_settings
from titans_seq.training.loaders import Batch
from titans_seq.training.module import TrainingModule
from titans_seq.training.restore import check_form
from titans_seq.training.trainable import LossOutput

log = logging.getLogger("titans_seq")

FREE = ("devices", "nodes", "strategy")
"""Settings that a resumed run may change: the others decide which weights it ends with."""


class ForecasterModule(TrainingModule):
    """Training of a `TitansForecaster`.

    Args:
        config: of the forecaster, as a dictionary.
        training: `TrainingConfig` as a dictionary; None for its defaults, where nothing is trained.
        forecasts, unfinished: as of `TitansEstimator`, forecasts_per_window and unfinished_patches.

    Attributes:
        position: in the training windows, of the checkpoint that training goes on from.
    """

    model: TitansForecaster
    stateful = (*TrainingModule.stateful, BestWeights, Patience)

    @validated()
    def __init__(self, config: dict, training: dict | None = None, forecasts: int = 1, unfinished: bool = False) -> None:
        super().__init__(TitansForecaster(ForecasterConfig.from_dict(config)), TrainingConfig.from_dict(training or {}))
        self.forecasts, self.unfinished = forecasts, unfinished
        self.position: dict[str, int] | None = None
        self._diverged = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `TitansForecaster.forward`."""
        return self.model(*args, **kwargs)

    def newest_checkpoint(self, folder: Path) -> Path | None:
        """The newest whole checkpoint of a folder, None if there is none. Raises UserError if it is of another run."""
        path = newest_checkpoint(folder)
        if path is not None:
            check_same_settings(path, self.model, self.settings, FREE)
        return path

    def loss(self, batch: Batch, state: State | None) -> LossOutput:
        """Of a batch as of `TitansForecaster.loss`, whose windows begin cold; units are the observed values that count."""
        if not self.training:
            return LossOutput(*self.model.counted_loss(batch), None)
        unfinished = int(torch.randint(self.model.config.patch_length, ())) if self.unfinished else 0
        result = LossOutput(*self.model.counted_loss(batch, self.forecasts, unfinished), None)
        self._report("train_loss", result.loss, len(batch["past_target"]))
        return result

    def on_validation_epoch_end(self) -> None:
        """The loss under GluonTS's name, for callbacks that monitor it."""
        self._report("val_loss", self.mean(self.validation), 1)

    def _report(self, name: str, value: Any, batch_size: int) -> None:
        self.log(name, value, on_step=False, on_epoch=True, logger=False, sync_dist=True, batch_size=batch_size)

    def diverged(self, loss: float) -> None:
        """Ends the training: the best weights before stay."""
        if not self._diverged:
            log.warning(
                "The loss is %s at step %d: training has diverged and ends; the best weights before that are kept. Lower the learning rate "
                "(now %s) to train further.",
                loss,
                self.trainer.global_step,
                self.config.learning_rate,
            )
        self._diverged = self.trainer.should_stop = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of the base, and the position in the data, which Lightning restores in the middle of an epoch alone."""
        super().on_load_checkpoint(checkpoint)
        (place,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        try:
            check_form("combined_loader", place, {"taken": 0})
        except ValueError as error:
            raise UserError(f"{self.trainer.ckpt_path}: damaged, or not written by a run of these settings: {error}.") from error
        self.position = place
