"""One training for every learned forecaster: the same loop, windows, budget and early stopping on validation.

Shape suffixes: B windows of a batch, L look-back, H horizon, C channels.
"""

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from benchmarks.timeseries.forecasters import Epoch, Fitted
from benchmarks.timeseries.protocol import Windows, evaluate


@dataclass(frozen=True)
class Budget:
    """What every learned forecaster may spend.

    Attributes:
        epochs: at most.
        batches: of an epoch at most; a smaller training set is passed through once.
        batch_size: windows of a batch, each with all its channels.
        patience: epochs without a better validation error before training ends.
        validation_windows: at most about so many, evenly apart, choose the epoch.
    """

    epochs: int = 10
    batches: int = 250
    batch_size: int = 32
    patience: int = 3
    validation_windows: int = 500


class Network(Protocol):
    """A module that forecasts (B, L, C) -> (B, H, C), may use the phase (B,) of the first step ahead, and knows its own loss."""

    def __call__(self, past_BLC: Tensor, phase_B: Tensor) -> Tensor: ...

    def loss(self, past_BLC: Tensor, future_BHC: Tensor, phase_B: Tensor) -> Tensor:
        """Scalar, for training."""
        ...


class ByIndex(Dataset):
    """Batches of windows by the places of their windows."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, places: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        return self.windows.take(torch.tensor(places))


def shuffled(windows: Windows, budget: Budget, seed: int) -> DataLoader:
    """Batches of all windows, in another order every epoch."""
    order = RandomSampler(range(len(windows)), generator=torch.Generator().manual_seed(seed))
    return DataLoader(ByIndex(windows), batch_size=None, sampler=BatchSampler(order, budget.batch_size, drop_last=False))


class Learner(pl.LightningModule):
    """AdamW with a one-cycle learning rate; the error on validation windows before training and after every epoch."""

    def __init__(self, net: nn.Module, lr: float, weight_decay: float, validation: Windows) -> None:
        super().__init__()
        self.net, self.lr, self.weight_decay, self.validation = net, lr, weight_decay, validation
        self.epochs: list[Epoch] = []
        self.losses: list[Tensor] = []

    def on_train_start(self) -> None:
        """A network that begins in closed form may never get better: what it is before training counts as well."""
        self.begin = time.perf_counter(), time.process_time()
        self.look()

    def on_train_epoch_start(self) -> None:
        self.losses = []
        self.begin = time.perf_counter(), time.process_time()

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.net.loss(*batch)  # type: ignore[operator]
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("validation_mse", self.look())

    def look(self) -> float:
        """The error on validation windows, noted with what the epoch took; the best weights are kept."""
        seconds, cpu_seconds = time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]
        begin = time.process_time()
        self.net.eval()
        error = evaluate(lambda *window: self.net(*(part.to(self.device) for part in window)).to(window[0].device), self.validation).mse
        self.net.train()
        loss = float(torch.stack(self.losses).mean()) if self.losses else None
        times = (round(x, 2) for x in (seconds, cpu_seconds, time.process_time() - begin))
        if all(error < epoch.validation_mse for epoch in self.epochs):
            self.best = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.epochs.append(Epoch(len(self.losses), loss, error, *times))
        return error

    def configure_optimizers(self) -> dict:
        matrices = [p for p in self.parameters() if p.dim() >= 2 and p.requires_grad]
        others = [p for p in self.parameters() if p.dim() < 2 and p.requires_grad]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(net: nn.Module, lr: float, weight_decay: float, train: Windows, validation: Windows, budget: Budget, seed: int) -> list[Epoch]:
    """Train `net` in place; it ends with the weights of its best epoch on validation, 0 being before training."""
    learner = Learner(net, lr, weight_decay, validation.sample(budget.validation_windows))
    loader = shuffled(train, budget, seed)
    with tempfile.TemporaryDirectory(prefix="titans-seq-") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        stop = EarlyStopping("validation_mse", patience=budget.patience, check_on_train_epoch_end=True, check_finite=True)
        trainer = pl.Trainer(
            max_epochs=budget.epochs,
            limit_train_batches=min(budget.batches, len(loader)),
            gradient_clip_val=1.0,
            callbacks=[stop],
            enable_checkpointing=False,
            logger=False,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=1,
        )
        trainer.fit(learner, loader)
    net.load_state_dict(learner.best)
    net.eval()
    return learner.epochs


@dataclass(frozen=True)
class Learned:
    """A forecaster that is trained. build: its network for the training and validation windows."""

    build: Callable[[Windows, Windows], nn.Module]
    lr: float
    budget: Budget
    weight_decay: float = 0.0

    def fit(self, train_windows: Windows, validation: Windows, seed: int) -> Fitted:
        pl.seed_everything(seed, verbose=False)
        net = self.build(train_windows, validation)
        epochs = train(net, self.lr, self.weight_decay, train_windows, validation, self.budget, seed)
        best = min(range(len(epochs)), key=lambda i: epochs[i].validation_mse)
        parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
        chosen = {"lr": self.lr, "weight_decay": self.weight_decay, "best_epoch": best, "batches": epochs[1].batches}
        chosen |= getattr(net, "chosen", {})
        return Fitted(net, parameters, chosen, epochs)
