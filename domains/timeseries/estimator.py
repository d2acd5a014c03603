"""`TitansEstimator`: the forecaster as a GluonTS estimator. `train(dataset)` returns a predictor that makes GluonTS forecasts."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.model.forecast import Forecast
from gluonts.time_feature import get_seasonality
from gluonts.torch.distributions import Output, QuantileOutput
from gluonts.torch.model.estimator import PyTorchLightningEstimator, TrainOutput
from gluonts.torch.model.predictor import PyTorchPredictor
from gluonts.transform import Transformation
from torch import Tensor
from torch.utils.data import DataLoader

from domains.timeseries.checkpoints import BestWeights, Checkpoints, Patience, WindowLoader, describe_data, resume
from domains.timeseries.config import QUANTILES, ForecasterConfig
from domains.timeseries.data import quiet_pandas
from domains.timeseries.forecast_memory import start_forecast_memory
from domains.timeseries.model import TitansForecaster
from domains.timeseries.online import OnlineForecaster
from domains.timeseries.outputs import LOCATION, describe_output
from domains.timeseries.paths import with_paths
from domains.timeseries.presets import default_backbone
from domains.timeseries.ridge import Batches, start_from_ridge
from domains.timeseries.windows import DYNAMIC, ForecastInstance, RandomWindows, Series, Units, calendar, last_windows
from titans_seq import TitansConfig
from titans_seq.errors import UserError
from titans_seq.hub import HubOptions
from titans_seq.training.checkpoints import WholeFileCheckpointIO
from titans_seq.training.config import TrainingConfig
from titans_seq.training.folder import own_folder
from titans_seq.training.optimizer import make_optimizer

INPUT_NAMES = ["past_target", "past_observed_values", "past_feat", "future_feat", "feat_static_real", "feat_static_cat"]
LONGEST_PATCH = 32
WARMUP_SHARE = 0.1
LONGEST_SEASON = 400
"""Steps of a season that is taken without being asked for."""
RIDGE_EPOCHS = 4
"""Epochs' worth of windows that the closed-form start looks at."""
COUNTED = 0.4
"""Of each training series, at its end: where the linear memory shows what it can do."""
STREAMS = 64
"""Training series, evenly apart, on which it does so, at most."""


def season_of(freq: str, season_length: int | None) -> int | None:
    """The season that was asked for, or GluonTS's of a frequency; None where there is none."""
    if season_length is None:
        with quiet_pandas():
            season_length = get_seasonality(freq)
        season_length = season_length if season_length <= LONGEST_SEASON else 1
    return None if season_length == 1 else season_length


def _epochs(loader: DataLoader) -> Batches:
    """Batches of RIDGE_EPOCHS epochs."""
    return lambda: (batch for _ in range(RIDGE_EPOCHS) for batch in loader)


class ForecasterModule(pl.LightningModule):
    """Training of a `TitansForecaster`."""

    @validated()
    def __init__(
        self, config: dict, lr: float = 1e-3, weight_decay: float = 0.0, max_steps: int = 1, forecasts: int = 1, unfinished: bool = False
    ) -> None:
        super().__init__()
        self.model = TitansForecaster(ForecasterConfig.from_dict(config))
        warmup_steps = round(WARMUP_SHARE * max_steps)
        self.training_config = TrainingConfig(
            learning_rate=lr, weight_decay=weight_decay, max_steps=max_steps, warmup_steps=warmup_steps, minimum_share=0.01
        )
        self.forecasts, self.unfinished = forecasts, unfinished

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `TitansForecaster.forward`."""
        return self.model(*args, **kwargs)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        unfinished = int(torch.randint(self.model.config.patch_length, ())) if self.unfinished else 0
        loss = self.model.loss(batch, self.forecasts, unfinished)
        self.log("train_loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=len(batch["past_target"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss = self.model.loss(batch)
        self.log("val_loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=len(batch["past_target"]))
        return loss

    def configure_optimizers(self) -> Any:
        """The package's own: AdamW by the role of each parameter, warm-up and cosine."""
        optimizer, schedule = make_optimizer(self.model, self.training_config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TitansPredictor(PyTorchPredictor):
    """Makes GluonTS forecasts of GluonTS entries with a trained `TitansForecaster`."""

    @property
    def univariate(self) -> bool:
        """Whether targets and forecasts have no dimension of channels."""
        return self.input_transform.univariate

    def online(self, start: pd.Period | None = None, **arguments: Any) -> OnlineForecaster:
        """A stream to carry on (`OnlineForecaster`, which says what `arguments` there are), from the period `start` on."""
        return OnlineForecaster(self, start, **arguments)

    def load_online(self, path: str | Path, **arguments: Any) -> OnlineForecaster:
        """Go on with a stream that was saved; arguments and errors as of `OnlineForecaster.load`."""
        return OnlineForecaster.load(path, self, **arguments)

    def predict(self, dataset: Dataset, num_samples: int | None = None) -> Iterator[Forecast]:
        """Forecasts of each entry, in order: quantiles or a distribution of each step.

        Args:
            dataset: GluonTS entries.
            num_samples: give so many sample paths instead (gluonts SampleForecast), whose steps and channels depend on one another as in
                the entry's own history (`paths.sample_paths`).

        Raises:
            ValueError: an entry does not fit, or its history is too short for paths.
        """
        if num_samples is None:
            yield from self._forecasts(dataset)
        else:
            yield from with_paths(self._forecasts, dataset, num_samples)

    def _forecasts(self, dataset: Dataset) -> Iterator[Forecast]:
        """As GluonTS makes them, which would leave gradients off from the first forecast to the last, in whatever runs between them."""
        forecasts = super().predict(dataset)
        while True:
            with torch.no_grad():
                forecast = next(forecasts, None)
            if forecast is None:
                return
            yield forecast

    @property
    def model(self) -> TitansForecaster:
        """The network, for `save_pretrained` and to carry streams on."""
        return self.prediction_net.model

    @cached_property
    def fingerprint(self) -> int:
        """63 bits of a digest of the network's configuration and weights, as they were when this was first asked for: by it a saved stream
        knows its model.
        """
        digest = hashlib.sha256(repr(self.model.config).encode())
        for name, x in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + x.detach().cpu().contiguous().numpy().tobytes())
        return int.from_bytes(digest.digest()[:8], "big") >> 1


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
        season_length: steps of the season whose profile is taken out of each channel and added to its forecasts; None for GluonTS's of the
            frequency (24 for "h", 12 for "ME"), 1 for none. It stays out where the start does better without it on held-out windows.
        channel_maps: whether the linear part has a map for each channel.
        spread_prior: as of `ForecasterConfig`; above 0 only for channels whose units the model is to know.
        titans: the backbone, as of `TitansConfig.to_dict()`; None for `default_backbone()`.
        distr_output: a GluonTS QuantileOutput, NormalOutput, StudentTOutput, LaplaceOutput or (for counts) NegativeBinomialOutput; None for
            the quantiles 0.1 to 0.9.
        lr, weight_decay, batch_size, num_batches_per_epoch, max_epochs: of training.
        forecasts_per_window: training forecasts from the ends of so many last patches of each window.
        unfinished_patches: train also on contexts that end within a patch, as streams do.
        ridge_start: begin from the closed-form linear forecaster (`start_from_ridge`); counts have none.
        linear_memory: width of the keys with which the linear part goes on learning as it reads, 32 for example, for streams that change
            (`forecast_memory`); 0 for none. It needs ridge_start.
        validation_windows: windows of prediction_length at the end of each training series that choose the best epoch; None for about a
            tenth of the series. Only where `train` is given no validation data; 0 for none.
        patience: epochs without a better validation loss before training stops; None to go on.
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
        forecasts_per_window: int = 1,
        unfinished_patches: bool = False,
        ridge_start: bool = True,
        linear_memory: int = 0,
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
            output=output,
        )
        if linear_memory and not ridge_start:
            raise ValueError("linear_memory needs ridge_start=True: the memory learns the errors of the linear forecaster")
        self.lr, self.weight_decay = lr, weight_decay
        self.batch_size, self.num_batches_per_epoch, self.max_epochs = batch_size, num_batches_per_epoch, max_epochs
        self.forecasts_per_window, self.unfinished_patches, self.ridge_start = forecasts_per_window, unfinished_patches, ridge_start
        self.validation_windows, self.patience = validation_windows, patience
        self.seed, self.progress = seed, progress

    @classmethod
    def derive_auto_fields(cls, train_iter: Dataset) -> dict[str, Any]:
        """freq, num_channels, and the numbers of features and categories that entries have, for `from_inputs(dataset, ..)`."""
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
            lr=self.lr,
            weight_decay=self.weight_decay,
            max_steps=self.trainer_kwargs.get("max_epochs", self.max_epochs) * self.num_batches_per_epoch,
            forecasts=self.forecasts_per_window,
            unfinished=self.unfinished_patches,
        )

    def create_training_data_loader(self, data: Sequence[Series], module: ForecasterModule, **kwargs: Any) -> WindowLoader:
        """Windows at random places of random series."""
        sizes = {"batch_size": self.batch_size, "num_batches": self.num_batches_per_epoch}
        return WindowLoader(RandomWindows(data, self.config, **sizes, min_past=self.min_past, seed=self.seed))

    def create_validation_data_loader(self, data: Sequence[Series], module: ForecasterModule, **kwargs: Any) -> DataLoader:
        """The last window of every series."""
        return DataLoader(last_windows(data, self.config, self.batch_size), batch_size=None)  # type: ignore[arg-type]

    def train(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        ckpt_path: str | None = None,
        checkpoints: str | Path | None = None,
        **kwargs: Any,
    ) -> TitansPredictor:
        """Train, and give the predictor of the best epoch; arguments and errors as of `train_model`."""
        return self.train_model(training_data, validation_data, ckpt_path=ckpt_path, checkpoints=checkpoints).predictor

    def train_model(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        from_predictor: PyTorchPredictor | None = None,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        ckpt_path: str | None = None,
        checkpoints: str | Path | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """As GluonTS's; holds out validation windows where none are given, and leaves nothing behind in the working directory.

        shuffle_buffer_length and cache_data have no effect: windows are drawn at random places of series that stay where they are.

        Args:
            checkpoints: folder for a checkpoint after every epoch. If it has one, of a run that was stopped, training goes on from there
                and ends with the weights that it would have had (on the CPU bit for bit); a finished run is not trained again.

        Raises:
            ValueError: series that the estimator does not fit, or too short ones; both ckpt_path and checkpoints.
            UserError: `checkpoints` is of a run with other settings or data, damaged, or in use by another process.
        """
        if checkpoints is None:
            return self._train_model(training_data, validation_data, from_predictor, ckpt_path, None)
        if ckpt_path is not None:
            raise ValueError("give ckpt_path or checkpoints, not both: a run goes on from the newest of its checkpoints")
        with own_folder(Path(checkpoints), resume=True):
            return self._train_model(training_data, validation_data, from_predictor, None, Path(checkpoints))

    def _train_model(
        self,
        training_data: Dataset,
        validation_data: Dataset | None,
        from_predictor: TitansPredictor | None,
        ckpt_path: str | Path | None,
        folder: Path | None,
    ) -> TrainOutput:
        given = [Series(entry, self.config, self.univariate) for entry in training_data]
        self._check_lengths(given)
        if validation_data is None:
            training, validation = self._hold_out(given)
            described = describe_data(given) if folder else ""
        else:
            training, validation = given, [Series(entry, self.config, self.univariate) for entry in validation_data]
            described = describe_data([*training, *validation]) if folder else ""
        module = self.create_lightning_module()
        loader = self.create_training_data_loader(training, module)
        saving = Checkpoints(folder, self._settings(described, from_predictor)) if folder else None
        newest = saving.newest(module.model) if saving else None
        if from_predictor is not None:
            module.load_state_dict(from_predictor.network.state_dict())
        elif newest is None:  # else the checkpoint has what came of it
            self._fit_units(module.model, training)
            if self.ridge_start and self.config.output.kind in LOCATION:
                self._start_linear(module, training, validation, loader)
        trainer = self._fit(module, loader, validation, saving, newest or ckpt_path)
        transformation = self.create_transformation()
        return TrainOutput(transformation, module, trainer, self.create_predictor(transformation, module))

    def _settings(self, data: str, from_predictor: TitansPredictor | None) -> dict[str, Any]:
        """How a run trains and on what, in plain values: what a run that goes on with its checkpoints must share."""
        names = ("lr", "weight_decay", "batch_size", "num_batches_per_epoch", "forecasts_per_window", "unfinished_patches", "ridge_start")
        settings = {name: getattr(self, name) for name in (*names, "validation_windows", "patience", "seed")}
        begun = {} if from_predictor is None else {"from_predictor": from_predictor.fingerprint}
        return {"max_epochs": self.trainer_kwargs.get("max_epochs", self.max_epochs), **settings, **begun, "data": data}

    def _start_linear(self, module: ForecasterModule, training: Sequence[Series], validation: Sequence[Series], loader: DataLoader) -> None:
        """The closed-form linear part, and the memory of its errors, which is chosen for one that has not seen the ends of the series."""
        held_out = (lambda: last_windows(validation, self.config, self.batch_size)) if validation else None
        if self.config.linear_memory:
            early = [one.without_last(round(COUNTED * one.length)) for one in training]
            longest = max(one.length for one in early)
            if longest < self.min_past + self.prediction_length:
                raise ValueError(
                    f"linear_memory is chosen on the last {COUNTED:.0%} of each series: before that the longest has {longest} steps, "
                    f"prediction_length={self.prediction_length} needs {self.min_past + self.prediction_length}"
                )
            start_from_ridge(module.model, _epochs(self.create_training_data_loader(early, module)))
            streams = [one.stream(COUNTED) for one in training[:: -(-len(training) // STREAMS)]]
            start_forecast_memory(module.model, _epochs(loader)(), streams)
        start_from_ridge(module.model, _epochs(loader), held_out)

    def _fit(
        self,
        module: ForecasterModule,
        loader: WindowLoader,
        validation: list[Series],
        saving: Checkpoints | None,
        ckpt_path: str | Path | None,
    ) -> pl.Trainer:
        """Train; the module has the weights of the best epoch afterwards, or those it began with if none is better."""
        validating = self.create_validation_data_loader(validation, module) if validation else None
        best = BestWeights(validating)
        callbacks: list[Any] = [best, *self.trainer_kwargs.get("callbacks", [])]
        if validation and self.patience is not None:
            callbacks.append(Patience("val_loss", patience=self.patience))
        settings = {
            "max_epochs": self.max_epochs,
            "gradient_clip_val": 1.0,
            "limit_train_batches": self.num_batches_per_epoch,  # gives the progress bar its end
            "logger": False,
            "enable_progress_bar": self.progress,
            "enable_model_summary": False,
            "accelerator": "gpu" if torch.cuda.is_available() else "cpu",  # normalisation is in float64, which others lack
            **self.trainer_kwargs,
            "callbacks": callbacks,
        }
        if saving is not None:
            callbacks.append(saving)
            settings["plugins"] = [*self.trainer_kwargs.get("plugins", []), WholeFileCheckpointIO()]
        pl.seed_everything(self.seed, verbose=False)
        with warnings.catch_warnings():
            for message in (".*no `val_dataloader`.*", ".*does not have many workers.*", ".*`isinstance\\(treespec, LeafSpec\\)`.*"):
                warnings.filterwarnings("ignore", message=message)
            trainer = pl.Trainer(**settings)
            if saving is not None and ckpt_path is not None:
                resume(Path(ckpt_path), trainer, module, loader)
            trainer.fit(module, loader, validating, ckpt_path=ckpt_path, weights_only=True)
        if best.weights:
            module.load_state_dict(best.weights)
        return trainer

    def _check_lengths(self, series: Sequence[Series]) -> None:
        """One series at least must hold a training window."""
        needed = self.min_past + self.prediction_length
        longest = max((one.length for one in series), default=0)
        if longest < needed:
            raise ValueError(
                f"the longest training series has {longest} steps; prediction_length={self.prediction_length} "
                f"with context_length={self.config.context_length} needs at least {needed}"
            )

    def _hold_out(self, series: list[Series]) -> tuple[list[Series], list[Series]]:
        """Series without their last windows, and one for each of those windows, ending with it; a series that is too short has none."""
        steps, training, validation = self.prediction_length, [], []
        for one in series:
            room = (one.length - self.config.context_length) // (2 * steps)
            wanted = max(1, one.length // (10 * steps)) if self.validation_windows is None else self.validation_windows
            windows = max(0, min(wanted, room))
            trained = one.without_last(windows * steps)
            training.append(trained)
            for n in range(windows):
                window = one.without_last(n * steps)
                window.units = trained.units  # known from training; to go through a long series for each window would take hours
                validation.append(window)
        if self.validation_windows and not validation:
            raise ValueError(
                f"no series is long enough to hold out a validation window: context_length={self.config.context_length} and twice "
                f"prediction_length={steps} are needed, the longest has {max(one.length for one in series)} steps; or give "
                "validation_windows=0"
            )
        return training, validation

    def _fit_units(self, model: TitansForecaster, series: Sequence[Series]) -> None:
        """Level and spread of channels and features in the training data."""
        c = self.config
        channels = Units.none(c.num_channels)
        features = [Units.none(n) for n in (c.num_feat_dynamic_real, c.num_past_feat_dynamic_real, c.num_feat_static_real)]
        for one in series:
            channels = channels.merged(one.units)
            parts = [*(one.dynamic[name] for name in DYNAMIC), one.static_real[:, None]]
            features = [units.merged(Units.of(part)) for units, part in zip(features, parts, strict=True)]
        for name, of_rows in (("channel", [channels]), ("feature", features)):
            spread = np.concatenate([units.spread for units in of_rows])
            getattr(model, f"{name}_loc").copy_(torch.from_numpy(np.concatenate([units.mean for units in of_rows])))
            getattr(model, f"{name}_scale").copy_(torch.from_numpy(np.where(spread > 0, spread, 1.0)))

    def create_predictor(self, transformation: Transformation, module: ForecasterModule) -> TitansPredictor:
        """The trained module as a GluonTS predictor."""
        return make_predictor(module, self.univariate, self.batch_size)


def make_predictor(module: ForecasterModule, univariate: bool, batch_size: int) -> TitansPredictor:
    """A predictor of entries with targets (T,) if univariate, else (C, T)."""
    config = module.model.config
    return TitansPredictor(
        input_transform=ForecastInstance(config.to_dict(), univariate),
        input_names=INPUT_NAMES,
        prediction_net=module,
        forecast_generator=module.model.distr_output.forecast_generator,
        batch_size=batch_size,
        prediction_length=config.prediction_length,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def load_predictor(
    name_or_folder: str | Path, univariate: bool = False, batch_size: int = 32, **hub: Unpack[HubOptions]
) -> TitansPredictor:
    """The predictor of a saved `TitansForecaster`, ready to forecast series of its frequency and channels.

    Args:
        name_or_folder, hub: as of `TitansForecaster.from_pretrained`.
        univariate: take targets (T,) and give forecasts without a dimension of channels, as `TitansEstimator` with num_channels=None.
        batch_size: series that are forecast at once.

    Raises:
        UserError: as of `from_pretrained`, or the model does not say its frequency.
    """
    model = TitansForecaster.from_pretrained(name_or_folder, **hub)
    if model.config.freq is None:
        raise UserError(f"{name_or_folder}: its config.json names no freq, so its calendar features cannot be made.")
    try:
        expected = calendar(np.zeros(1, np.int64), model.config.freq).shape[-1]
    except (ValueError, RuntimeError) as error:  # of pandas, of GluonTS
        raise UserError(
            f"{name_or_folder}: its config.json has freq {model.config.freq!r:.40}, which is no frequency ({error})."
        ) from error
    if model.config.num_time_features != expected:
        raise UserError(
            f"{name_or_folder}: its config.json has num_time_features {model.config.num_time_features}, "
            f"but a step of {model.config.freq!r} has {expected} calendar features."
        )
    module = ForecasterModule(model.config.to_dict())
    module.model = model
    return make_predictor(module.eval(), univariate, batch_size)
