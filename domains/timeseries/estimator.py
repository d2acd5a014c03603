"""`TitansEstimator`: the forecaster as a GluonTS estimator. `train(dataset)` returns a predictor that makes GluonTS forecasts."""

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Unpack

import lightning.pytorch as pl
import numpy as np
import torch
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.dataset.field_names import FieldName
from gluonts.dataset.loader import as_stacked_batches
from gluonts.itertools import Cached, Cyclic
from gluonts.time_feature import time_features_from_frequency_str
from gluonts.torch.distributions import Output, QuantileOutput
from gluonts.torch.model.estimator import PyTorchLightningEstimator, TrainOutput
from gluonts.torch.model.predictor import PyTorchPredictor
from gluonts.transform import (
    AddObservedValuesIndicator,
    AddTimeFeatures,
    AsNumpyArray,
    Chain,
    ExpectedNumInstanceSampler,
    InstanceSplitter,
    MapTransformation,
    SelectFields,
    TestSplitSampler,
    Transformation,
    ValidationSplitSampler,
)
from torch import Tensor

from domains.timeseries.config import QUANTILES, ForecasterConfig
from domains.timeseries.model import TitansForecaster, describe_output
from domains.timeseries.presets import default_backbone
from titans_seq import TitansConfig
from titans_seq.errors import UserError
from titans_seq.hub import HubOptions

SERIES_SPREAD = "series_spread"


class AddSeriesSpread(MapTransformation):
    """Adds `series_spread`, the standard deviation of each channel over the whole (training) series: (C,), or () of a univariate one."""

    @validated()
    def __init__(self, num_channels: int | None) -> None:
        super().__init__()
        self.num_channels = num_channels

    def map_transform(self, data: dict[str, Any], is_train: bool) -> dict[str, Any]:
        """Missing values are left out; a wholly missing channel has spread 0. Raises ValueError for another number of channels."""
        if self.num_channels is not None and len(data[FieldName.TARGET]) != self.num_channels:
            given, item = len(data[FieldName.TARGET]), data.get(FieldName.ITEM_ID)
            raise ValueError(f"item {item!r}: its target has {given} channels, the estimator num_channels={self.num_channels}")
        target, seen = data[FieldName.TARGET], data[FieldName.OBSERVED_VALUES]
        spread = np.ma.masked_array(target, seen == 0).std(axis=-1, dtype=np.float64)
        data[SERIES_SPREAD] = np.asarray(np.ma.filled(spread, 0.0), dtype=np.float32)
        return data


class ForecasterModule(pl.LightningModule):
    """Training of a `TitansForecaster`: AdamW with a one-cycle learning rate."""

    @validated()
    def __init__(self, config: dict, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.model = TitansForecaster(ForecasterConfig.from_dict(config))
        self.lr, self.weight_decay = lr, weight_decay

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `TitansForecaster.forward`."""
        return self.model(*args, **kwargs)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss = self.model.loss(batch)
        self.log("train_loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=len(batch["past_target"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss = self.model.loss(batch)
        self.log("val_loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=len(batch["past_target"]))
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW; weight decay on matrices only."""
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        others = [p for p in self.parameters() if p.dim() < 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}], lr=self.lr
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class KeepFailure(pl.Callback):
    """Keeps the exception that ended training: GluonTS logs it and goes on with the best checkpoint so far."""

    error: BaseException | None = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Called by Lightning."""
        self.error = exception


class TitansEstimator(PyTorchLightningEstimator):
    """Forecasts univariate or multivariate series with a Titans backbone.

    Args:
        prediction_length: steps ahead.
        freq: pandas frequency of the series ("h", "D", ..); gives the calendar features.
        num_channels: C of multivariate targets (C, T); None for univariate targets (T,).
        context_length: steps of history that the model sees; None for 4 * prediction_length. Shorter histories are padded and masked.
        patch_length: steps a token; None for a length that gives about 16 tokens.
        titans: the backbone, as of `TitansConfig.to_dict()`; None for `default_backbone()`.
        distr_output: a GluonTS QuantileOutput, NormalOutput, StudentTOutput or LaplaceOutput; None for the quantiles 0.1 to 0.9.
        lr, weight_decay, batch_size, num_batches_per_epoch, max_epochs: of training.
        validation_windows: windows of prediction_length at the end of each training series that choose the best epoch and stop
            training when it is past; None for about a tenth of the series. Only where `train` is given no validation data; 0 for none.
        patience: epochs without a better validation loss before training stops.
        seed: of weights and sampling. The same seed gives the same model on the same machine.
        progress: show Lightning's progress bar.
        trainer_kwargs: more arguments of Lightning's Trainer.
    """

    @validated()
    def __init__(
        self,
        prediction_length: int,
        freq: str,
        num_channels: int | None = None,
        context_length: int | None = None,
        patch_length: int | None = None,
        titans: dict | None = None,
        distr_output: Output | None = None,
        lr: float = 5e-3,
        weight_decay: float = 0.05,
        batch_size: int = 32,
        num_batches_per_epoch: int = 50,
        max_epochs: int = 16,
        validation_windows: int | None = None,
        patience: int = 4,
        seed: int = 0,
        progress: bool = True,
        trainer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(trainer_kwargs=dict(trainer_kwargs or {}))
        self.trainer_kwargs: dict[str, Any]
        self.prediction_length = prediction_length
        self.num_channels = num_channels
        self.time_features = time_features_from_frequency_str(freq)
        self.distr_output = distr_output or QuantileOutput(list(QUANTILES))
        context_length = 4 * prediction_length if context_length is None else context_length
        backbone = default_backbone() if titans is None else TitansConfig.from_dict(titans)
        self.config = ForecasterConfig(
            prediction_length=prediction_length,
            context_length=context_length,
            num_channels=1 if num_channels is None else num_channels,
            freq=freq,
            num_time_features=len(self.time_features),
            patch_length=max(1, round(context_length / 16)) if patch_length is None else patch_length,
            titans=backbone,
            output=describe_output(self.distr_output),
        )
        self.lr, self.weight_decay = lr, weight_decay
        self.batch_size, self.num_batches_per_epoch, self.max_epochs = batch_size, num_batches_per_epoch, max_epochs
        self.validation_windows, self.patience = validation_windows, patience
        self.seed, self.progress = seed, progress

    def create_transformation(self) -> Transformation:
        """Observed flags, zeros in place of missing values, calendar features."""
        steps: list[Transformation] = [
            SelectFields([FieldName.ITEM_ID, FieldName.INFO, FieldName.START, FieldName.TARGET], allow_missing=True),
            AsNumpyArray(FieldName.TARGET, expected_ndim=1 if self.num_channels is None else 2),
            AddObservedValuesIndicator(target_field=FieldName.TARGET, output_field=FieldName.OBSERVED_VALUES),
            AddSeriesSpread(self.num_channels),
        ]
        if self.time_features:
            steps.append(
                AddTimeFeatures(
                    start_field=FieldName.START,
                    target_field=FieldName.TARGET,
                    output_field=FieldName.FEAT_TIME,
                    time_features=self.time_features,
                    pred_length=self.prediction_length,
                )
            )
        return Chain(steps)

    def create_lightning_module(self) -> ForecasterModule:
        """A freshly initialised module, the same for the same seed."""
        torch.manual_seed(self.seed)
        return ForecasterModule(
            config=self.config.to_dict(),
            lr=self.lr,
            weight_decay=self.weight_decay,
        )

    def train_model(self, training_data: Dataset, validation_data: Dataset | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As GluonTS's; holds out validation windows where none are given, and leaves nothing behind in the working directory."""
        self._check_lengths(training_data)
        if validation_data is None:
            training_data, validation_data = self._hold_out(list(training_data))
        given: dict[str, Any] = self.trainer_kwargs
        failure = KeepFailure()
        callbacks: list[Any] = [failure, *given.get("callbacks", [])]
        if validation_data is not None:
            callbacks.append(pl.callbacks.EarlyStopping("val_loss", patience=self.patience))
        pl.seed_everything(self.seed, verbose=False)
        with tempfile.TemporaryDirectory(prefix="titans-seq-") as folder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no `val_dataloader`.*")  # series too short to hold anything out
            self.trainer_kwargs = {
                "max_epochs": self.max_epochs,
                "gradient_clip_val": 1.0,
                "limit_train_batches": self.num_batches_per_epoch,  # gives the progress bar its end
                "logger": False,
                "default_root_dir": folder,
                "enable_progress_bar": self.progress,
                "enable_model_summary": False,
                "accelerator": _accelerator(),
                **given,
                "callbacks": callbacks,
            }
            try:
                output = super().train_model(training_data, validation_data, *args, **kwargs)
            finally:
                self.trainer_kwargs = given
        if failure.error is not None:
            raise failure.error
        return output

    def _check_lengths(self, entries: Dataset) -> None:
        """One series at least must hold a training window; GluonTS would look for one without end."""
        needed = self.min_past + self.prediction_length
        longest = max((np.shape(entry["target"])[-1] for entry in entries), default=0)
        if longest < needed:
            raise ValueError(
                f"the longest training series has {longest} steps; prediction_length={self.prediction_length} "
                f"with context_length={self.config.context_length} needs at least {needed}"
            )

    def _hold_out(self, entries: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Entries without their last windows, and one entry for each of those windows, ending with it; None where series are too short."""
        steps = self.prediction_length
        shortest = min(np.shape(entry["target"])[-1] for entry in entries)
        room = (shortest - self.config.context_length) // (2 * steps)
        wanted = max(1, shortest // (10 * steps)) if self.validation_windows is None else self.validation_windows
        windows = min(wanted, room)
        if windows < 1:
            return entries, None

        def until(entry: dict[str, Any], dropped: int) -> dict[str, Any]:
            target = np.asarray(entry["target"])
            return {**entry, "target": target[..., : target.shape[-1] - dropped]}

        validation = [until(entry, n * steps) for entry in entries for n in range(windows)]
        return [until(entry, windows * steps) for entry in entries], validation

    @property
    def _input_names(self) -> list[str]:
        names = ["past_target", "past_observed_values"]
        return [*names, "past_time_feat", "future_time_feat"] if self.time_features else names

    def _splitter(self, sampler: Any) -> InstanceSplitter:
        return InstanceSplitter(
            target_field=FieldName.TARGET,
            is_pad_field=FieldName.IS_PAD,
            start_field=FieldName.START,
            forecast_start_field=FieldName.FORECAST_START,
            instance_sampler=sampler,
            past_length=self.config.context_length,
            future_length=self.prediction_length,
            time_series_fields=[FieldName.OBSERVED_VALUES, *([FieldName.FEAT_TIME] if self.time_features else [])],
        )

    def _batches(self, data: Iterable, sampler: Any, **kwargs: Any) -> Iterable:
        names = [*self._input_names, "future_target", "future_observed_values", SERIES_SPREAD]
        instances = self._splitter(sampler).apply(data, is_train=True)
        return as_stacked_batches(instances, batch_size=self.batch_size, field_names=names, output_type=torch.tensor, **kwargs)

    def create_training_data_loader(self, data: Dataset, module: ForecasterModule, **kwargs: Any) -> Iterable:
        """Windows at random places of random series."""
        sampler = ExpectedNumInstanceSampler(num_instances=1.0, min_past=self.min_past, min_future=self.prediction_length)
        return self._batches(Cyclic(Cached(data)).stream(), sampler, num_batches_per_epoch=self.num_batches_per_epoch)

    def create_validation_data_loader(self, data: Dataset, module: ForecasterModule, **kwargs: Any) -> Iterable:
        """The last window of every series."""
        return self._batches(data, ValidationSplitSampler(min_future=self.prediction_length))

    @property
    def min_past(self) -> int:
        """Fewest steps of history in a training window; the rest of the context is padded and masked."""
        return min(self.config.context_length, self.prediction_length)

    def create_predictor(self, transformation: Transformation, module: ForecasterModule) -> PyTorchPredictor:
        """The trained module as a GluonTS predictor."""
        return PyTorchPredictor(
            input_transform=transformation + self._splitter(TestSplitSampler()),
            input_names=self._input_names,
            prediction_net=module,
            forecast_generator=self.distr_output.forecast_generator,
            batch_size=self.batch_size,
            prediction_length=self.prediction_length,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )


def load_predictor(
    name_or_folder: str | Path, univariate: bool = False, batch_size: int = 32, **hub: Unpack[HubOptions]
) -> PyTorchPredictor:
    """The predictor of a saved `TitansForecaster`, ready to forecast series of its frequency and channels.

    Args:
        name_or_folder, hub: as of `TitansForecaster.from_pretrained`.
        univariate: take targets (T,) and give forecasts without a dimension of channels, as `TitansEstimator` with num_channels=None.
        batch_size: series that are forecast at once.

    Raises:
        UserError: as of `from_pretrained`, or the model does not say its frequency.
    """
    model = TitansForecaster.from_pretrained(name_or_folder, **hub)
    c = model.config
    if c.freq is None:
        raise UserError(f"{name_or_folder}: its config.json names no freq, so its calendar features cannot be made.")
    estimator = TitansEstimator(
        prediction_length=c.prediction_length,
        freq=c.freq,
        num_channels=None if univariate else c.num_channels,
        context_length=c.context_length,
        patch_length=c.patch_length,
        titans=c.titans.to_dict(),
        distr_output=model.distr_output,
        batch_size=batch_size,
    )
    module = ForecasterModule(c.to_dict(), lr=estimator.lr, weight_decay=estimator.weight_decay)
    module.model = model
    return estimator.create_predictor(estimator.create_transformation(), module.eval())


def _accelerator() -> str:
    """CUDA or the CPU: the normalisation is in float64, which other accelerators lack."""
    return "gpu" if torch.cuda.is_available() else "cpu"
