"""The Lightning module that trains a domain's model.

Losses are sums over units (bytes, bases, values) until they are shown: a step's gradient is that of the mean over all its units, on all
devices and in all its batches, however unevenly these are filled.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from titans_seq.quiet import quiet_import

with quiet_import():
    import lightning.pytorch as pl

import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor
from torch.distributed.tensor import DTensor

from titans_seq.blocks import Block
from titans_seq.card import Card
from titans_seq.distributed.checkpoint import all_gather
from titans_seq.distributed.fully_sharded import use_every_parameter
from titans_seq.errors import UserError
from titans_seq.state import State
from titans_seq.training.config import TrainingConfig
from titans_seq.training.loaders import Batch, TrainingLoader
from titans_seq.training.optimizer import make_optimizer
from titans_seq.training.restore import check_fits, pack, random_state, set_random_state, unpack_rows
from titans_seq.training.trainable import LossOutput

CHECKPOINT_KEY = "titans_seq"
CHECKPOINT_FORMAT = 1


class Tally:
    """A running sum of losses and units, on the device, so that counting waits for nothing. Floats are float64."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.total, self.units = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def add(self, loss: Tensor, units: Tensor) -> None:
        """Count a batch: its mean loss and its units."""
        units = units.detach().double()
        self.total = self.total.to(units.device) + torch.where(units > 0, loss.detach().double() * units, 0.0)
        self.units = self.units.to(units.device) + units

    def mean(self, reduce: Callable[[Tensor], Tensor]) -> float:
        """The mean a unit, over all devices (`reduce` sums over these)."""
        total, units = self.total.clone(), self.units.clone()  # reducing may work in place
        return float(reduce(total) / reduce(units).clamp(min=1))


class TrainingData(pl.LightningDataModule):
    """Makes the loaders on each device, once its rank is known.

    make_training, make_validation: make a device's loader from its rank and the number of devices. card: what the domain says of model and
    data, for the README.md of the trained model; the run adds metrics, command and versions. about: what is printed of the data before the
    first step; the run adds the model's size and the steps, and prints nothing where it is empty.
    """

    def __init__(
        self,
        make_training: Callable[[int, int], TrainingLoader],
        make_validation: Callable[[int, int], Iterable[Batch]] | None,
        card: Card | None = None,
        about: str = "",
    ) -> None:
        super().__init__()
        self.card, self.about = card or Card(), about
        self._make_training, self._make_validation = make_training, make_validation

    @property
    def has_validation(self) -> bool:
        """Whether there are data to validate on."""
        return self._make_validation is not None

    def train_dataloader(self) -> TrainingLoader:
        """Of this device."""
        return self._make_training(self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> Any:
        """Of this device; empty without validation data."""
        return [] if self._make_validation is None else self._make_validation(self.trainer.global_rank, self.trainer.world_size)


class TrainingModule(pl.LightningModule):
    """Trains a domain's model (`Trainable`): carries its state from segment to segment, weighs by units, counts the loss.

    model: what is trained. config: how. stateful: callbacks whose state in a checkpoint is checked before it is used. run: what else a run
    that goes on with a checkpoint must share, plain values.
    """

    stateful: tuple[type[Callback], ...] = (EMAWeightAveraging,)

    def __init__(self, model: Any, config: TrainingConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.run: dict[str, Any] = {}
        self.window, self.validation = Tally(), Tally()  # since the last row of metrics; of the validation that runs
        self.learning_rate, self.gradient_norm = 0.0, torch.zeros(())  # of the last step
        self._step_units: Tensor = torch.zeros(())  # of the batches of this step so far
        self._carried: State | None = None
        self._validation_state: State | None = None
        self._restored: dict[str, Any] | None = None
        use_every_parameter(model)
        if config.compile:
            for module in model.modules():
                if isinstance(module, Block):
                    module.compile()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and its schedule."""
        optimizer, schedule = make_optimizer(self.model, self.config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint says of the run, plain values: a run with others does not go on with it."""
        return {**self.config.to_dict(), **self.run}

    def loss(self, batch: Batch, state: State | None) -> LossOutput:
        """Of a batch, going on from `state`."""
        result: LossOutput = self.model.loss(batch, state)
        return result

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum of the losses over a batch's units, scaled by a constant; `on_before_optimizer_step` makes the step's sum a mean."""
        result = self.loss(batch, self._carried)
        if self._carries and result.state is not None:
            self._carried = result.state.detach()
        self.window.add(result.loss, result.units)
        self._step_units = self._step_units.to(result.loss.device) + result.units.detach()
        return result.loss * (result.units * (self.config.accumulate / self._scale))  # Lightning divides by accumulate

    @property
    def _carries(self) -> bool:
        """Whether the next batch goes on from this one: not while sequences are short, which are none's continuation."""
        warmup = self.config.length_warmup_steps
        return self.config.carry_state and (warmup == 0 or self.trainer.global_step >= warmup)

    @property
    def _scale(self) -> int:
        """Constant that keeps gradients of sums near those of means, for "16"."""
        return self.config.batch_size * self.config.segment_length

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the step's units."""
        units = self.trainer.strategy.reduce(self._step_units.to(torch.float64, copy=True), reduce_op="mean")
        factor = self._scale / units.clamp(min=1).float()
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        self._step_units = torch.zeros(())
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip the norm of the gradient over all parameters, and remember it."""
        largest = self.config.gradient_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), largest)
        self.gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Ask for the end after the last step: Lightning then validates first."""
        if self.trainer.global_step >= self.config.max_steps:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        """Nothing is read yet."""
        self.validation, self._validation_state = Tally(), None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the loss of a batch; documents are read as in training."""
        if self._validation_state is None:  # a row that has ended has nothing to begin a stream with
            rows = next(x for x in batch.values() if isinstance(x, Tensor)).shape[0]
            self._validation_state = self.model.init_state(rows)
        result = self.loss(batch, self._validation_state)
        self._validation_state = result.state if self.config.carry_state else None
        self.validation.add(result.loss, result.units)

    def mean(self, tally: Tally) -> float:
        """A tally's mean over all devices in nats a unit, checked (`diverged`)."""
        value = tally.mean(lambda x: self.trainer.strategy.reduce(x, reduce_op="sum"))
        if not math.isfinite(value):
            self.diverged(value)
        return value

    def diverged(self, loss: float) -> None:
        """What happens when the loss is no finite number.

        Raises:
            UserError: that it is so.
        """
        raise UserError(
            f"the loss is {loss} at step {self.trainer.global_step}: training has diverged. Lower learning_rate "
            f"(now {self.config.learning_rate}) or memory.max_step, or lengthen warmup_steps, and start anew."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know of: what the run is, random numbers, the carried state, the count since the last row."""
        self.mean(self.window)  # a model that has diverged is not worth keeping
        checkpoint[CHECKPOINT_KEY] = {
            "format": CHECKPOINT_FORMAT,
            "model_type": self.model.model_type,
            "model": self.model.config.to_dict(),
            "training": self.settings,
            "random": all_gather(random_state()),
            "carried": all_gather(None if self._carried is None else pack(self._carried)),
            "window": all_gather((self.window.total.cpu(), self.window.units.cpu())),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check it, and keep our part for `on_train_start`, when nothing else draws random numbers any more.

        Raises:
            UserError: it does not have the form that this run writes.
        """
        ours = checkpoint[CHECKPOINT_KEY]
        callbacks = {
            callback.state_key: callback.state_dict() for callback in self.trainer.callbacks if isinstance(callback, self.stateful)
        }
        try:
            check_fits(checkpoint, ours, self.model, self.config, self.trainer.fit_loop.state_dict(), callbacks)
        except ValueError as error:
            raise UserError(f"{self.trainer.ckpt_path}: damaged, or not written by a run of these settings: {error}.") from error
        self._restored = ours

    def on_train_start(self) -> None:
        """Go on as the checkpoint says, or begin."""
        restored, self._restored = self._restored, None
        if restored is None:
            return
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if len(restored["random"]) == world_size:  # else every rank keeps the numbers of its seed
            set_random_state(restored["random"][rank])
        self._carried = unpack_rows(restored["carried"], rank, world_size, self.device)
        if rank == 0:
            parts = list(zip(*restored["window"], strict=True))
            self.window.total, self.window.units = (torch.stack(part).sum() for part in parts)
