"""`TitansEstimator`: the forecaster as a GluonTS estimator. `train(dataset)` returns a predictor that makes GluonTS forecasts."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from titans_seq.quiet import quiet_import

with quiet_import():
    import lightning.pytorch as pl

import numpy as np
import torch
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.torch.distributions import Output, QuantileOutput
from gluonts.torch.model.estimator import PyTorchLightningEstimator, TrainOutput
from gluonts.torch.model.predictor import PyTorchPredictor
from gluonts.transform import Transformation
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from domains.timeseries.checkpoints import BestWeights, Checkpoints, Patience, describe_data, ending
from domains.timeseries.config import QUANTILES, ForecasterConfig
from domains.timeseries.entries import check_dataset
from domains.timeseries.metrics import default_season_length
from domains.timeseries.outputs import LOCATION, describe_output
from domains.timeseries.predictor import TitansPredictor, make_predictor
from domains.timeseries.presets import default_backbone
from domains.timeseries.start import check_lengths, check_nonnegative, fit_units, hold_out, start_linear
from domains.timeseries.training import ForecasterModule
from domains.timeseries.windows import DYNAMIC, ForecastInstance, RandomWindows, Series, calendar, last_windows
from titans_seq import TitansConfig
from titans_seq.training.config import Precision, TrainingConfig
from titans_seq.training.folder import own_folder
from titans_seq.training.loaders import TrainingLoader
from titans_seq.training.metrics import WriteMetrics
from titans_seq.training.module import TrainingData
from titans_seq.training.trainer import check_precision, check_processes, fit, make_loggers, quiet, trainer_settings

LONGEST_PATCH = 32
LONGEST_SEASON = 400
"""Steps of a season that is taken without being asked for."""
WARMUP_SHARE = 0.1
OWN_ARGUMENTS = {
    "gradient_clip_val": "gradient_clip",
    "accumulate_grad_batches": "accumulate",
    "max_steps": "max_steps",
    "min_epochs": "patience (None trains for all of max_steps)",
    "min_steps": "patience (None trains for all of max_steps)",
}
"""Of Lightning's Trainer, whose work the forecaster's training does itself."""


def season_of(freq: str, season_length: int | None) -> int | None:
    """The season that was asked for, or the usual one of a frequency; None where there is none."""
    if season_length is None:
        season_length = default_season_length(freq)
        season_length = season_length if season_length <= LONGEST_SEASON else 1
    return None if season_length == 1 else season_length


class TitansEstimator(PyTorchLightningEstimator):
    """Forecasts univariate or multivariate series with a Titans backbone.

    Args:
        prediction_length: steps ahead.
        freq: pandas frequency of the series ("h", "D", ..); gives the calendar features.
        num_channels: C of multivariate targets (C, T); None for univariate targets (T,).
        context_length: steps of history that the model sees; None for 4 * prediction_length. Shorter histories are padded and masked.
        patch_length: steps a token; None for a length that gives about 16 tokens, at most 32.
        channel_mixing: whether channels see one another.
        absolute_level: whether the model is told level and spread against those of the training data: good for a few long series that it
            knows, not for many of unlike units.
        num_feat_dynamic_real, num_past_feat_dynamic_real, num_feat_static_real, cardinality: of the features that entries have, under
            GluonTS's names: feat_dynamic_real (F, T + H) known ahead, past_feat_dynamic_real (F, T), feat_static_real (F,),
            feat_static_cat with so many categories each. Missing dynamic values (NaN) are masked.
        season_length: steps of the season whose profile is taken out of each channel and added to its forecasts; None for the usual
            one of the frequency (`default_season_length`: 24 for "h", 7 for "D", 12 for "ME"; none above 400), 1 for none. It stays out
            where the start does better without it on held-out windows.
        channel_maps: whether the linear part has a map for each channel.
        spread_prior: as of `ForecasterConfig`; above 0 only for channels whose units the model is to know.
        titans: the backbone, as of `TitansConfig.to_dict()`; None for `default_backbone()`.
        distr_output: a GluonTS QuantileOutput, NormalOutput, StudentTOutput, LaplaceOutput or (for counts) NegativeBinomialOutput; None for
            the quantiles 0.1 to 0.9.
        lr, weight_decay, batch_size, num_batches_per_epoch, max_epochs: of training.
        max_steps: of training, in place of max_epochs; the last epoch is shorter where they are no whole number of epochs.
        accumulate, gradient_clip, ema_decay, precision, devices, nodes: as of `TrainingConfig`: a step is `accumulate` batches, of
            `batch_size` windows over all devices, and with ema_decay the average of the weights is what is validated and kept.
        forecasts_per_window: training forecasts from the ends of so many last patches of each window.
        unfinished_patches: train also on contexts that end within a patch, as streams do.
        ridge_start: begin from the closed-form linear forecaster (`start_from_ridge`); counts have none.
        linear_memory: width of the keys with which the linear part goes on learning as it reads, 32 for example, for streams that change
            (`forecast_memory`); 0 for none. It needs ridge_start.
        nonnegative: of series that are never negative, such as sales: quantiles and samples are clipped at 0. True for all channels, or
            the numbers of those. Training on a negative value is refused; the loss is of the quantiles as they are.
        validation_windows: windows of prediction_length at the end of each training series that choose the best epoch; None for about a
            tenth of the series. Only where `train` is given no validation data; 0 for none.
        patience: epochs without a better validation loss before training stops; None to go on.
        seed: of weights and sampling. The same seed gives the same model on the same machine.
        progress: show a bar, or lines where there is no terminal: steps, loss, windows per second, time left.
        trainer_kwargs: more arguments of Lightning's Trainer.

    Raises:
        ValueError: settings that no forecaster or training can have.
        UserError: a precision that the machine does not have.
    """

    @validated()
    def __init__(
        self,
        prediction_length: int,
        freq: str,
        num_channels: int | None = None,
        context_length: int | None = None,
        patch_length: int | None = None,
        channel_mixing: bool = False,
        absolute_level: bool = False,
        num_feat_dynamic_real: int = 0,
        num_past_feat_dynamic_real: int = 0,
        num_feat_static_real: int = 0,
        cardinality: list[int] | None = None,
        season_length: int | None = None,
        channel_maps: bool = False,
        spread_prior: float = 0.0,
        titans: dict | None = None,
        distr_output: Output | None = None,
        lr: float = 5e-3,
        weight_decay: float = 0.05,
        batch_size: int = 32,
        num_batches_per_epoch: int = 50,
        max_epochs: int = 16,
        max_steps: int | None = None,
        accumulate: int = 1,
        gradient_clip: float | None = 1.0,
        ema_decay: float | None = None,
        precision: Precision = "32",
        devices: int = 1,
        nodes: int = 1,
        forecasts_per_window: int = 1,
        unfinished_patches: bool = False,
        ridge_start: bool = True,
        linear_memory: int = 0,
        nonnegative: bool | list[int] = False,
        validation_windows: int | None = None,
        patience: int | None = 4,
        seed: int = 0,
        progress: bool = True,
        trainer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(trainer_kwargs=dict(trainer_kwargs or {}))
        self.trainer_kwargs: dict[str, Any]
        self.prediction_length = prediction_length
        self.univariate = num_channels is None
        self.distr_output = distr_output or QuantileOutput(list(QUANTILES))
        context_length = 4 * prediction_length if context_length is None else context_length
        output = describe_output(self.distr_output)
        self.config = ForecasterConfig(
            prediction_length=prediction_length,
            context_length=context_length,
            num_channels=1 if num_channels is None else num_channels,
            channel_mixing=channel_mixing,
            absolute_level=absolute_level,
            freq=freq,
            num_time_features=calendar(np.zeros(1, np.int64), freq).shape[-1],
            num_feat_dynamic_real=num_feat_dynamic_real,
            num_past_feat_dynamic_real=num_past_feat_dynamic_real,
            num_feat_static_real=num_feat_static_real,
            cardinality=tuple(cardinality or ()),
            patch_length=min(max(1, round(context_length / 16)), LONGEST_PATCH) if patch_length is None else patch_length,
            titans=default_backbone() if titans is None else TitansConfig.from_dict(titans),
            season_length=season_of(freq, season_length) if output.kind in LOCATION else None,
            channel_maps=channel_maps,
            spread_prior=spread_prior,
            linear_memory=linear_memory,
            nonnegative=tuple(range(num_channels or 1) if nonnegative is True else sorted(nonnegative or ())),
            output=output,
        )
        if linear_memory and not ridge_start:
            raise ValueError("linear_memory needs ridge_start=True: the memory learns the errors of the linear forecaster")
        for name in OWN_ARGUMENTS.keys() & self.trainer_kwargs.keys():
            raise ValueError(f"trainer_kwargs has {name!r}: give the estimator {OWN_ARGUMENTS[name]} instead")
        if min(num_batches_per_epoch, accumulate) < 1:
            raise ValueError(f"num_batches_per_epoch and accumulate must be at least 1, got {num_batches_per_epoch} and {accumulate}")
        self.lr, self.batch_size, self.num_batches_per_epoch = lr, batch_size, num_batches_per_epoch
        epoch_steps = -(-num_batches_per_epoch // accumulate)
        max_steps = self.trainer_kwargs.get("max_epochs", max_epochs) * epoch_steps if max_steps is None else max_steps
        self.max_epochs = -(-max_steps // epoch_steps)
        self.training_config = TrainingConfig(
            learning_rate=lr,
            weight_decay=weight_decay,
            max_steps=max_steps,
            warmup_steps=round(WARMUP_SHARE * max_steps),
            minimum_share=0.01,
            gradient_clip=gradient_clip,
            precision=precision,
            batch_size=batch_size,
            accumulate=accumulate,
            segment_length=1,  # windows are what is counted
            carry_state=False,
            ema_decay=ema_decay,
            seed=seed,
            validate_every=epoch_steps,
            checkpoint_every=epoch_steps,
            log_every=epoch_steps,
            devices=devices,
            nodes=nodes,
            strategy="auto" if devices * nodes == 1 else "ddp",
        )
        check_precision(self.training_config)
        self.forecasts_per_window, self.unfinished_patches, self.ridge_start = forecasts_per_window, unfinished_patches, ridge_start
        self.validation_windows, self.patience = validation_windows, patience
        self.seed, self.progress = seed, progress

    @classmethod
    def derive_auto_fields(cls, train_iter: Dataset) -> dict[str, Any]:
        """freq, num_channels, and the numbers of features and categories that entries have, for `from_inputs(dataset, ..)`."""
        check_dataset(train_iter)
        first, *rest = train_iter
        rows = {name: len(np.atleast_2d(first[name])) if name in first else 0 for name in DYNAMIC}
        categories = np.stack([np.reshape(entry.get("feat_static_cat", ()), -1) for entry in (first, *rest)])
        return {
            "freq": first["start"].freqstr,
            "num_channels": len(first["target"]) if np.ndim(first["target"]) == 2 else None,
            **{count: rows[name] for name, count in DYNAMIC.items()},
            "num_feat_static_real": np.size(first.get("feat_static_real", ())),
            "cardinality": [int(highest) + 1 for highest in categories.max(0)] if categories.size else None,
        }

    @property
    def min_past(self) -> int:
        """Fewest steps of history in a training window; the rest of the context is padded and masked."""
        return min(self.config.context_length, self.prediction_length)

    def create_transformation(self) -> Transformation:
        """From an entry to the arguments of the network."""
        return ForecastInstance(self.config.to_dict(), self.univariate)

    def create_lightning_module(self) -> ForecasterModule:
        """A freshly initialised module, the same for the same seed."""
        torch.manual_seed(self.seed)
        return ForecasterModule(
            config=self.config.to_dict(),
            training=self.training_config.to_dict(),
            forecasts=self.forecasts_per_window,
            unfinished=self.unfinished_patches,
        )

    def create_training_data_loader(self, data: Sequence[Series], module: ForecasterModule, **kwargs: Any) -> TrainingLoader:
        """Windows at random places of random series."""
        return TrainingLoader(self._windows(data), self.num_batches_per_epoch)

    def create_validation_data_loader(self, data: Sequence[Series], module: ForecasterModule, **kwargs: Any) -> DataLoader:
        """The last window of every series."""
        return DataLoader(last_windows(data, self.config, self.batch_size), batch_size=None)  # type: ignore[arg-type]

    def _windows(self, series: Sequence[Series]) -> RandomWindows:
        sizes = {"batch_size": self.batch_size, "num_batches": self.num_batches_per_epoch}
        return RandomWindows(series, self.config, **sizes, min_past=self.min_past, seed=self.seed)

    def train(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        ckpt_path: str | None = None,
        checkpoints: str | Path | None = None,
        metrics: str | Path | None = None,
        **kwargs: Any,
    ) -> TitansPredictor:
        """Train, and give the predictor of the best epoch; arguments and errors as of `train_model`."""
        return self.train_model(training_data, validation_data, ckpt_path=ckpt_path, checkpoints=checkpoints, metrics=metrics).predictor

    def train_model(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        from_predictor: PyTorchPredictor | None = None,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        ckpt_path: str | None = None,
        checkpoints: str | Path | None = None,
        metrics: str | Path | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """As GluonTS's; holds out validation windows where none are given, and leaves nothing behind in the working directory.

        shuffle_buffer_length and cache_data have no effect: windows are drawn at random places of series that stay where they are.

        Args:
            training_data, validation_data: entries, in a list or any dataset of GluonTS: dictionaries with `start`, a pandas Period,
                `target`, (C, T) or univariate (T,), and the features that the estimator is told of. `read_table(path).to_gluonts()`
                makes them of a file, `gluonts.dataset.pandas.PandasDataset(frame, target="column")` univariate ones of a pandas frame.
            checkpoints: folder for a checkpoint after every epoch, and after the step that runs when the process is asked to end (Ctrl-C,
                SIGTERM). If it has one, of a run that was stopped, training goes on from there and ends with the weights that it would
                have had (on the CPU bit for bit); a finished run is not trained again.
            metrics: file for a row of metrics after every epoch (`WriteMetrics`), metrics.csv of a run.

        Raises:
            TypeError: a table, a data frame, a path or one entry in place of entries; the message says how to make them.
            ValueError: series that the estimator does not fit, or too short ones; both ckpt_path and checkpoints.
            UserError: `checkpoints` is of a run with other settings or data, damaged, or in use by another process; the processes that a
                launcher has started are not devices times nodes.
            KeyboardInterrupt, SystemExit: Ctrl-C; with `checkpoints` SIGTERM (status 143).
        """
        check_processes(self.training_config)
        check_dataset(training_data)
        if validation_data is not None:
            check_dataset(validation_data, "validation_data")
        arguments = (training_data, validation_data, from_predictor, None if metrics is None else Path(metrics))
        if checkpoints is None:
            return self._train_model(*arguments, ckpt_path, None)
        if ckpt_path is not None:
            raise ValueError("give ckpt_path or checkpoints, not both: a run goes on from the newest of its checkpoints")
        with own_folder(Path(checkpoints), resume=True) if rank_zero_only.rank == 0 else nullcontext():
            return self._train_model(*arguments, None, Path(checkpoints))

    def _train_model(
        self,
        training_data: Dataset,
        validation_data: Dataset | None,
        from_predictor: TitansPredictor | None,
        metrics: Path | None,
        ckpt_path: str | Path | None,
        folder: Path | None,
    ) -> TrainOutput:
        given = [Series(entry, self.config, self.univariate) for entry in training_data]
        check_lengths(given, self.config, self.min_past)
        check_nonnegative(given, self.config.nonnegative)
        if validation_data is None:
            training, validation = hold_out(given, self.config, self.validation_windows)
            described = describe_data(given) if folder else ""
        else:
            training, validation = given, [Series(entry, self.config, self.univariate) for entry in validation_data]
            described = describe_data([*training, *validation]) if folder else ""
        module, windows = self.create_lightning_module(), self._windows(training)
        module.run = self._settings(described, from_predictor)
        checkpoint = ckpt_path if folder is None else module.newest_checkpoint(folder)
        if from_predictor is not None:
            module.load_state_dict(from_predictor.network.state_dict())
        elif folder is None or checkpoint is None:  # else the checkpoint has what came of it
            fit_units(module.model, training)
            if self.ridge_start and self.config.output.kind in LOCATION:
                start_linear(module.model, windows, training, validation)
        trainer = self._fit(module, self._data(module, windows, validation), metrics, checkpoint, folder)
        transformation = self.create_transformation()
        return TrainOutput(transformation, module, trainer, self.create_predictor(transformation, module))

    def _settings(self, data: str, from_predictor: TitansPredictor | None) -> dict[str, Any]:
        """How a run trains and on what, in plain values: what a run that goes on with its checkpoints must share."""
        names = ("num_batches_per_epoch", "forecasts_per_window", "unfinished_patches", "ridge_start")
        settings = {name: getattr(self, name) for name in (*names, "validation_windows", "patience")}
        begun = {} if from_predictor is None else {"from_predictor": from_predictor.fingerprint}
        return {**settings, **begun, "data": data}

    def _data(self, module: ForecasterModule, windows: RandomWindows, validation: Sequence[Series]) -> TrainingData:
        """Each device's share of every batch, going on from where `windows` are or a checkpoint was; and of the validation windows."""

        def make_training(rank: int, world_size: int) -> TrainingLoader:
            source = windows.of(windows.series, rank, world_size)
            source.load_state_dict(module.position or windows.state_dict())
            return TrainingLoader(source, self.num_batches_per_epoch)

        def make_validation(rank: int, world_size: int) -> DataLoader:
            share = validation[rank::world_size] if len(validation) >= world_size else validation
            return self.create_validation_data_loader(share, module)

        return TrainingData(make_training, make_validation if validation else None)

    def _fit(
        self, module: ForecasterModule, data: TrainingData, metrics: Path | None, checkpoint: str | Path | None, folder: Path | None
    ) -> pl.Trainer:
        """Train; the module has the weights of the best epoch afterwards, or those it began with if none is better."""
        pl.seed_everything(self.seed, verbose=False)
        with warnings.catch_warnings(), quiet():
            warnings.filterwarnings("ignore", message=".*no `val_dataloader`.*")
            trainer, best, patience = self._trainer(module, data.has_validation, metrics, folder)
            fit(trainer, module, data, None if checkpoint is None else Path(checkpoint), folder)
        if trainer.is_global_zero and trainer.progress_bar_callback is not None:
            print(ending(trainer.global_step, self.training_config.max_steps, best, patience))
        module.load_state_dict(best.weights)
        return trainer

    def _trainer(
        self, module: ForecasterModule, validates: bool, metrics: Path | None, folder: Path | None
    ) -> tuple[pl.Trainer, BestWeights, Patience | None]:
        config, given = self.training_config, dict(self.trainer_kwargs)
        rows = WriteMetrics(config, self.num_batches_per_epoch)
        best = BestWeights(rows, validates)
        patience = Patience("val_loss", patience=self.patience) if validates and self.patience is not None else None
        callbacks = [*given.pop("callbacks", []), best, *([] if patience is None else [patience])]
        if folder is not None:
            callbacks.append(Checkpoints(folder, config, validates))
        loggers = given.pop("logger", False)
        if metrics is not None:
            own = loggers if isinstance(loggers, Iterable) else [loggers] if isinstance(loggers, Logger) else []
            loggers = [*make_loggers(metrics, rows.columns(module.model.metric)), *own]
        settings = trainer_settings(config, rows, callbacks, given.pop("enable_progress_bar", self.progress))
        settings["plugins"] += given.pop("plugins", [])
        sizes = {"limit_train_batches": self.num_batches_per_epoch, "limit_val_batches": None if validates else 0}
        limits = {"max_epochs": self.max_epochs}  # the module ends the last of them; with max_steps Lightning would resume by steps
        return pl.Trainer(**{**settings, **sizes, "logger": loggers, **given, **limits}), best, patience

    def create_predictor(self, transformation: Transformation, module: ForecasterModule) -> TitansPredictor:
        """The trained module as a GluonTS predictor."""
        return make_predictor(module, self.univariate, self.batch_size)
