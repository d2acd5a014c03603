"""Two revisions of titans_seq side by side: `python -m benchmarks.speed --compare REV [--against REV2]`.

Each revision is checked out into a temporary git worktree and measured by this benchmark's code in processes of its own. The timed runs
alternate, A B A B, so that what slows the machine hits both; a ratio is formed from each pair of neighbours, and the processes are started
anew for each round. Nothing is timed on a side whose parity check fails.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.table import Table

from benchmarks.machine import ROOT, git
from benchmarks.speed.cells import BACKWARD, DECODE, DECODE_WINDOW, FORWARD, TIMED_RUNS, Cell, Limits, Spread
from benchmarks.speed.plan import DEFAULT_CHUNK
from benchmarks.speed.report import number

WORKING_TREE = "working tree"
ROUNDS = 3


@dataclass(frozen=True)
class Comparison:
    """Seconds of each side and their ratio, A over B: above 1, B is faster."""

    cell: Cell
    pairs: int = 0
    a_seconds: Spread | None = None
    b_seconds: Spread | None = None
    ratio: Spread | None = None
    skipped: str | None = None


class Side:
    """A process that measures one source tree."""

    def __init__(self, path: Path, limits: Limits) -> None:
        search = os.pathsep.join([str(path), str(ROOT)])
        self.limits, self.path = limits, path
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker"],
            cwd=path,
            env={**os.environ, "PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def ask(self, do: str, cell: Cell) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"do": do, "cell": asdict(cell), "limits": asdict(self.limits)}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with exit code {self.process.wait()}: {self._last_error()}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["answer"]

    def _last_error(self) -> str:
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or ["it said nothing"])[-1]

    def check(self, cell: Cell) -> None:
        """RuntimeError unless the form passes and comes from this side's tree."""
        found = self.ask("parity", cell)
        if Path(found["from"]).resolve() != (self.path / "titans_seq" / "__init__.py").resolve():
            raise RuntimeError(f"measured {found['from']} instead of {self.path}")
        for check in found["checks"]:
            if not check["passed"]:
                raise RuntimeError(f"refused: differs from the oracle by {check['largest_error']}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


@contextmanager
def source_tree(revision: str, repository: Path) -> Iterator[Path]:
    """A folder that holds the `titans_seq` of a revision and nothing else that Python could import."""
    with tempfile.TemporaryDirectory(prefix="speed-") as name, ExitStack() as cleanup:
        folder, tree = Path(name), repository
        if revision != WORKING_TREE:
            tree = folder / "tree"
            git("worktree", "add", "--detach", str(tree), revision, folder=repository)
            cleanup.callback(git, "worktree", "remove", "--force", str(tree), folder=repository)
        path = folder / "path"
        path.mkdir()
        (path / "titans_seq").symlink_to((tree / "titans_seq").resolve(), target_is_directory=True)
        yield path


def default_cells() -> list[Cell]:
    """Operator, layer and a small model: what a change of the memory shows in."""
    cells = [
        Cell(subject, mode, 4096, expansion=4, chunk_size=C)
        for subject in ("chunkwise", "memory layer")
        for C in (16, 64)
        for mode in (FORWARD, BACKWARD)
    ]
    return cells + [Cell("model mac", mode, 1024, 256, 4, DEFAULT_CHUNK, 2) for mode in (FORWARD, BACKWARD)]


def compare(
    a: str,
    b: str,
    cells: Sequence[Cell],
    limits: Limits,
    *,
    rounds: int = ROUNDS,
    repository: Path = ROOT,
    tick: Callable[[str], None] = lambda text: None,
) -> list[Comparison]:
    """Measure every cell on both sides."""
    with source_tree(a, repository) as tree_a, source_tree(b, repository) as tree_b:
        found = []
        for cell in cells:
            tick(f"{cell.label}, {cell.mode}, T {cell.tokens}")
            try:
                found.append(compare_cell(cell, (tree_a, tree_b), limits, rounds))
            except (RuntimeError, BrokenPipeError) as error:
                found.append(Comparison(cell, skipped=str(error)))
        return found


def compare_cell(cell: Cell, trees: tuple[Path, Path], limits: Limits, rounds: int) -> Comparison:
    """`rounds` pairs of fresh processes, in each up to five alternating runs; which side begins changes from round to round."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number_of_round in range(rounds):
        with Side(trees[0], limits) as a, Side(trees[1], limits) as b:
            sides = (a, b)
            if number_of_round == 0:
                for side in sides:
                    side.check(cell)
            longest = max(side.ask("cell", cell) for side in sides)
            runs = max(1, min(TIMED_RUNS, int(limits.budget_seconds / (2 * longest))))
            order = (0, 1) if number_of_round % 2 == 0 else (1, 0)
            for _ in range(runs):
                for side in order:
                    seconds[side].append(sides[side].ask("run", cell))
    ratios = [x / y for x, y in zip(*seconds, strict=True)]
    return Comparison(cell, len(ratios), Spread.of(seconds[0]), Spread.of(seconds[1]), Spread.of(ratios))


def comparison_table(a: str, b: str, comparisons: Sequence[Comparison]) -> Table:
    """Ratios with their spread, one line a cell."""
    shown = Table(title=f"A {a}, B {b}: seconds of A over seconds of B; above 1, B is faster", box=box.SIMPLE_HEAD)
    for name in ("", "T", "mode", "A tokens/s", "B tokens/s", "A / B", "quartiles", "range", "pairs"):
        shown.add_column(name, justify="left" if name in ("", "mode") else "right", no_wrap=True)
    for found in comparisons:
        cell, ratio = found.cell, found.ratio
        if ratio is None or found.a_seconds is None or found.b_seconds is None:
            continue
        tokens = DECODE_WINDOW if cell.mode == DECODE else cell.tokens
        speeds = [number(tokens / side.median) for side in (found.a_seconds, found.b_seconds)]
        spread = [f"{ratio.lower_quartile:.2f} - {ratio.upper_quartile:.2f}", f"{ratio.min:.2f} - {ratio.max:.2f}"]
        shown.add_row(cell.label, f"{cell.tokens:,}", cell.mode, *speeds, f"{ratio.median:.2f}", *spread, str(found.pairs))
    return shown
