"""The command: `python -m benchmarks.timeseries`."""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

import benchmarks.timeseries
from benchmarks.machine import positive
from benchmarks.reporting import RESULTS, Section, integers, names, progress_bar, write_sections
from benchmarks.timeseries.cells import MODELS, SHORT, Cell, plan
from benchmarks.timeseries.datasets import SOURCES
from benchmarks.timeseries.measure import Results, measure
from benchmarks.timeseries.protocol import HORIZONS
from benchmarks.timeseries.report import COST, HORIZON_BY_HORIZON, MEANS, by_horizon, cost, markdown, table
from benchmarks.timeseries.training import Budget
from titans_seq.errors import UserError

OUTPUT = RESULTS / "forecasting.json"
QUICK = Budget(epochs=1, batches=20, validation_windows=200)


def known(kind: str, allowed: Sequence[str]) -> "type[argparse.Action]":
    """An option that takes comma-separated names out of those allowed."""

    class Known(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, space: argparse.Namespace, text: object, option: str | None = None) -> None:
            given = names(str(text))
            wrong = [name for name in given if name not in allowed]
            if wrong or not given:
                parser.error(f"{option}: no {kind} is called {', '.join(map(repr, wrong)) or repr('')}; there are {', '.join(allowed)}")
            setattr(space, self.dest, given)

    return Known


def horizons(text: str) -> list[int]:
    return [positive(int)(name) for name in names(text)]


def look_backs(text: str) -> list[str]:
    for name in (found := names(text)):
        if name != "long":
            positive(int)(name)
    return found


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    about = (benchmarks.timeseries.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeseries", description=about)
    add = parser.add_argument
    add("--datasets", action=known("data set", list(SOURCES)), default=list(SOURCES), help=f"comma-separated: {', '.join(SOURCES)}")
    add("--look-backs", type=look_backs, default=[str(SHORT), "long"], help="steps, or 'long': chosen on validation (default: 96,long)")
    add("--horizons", type=horizons, default=list(HORIZONS), help="comma-separated (default: 96,192,336,720)")
    ablations = [name for name, model in MODELS.items() if model.ablation]
    usual = [name for name in MODELS if name not in ablations]
    about = f"comma-separated (default: {','.join(usual)}); ablations: {', '.join(ablations)}"
    add("--models", action=known("model", list(MODELS)), default=usual, help=about)
    add("--seeds", type=integers, default=[0, 1, 2], help="of trained models (default: 0,1,2)")
    add("--epochs", type=positive(int), default=Budget.epochs, help="of training at most (default: %(default)s)")
    add("--batches", type=positive(int), default=Budget.batches, help="of an epoch at most (default: %(default)s)")
    add("--threads", type=positive(int), default=1, help="of torch; more than there are free cores is very slow (default: %(default)s)")
    add("--quick", action="store_true", help="ETTh1 at look-back and horizon 96, 20 batches of one seed; writes no file without --output")
    add("--output", type=Path, help=f"JSON of the results (default: {OUTPUT.relative_to(RESULTS.parents[1])})")
    add("--again", action="store_true", help="measure cells again that the output holds already")
    add("--table", action="store_true", help="print the tables of the output that is there; measure nothing")
    add("--readme", type=Path, nargs="+", metavar="FILE", default=[], help="with --table: put them between the markers of these files")
    options = parser.parse_args(arguments)
    if options.quick:
        options.datasets, options.look_backs, options.horizons, options.seeds = ["ETTh1"], ["96"], [96], options.seeds[:1]
    elif options.output is None:
        options.output = OUTPUT
    options.budget = QUICK if options.quick else Budget(epochs=options.epochs, batches=options.batches)
    return options


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure what is not known yet, and show it all."""
    found = Results.load(options.output)
    number = found.begin()
    with progress_bar() as progress:
        task = progress.add_task("look-backs", total=None)
        resolved = {
            dataset: [found.long_look_back(dataset) if name == "long" else int(name) for name in options.look_backs]
            for dataset in options.datasets
        }
        cells = plan(options.datasets, lambda dataset: resolved[dataset], options.horizons, options.models, options.seeds)
        todo = [cell for cell in cells if options.again or not found.holds(cell, options.budget)]
        console.print(f"{len(cells)} cells, {len(cells) - len(todo)} of them measured already")
        progress.update(task, total=len(cells), completed=len(cells) - len(todo))
        for cell in todo:
            progress.update(task, description=cell.label)
            found.add(measure(cell, options.budget, number))
            progress.console.print(line(found, cell), soft_wrap=True)
            progress.advance(task)
    console.print(table([found.cells[cell] for cell in cells]))
    if options.output is not None:
        found.save()
        console.print(f"written to {options.output}")


def line(found: Results, cell: Cell) -> str:
    result = found.cells[cell]
    return f"{cell.label}: {result.failed or f'MSE {result.mse:.4f}, MAE {result.mae:.4f}, {result.fit_cpu_seconds:.0f} CPU s'}"


def show(options: argparse.Namespace, console: Console) -> None:
    """The tables of what is there, on the terminal and in files."""
    path = options.output or OUTPUT
    if not path.exists():
        raise UserError(f"{path}: no such file; measure first.")
    found = Results.load(path)
    sections: dict[Section, str] = {MEANS: markdown(found), HORIZON_BY_HORIZON: by_horizon(found), COST: cost(found)}
    for text in sections.values():
        console.print(text, markup=False)
    for file in options.readme:
        write_sections(file, sections)


def quiet() -> None:
    """No notices of other packages to their developers."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="(gluonts|lightning).*")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=not sys.stdout.isatty())
    quiet()
    torch.set_num_threads(options.threads)
    try:
        (show if options.table else run)(options, console)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
