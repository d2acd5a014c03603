"""Settings of the Titans forecaster side by side on validation windows, never on test: `python -m benchmarks.timeseries.search`.

Each variant changes the base by what its name says. What is shown is the error on every validation window over that of the ridge.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console

from benchmarks import reporting
from benchmarks.reporting import RESULTS, names, progress_bar
from benchmarks.timeseries.__main__ import quiet
from benchmarks.timeseries.datasets import SOURCES
from benchmarks.timeseries.forecasters import Ridge
from benchmarks.timeseries.ours import LEARNING_RATE, WEIGHT_DECAY, ClosedForm, Settings, titans
from benchmarks.timeseries.protocol import evaluate, split
from benchmarks.timeseries.report import markdown_table
from benchmarks.timeseries.training import Budget, Learned

OUTPUT = RESULTS / "forecasting_search.json"


@dataclass(frozen=True)
class Variant:
    """Settings of the model and of its training."""

    settings: Settings = field(default_factory=Settings)
    lr: float = LEARNING_RATE
    weight_decay: float = WEIGHT_DECAY


def variants() -> dict[str, Variant]:
    base = Variant()
    model = {
        "memory off": {"memory": False},
        "no season": {"season": False},
        "one map": {"channel_maps": False},
        "no spread prior": {"spread_prior": 0.0},
        "spread prior 1": {"spread_prior": 1.0},
        "train linear": {"train_linear": True},
        "absolute level": {"absolute_level": True},
        "no ridge start": {"ridge": False},
        "patch 8": {"patch_length": 8},
        "patch 32": {"patch_length": 32},
        "dim 16": {"dim": 16},
        "dim 64": {"dim": 64},
        "2 layers": {"num_layers": 2},
        "dropout 0": {"dropout": 0.0},
        "dropout 0.3": {"dropout": 0.3},
        "quantiles": {"output": "quantile"},
        "lmm": {"variant": "lmm"},
        "mac": {"variant": "mac"},
        "chunk 4, step 0.2": {"chunk_size": 4, "max_step": 0.2},
    }
    training = {"lr 1e-3": {"lr": 1e-3}, "decay 0.05": {"weight_decay": 0.05}}
    found = {"base": base, **{name: replace(base, settings=replace(base.settings, **changes)) for name, changes in model.items()}}
    return {**found, **{name: replace(base, **changes) for name, changes in training.items()}}


def try_out(variant: Variant, dataset: str, look_back: int, horizon: int, budget: Budget | None, seed: int) -> dict[str, Any]:
    """Errors on validation windows, and what it took; without a budget, of what training would begin with."""
    parts = split(dataset, look_back, horizon)
    season = SOURCES[dataset].season
    if budget is None:
        fitted = ClosedForm(variant.settings, season).fit(parts.train, parts.validation, seed)
    else:
        learned = Learned(titans(variant.settings, season), variant.lr, budget, variant.weight_decay)
        fitted = learned.fit(parts.train, parts.validation, seed)
    ridge = min(candidate.mse for candidate in Ridge().candidates(parts.train, parts.validation))
    return {
        "mse": evaluate(fitted.predict, parts.validation).mse,
        "ridge_mse": ridge,
        "parameters": fitted.parameters,
        "chosen": fitted.chosen,
        "epochs": [asdict(epoch) for epoch in fitted.epochs],
    }


def table(trials: Sequence[dict[str, Any]]) -> str:
    """A row for each variant: its error over the ridge's at each place, their mean, and the cost."""
    places = list(dict.fromkeys((t["dataset"], t["look_back"], t["horizon"]) for t in trials))
    rows = []
    for name in dict.fromkeys(t["variant"] for t in trials):
        own = [t for t in trials if t["variant"] == name]
        ratios = [[t["mse"] / t["ridge_mse"] for t in own if (t["dataset"], t["look_back"], t["horizon"]) == place] for place in places]
        entries = [f"{fmean(found):.3f}" if found else "-" for found in ratios]
        mean = f"{fmean(fmean(found) for found in ratios):.3f}" if all(ratios) else "-"
        seconds = [epoch["cpu_seconds"] for t in own for epoch in t["epochs"][1:]]
        rows.append([name, *entries, mean, f"{own[0]['parameters']:,}", f"{fmean(seconds):.0f}" if seconds else "-"])
    head = ["validation MSE over ridge", *(f"{d} {L}/{H}" for d, L, H in places), "mean", "parameters", "CPU s an epoch"]
    return markdown_table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeseries.search", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--variants", type=names, default=list(variants()), help=f"comma-separated: {', '.join(variants())}")
    add("--datasets", type=names, default=["ETTh1", "ETTh2", "Exchange"], help=f"comma-separated: {', '.join(SOURCES)}")
    add("--look-back", type=int, default=96)
    add("--horizons", type=lambda text: [int(name) for name in names(text)], default=[96, 336])
    add("--seed", type=int, default=0)
    add("--epochs", type=int, default=Budget.epochs)
    add("--batches", type=int, default=Budget.batches)
    add("--untrained", action="store_true", help="compare what training begins with")
    add("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    quiet()
    torch.set_num_threads(1)
    budget = None if options.untrained else Budget(epochs=options.epochs, batches=options.batches)
    found: dict[str, Any] = {
        **reporting.environment("benchmarks.timeseries.search"),
        "budget": None if budget is None else asdict(budget),
        "trials": [],
    }
    todo = [(v, d, H) for v in options.variants for d in options.datasets for H in options.horizons]
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    with progress_bar() as progress:
        task = progress.add_task("", total=len(todo))
        for name, dataset, horizon in todo:
            progress.update(task, description=f"{name}: {dataset} {horizon}")
            place = {"variant": name, "dataset": dataset, "look_back": options.look_back, "horizon": horizon, "seed": options.seed}
            variant = variants()[name]
            trial = try_out(variant, dataset, options.look_back, horizon, budget, options.seed)
            found["trials"].append({**place, "settings": asdict(variant), **trial})
            reporting.write_json(options.output, found)
            progress.console.print(f"{name}: {dataset} {horizon}: {trial['mse']:.4f}, ridge {trial['ridge_mse']:.4f}")
            progress.advance(task)
    console.print(table(found["trials"]), markup=False)


if __name__ == "__main__":
    main()
