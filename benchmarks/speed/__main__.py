"""The command: `python -m benchmarks.speed`."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

import benchmarks.speed
from benchmarks.machine import positive
from benchmarks.reporting import RESULTS, names, progress_bar, write_json, write_sections
from benchmarks.speed import compare as comparing
from benchmarks.speed.cells import MODES, Cell, Limits, Result
from benchmarks.speed.measure import measure
from benchmarks.speed.parity import Parity, check_parity, forms_to_check
from benchmarks.speed.peers import PEERS, chosen, packages
from benchmarks.speed.plan import GROUPS, QUICK, Grid, plan, reason_of_form, reason_to_skip, select
from benchmarks.speed.report import FULL, environment, kept, report, sections, table


def lengths(text: str) -> list[int]:
    return [positive(int)(name) for name in names(text)]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(benchmarks.speed.__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="128 tokens and small sizes; writes no file without --output")
    add(
        "--subjects",
        type=names,
        help=f"names or groups, comma-separated: {', '.join(GROUPS)}; {', '.join(n for g in GROUPS.values() for n in g)}",
    )
    add("--tokens", type=lengths, help="lengths (for decoding: positions), comma-separated")
    add("--modes", type=names, help=f"comma-separated: {', '.join(MODES)}")
    add("--peers", type=names, default=packages(), help=f"comma-separated packages or names, or an empty string: {', '.join(packages())}")
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=positive(int), default=2, help="of torch; more than there are free cores is very slow")
    add("--budget-seconds", type=positive(float), default=Limits.budget_seconds, help="for the runs of one cell (default: %(default)g)")
    add("--long", action="store_true", help="decode after a million tokens with every layer, not with the cheapest alone")
    add("--output", type=Path, help="JSON of the results (default: benchmarks/results/speed_DEVICE.json); its pictures stand beside it")
    add("--resume", action="store_true", help="keep what the output holds already of the same source, machine and options")
    add("--profile", action="store_true", help="besides, profile the chunkwise operator")
    add("--compare", metavar="REV", help="compare this git revision of titans_seq with --against")
    add("--against", metavar="REV", default=comparing.WORKING_TREE, help="default: the working tree")
    add("--rounds", type=positive(int), default=comparing.ROUNDS, help="of --compare: pairs of fresh processes (default: %(default)d)")
    add("--table", action="store_true", help="print the tables of the output that is there; measure nothing")
    add("--readme", type=Path, nargs="+", metavar="FILE", default=[], help="with --table: put them between the markers of these files")
    add("--plots", action="store_true", help="draw the pictures from the output that is there; measure nothing")
    options = parser.parse_args(arguments)
    try:
        options.cells = chosen_cells(options)
    except ValueError as error:
        parser.error(str(error))
    if not options.cells:
        parser.error("no cell has these subjects, tokens and modes")
    return options


def chosen_cells(options: argparse.Namespace) -> list[Cell]:
    if options.compare and not (options.quick or options.subjects or options.tokens or options.modes):
        return comparing.default_cells()
    cells = plan(QUICK if options.quick else Grid(), chosen(options.peers), long=options.long)
    return select(cells, options.subjects, options.tokens, options.modes)


def run_cells(
    cells: Sequence[Cell],
    limits: Limits,
    tick: Callable[[str], None],
    known: dict[Cell, Result] | None = None,
    save: Callable[[list[Parity], list[Result]], None] = lambda parities, results: None,
) -> tuple[list[Parity], list[Result]]:
    """Check every form, then measure what passed and is not known already; `save` after every cell."""
    smallest = min((c.chunk_size for c in cells if c.chunk_size), default=1)
    parities = []
    for form in forms_to_check(cell for cell in cells if reason_of_form(cell, smallest, limits.device) is None):
        tick(f"parity of {form.label}")
        parities.append(check_parity(form, limits.device))
    results: list[Result] = []
    known = known or {}
    for cell in cells:
        tick(f"{cell.label}, {cell.mode}, T {cell.tokens:,}")
        reason = reason_to_skip(cell, smallest, parities, [] if cell in known else results, limits)
        results.append(Result(cell, skipped=reason) if reason else known.get(cell) or measure(cell, limits))
        save(parities, results)
    return parities, results


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure, print, write."""
    limits = Limits(options.threads, options.budget_seconds, Limits.prefill_seconds * (6 if options.long else 1), options.device)
    torch.set_num_threads(limits.threads)
    output = output_of(options)
    begin, start = time.perf_counter(), environment(limits)
    known = kept(output, start) if options.resume and output else {}

    def save(parities: list[Parity], results: list[Result], profile: dict | None = None) -> None:
        if output is not None:
            write_json(output, report(start, parities, results, time.perf_counter() - begin, profile))

    with progress_bar() as progress:
        task = progress.add_task("", total=len(options.cells) + len(forms_to_check(options.cells)))
        tick = lambda text: progress.update(task, description=text, advance=1)  # noqa: E731
        parities, results = run_cells(options.cells, limits, tick, known, save)
        profile = None
        if options.profile:
            from benchmarks.speed.profiling import profile_operator

            tick("profile of the chunkwise operator")
            profile = profile_operator(limits, tokens=256 if options.quick else 4096)
    console.print(table(results, f"{options.device}, float32, batch 1, heads of 64, memory of depth 2; E expansion, C chunk size"))
    print_reasons(console, results, parities)
    if output is not None:
        save(parities, results, profile)
        console.print(f"written to {output}")
        draw_from(output, console)


def print_reasons(console: Console, results: Sequence[Result], parities: Sequence[Parity]) -> None:
    for reason in sorted({result.skipped for result in results if result.skipped}):
        console.print(f"{sum(r.skipped == reason for r in results)} not measured: {reason}")
    notes = [
        f"{r.cell.label}, {r.cell.mode}, T {r.cell.tokens:,}: {r.measurement.note}" for r in results if r.measurement and r.measurement.note
    ]
    for note in notes:
        console.print(note)
    for name in dict.fromkeys(r.cell.subject for r in results if r.cell.subject in PEERS):
        console.print(f"{name}: {PEERS[name].computes}")
    passed = sum(parity.passed for parity in parities)
    if parities:
        console.print(f"{passed} of {len(parities)} forms agree with their oracle in float64, outputs, state and gradients")


def output_of(options: argparse.Namespace) -> Path | None:
    """Where results go; a quick or partial run overwrites the default file only if it is told to."""
    if options.output is not None:
        return options.output
    partial = options.quick or options.subjects or options.tokens or options.modes
    return None if partial else RESULTS / f"speed_{options.device.partition(':')[0]}.json"


def draw_from(output: Path, console: Console) -> None:
    from benchmarks.speed.plots import draw

    for path in draw(json.loads(output.read_text()), output):
        console.print(f"drawn to {path}")


def run_comparison(options: argparse.Namespace, console: Console) -> None:
    limits = Limits(options.threads, options.budget_seconds, device=options.device)
    cells = [cell for cell in options.cells if cell.subject not in PEERS]
    with progress_bar() as progress:
        task = progress.add_task("", total=len(cells))
        tick = lambda text: progress.update(task, description=text, advance=1)  # noqa: E731
        found = comparing.compare(options.compare, options.against, cells, limits, rounds=options.rounds, tick=tick)
    console.print(comparing.comparison_table(options.compare, options.against, found))
    for comparison in found:
        if comparison.skipped:
            console.print(
                f"not measured: {comparison.cell.label}, {comparison.cell.mode}, T {comparison.cell.tokens:,}: {comparison.skipped}"
            )
    if options.output is not None:
        sides = {"a": options.compare, "b": options.against}
        write_json(options.output, {**environment(limits), **sides, "comparisons": [asdict(comparison) for comparison in found]})
        console.print(f"written to {options.output}")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=not sys.stdout.isatty())
    if options.table or options.plots:
        output = output_of(options) or RESULTS / "speed_cpu.json"
        if options.plots:
            draw_from(output, console)
        if options.table:
            found = sections(json.loads(output.read_text()))
            print(found[FULL])
            for file in options.readme:
                write_sections(file, found)
        return
    if options.compare:
        run_comparison(options, console)
    else:
        run(options, console)


if __name__ == "__main__":
    main()
