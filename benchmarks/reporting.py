"""What the benchmarks share: how results are written, how they get into the README, how a run shows its progress."""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.machine import ROOT, cpu_model, installed, revision
from titans_seq.errors import UserError
from titans_seq.progress import make_bar

RESULTS = ROOT / "benchmarks" / "results"

Report = dict[str, Any]


def environment(module: str) -> Report:
    """Command, date, revision, versions and machine of a run of `python -m module`."""
    found = revision() or ""
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": found.removesuffix("+changes") or None,
        "changes": found.endswith("+changes"),
        "titans_seq": installed("titans-seq"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2),
    }


def measured_at(runs: Iterable[Report]) -> str:
    """The revision that runs (`environment`) measured at; of several, that the results name them: a table is no place for a list."""
    revisions = {(run["revision"] or "?")[:10] + (" with changes" if run["changes"] else "") for run in runs}
    return f"revision {revisions.pop()}" if len(revisions) == 1 else "at several revisions, which the results name with each run"


def write_json(path: Path, found: Report) -> None:
    """Whole or not at all: a run that is ended leaves the last complete file.

    Raises:
        ValueError: a number is not finite, which no JSON can say.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


@dataclass(frozen=True)
class Section:
    """The part of a README between the markers of this name."""

    name: str

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}:begin -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}:end -->"

    def read(self, text: str) -> str | None:
        """What stands between the markers, None if there are none."""
        if self.begin not in text or self.end not in text:
            return None
        return text.split(self.begin, 1)[1].split(self.end, 1)[0].strip()

    def replace(self, text: str, content: str) -> str:
        """The text with other content between the markers."""
        if self.read(text) is None:
            raise ValueError(f"no {self.begin} with a {self.end} after it")
        before, _, rest = text.partition(self.begin)
        _, _, after = rest.partition(self.end)
        return f"{before}{self.begin}\n{content}\n{self.end}{after}"

    def write(self, path: Path, content: str) -> None:
        """Put content between the markers of a file; a file without them ends the program."""
        try:
            path.write_text(self.replace(path.read_text(), content))
        except ValueError as error:
            sys.exit(f"error: {path} has {error}")


def add_table_option(parser: argparse.ArgumentParser, output: Path) -> None:
    """--output, and --table, of a benchmark whose results stand in docs/dna.md."""
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--table", action="store_true", help="measure nothing: print the results, and write them into docs/dna.md")


def publish(found: Report, section: Section, markdown: Callable[[Report], str], table: Callable[[Report], Table]) -> None:
    """What --table does with results: into the page, and onto the screen."""
    section.write(ROOT / "docs" / "dna.md", markdown(found))
    print_table(table(found))


def print_table(table: Table) -> None:
    """As wide as the terminal, or as it needs where there is none."""
    Console(highlight=False, width=None if os.isatty(1) else 200).print(table)


def write_sections(path: Path, sections: Mapping[Section, str]) -> None:
    """Put each content between its markers, where the file has them.

    Raises:
        UserError: it has none of them.
    """
    present = [section for section in sections if section.read(path.read_text()) is not None]
    if not present:
        raise UserError(f"{path} has none of the markers {', '.join(section.begin for section in sections)}.")
    for section in present:
        section.write(path, sections[section])


def names(text: str) -> list[str]:
    """A comma-separated list of the command line."""
    return [name.strip() for name in text.split(",") if name.strip()]


def integers(text: str) -> list[int]:
    """A comma-separated list of integers."""
    return [int(name) for name in names(text)]


def progress_bar() -> Progress:
    columns = (TextColumn("{task.description:<64}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return make_bar(*columns)
