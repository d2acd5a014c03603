"""A carried state against cold contexts: `python -m benchmarks.timeseries.online`.

The first half of each series trains (its last tenth chooses), the second half is forecast as it arrives: at origins evenly apart, the next
`horizon` steps. A forecast knows nothing but the steps before it.

    naive             the last season, or the last value where there is none
    ridge             fitted once, before the second half
    ridge, refitted   fitted again before each forecast on all windows that are complete, all alike or the older less
    cold 96, 336      the forecaster trained on windows of so many steps, which reads the latest so many anew for each forecast
    cold 1024         the same with a linear memory, which learns within the window
    carried           that of cold 1024, from the state that has read everything since the series began (`observe`, `predict`)
    carried, frozen   the same, with memories that neither learn nor forget: what the rest of the state is worth
    streams           carried, but trained on streams (`stream_training`)
    streams, frozen backbone   the same, but the memories of the backbone neither learn nor forget: what the linear memory is worth

Every choice is made on the first half, and errors are on its scale. Tokens are the patches that are read for one forecast.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from time import process_time
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.machine import positive
from benchmarks.reporting import RESULTS, Section, environment, integers, measured_at, progress_bar, write_json
from benchmarks.timeseries import online_ridge, synthetic
from benchmarks.timeseries.__main__ import known, quiet
from benchmarks.timeseries.datasets import SOURCES, read, saugeen
from benchmarks.timeseries.ours import WEIGHT_DECAY, OurNetwork, Settings, titans
from benchmarks.timeseries.protocol import Windows, standardise
from benchmarks.timeseries.report import markdown_table
from benchmarks.timeseries.stream_training import StreamBudget, carried_mse, train_on_streams
from benchmarks.timeseries.training import Budget, Learned
from domains.timeseries.reading import ForecasterState
from titans_seq.errors import UserError
from titans_seq.memory.layer import frozen_memory

OUTPUT = RESULTS / "forecasting_online.json"
SECTION = Section("forecasting-online")
COLD = (96, 336, 1024)
LEARNING_RATE = 1e-3
PLAIN = Settings(season=False, channel_maps=False, spread_prior=0.0, scale_length=None, train_linear=True, ridge_windows=2_500)
"""Without a season and maps of each channel: what is compared is reading. Long windows overlap, so fewer begin them."""
TRAINED_AT = COLD[-1]
LINEAR = (96, 512)
"""Steps that the linear part of the model of long contexts may see: those with which it forecasts validation better as a stream."""
READ_BEFORE = 8192
"""Steps at most that are read before validation in training and in choosing."""
VALIDATION_SHARE = 0.1
"""Of the training half."""
WINDOWS_OF_STEPS = 4 * 1024
"""Steps of a batch of windows: the longer they are, the fewer, so that every training costs about the same."""
VALIDATION_WINDOWS = 50
SENTINEL = -9990.0
"""Weather's -9999 and the like, which are not measurements: the value before stands for them."""


@dataclass(frozen=True)
class Setting:
    """Steps ahead, forecasts of the second half at least, steps a token, and the width of the linear memory."""

    horizon: int = 24
    forecasts: int = 100
    patch_length: int = 8
    linear_memory: int = 32


@dataclass(frozen=True)
class Half:
    """A series (T, C), standardised by its first half; where the second half begins, and validation before it; steps of a season."""

    series_TC: Tensor
    middle: int
    season: int
    setting: Setting

    @property
    def border(self) -> int:
        return self.middle - round(VALIDATION_SHARE * self.middle)

    @property
    def stride(self) -> int:
        """Steps from forecast to forecast: a prime number of patches, so that forecasts begin at many times of day."""
        patches = (len(self.series_TC) - self.middle) // self.setting.forecasts // self.setting.patch_length
        return self.setting.patch_length * max((p for p in range(2, patches + 1) if all(p % d for d in range(2, p))), default=1)

    @property
    def origins(self) -> range:
        """Steps before which a forecast is made."""
        return range(self.middle, len(self.series_TC) - self.setting.horizon + 1, self.stride)

    @property
    def validation_origins(self) -> range:
        return range(self.border, self.middle - self.setting.horizon + 1, 5 * self.setting.patch_length)


DATASETS: dict[str, tuple[Callable[[], Tensor], int]] = {
    **{name: (lambda name=name: read(name)[0], source.season) for name, source in SOURCES.items()},  # type: ignore[misc]
    "Saugeen": (saugeen, 1),
    "made: recurring": (synthetic.recurring, 1),
    "made: regimes": (synthetic.regimes, 1),
}
"""How a series is read, and its season."""


def halves(dataset: str, setting: Setting) -> Half:
    load, season = DATASETS[dataset]
    values_TC = load()
    middle = len(values_TC) // 2
    return Half(standardise(filled(values_TC), middle), middle, season, setting)


def filled(values_TC: Tensor) -> Tensor:
    """Sentinels give way to the value before them."""
    measured = values_TC > SENTINEL
    latest = torch.where(measured, torch.arange(len(values_TC)).unsqueeze(1), 0).cummax(0).values
    return values_TC.gather(0, latest)


# Training


def train_cold(half: Half, build: Callable[[Windows, Windows], nn.Module], look_back: int, budget: Budget, seed: int) -> OurNetwork:
    """A model of windows that begin cold."""
    budget = replace(budget, batch_size=max(1, WINDOWS_OF_STEPS // look_back))
    learned = Learned(build, LEARNING_RATE, budget, WEIGHT_DECAY)
    horizon = half.setting.horizon
    training = Windows(half.series_TC[: half.border], look_back, horizon)
    validation = Windows(half.series_TC[half.border - look_back : half.middle], look_back, horizon)
    return learned.fit(training, validation, seed).predict  # type: ignore[return-value]


def start(half: Half, setting: Setting) -> OurNetwork:
    """The model of long contexts before training."""
    pieces = half.series_TC[: half.border], half.series_TC[half.border - TRAINED_AT : half.middle]
    train, validation = (Windows(piece, TRAINED_AT, setting.horizon) for piece in pieces)
    settings = replace(PLAIN, patch_length=setting.patch_length, linear_memory=setting.linear_memory)
    nets = [titans(replace(settings, linear_length=steps), 1)(train, validation) for steps in LINEAR]
    place = max(0, half.border - READ_BEFORE)
    return min(nets, key=lambda net: carried_mse(net.model, half.series_TC[place : half.middle], half.border - place))  # type: ignore[arg-type, return-value]


def train_stream(half: Half, net: OurNetwork, budget: StreamBudget, seed: int) -> OurNetwork:
    """A model of streams, from where `net` stands before any training."""
    place = max(0, half.border - READ_BEFORE)
    train_on_streams(net.model, half.series_TC[place : half.middle], half.border - place, LEARNING_RATE, budget, seed)
    return net


# Forecasts of each origin, (H, C)


def naive(half: Half) -> Iterator[Tensor]:
    index = torch.arange(half.setting.horizon) % half.season - half.season
    for origin in half.origins:
        yield half.series_TC[origin + index]


def ridge(half: Half, kind: online_ridge.Kind, penalty: float) -> Iterator[Tensor]:
    for (forecast,) in online_ridge.forecasts(half.series_TC, half.origins, half.setting.horizon, kind, [penalty]):
        yield forecast


def cold(half: Half, net: OurNetwork, look_back: int) -> Iterator[Tensor]:
    """Each from the latest steps alone."""
    for origin in half.origins:
        yield net(half.series_TC[origin - look_back : origin].unsqueeze(0), torch.zeros(1, dtype=torch.int64))[0]


def first_half(half: Half, net: OurNetwork) -> ForecasterState:
    """The state after the first half, but for the few first steps: so that every origin is at the end of a patch, as in training."""
    new = half.series_TC[half.middle % half.setting.patch_length : half.middle].unsqueeze(0)
    return net.model.observe(net.model.init_state(1), new, torch.ones_like(new))


def carried(half: Half, net: OurNetwork, state: ForecasterState) -> Iterator[Tensor]:
    """Each from the state after the steps before it."""
    read_to = half.middle
    for origin in half.origins:
        if origin > read_to:
            new = half.series_TC[read_to:origin].unsqueeze(0)
            state, read_to = net.model.observe(state, new, torch.ones_like(new)), origin
        (location, *_), loc, scale = net.model.predict(state)
        yield (location * scale + loc)[0]


# Measurement


@torch.inference_mode()
def score(half: Half, forecasts: Iterator[Tensor], tokens: int = 0) -> dict[str, Any]:
    """Mean errors over origins, steps and channels, and CPU milliseconds a forecast."""
    begin, squared, absolute = process_time(), [], []
    for origin, forecast_HC in zip(half.origins, forecasts, strict=True):
        error_HC = (forecast_HC - half.series_TC[origin : origin + half.setting.horizon]).double()
        squared.append(float(error_HC.square().mean()))
        absolute.append(float(error_HC.abs().mean()))
    seconds = process_time() - begin
    return {
        "mse": fmean(squared),
        "mae": fmean(absolute),
        "forecasts": len(squared),
        "tokens": tokens,
        "cpu_ms": 1e3 * seconds / len(squared),
    }


@torch.inference_mode()
def score_carried(half: Half, net: OurNetwork) -> dict[str, Any]:
    return score(half, carried(half, net, first_half(half, net)), half.stride // half.setting.patch_length)


def score_cold(half: Half, net: OurNetwork, look_back: int) -> dict[str, Any]:
    return score(half, cold(half, net, look_back), -(-look_back // half.setting.patch_length))


def measure(dataset: str, setting: Setting, budget: Budget, streams: StreamBudget, seed: int) -> dict[str, Any]:
    """Scores of every way to forecast the second half, by its name, and CPU seconds of each training."""
    half = halves(dataset, setting)
    scores, chosen, seconds = {"naive": score(half, naive(half))}, {}, {}
    for name, refit in (("ridge", False), ("ridge, refitted", True)):
        kind, penalty = online_ridge.choose(half.series_TC[: half.middle], half.validation_origins, setting.horizon, refit)
        scores[name] = score(half, ridge(half, kind, penalty))
        chosen[name] = {**asdict(kind), "penalty": penalty}

    def timed(name: str, train: Callable[[], OurNetwork]) -> OurNetwork:
        begin = process_time()
        net = train()
        seconds[name] = process_time() - begin
        return net

    for look_back in COLD[:-1]:
        build = titans(replace(PLAIN, patch_length=setting.patch_length), 1)
        train = partial(train_cold, half, build, look_back, budget, seed)
        net = timed(f"cold {look_back}", train)
        scores[f"cold {look_back}"] = score_cold(half, net, look_back)
    torch.manual_seed(seed)
    begun = timed("start", lambda: start(half, setting))
    net = timed(f"cold {TRAINED_AT}", lambda: train_cold(half, lambda train, validation: deepcopy(begun), TRAINED_AT, budget, seed))
    scores[f"cold {TRAINED_AT}"] = score_cold(half, net, TRAINED_AT)
    scores["carried"] = score_carried(half, net)
    with frozen_memory(net):
        scores["carried, frozen"] = score_carried(half, net)
    net = timed("streams", lambda: train_stream(half, begun, streams, seed))
    scores["streams"] = score_carried(half, net)
    with frozen_memory(net.model.titans):
        scores["streams, frozen backbone"] = score_carried(half, net)
    memory = net.model.linear_memory
    assert memory is not None
    chosen["linear memory"] = {
        "step": memory.step.tolist(),
        "forgetting": memory.forgetting.tolist(),
        "keys": memory.key_steps,
        "linear": net.model.config.linear_length,
    }
    return {"dataset": dataset, "seed": seed, "scores": scores, "chosen": chosen, "training_cpu_seconds": seconds}


def every_patch(dataset: str, setting: Setting, seed: int) -> dict[str, Any]:
    """The model before training, carried and frozen, at every patch of the second half: many more forecasts than cold contexts allow."""
    half = halves(dataset, setting)
    torch.manual_seed(seed)
    model = start(half, setting).model
    found = {"carried": carried_mse(model, half.series_TC, half.middle)}
    with frozen_memory(model):
        found["frozen"] = carried_mse(model, half.series_TC, half.middle)
    return {"dataset": dataset, "seed": seed, **found, "linear": model.config.linear_length}


# The table


def table(found: dict[str, Any]) -> str:
    """MSE of each data set and way, mean and spread over seeds, the lowest of a row in bold; then tokens and CPU time of a forecast."""
    trials = found["trials"]
    ways = list(trials[0]["scores"])
    rows = []
    for dataset in dict.fromkeys(trial["dataset"] for trial in trials):
        own = [trial["scores"] for trial in trials if trial["dataset"] == dataset]
        errors = [[scores[way]["mse"] for scores in own] for way in ways]
        best = min(map(fmean, errors))
        rows.append([dataset, *(f"**{_spread(values)}**" if fmean(values) == best else _spread(values) for values in errors)])
    every = [trial["scores"] for trial in trials]
    rows.append(["tokens read for a forecast", *(f"{median(scores[way]['tokens'] for scores in every):.0f}" for way in ways)])
    rows.append(["CPU ms a forecast, median", *(f"{median(scores[way]['cpu_ms'] for scores in every):.1f}" for way in ways)])
    return markdown_table(["MSE of the second half", *ways], rows)


def every_patch_table(found: dict[str, Any]) -> str:
    rows = [[one["dataset"], f"{one['frozen']:.4f}", f"{one['carried']:.4f}"] for one in found.get("every_patch", [])]
    return markdown_table(["MSE after every patch, before training", "frozen", "carried"], rows) if rows else ""


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(set(values)) > 1 else "")


def about(found: dict[str, Any]) -> str:
    """What was run, for the page."""
    seeds = len({trial["seed"] for trial in found["trials"]})
    return f"`python -m benchmarks.timeseries.online`, {seeds} seed{'s' if seeds > 1 else ''}, {measured_at(found['runs'])}."


# The command


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeseries.online", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--datasets", action=known("data set", list(DATASETS)), default=list(DATASETS), help=f"comma-separated: {', '.join(DATASETS)}")
    add("--seeds", type=integers, default=[0], help="comma-separated (default: 0)")
    add("--epochs", type=positive(int), default=1, help="of training on windows")
    add("--batches", type=positive(int), default=20, help="of an epoch")
    for field in ("segments", "looks"):
        add(f"--{field}", type=positive(int), default=getattr(StreamBudget, field), help="of training on streams (default: %(default)s)")
    for name, default in asdict(Setting()).items():
        add(f"--{name.replace('_', '-')}", type=positive(int), default=default, help="default: %(default)s")
    add("--output", type=Path, default=OUTPUT)
    add("--every-patch", action="store_true", help="measure the model before training, carried and frozen, after every patch")
    add("--table", action="store_true", help="print the table of the output that is there; measure nothing")
    add("--docs", type=Path, metavar="FILE", help="with --table: put it between the markers of this file")
    options = parser.parse_args(arguments)
    return options


def show(options: argparse.Namespace, console: Console) -> None:
    if not options.output.exists():
        sys.exit(f"error: {options.output}: no such file; measure first.")
    found = json.loads(options.output.read_text())
    console.print(table(found), markup=False)
    if options.docs is not None:
        SECTION.write(options.docs, "\n\n".join(filter(None, (about(found), table(found), every_patch_table(found)))))


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure what the output does not hold yet under the same setting, and show it all."""
    setting = Setting(options.horizon, options.forecasts, options.patch_length, options.linear_memory)
    budget = Budget(epochs=options.epochs, batches=options.batches, validation_windows=VALIDATION_WINDOWS)
    streams = StreamBudget(segments=options.segments, looks=options.looks)
    plan = {"setting": asdict(setting), "budget": asdict(budget), "streams": asdict(streams)}
    found = json.loads(options.output.read_text()) if options.output.exists() else {}
    if any(found.get(name) != value for name, value in plan.items()):
        found = {**plan, "runs": [], "trials": []}
    if options.every_patch:
        found["runs"].append(environment("benchmarks.timeseries.online"))
        for dataset in options.datasets:
            found.setdefault("every_patch", []).append({"run": len(found["runs"]) - 1, **every_patch(dataset, setting, options.seeds[0])})
            write_json(options.output, found)
        console.print(every_patch_table(found), markup=False)
        return
    number, known_trials = len(found["runs"]), {(trial["dataset"], trial["seed"]) for trial in found["trials"]}
    found["runs"].append(environment("benchmarks.timeseries.online"))
    todo = [(dataset, seed) for seed in options.seeds for dataset in options.datasets if (dataset, seed) not in known_trials]
    with progress_bar() as progress:
        task = progress.add_task("", total=len(todo))
        for dataset, seed in todo:
            progress.update(task, description=f"{dataset}, seed {seed}")
            found["trials"].append({"run": number, **measure(dataset, setting, budget, streams, seed)})
            write_json(options.output, found)
            progress.advance(task)
    console.print(table(found), markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    quiet()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        (show if options.table else run)(options, console)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
