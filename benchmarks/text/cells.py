"""What is measured once is kept: a run goes on where one was ended, inside a training too, and measures anew what had other settings."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean, stdev

import torch

from benchmarks.machine import ROOT
from benchmarks.reporting import Report, Section, environment, measured_at, progress_bar, write_json
from benchmarks.text.baselines import SUBJECTS
from titans_seq import strict_json

Say = Callable[[str], None]
PAGE = ROOT / "docs" / "text_benchmark.md"
WHERE = ("command", "date", "revision", "changes", "torch", "cpu", "load")
"""Of `environment`, what is kept with every cell."""


@dataclass(frozen=True)
class Cell:
    """A measurement. settings: all that it depends on, as JSON has it. work: what it finds, saying how far it is, with a checkpoint."""

    settings: Report
    work: Callable[[Say, Path], Report]


def read_cells(output: Path) -> dict[str, Report]:
    """By key; empty where there is no file yet."""
    return strict_json.loads(output.read_text())["cells"] if output.exists() else {}


def run_cells(cells: Mapping[str, Cell], output: Path, module: str) -> None:
    """Measure what `output` lacks, on one thread, and write it after each."""
    torch.set_num_threads(1)
    found = read_cells(output)
    with progress_bar() as progress:
        bar = progress.add_task("", total=len(cells))
        for key, cell in cells.items():

            def say(what: str, key: str = key) -> None:
                progress.update(bar, description=f"{key}: {what}")

            say("begins")
            if found.get(key, {}).get("settings") != json.loads(json.dumps(cell.settings)):  # tuples are lists there
                where = environment(module)
                checkpoint = output.parent / f".{output.stem}-{key.replace(' | ', '-')}-{_digest(cell.settings)}.checkpoint"
                found[key] = {**cell.work(say, checkpoint), "settings": cell.settings, **{name: where[name] for name in WHERE}}
                write_json(output, {"module": module, "cells": found})
                checkpoint.unlink(missing_ok=True)
                print(f"{key}: measured", file=sys.stderr, flush=True)
            progress.advance(bar)


def _digest(settings: Report) -> str:
    """What was begun with other settings has another name."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def measured_by(found: Mapping[str, Report], module: str) -> str:
    """The command, and the revisions that measured."""
    return f"`python -m {module}`, {measured_at(found.values())}."


def add_shared(parser: argparse.ArgumentParser, output: Path) -> None:
    """Options of every text benchmark."""
    data = Path(os.environ.get("TITANS_SEQ_DATA", "data"))
    parser.add_argument("--data", type=Path, default=data, help="folder with text/ (default: $TITANS_SEQ_DATA)")
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--table", action="store_true", help=f"measure nothing: write the results into docs/{PAGE.name}, and print them")


def check_names(parser: argparse.ArgumentParser, chosen: Sequence[str], known: Collection[str]) -> None:
    """End the program where a name is none of the known ones."""
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")


def by_subject(found: Mapping[str, Report]) -> dict[str, list[Report]]:
    """The cells of each seed, by the first part of their key."""
    made: dict[str, list[Report]] = {}
    for key, cell in found.items():
        made.setdefault(key.split(" | ")[0], []).append(cell)
    return made


def rates_table(head: str, searched: Mapping[str, Report], score: Callable[[Report], float]) -> list[str]:
    """Lines of a table of a search, whose cells are "subject | rate": a row a subject, a column a rate."""
    rates = sorted({float(key.split(" | ")[1]) for key in searched})
    lines = [f"| {head} | {' | '.join(f'{rate:g}' for rate in rates)} |", f"|{' --- |' * (1 + len(rates))}"]
    for name in by_subject(searched):
        cells = [searched.get(f"{name} | {rate:g}") for rate in rates]
        lines.append(f"| {SUBJECTS[name].label} | {' | '.join('' if cell is None else f'{score(cell):.3f}' for cell in cells)} |")
    return lines


def entries(scores: Mapping[str, Sequence[float]], best: Callable[[Iterable[float]], float] = max, digits: int = 3) -> dict[str, str]:
    """What a table shows of scores that compete: the mean over the seeds of each and their deviation; bold what is best as it is shown."""
    means = {key: round(fmean(values), digits) for key, values in scores.items()}
    found = {}
    for key, values in scores.items():
        text = f"{means[key]:.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
        found[key] = f"**{text}**" if means[key] == best(means.values()) else text
    return found


def seeds_of(found: Mapping[str, Report]) -> str:
    return ", ".join(sorted({key.split(" | ")[1] for key in found}))


def show(text: str, section: Section | None, write: bool) -> None:
    """Print what was found, and write it into the section of the page, where it has one, if that is asked for."""
    if write and section is not None:
        section.write(PAGE, text)
    print(text)
