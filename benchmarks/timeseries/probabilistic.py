"""Probabilistic forecasts of panels of series, at equal training budgets: `python -m benchmarks.timeseries.probabilistic`.

CRPS (mean weighted quantile loss over nine levels), MASE of the median and coverage of the 80 % interval, on the last horizon of every
series, against the seasonal naive with the quantiles of its own errors, AutoETS, and GluonTS's DeepAR and PatchTST.
"""

import argparse
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from gluonts.dataset.util import forecast_start
from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
from gluonts.model.evaluation import evaluate_forecasts
from gluonts.model.forecast import Forecast, QuantileForecast
from gluonts.torch.distributions import QuantileOutput
from gluonts.torch.model.deepar import DeepAREstimator
from gluonts.torch.model.patch_tst import PatchTSTEstimator
from rich.console import Console

from benchmarks.machine import installed, positive
from benchmarks.reporting import RESULTS, Section, integers, measured_at, progress_bar, write_sections
from benchmarks.timeseries.__main__ import known, quiet
from benchmarks.timeseries.cells import Cell, Result
from benchmarks.timeseries.measure import Results
from benchmarks.timeseries.panels import PANELS, Panel, load
from benchmarks.timeseries.report import markdown_table
from domains.timeseries.config import QUANTILES
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.metrics import Inside, seasonal_naive
from titans_seq.errors import UserError

OUTPUT = RESULTS / "forecasting_probabilistic.json"
FULL, SHORT = Section("forecasting-panels-all"), Section("forecasting-panels")
SCORES = ("CRPS", "MASE", "coverage_80")


@dataclass(frozen=True)
class Budget:
    """Of every trained forecaster; the epoch with the best loss on the last training horizon of every series is kept."""

    epochs: int = 4
    batches: int = 100
    batch_size: int = 32


@dataclass(frozen=True)
class Made:
    """Forecasts of every series, and the size of what made them."""

    forecasts: list[Forecast]
    parameters: int = 0
    epochs: int = 0


@dataclass(frozen=True)
class Model:
    """make: from a panel, a budget and a seed."""

    label: str
    make: Callable[[Panel, Budget, int], Made]
    learned: bool = True
    package: str | None = None


def naive(panel: Panel, budget: Budget, seed: int) -> Made:
    """The last value or the last season repeated, whichever was nearer to the last horizon of the training series."""
    source, shorter = panel.source, panel.shorter
    labels = np.stack([entry["target"][-source.horizon :] for entry in panel.train])

    def error(season: int) -> float:
        return float(np.abs(np.stack([forecast.mean for forecast in _naive(shorter, source.horizon, season)]) - labels).mean())

    possible = [season for season in {1, source.season} if season < min(len(entry["target"]) for entry in shorter)]
    return Made(_naive(panel.test.input, source.horizon, min(possible, key=error)))


def _naive(entries: Iterable[dict[str, Any]], horizon: int, season: int) -> list[Forecast]:
    channels = [{**entry, "target": entry["target"][None]} for entry in entries]
    return [forecast.copy_dim(0) for forecast in seasonal_naive(channels, horizon, season)]


def auto_ets(panel: Panel, budget: Budget, seed: int) -> Made:
    """Error, trend and season chosen series by series (statsforecast); seasons beyond 24 are more than it fits."""
    from statsforecast.models import AutoETS

    levels = sorted({round(abs(200 * level - 100)) for level in QUANTILES} - {0})
    season = panel.source.season if panel.source.season <= 24 else 1
    forecasts = []
    for entry in panel.test.input:
        found = AutoETS(season_length=season).forecast(entry["target"].astype(float), h=panel.source.horizon, level=levels)
        arrays = [found["mean"], *(_quantile(found, level) for level in QUANTILES)]
        keys = ["mean", *map(str, QUANTILES)]
        forecasts.append(QuantileForecast(np.stack(arrays), forecast_start(entry), keys, item_id=entry["item_id"]))
    return Made(forecasts)


def _quantile(found: dict[str, np.ndarray], level: float) -> np.ndarray:
    width = round(abs(200 * level - 100))
    return found["mean"] if width == 0 else found[f"{'hi' if level > 0.5 else 'lo'}-{width}"]


def context_of(name: str) -> int:
    """Steps that trained models see: a season and a half at least, and three horizons."""
    source = PANELS[name]
    return max(3 * source.season // 2, 3 * source.horizon)


def gluonts(build: Callable[..., Any]) -> Callable[[Panel, Budget, int], Made]:
    """Trains one of its estimators, keeping the best epoch by the loss on the last horizon of the training series."""

    def make(panel: Panel, budget: Budget, seed: int) -> Made:
        pl.seed_everything(seed, verbose=False)
        with tempfile.TemporaryDirectory(prefix="titans-seq-") as folder:
            estimator = build(
                panel,
                prediction_length=panel.source.horizon,
                context_length=context_of(panel.name),
                batch_size=budget.batch_size,
                num_batches_per_epoch=budget.batches,
                trainer_kwargs={
                    "max_epochs": budget.epochs,
                    "logger": False,
                    "default_root_dir": folder,
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                },
            )
            output = estimator.train_model(panel.shorter, panel.train)
            return Made(list(output.predictor.predict(panel.test.input)), count(output.trained_net), output.trainer.current_epoch)

    return make


def deepar(panel: Panel, **shared: Any) -> Any:
    return DeepAREstimator(freq=panel.source.freq, **shared)


def patchtst(panel: Panel, **shared: Any) -> Any:
    patch = min(16, shared["context_length"])
    return PatchTSTEstimator(
        patch_len=patch, stride=max(1, patch // 2), scaling="std", distr_output=QuantileOutput(list(QUANTILES)), **shared
    )


def titans(panel: Panel, budget: Budget, seed: int) -> Made:
    estimator = TitansEstimator(
        prediction_length=panel.source.horizon,
        freq=panel.source.freq,
        context_length=context_of(panel.name),
        batch_size=budget.batch_size,
        num_batches_per_epoch=budget.batches,
        max_epochs=budget.epochs,
        patience=None,
        seed=seed,
        progress=False,
    )
    output = estimator.train_model(panel.shorter, panel.train)
    return Made(list(output.predictor.predict(panel.test.input)), count(output.trained_net), output.trainer.current_epoch)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


MODELS = {
    "naive": Model("seasonal naive", naive, learned=False),
    "ets": Model("AutoETS", auto_ets, learned=False, package="statsforecast"),
    "titans": Model("Titans", titans),
    "deepar": Model("DeepAR", gluonts(deepar)),
    "patchtst": Model("PatchTST", gluonts(patchtst)),
}


def score(panel: Panel, forecasts: Sequence[Forecast]) -> dict[str, float]:
    """CRPS and MASE are GluonTS's."""
    metrics = [MeanWeightedSumQuantileLoss(QUANTILES), MASE(), Inside(0.8)]
    with redirect_stderr(io.StringIO()):  # tqdm's bar
        found = evaluate_forecasts(forecasts, test_data=panel.test, metrics=metrics, axis=None, seasonality=panel.source.mase_season)
    return dict(zip(SCORES, map(float, found.iloc[0]), strict=True))


def measure(cell: Cell, budget: Budget, run: int, validation: bool = False) -> Result:
    """validation: on the last horizon of the training series instead of the test."""
    panel, model = load(cell.dataset), MODELS[cell.model]
    panel = panel.earlier() if validation else panel
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notices of other packages to their developers
        made = model.make(panel, budget, cell.seed or 0)
    seconds = round(time.process_time() - begin, 1)
    return Result(
        cell,
        run,
        windows=len(panel.train),
        scores=score(panel, made.forecasts),
        parameters=made.parameters,
        chosen={"epochs": made.epochs} if model.learned else {},
        budget=asdict(budget) if model.learned else None,
        fit_cpu_seconds=seconds,
    )


def plan(datasets: Sequence[str], models: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """What is not trained comes first, then seed by seed."""
    found = []
    for learned, group_seeds in ((False, [None]), (True, seeds)):
        group = [model for model in MODELS if model in models and MODELS[model].learned == learned]
        places = [(name, PANELS[name].horizon) for name in PANELS if name in datasets]
        found += [Cell(name, context_of(name), horizon, model, seed) for seed in group_seeds for name, horizon in places for model in group]
    return found


def markdown(found: Results) -> str:
    """A row for each data set and model; means over seeds, with the standard deviation of CRPS."""
    rows = []
    for dataset in PANELS:
        runs = runs_of(found, dataset)
        lowest = min((crps(rs) for rs in runs.values()), default=0.0)
        for model, rs in runs.items():
            others = [f"{fmean(r.scores[name] for r in rs):.3f}" for name in ("MASE", "coverage_80")]
            seconds = fmean(r.fit_cpu_seconds for r in rs)
            rows.append([dataset, MODELS[model].label, _shown(rs, lowest), *others, f"{rs[0].parameters:,}", f"{seconds:.0f}"])
    return markdown_table(["data set", "model", "CRPS", "MASE", "inside 80 %", "parameters", "CPU s"], rows)


def short(found: Results) -> str:
    """CRPS and MASE of a column for each model, and how they were obtained."""
    rows = []
    for dataset in PANELS:
        runs = runs_of(found, dataset)
        lowest = min((crps(rs) for rs in runs.values()), default=0.0)
        cells = {model: f"{_shown(rs, lowest)} / {fmean(r.scores['MASE'] for r in rs):.2f}" for model, rs in runs.items()}
        rows.append([dataset, *(cells.get(model, "-") for model in MODELS)])
    table = markdown_table(["CRPS / MASE", *(model.label for model in MODELS.values())], rows)
    return f"{_sentence(found)}\n\n{table}"


def runs_of(found: Results, dataset: str) -> dict[str, list[Result]]:
    """Of all seeds of each model that was measured."""
    runs = {model: [r for r in found if (r.cell.dataset, r.cell.model) == (dataset, model)] for model in MODELS}
    return {model: rs for model, rs in runs.items() if rs}


def crps(runs: Sequence[Result]) -> float:
    """Mean over seeds."""
    return fmean(r.scores["CRPS"] for r in runs)


def _shown(runs: Sequence[Result], lowest: float) -> str:
    text = f"{crps(runs):.4f}" + (f" ± {stdev(r.scores['CRPS'] for r in runs):.4f}" if len(runs) > 1 else "")
    return f"**{text}**" if crps(runs) == lowest else text


def _sentence(found: Results) -> str:
    learned = [r for r in found if r.budget]
    budget = learned[-1].budget if learned else None
    seeds = sorted({r.cell.seed for r in learned if r.cell.seed is not None})
    text = "The last horizon of every series; bold is the lowest CRPS."
    if budget:
        text += (
            f" Trained models had {budget['epochs']} epochs of {budget['batches']} batches of {budget['batch_size']} windows, "
            f"the best epoch by the loss on the horizon before; seed {', '.join(map(str, seeds))}."
        )
    return f"{text} `python -m benchmarks.timeseries.probabilistic`, {measured_at(found.used_runs())}."


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeseries.probabilistic", description=about)
    add = parser.add_argument
    add("--datasets", action=known("data set", list(PANELS)), default=list(PANELS), help=f"comma-separated: {', '.join(PANELS)}")
    add("--models", action=known("model", list(MODELS)), default=list(MODELS), help=f"comma-separated: {', '.join(MODELS)}")
    add("--seeds", type=integers, default=[0, 1, 2], help="of trained models (default: 0,1,2)")
    add("--epochs", type=positive(int), default=Budget.epochs, help="of training (default: %(default)s)")
    add("--batches", type=positive(int), default=Budget.batches, help="of an epoch (default: %(default)s)")
    add("--threads", type=positive(int), default=1, help="of torch (default: %(default)s)")
    add("--quick", action="store_true", help="one epoch of one seed on tourism_monthly; writes no file without --output")
    add("--validation", action="store_true", help="score the last horizon of the training series, never the test; no file without --output")
    add("--output", type=Path, help=f"JSON of the results (default: {OUTPUT.relative_to(RESULTS.parents[1])})")
    add("--again", action="store_true", help="measure cells again that the output holds already")
    add("--table", action="store_true", help="print the table of the output that is there; measure nothing")
    add("--readme", type=Path, nargs="+", metavar="FILE", default=[], help="with --table: put it between the markers of these files")
    options = parser.parse_args(arguments)
    if options.quick:
        options.datasets, options.seeds, options.epochs, options.batches = ["tourism_monthly"], options.seeds[:1], 1, 20
    elif options.output is None and not options.validation:
        options.output = OUTPUT
    return options


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure what is not known yet, and show it all."""
    budget, found = Budget(options.epochs, options.batches), Results.load(options.output)
    number = found.begin("benchmarks.timeseries.probabilistic")
    cells = plan(options.datasets, options.models, options.seeds)
    for model in sorted({cell.model for cell in cells}):
        if (package := MODELS[model].package) and installed(package) is None:
            console.print(f"not measured: {MODELS[model].label}, {package} is not installed: pip install 'titans-seq[bench]'", markup=False)
            cells = [cell for cell in cells if cell.model != model]
    todo = [cell for cell in cells if options.again or not found.holds(cell, budget)]
    console.print(f"{len(cells)} cells, {len(cells) - len(todo)} of them measured already")
    with progress_bar() as progress:
        task = progress.add_task("", total=len(cells), completed=len(cells) - len(todo))
        for cell in todo:
            progress.update(task, description=cell.label)
            found.add(result := measure(cell, budget, number, options.validation))
            scores = ", ".join(f"{name} {result.scores[name]:.4f}" for name in SCORES)
            progress.console.print(f"{cell.label}: {scores}, {result.fit_cpu_seconds:.0f} CPU s", soft_wrap=True)
            progress.advance(task)
    console.print(markdown(found), markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=not sys.stdout.isatty())
    quiet()
    torch.set_num_threads(options.threads)
    try:
        if options.table:
            sections = {FULL: markdown(found := Results.load(options.output)), SHORT: short(found)}
            console.print(sections[FULL], markup=False)
            for file in options.readme:
                write_sections(file, sections)
        else:
            run(options, console)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
