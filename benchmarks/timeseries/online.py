"""A carried state against cold contexts: `python -m benchmarks.timeseries.online`.

The first half of each series trains (its last tenth chooses the epoch), the second half is forecast as it arrives: before each
`stride` steps, the next `horizon` steps, by

    carried    the state that has read everything since the series began (`observe`, `predict`)
    frozen     the same, with memories that neither learn nor forget while they read: what the rest of the state is worth
    cold N     the same model, which reads the latest N steps anew for each forecast
    own N      a model that was trained at that look-back, which reads the latest N steps anew for each forecast

The model whose state is carried was trained at the longest look-back; that of cold 1024 is its own.

Every forecaster is trained with the same budget and knows its training half alone. Errors are on the scale of the training half.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from time import process_time
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.machine import positive
from benchmarks.reporting import RESULTS, environment, names, progress_bar, write_json
from benchmarks.timeseries.__main__ import quiet
from benchmarks.timeseries.datasets import SOURCES, read
from benchmarks.timeseries.ours import LEARNING_RATE, WEIGHT_DECAY, OurNetwork, Settings, titans
from benchmarks.timeseries.protocol import Windows, standardise
from benchmarks.timeseries.report import markdown_table
from benchmarks.timeseries.training import Budget, Learned
from domains.timeseries.model import ForecasterState
from titans_seq.memory.layer import frozen_memory

OUTPUT = RESULTS / "forecasting_online.json"
COLD = (96, 336, 1024)
TRAINED_AT = COLD[-1]
"""Look-back of the model whose state is carried."""
VALIDATION_SHARE = 0.1
"""Of the training half."""


@dataclass(frozen=True)
class Setting:
    """Steps ahead, steps from forecast to forecast, and steps a token."""

    horizon: int = 24
    stride: int = 24
    patch_length: int = 8


def halves(dataset: str) -> tuple[Tensor, int]:
    """The whole series (T, C), standardised by its first half, and where the second half begins."""
    values_TC, _ = read(dataset)
    middle = len(values_TC) // 2
    return standardise(values_TC, middle), middle


def train(series_TC: Tensor, middle: int, look_back: int, setting: Setting, budget: Budget, seed: int) -> tuple[OurNetwork, float]:
    """A model of the first half, and the CPU seconds that it took."""
    begin, border = process_time(), middle - round(VALIDATION_SHARE * middle)
    learned = Learned(titans(Settings(patch_length=setting.patch_length, season=False), 1), LEARNING_RATE, budget, WEIGHT_DECAY)
    training = Windows(series_TC[:border], look_back, setting.horizon)
    fitted = learned.fit(training, Windows(series_TC[border - look_back : middle], look_back, setting.horizon), seed)
    return fitted.predict, process_time() - begin  # type: ignore[return-value]


def origins(series_TC: Tensor, middle: int, setting: Setting) -> range:
    """Steps before which a forecast is made."""
    return range(middle, len(series_TC) - setting.horizon + 1, setting.stride)


def first_half(net: OurNetwork, series_TC: Tensor, middle: int, setting: Setting) -> tuple[ForecasterState, int]:
    """The state after the first half, but for the few first steps: so that every origin is at the end of a patch, as in training."""
    read = series_TC[middle % setting.patch_length : middle].unsqueeze(0)
    return net.model.observe(net.model.initial_state(1), read, torch.ones_like(read)), middle


def carried(net: OurNetwork, series_TC: Tensor, middle: int, setting: Setting, start: tuple[ForecasterState, int]) -> Iterator[Tensor]:
    """Forecasts (H, C) of each origin, from a state that is carried on."""
    model, (state, read_to) = net.model, start
    for origin in origins(series_TC, middle, setting):
        if origin > read_to:
            new = series_TC[read_to:origin].unsqueeze(0)
            state, read_to = model.observe(state, new, torch.ones_like(new)), origin
        (location, *_), loc, scale = model.predict(state)
        yield (location * scale + loc)[0]


def cold(net: OurNetwork, series_TC: Tensor, middle: int, setting: Setting, look_back: int) -> Iterator[Tensor]:
    """Forecasts (H, C) of each origin, each from the latest steps alone."""
    for origin in origins(series_TC, middle, setting):
        yield net(series_TC[origin - look_back : origin].unsqueeze(0), torch.zeros(1, dtype=torch.int64))[0]


@torch.inference_mode()
def score(forecasts: Iterator[Tensor], series_TC: Tensor, middle: int, setting: Setting) -> dict[str, float]:
    """Mean errors over origins, steps and channels, and CPU milliseconds a forecast."""
    begin, squared, absolute = process_time(), [], []
    for origin, forecast_HC in zip(origins(series_TC, middle, setting), forecasts, strict=True):
        error_HC = (forecast_HC - series_TC[origin : origin + setting.horizon]).double()
        squared.append(float(error_HC.square().mean()))
        absolute.append(float(error_HC.abs().mean()))
    return {
        "mse": fmean(squared),
        "mae": fmean(absolute),
        "forecasts": len(squared),
        "cpu_ms": 1e3 * (process_time() - begin) / len(squared),
    }


def measure(dataset: str, setting: Setting, budget: Budget, seed: int) -> dict[str, Any]:
    """Scores of every way to forecast the second half, by its name."""
    series_TC, middle = halves(dataset)
    net, seconds = train(series_TC, middle, TRAINED_AT, setting, budget, seed)
    place = (series_TC, middle, setting)
    with torch.inference_mode():
        scores = {"carried": score(carried(net, *place, first_half(net, *place)), *place)}
        with frozen_memory(net):
            scores["frozen"] = score(carried(net, *place, first_half(net, *place)), *place)
    for look_back in COLD:
        scores[f"cold {look_back}"] = score(cold(net, *place, look_back), *place)
    for look_back in COLD[:-1]:
        own, _ = train(series_TC, middle, look_back, setting, budget, seed)
        scores[f"own {look_back}"] = score(cold(own, *place, look_back), *place)
    return {"dataset": dataset, "seed": seed, "training_cpu_seconds": seconds, "scores": scores}


def table(found: dict[str, Any]) -> str:
    """MSE of each data set and way, mean and spread over seeds; the lowest of a row is bold."""
    ways = list(found["trials"][0]["scores"])
    rows = []
    for dataset in dict.fromkeys(trial["dataset"] for trial in found["trials"]):
        own = [trial["scores"] for trial in found["trials"] if trial["dataset"] == dataset]
        errors = {way: [scores[way]["mse"] for scores in own] for way in ways}
        best = min(fmean(values) for values in errors.values())
        texts = [_with_spread(values) for values in errors.values()]
        rows.append([dataset, *(f"**{t}**" if fmean(v) == best else t for t, v in zip(texts, errors.values(), strict=True))])
    every = [trial["scores"] for trial in found["trials"]]
    rows.append(["CPU ms a forecast", *(f"{fmean(scores[way]['cpu_ms'] for scores in every):.1f}" for way in ways)])
    return markdown_table(["MSE of the second half", *ways], rows)


def _with_spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeseries.online", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--datasets", type=names, default=["ETTh1", "ETTh2", "Exchange"], help=f"comma-separated: {', '.join(SOURCES)}")
    add("--seeds", type=positive(int), default=3, help="how many")
    add("--epochs", type=positive(int), default=Budget.epochs)
    add("--batches", type=positive(int), default=60, help="of an epoch")
    for name, default in asdict(Setting()).items():
        add(f"--{name.replace('_', '-')}", type=positive(int), default=default)
    add("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.datasets if name not in SOURCES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(SOURCES)}")
    quiet()
    torch.set_num_threads(1)
    if options.stride % options.patch_length:
        parser.error(
            f"--stride {options.stride} must be a multiple of --patch-length {options.patch_length}: forecasts begin after a patch"
        )
    setting = Setting(options.horizon, options.stride, options.patch_length)
    budget = replace(Budget(), epochs=options.epochs, batches=options.batches)
    found = {**environment("benchmarks.timeseries.online"), "setting": asdict(setting), "budget": asdict(budget), "trials": []}
    todo = [(dataset, seed) for dataset in options.datasets for seed in range(options.seeds)]
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    with progress_bar() as progress:
        task = progress.add_task("", total=len(todo))
        for dataset, seed in todo:
            progress.update(task, description=f"{dataset}, seed {seed}")
            found["trials"].append(measure(dataset, setting, budget, seed))
            write_json(options.output, found)
            progress.advance(task)
    console.print(table(found), markup=False)


if __name__ == "__main__":
    main()
