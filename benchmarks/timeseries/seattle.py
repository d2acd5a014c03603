"""Forecasters side by side on one held-out split: `python -m benchmarks.timeseries.seattle`, or `--quick` for a minute's worth of it.

All learn from the same steps and are scored on the same windows that none of them has seen: Titans in its four variants and otherwise
with its defaults, GluonTS's DLinear and PatchTST, the seasonal naive, and the climatology of the day of the year. The peers read the same
context, hold out the same validation windows for the best epoch and the early stop, and take as many steps at most, over batches of as
many values. They come univariate, so each channel is a series of its own, divided by its standard deviation over the training steps (their
loss is in units of the data, and one channel's unit must not outweigh another's) and normalised by their own scaling "std". Their
learning rate is the one of two with the lower validation loss. As Titans sees the calendar and PatchTST alone does not, PatchTST also runs
with the same calendar features.
"""

import argparse
import json
import logging
import platform
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from gluonts.dataset.util import forecast_start
from gluonts.model.forecast import QuantileForecast
from gluonts.time_feature import time_features_from_frequency_str
from gluonts.torch.distributions import QuantileOutput
from gluonts.torch.model.d_linear import DLinearEstimator
from gluonts.torch.model.estimator import PyTorchLightningEstimator
from gluonts.torch.model.patch_tst import PatchTSTEstimator
from gluonts.transform import ExpectedNumInstanceSampler
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import ROOT, cpu_model, positive, revision
from domains.timeseries.data import EXAMPLES, SeriesTable, check_length, load_example, quiet_pandas, read_table, split
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.metrics import QUANTILES, default_season_length, evaluate, seasonal_naive
from domains.timeseries.model import fourier_features
from domains.timeseries.presets import default_backbone
from domains.timeseries.start import hold_out
from domains.timeseries.windows import Series
from titans_seq.errors import UserError

VARIANTS = ("lmm", "mac", "mag", "mal")
METRICS = ("CRPS", "MASE", "coverage_80")
PEER_LEARNING_RATES = (1e-3, 5e-3)  # GluonTS's default, and that of TitansEstimator
CLIMATOLOGY_DAYS = 15
OUTPUT = ROOT / "benchmarks" / "results" / "forecast_seattle.json"

Entry = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A split and what all forecasters are told. epochs: at most, of those that are trained."""

    table: SeriesTable
    prediction_length: int
    windows: int
    season_length: int
    epochs: int

    def __post_init__(self) -> None:
        context = self.estimator("mag", 0).config.context_length
        check_length(self.table, self.prediction_length, context, self.windows, self.season_length)

    @property
    def channels(self) -> tuple[str, ...]:
        return self.table.targets

    @property
    def daily(self) -> bool:
        return self.table.freq == "D"

    def split(self) -> tuple[list[Entry], Any]:
        training, test = split(self.table, self.prediction_length, self.windows)
        return list(training), test

    def estimator(self, variant: str, seed: int) -> TitansEstimator:
        return TitansEstimator(
            prediction_length=self.prediction_length,
            freq=self.table.freq,
            num_channels=len(self.channels),
            titans=replace(default_backbone(), variant=variant).to_dict(),
            max_epochs=self.epochs,
            seed=seed,
            progress=False,
        )


@dataclass(frozen=True)
class Made:
    """Forecasts of every test window, and what they took. `chosen`: by validation loss, such as the learning rate."""

    forecasts: list[Any]
    parameters: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    chosen: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """One run: scores by channel, and a last one "mean"."""

    seed: int | None
    parameters: int
    training_seconds: float
    training_cpu_seconds: float
    chosen: dict[str, float]
    CRPS: dict[str, float | None]
    MASE: dict[str, float | None]
    coverage_80: dict[str, float | None]
    crps_by_window: list[float]


@dataclass(frozen=True)
class Forecaster:
    """A name and a function of task and seed. Those that are not seeded run once."""

    name: str
    make: Callable[[Task, int], Made]
    seeded: bool = True


# Titans and what is not trained


def titans(variant: str) -> Forecaster:
    def make(task: Task, seed: int) -> Made:
        training, test = task.split()
        clock = Clock()
        output = task.estimator(variant, seed).train_model(training)
        seconds, cpu_seconds = clock.read()
        chosen = {"epochs": output.trainer.current_epoch, "validation_loss": best_loss(output.trainer)}
        return Made(list(output.predictor.predict(test.input)), count(output.trained_net), seconds, cpu_seconds, chosen)

    return Forecaster(f"titans {variant}", make)


def naive(season: int) -> Forecaster:
    def make(task: Task, seed: int) -> Made:
        return Made(seasonal_naive(task.split()[1].input, task.prediction_length, season))

    return Forecaster(f"seasonal naive {season}", make, seeded=False)


def climatology(task: Task, seed: int) -> Made:
    """Quantiles of the training values of the days of any year within 15 days of the same day of the year."""
    training, test = task.split()
    known = {entry["item_id"]: entry for entry in training}
    forecasts = []
    for entry in test.input:
        past = known[entry["item_id"]]
        days = day_of_year(past["start"], past["target"].shape[1])
        start = forecast_start(entry)
        by_day = []
        for day in day_of_year(start, task.prediction_length):
            apart = np.abs(days - day)
            values = past["target"][:, np.minimum(apart, 365.25 - apart) <= CLIMATOLOGY_DAYS]
            by_day.append(np.vstack([np.nanmean(values, axis=1), np.nanquantile(values, QUANTILES, axis=1)]))
        keys = ["mean", *map(str, QUANTILES)]
        forecasts.append(QuantileForecast(np.stack(by_day, axis=1), start, keys, item_id=entry["item_id"]))
    return Made(forecasts)


def day_of_year(start: pd.Period, length: int) -> np.ndarray:
    return pd.period_range(start, periods=length).day_of_year.to_numpy()


# The peers


def dlinear(task: Task, **shared: Any) -> PyTorchLightningEstimator:
    return DLinearEstimator(**shared)


def patchtst(task: Task, **shared: Any) -> PyTorchLightningEstimator:
    patch = task.estimator("mag", 0).config.patch_length
    return PatchTSTEstimator(**shared, patch_len=patch, stride=patch)


def patchtst_calendar(task: Task, **shared: Any) -> PyTorchLightningEstimator:
    patch = task.estimator("mag", 0).config.patch_length
    features = len(calendar(task.table.freq, pd.Period("2000-01-01", task.table.freq), 1))
    return PatchTSTEstimator(**shared, patch_len=patch, stride=patch, num_feat_dynamic_real=features)


def peer(name: str, build: Callable[..., PyTorchLightningEstimator]) -> Forecaster:
    def make(task: Task, seed: int) -> Made:
        training, test = task.split()
        scales = {entry["item_id"]: spread(entry["target"]) for entry in training}
        clock = Clock()
        trained = [train_peer(task, build, seed, lr, training, scales) for lr in PEER_LEARNING_RATES]
        seconds, cpu_seconds = clock.read()
        output, lr = min(trained, key=lambda one: best_loss(one[0].trainer))
        chosen = {"lr": lr, "epochs": output.trainer.current_epoch, "validation_loss": best_loss(output.trainer)}
        series = univariate(test.input, scales, task.table.freq, ahead=task.prediction_length)
        single = iter(output.predictor.predict(series))
        forecasts = [join([next(single) for _ in task.channels], entry, scales[entry["item_id"]]) for entry in test.input]
        return Made(forecasts, count(output.trained_net), seconds, cpu_seconds, chosen)

    return Forecaster(name, make)


def train_peer(
    task: Task, build: Callable[..., Any], seed: int, lr: float, training: list[Entry], scales: dict[str, np.ndarray]
) -> tuple[Any, float]:
    like = task.estimator("mag", seed)
    kept, validation = hold_out_entries(like, training)
    with tempfile.TemporaryDirectory() as folder:
        estimator = build(
            task,
            prediction_length=task.prediction_length,
            context_length=like.config.context_length,
            scaling="std",
            distr_output=QuantileOutput(list(QUANTILES)),
            lr=lr,
            batch_size=like.batch_size * len(task.channels),
            num_batches_per_epoch=like.num_batches_per_epoch,
            train_sampler=ExpectedNumInstanceSampler(num_instances=1.0, min_past=like.min_past, min_future=task.prediction_length),
            trainer_kwargs={
                "max_epochs": task.epochs,
                "callbacks": early_stopping(like.patience) if validation else [],
                "logger": False,
                "default_root_dir": folder,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
        )
        pl.seed_everything(seed, verbose=False)
        held_out = univariate(validation, scales, task.table.freq) if validation else None
        return estimator.train_model(univariate(kept, scales, task.table.freq), held_out), lr


def hold_out_entries(like: TitansEstimator, entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The windows that the estimator holds out of its training series, as entries."""
    given = {entry["item_id"]: entry for entry in entries}
    parts = hold_out([Series(entry, like.config, univariate=False) for entry in entries], like.config, like.validation_windows)
    kept, validation = ([{**given[one.item], "target": one.target} for one in part] for part in parts)
    return kept, validation


def early_stopping(patience: int | None) -> list[pl.Callback]:
    return [] if patience is None else [pl.callbacks.EarlyStopping("val_loss", patience=patience)]


def spread(target_CT: np.ndarray) -> np.ndarray:
    """Standard deviation of each channel, 1 where it stands still, (C,)."""
    found = np.nanstd(target_CT.astype(float), axis=1)
    return np.where(found > 0, found, 1.0)


def univariate(entries: Any, scales: dict[str, np.ndarray], freq: str, ahead: int = 0) -> list[Entry]:
    """Every channel of every entry as an entry, with the calendar of its steps and of `ahead` more."""
    return [
        {
            "item_id": f"{entry['item_id']}/{i}",
            "start": entry["start"],
            "target": (channel / scale).astype(np.float32),
            "feat_dynamic_real": calendar(freq, entry["start"], len(channel) + ahead),
        }
        for entry in entries
        for i, (channel, scale) in enumerate(zip(entry["target"], scales[entry["item_id"]], strict=True))
    ]


def calendar(freq: str, start: pd.Period, length: int) -> np.ndarray:
    """The calendar features of Titans, (F, T); one constant feature where the frequency has none."""
    index = pd.period_range(start, periods=length)
    features = [feature(index) for feature in time_features_from_frequency_str(freq)]
    if not features:
        return np.zeros((1, length), np.float32)
    return fourier_features(torch.tensor(np.stack(features, axis=1)[None]))[0].numpy().T.astype(np.float32)


def join(single: list[Any], entry: Entry, scale: np.ndarray) -> QuantileForecast:
    """Forecasts of channels as one of them all, in units of the data, with quantiles that cross put in order (as Titans does)."""
    arrays = np.stack([np.stack([one.quantile(level) for level in QUANTILES]) for one in single], axis=-1)
    levels = list(map(str, QUANTILES))
    return QuantileForecast(np.sort(arrays, axis=0) * scale, forecast_start(entry), levels, item_id=entry["item_id"])


# Running and scoring


class Clock:
    """Seconds on the wall and of the processor since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def best_loss(trainer: Any) -> float:
    return float(trainer.checkpoint_callback.best_model_score)


def crps_by_window(forecasts: Sequence[Any], test: Any) -> list[float]:
    """What each window adds to the mean CRPS: their mean is that of `evaluate` where no label is missing and no channel all zero."""
    labels = np.stack([entry["target"].T for entry in test.label]).astype(float)  # (W, P, C)
    losses = np.zeros(labels.shape)
    for level in QUANTILES:
        below = labels - np.stack([forecast.quantile(level) for forecast in forecasts])
        losses += 2 * np.maximum(level * below, (level - 1) * below) / len(QUANTILES)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = len(labels) * np.nansum(losses, axis=1) / np.nansum(np.abs(labels), axis=(0, 1))
    return [float(x) for x in shares[:, np.isfinite(shares).all(axis=0)].mean(axis=1)]


def score(task: Task, made: Made, seed: int | None) -> Scored:
    test = task.split()[1]
    found = evaluate(made.forecasts, test, task.season_length, task.channels)
    by_channel = {name: dict(zip(found["channel"], found[name], strict=True)) for name in METRICS}
    by_window = crps_by_window(made.forecasts, test)
    return Scored(seed, made.parameters, made.seconds, made.cpu_seconds, made.chosen, **by_channel, crps_by_window=by_window)


def forecasters(task: Task, quick: bool) -> list[Forecaster]:
    seasons = sorted({1, 7, 365} if task.daily else {1, default_season_length(task.table.freq), task.season_length})
    shortest = min(entry["target"].shape[1] for entry in task.split()[0])
    chosen = [naive(season) for season in seasons if season < shortest]
    if quick:
        return [*chosen, titans("mag")]
    if task.daily and shortest >= 366:
        chosen.append(Forecaster("climatology", climatology, seeded=False))
    chosen += [peer("DLinear", dlinear), peer("PatchTST", patchtst), peer("PatchTST + calendar", patchtst_calendar)]
    return chosen + [titans(variant) for variant in VARIANTS]


def run(task: Task, seeds: Sequence[int], quick: bool, say: Callable[[str], None]) -> dict[str, list[Scored]]:
    results: dict[str, list[Scored]] = {}
    for forecaster in forecasters(task, quick):
        runs = results.setdefault(forecaster.name, [])
        for seed in seeds if forecaster.seeded else [None]:
            runs.append(score(task, forecaster.make(task, seed or 0), seed))
            what = forecaster.name + ("" if seed is None else f", seed {seed}")
            say(f"{what}: CRPS {shown(runs[-1].CRPS['mean'])}, {runs[-1].training_cpu_seconds:.0f} s")
    return results


# The report


def shown(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def over_seeds(runs: Sequence[Scored], combine: Callable[[list[float]], float]) -> dict[str, float | None]:
    """Of the mean over channels; None where a run leaves it undefined."""
    values = {name: [getattr(one, name)["mean"] for one in runs] for name in METRICS}
    return {name: None if None in found else combine(found) for name, found in values.items()}


def deviation(values: list[float]) -> float | None:
    """Sample standard deviation, None of a single run."""
    return statistics.stdev(values) if len(values) > 1 else None


def against_best(results: dict[str, list[Scored]]) -> dict[str, dict[str, float | None] | None]:
    """Of each forecaster: by how much its CRPS is above that of the best, window by window, with the standard error of that over windows.

    Seeds are averaged first. Windows are few and follow one another: the error is a rough one.
    """
    windows = {name: np.mean([one.crps_by_window for one in runs], axis=0) for name, runs in results.items()}
    best = min(windows, key=lambda name: windows[name].mean())
    found: dict[str, dict[str, float | None] | None] = {}
    for name, values in windows.items():
        apart = values - windows[best]
        error = float(apart.std(ddof=1) / len(apart) ** 0.5) if len(apart) > 1 else None
        found[name] = (
            None if name == best else {"mean": float(apart.mean()), "standard_error": error, "windows_won": int((apart < 0).sum())}
        )
    return found


def report(task: Task, results: dict[str, list[Scored]], options: argparse.Namespace, code: str | None, elapsed: float) -> dict[str, Any]:
    """Everything, ready for JSON. code: the revision at the start, as the checkout may move on during a long run."""
    frame, estimator = task.table.frame, task.estimator("mag", 0)
    training, test = task.split()
    kept, validation = hold_out_entries(estimator, list(training))
    first = frame.filter(frame["item_id"] == frame["item_id"][0])["timestamp"]
    held_out = task.windows * task.prediction_length
    apart = against_best(results)
    return {
        "command": shlex.join(["python", "-m", "benchmarks.timeseries.seattle", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": code,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "gluonts", "lightning", "numpy", "pandas")},
        "cpu": cpu_model(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": options.threads,
        "elapsed_seconds": round(elapsed, 1),
        "split": {
            "dataset": options.dataset if options.dataset in EXAMPLES else Path(options.dataset).name,
            "series": len(training),
            "channels": list(task.channels),
            "frequency": task.table.freq,
            "first": str(first[0]),
            "last_training_step": str(first[-held_out - 1]),
            "last": str(first[-1]),
            "training_steps": training[0]["target"].shape[1],
            "of_these_validation": training[0]["target"].shape[1] - kept[0]["target"].shape[1] if validation else 0,
            "prediction_length": task.prediction_length,
            "test_windows": sum(1 for _ in test.input),
            "context_length": estimator.config.context_length,
            "season_length_of_mase": task.season_length,
        },
        "training": {
            "epochs_at_most": task.epochs,
            "batches_per_epoch": estimator.num_batches_per_epoch,
            "windows_per_batch": estimator.batch_size,
            "peer_series_per_batch": estimator.batch_size * len(task.channels),
            "patience": estimator.patience,
            "learning_rate": estimator.lr,
            "peer_learning_rates": list(PEER_LEARNING_RATES),
        },
        "forecasters": [
            {
                "name": name,
                "parameters": runs[0].parameters,
                "mean": over_seeds(runs, statistics.fmean),
                "standard_deviation": over_seeds(runs, deviation),
                "crps_above_best": apart[name],
                "runs": [asdict(one) for one in runs],
            }
            for name, runs in results.items()
        ],
    }


def table(found: dict[str, Any]) -> Table:
    """Best CRPS first."""
    s = found["split"]
    title = f"{s['dataset']}: {s['test_windows']} held-out windows of {s['prediction_length']} steps, mean over channels"
    view = Table(title=title, box=box.SIMPLE_HEAD)
    for name in ("", "CRPS", "+-", "over the best", "MASE", "coverage 80 %", "seeds", "parameters", "CPU s"):
        view.add_column(name, justify="right" if name else "left", no_wrap=True)
    rows = sorted(found["forecasters"], key=lambda row: float("inf") if row["mean"]["CRPS"] is None else row["mean"]["CRPS"])
    for row in rows:
        mean, above = row["mean"], row["crps_above_best"]
        over = "" if above is None else f"{shown(above['mean'])} +- {shown(above['standard_error'])}"
        seconds = statistics.fmean(one["training_cpu_seconds"] for one in row["runs"])
        view.add_row(
            row["name"],
            shown(mean["CRPS"]),
            shown(row["standard_deviation"]["CRPS"]),
            over,
            shown(mean["MASE"], 3),
            shown(mean["coverage_80"], 3),
            str(len(row["runs"])) if row["parameters"] else "",
            f"{row['parameters']:,}",
            f"{seconds:.0f}" if row["parameters"] else "",
        )
    return view


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeseries.seattle", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", default="seattle_weather", help=f"a file, or one that ships: {', '.join(EXAMPLES)} (default)")
    parser.add_argument("--prediction-length", type=positive(int), default=28, help="steps ahead (default: %(default)s)")
    parser.add_argument("--windows", type=positive(int), default=6, help="held-out windows (default: %(default)s)")
    parser.add_argument(
        "--season-length", type=positive(int), help="lag of MASE's scale (default: 365 for daily series, else by frequency)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--epochs", type=positive(int), help="of training at most (default: that of TitansEstimator)")
    parser.add_argument("--threads", type=positive(int), default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one seed and epoch, Titans mag and naives; no file without --output")
    name = OUTPUT.relative_to(ROOT)
    parser.add_argument("--output", type=Path, help=f"JSON of the results (default for seattle_weather: {name}, else none)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.epochs = options.seeds[:1], 1
    elif options.output is None and options.dataset == "seattle_weather":
        options.output = OUTPUT
    return options


def make_task(options: argparse.Namespace) -> Task:
    series = load_example(options.dataset) if options.dataset in EXAMPLES else read_table(options.dataset, missing="mask")
    season = options.season_length or (365 if series.freq == "D" else default_season_length(series.freq))
    epochs = options.epochs or TitansEstimator(prediction_length=1, freq=series.freq).max_epochs
    return Task(series, options.prediction_length, options.windows, season, epochs)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")  # notices of other packages to their developers
    torch.set_num_threads(options.threads)
    begin, code = time.perf_counter(), revision()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)

    try:
        with quiet_pandas():
            task = make_task(options)
            results = run(task, options.seeds, options.quick, say)
            found = report(task, results, options, code, time.perf_counter() - begin)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table(found))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
        console.print(f"written to {options.output}")


if __name__ == "__main__":
    main()
