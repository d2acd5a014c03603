"""Speed and memory of the neural memory on a CPU: `python -m benchmarks.speed`, or `--quick` for a minute's worth of it.

Every cell (a form of the operator, or a layer, at one size) runs in a process of its own: one warm-up, then the timed runs. Beside the
forms stand a causal attention layer and the whole `NeuralMemory` layer of the same width. No form is timed before its outputs, final
state and gradients equal those of `reference` in float64. What is not measured is in the results with its reason.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

from titans_seq.config import MemoryConfig
from titans_seq.memory import Gates, MemoryWeights, NeuralMemory, neural_memory

WIDTH, HEADS, DEPTH, BATCH = 64, 4, 2, 1
DIM = WIDTH * HEADS
SUBJECTS = ("reference", "recurrent", "chunkwise", "memory layer", "attention layer")
MODES = ("forward", "forward + backward")
TIMED_RUNS = 5
PARITY_TOKENS, PARITY_TOLERANCE = 100, 1e-9
SLOW_FORM_TOKENS = 1024  # the reference, and backward through the recurrent form, are measured up to here
OUTPUT = Path(__file__).parent / "results" / "speed_memory_cpu.json"


@dataclass(frozen=True)
class Cell:
    """One thing to measure; expansion and chunk_size are None for attention."""

    subject: str
    mode: str
    tokens: int
    expansion: int | None = None
    chunk_size: int | None = None


@dataclass(frozen=True)
class Limits:
    threads: int
    budget_seconds: float


@dataclass(frozen=True)
class Spread:
    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Measurement:
    """memory_mib: growth of the process's largest resident size over that before the first run of this size.

    warm_up_seconds: the run that is not counted; it takes fresh pages from the system, which the timed runs find in place.
    """

    runs: int
    warm_up_seconds: float
    seconds: Spread
    tokens_per_second: Spread
    memory_mib: float
    forward_gflop: float | None = None
    gflop_per_second: float | None = None
    bmm_gflop_per_second: float | None = None
    ratio_to_bmm: float | None = None


@dataclass(frozen=True)
class Result:
    """A cell with its measurement, or with the reason why there is none."""

    cell: Cell
    measurement: Measurement | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Parity:
    """Largest difference of a form from `reference`, in units of max(1, largest value of the tensor); None if it is not finite."""

    subject: str
    expansion: int
    chunk_size: int
    tensors: int
    largest_error: float | None

    @property
    def passed(self) -> bool:
        return self.largest_error is not None and self.largest_error <= PARITY_TOLERANCE


@dataclass(frozen=True)
class Call:
    """Something that can be run: returns its output first, then its state. `leaves` are what it can be differentiated by."""

    function: Callable[[], list[Tensor]]
    leaves: list[Tensor]


# What is measured


class CausalAttention(nn.Module):
    """Plain causal attention of the same width: projection to q, k, v, attention, output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
        self.output = nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(y.transpose(1, 2).flatten(2))


def operator_call(impl: str, cell: Cell, dtype: torch.dtype, differentiable: bool) -> Call:
    """The operator on random unit q and k, normal v, and gates about the layer's initial ones."""
    assert cell.expansion is not None
    assert cell.chunk_size is not None
    torch.manual_seed(0)

    def leaf(x: Tensor) -> Tensor:
        return x.to(dtype).requires_grad_(differentiable)

    def uniform(low: float, high: float) -> Tensor:
        return leaf(torch.empty(BATCH, HEADS, cell.tokens, dtype=torch.float64).uniform_(low, high))

    q, k, v = (torch.randn(BATCH, HEADS, cell.tokens, WIDTH, dtype=torch.float64) for _ in range(3))
    q, k, v = leaf(F.normalize(q, dim=-1)), leaf(F.normalize(k, dim=-1)), leaf(v)
    hidden = WIDTH * cell.expansion
    layers = [leaf(torch.randn(HEADS, a, b, dtype=torch.float64) / a**0.5) for a, b in ((WIDTH, hidden), (hidden, WIDTH))]
    norms = [leaf(torch.ones(HEADS, WIDTH)), leaf(torch.zeros(HEADS, WIDTH))]
    weights = MemoryWeights(layers=layers, norm_scale=norms[0], norm_shift=norms[1])
    gates = [Gates(uniform(0.002, 0.02), uniform(0.7, 0.9), uniform(0.001, 0.004)) for _ in range(DEPTH)]

    def function() -> list[Tensor]:
        y, state = neural_memory(q, k, v, gates, weights, chunk_size=cell.chunk_size, impl=impl)
        return [y, *state.weights, *state.momentum, *state.anchor]

    return Call(function, [q, k, v, *layers, *norms, *(gate for layer in gates for gate in layer)])


def layer_call(impl: str, cell: Cell, dtype: torch.dtype, differentiable: bool) -> Call:
    """`NeuralMemory` (with its projections, `impl` its operator's form), or the attention layer."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, cell.tokens, DIM, dtype=torch.float64).to(dtype).requires_grad_(differentiable)
    if cell.subject == "attention layer":
        attention = CausalAttention().to(dtype).requires_grad_(differentiable)
        return Call(lambda: [attention(x)], [x, *attention.parameters()])
    assert cell.expansion is not None
    assert cell.chunk_size is not None
    config = MemoryConfig(num_heads=HEADS, head_dim=WIDTH, depth=DEPTH, expansion=cell.expansion, chunk_size=cell.chunk_size)
    layer = NeuralMemory(DIM, config).to(dtype).requires_grad_(differentiable)

    def function() -> list[Tensor]:
        y, state = layer(x, impl=impl)
        return [y, *state.memory.weights, *state.memory.momentum, *state.memory.anchor]

    return Call(function, [x, *layer.parameters()])


def make_call(cell: Cell, dtype: torch.dtype = torch.float32, *, oracle: bool = False) -> Call:
    """The call of a cell; with `oracle` the same call computed by `reference`."""
    if cell.subject in ("memory layer", "attention layer"):
        return layer_call("reference" if oracle else "chunkwise", cell, dtype, cell.mode != "forward")
    return operator_call("reference" if oracle else cell.subject, cell, dtype, cell.mode != "forward")


# Parity


def outputs_and_gradients(call: Call) -> list[Tensor]:
    """Output, final state, and the gradients of a random functional of all of them with respect to every leaf."""
    found = call.function()
    torch.manual_seed(1)
    total = sum(((x * torch.randn_like(x)).sum() for x in found), start=torch.zeros((), dtype=torch.float64))
    gradients = torch.autograd.grad(total, call.leaves, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in (*found, *gradients)]


def check_parity(subject: str, expansion: int, chunk_size: int) -> Parity:
    """Compare a form with `reference` in float64 on a sequence that ends inside a chunk."""
    cell = Cell(subject, MODES[1], PARITY_TOKENS, expansion, chunk_size)
    actual = outputs_and_gradients(make_call(cell, torch.float64))
    expected = outputs_and_gradients(make_call(cell, torch.float64, oracle=True))
    errors = torch.stack([(a - b).abs().max() / b.abs().max().clamp(min=1) for a, b in zip(actual, expected, strict=True)])
    largest = errors.max().item() if errors.isfinite().all() else None
    return Parity(subject, expansion, chunk_size, len(expected), largest)


def forms_to_check(cells: Iterable[Cell]) -> list[tuple[str, int, int]]:
    """One check for each form, expansion and chunk size among the cells: `reference` is the measure, attention is no form."""
    return sorted(
        {(c.subject, c.expansion, c.chunk_size) for c in cells if c.subject != "reference" and c.expansion and c.chunk_size},
    )


# Counted operations


def forward_operations(expansion: int, chunk_size: int) -> int:
    """Floating-point operations of the chunkwise form's matrix products, forward, for one token and head at depth 2.

    With D the width, h = D * expansion and C the chunk size, a product of a row with D x h costs 2 D h (docs/rule.md):

        gradients   k W_1, u W_2 and, backward, g W_2^T            3 * 2 D h
        reads       x W and x S in each of the 2 layers            4 * 2 D h
        next state  u^T r for W and for S in each of the 2 layers  4 * 2 D h
        scores      x u^T over the chunk: 2 C D and 2 C h, and times the steps: 2 C h and 2 C D

    Together 22 D h + 4 C (D + h). Scores are counted in full although half of them are masked. Not counted: what is elementwise, and
    the coefficients (2 C^2 a layer).
    """
    hidden = WIDTH * expansion
    return 22 * WIDTH * hidden + 4 * chunk_size * (WIDTH + hidden)


def bmm_gflop_per_second(expansion: int, chunk_size: int) -> float:
    """Rate of torch.bmm alone at the memory's block shapes, heads x C x D times heads x D x h: median of 5 times 50 ms."""
    a, b = torch.randn(HEADS, chunk_size, WIDTH), torch.randn(HEADS, WIDTH, WIDTH * expansion)
    operations = 2 * a.numel() * b.shape[2]
    rates = []
    for _ in range(TIMED_RUNS + 1):
        begin, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begin) < 0.05:
            for _ in range(20):
                torch.bmm(a, b)
            count += 20
        rates.append(operations * count / elapsed / 1e9)
    return statistics.median(rates[1:])


# Measuring a cell, in its own process


def run_once(call: Call, backward: bool) -> float:
    """Seconds of one run."""
    begin = time.perf_counter()
    if backward:
        y = call.function()[0]
        torch.autograd.grad(y, call.leaves, torch.ones_like(y), allow_unused=True)
    else:
        with torch.no_grad():
            call.function()
    return time.perf_counter() - begin


def peak_mib() -> float:
    """Largest resident size of this process so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Let the largest resident size begin anew, where the system can: what making the inputs needed would hide a part of the growth."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure_here(cell: Cell, limits: Limits) -> Measurement:
    """Measure in this process; fewer than five runs where they would not fit the budget, one at least."""
    torch.set_num_threads(limits.threads)
    backward = cell.mode != "forward"
    run_once(make_call(Cell(cell.subject, cell.mode, 1, cell.expansion, cell.chunk_size)), backward)  # loads libraries, starts threads
    call = make_call(cell)
    forget_peak()
    before = peak_mib()
    warm_up = run_once(call, backward)
    seconds = [run_once(call, backward)]
    while len(seconds) < TIMED_RUNS and warm_up + sum(seconds) + seconds[-1] <= limits.budget_seconds:
        seconds.append(run_once(call, backward))
    memory = peak_mib() - before
    speed = Spread.of([BATCH * cell.tokens / s for s in seconds])
    return Measurement(len(seconds), warm_up, Spread.of(seconds), speed, memory, **rates(cell, statistics.median(seconds)))


def rates(cell: Cell, seconds: float) -> dict[str, float]:
    """Counted operations, the rate reached, and that of torch.bmm in the same process: for the chunkwise form's forward only."""
    if cell.subject != "chunkwise" or cell.mode != "forward" or cell.expansion is None or cell.chunk_size is None:
        return {}
    gflop = forward_operations(cell.expansion, cell.chunk_size) * BATCH * HEADS * cell.tokens / 1e9
    bmm = bmm_gflop_per_second(cell.expansion, cell.chunk_size)
    reached = gflop / seconds
    return {"forward_gflop": gflop, "gflop_per_second": reached, "bmm_gflop_per_second": bmm, "ratio_to_bmm": reached / bmm}


def child(cell: Cell, limits: Limits, connection: Connection) -> None:
    connection.send(measure_here(cell, limits))


def measure(cell: Cell, limits: Limits) -> Result:
    """Measure in a fresh process, ended at twice the budget."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "titans_seq.memory"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(cell, limits, send))
    process.start()
    send.close()
    try:
        if not receive.poll(2 * limits.budget_seconds):
            return Result(cell, skipped=f"no result after {2 * limits.budget_seconds:g} s, twice the budget of a cell")
        return Result(cell, receive.recv())
    except EOFError:
        process.join()
        return Result(cell, skipped=f"the process ended with exit code {process.exitcode} (-9: out of memory)")
    finally:
        process.kill()
        process.join()


# The run


def plan(tokens: Sequence[int], expansions: Sequence[int], chunk_sizes: Sequence[int]) -> list[Cell]:
    """Every cell of the grid, also those that will not be measured."""
    cells = []
    for subject in SUBJECTS:
        attention = subject == "attention layer"
        for expansion in [None] if attention else expansions:
            for chunk_size in [None] if attention else chunk_sizes:
                cells += [Cell(subject, mode, length, expansion, chunk_size) for length in tokens for mode in MODES]
    return cells


def reason_to_skip(cell: Cell, smallest_chunk: int, parities: Sequence[Parity]) -> str | None:
    """Why a cell is not measured, None if it is. A form that has not passed its parity check has no speed."""
    if cell.subject in ("reference", "recurrent") and cell.chunk_size != smallest_chunk:
        return f"token by token: the chunk size does not change the work, see chunk size {smallest_chunk}"
    if cell.subject == "reference" and cell.tokens > SLOW_FORM_TOKENS:
        return f"the oracle takes one autograd pass a token: measured up to {SLOW_FORM_TOKENS} tokens"
    if cell.subject == "recurrent" and cell.mode != "forward" and cell.tokens > SLOW_FORM_TOKENS:
        return f"its backward keeps the weights of every token in memory: measured up to {SLOW_FORM_TOKENS} tokens"
    if cell.subject in ("reference", "attention layer"):
        return None
    for parity in parities:
        if (parity.subject, parity.expansion, parity.chunk_size) == (cell.subject, cell.expansion, cell.chunk_size):
            return None if parity.passed else f"refused: differs from reference by {parity.largest_error}, allowed is {PARITY_TOLERANCE}"
    return "refused: no parity check"


def run_cells(cells: Sequence[Cell], limits: Limits, tick: Callable[[str], None]) -> tuple[list[Parity], list[Result]]:
    """Check every form, then measure what passed."""
    parities = []
    for form in forms_to_check(cells):
        tick("parity of {}, expansion {}, chunk {}".format(*form))
        parities.append(check_parity(*form))
    smallest = min((c.chunk_size for c in cells if c.chunk_size), default=1)
    results = []
    for cell in cells:
        reason = reason_to_skip(cell, smallest, parities)
        tick(f"{cell.subject}, {cell.mode}, T {cell.tokens}, expansion {cell.expansion}, chunk {cell.chunk_size}")
        results.append(Result(cell, skipped=reason) if reason else measure(cell, limits))
    return parities, results


def environment(threads: int) -> dict[str, Any]:
    """Command, date, revision, versions, machine."""
    return {
        "command": shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": threads,
    }


def revision() -> str | None:
    """The git revision, with "+changes" if tracked files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        found = [
            subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[0] + ("+changes" if found[1] else "")


def cpu_model() -> str:
    """Model name, with family and model number where /proc gives them: the name alone may be generic."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in known:
        return platform.processor() or platform.machine()
    return f"{known['model name']} (family {known.get('cpu family', '?')}, model {known.get('model', '?')})"


def report(parities: Sequence[Parity], results: Sequence[Result], limits: Limits, elapsed: float) -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {
        **environment(limits.threads),
        "elapsed_seconds": round(elapsed, 1),
        "budget_seconds": limits.budget_seconds,
        "sizes": {"width": WIDTH, "heads": HEADS, "depth": DEPTH, "batch": BATCH, "dim": DIM, "dtype": "float32"},
        "parity": {
            "tokens": PARITY_TOKENS,
            "dtype": "float64",
            "tolerance": PARITY_TOLERANCE,
            "checks": [{**asdict(parity), "passed": parity.passed} for parity in parities],
        },
        "cells": [
            {**asdict(result.cell), **(asdict(result.measurement) if result.measurement else {"skipped": result.skipped})}
            for result in results
        ],
    }


def table(results: Sequence[Result]) -> Table:
    """What was measured, one line a cell."""
    shown = Table(title="Tokens per second on the CPU, float32, batch 1, 4 heads of 64, depth 2", box=box.SIMPLE_HEAD)
    for name in ("", "E", "C", "T", "mode", "tokens / s", "min", "max", "runs", "MiB", "GFLOP/s", "of bmm"):
        shown.add_column(name, justify="left" if name in ("", "mode") else "right", no_wrap=True)
    for result in results:
        cell, m = result.cell, result.measurement
        if m is None:
            continue
        name = [cell.subject, str(cell.expansion or ""), str(cell.chunk_size or ""), str(cell.tokens), cell.mode]
        speed = [f"{x:,.0f}" for x in (m.tokens_per_second.median, m.tokens_per_second.min, m.tokens_per_second.max)]
        rate = ["", ""] if m.gflop_per_second is None else [f"{m.gflop_per_second:.1f}", f"{m.ratio_to_bmm:.0%}"]
        shown.add_row(*name, *speed, str(m.runs), f"{m.memory_mib:,.0f}", *rate)
    return shown


def positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="128 tokens, expansion 1, chunk size 16; writes no file without --output")
    parser.add_argument("--output", type=Path, help=f"JSON of the results (default: {OUTPUT.relative_to(Path(__file__).parents[1])})")
    parser.add_argument("--threads", type=positive(int), default=2, help="of torch; more than there are free cores is very slow")
    parser.add_argument("--budget-seconds", type=positive(float), default=45.0, help="for all runs of one cell (default: %(default)g)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    limits = Limits(options.threads, options.budget_seconds)
    torch.set_num_threads(limits.threads)
    cells = plan([128], [1], [16]) if options.quick else plan([1024, 4096, 16384], [1, 4], [16, 64])
    begin = time.perf_counter()
    columns = (TextColumn("{task.description:<64}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cells) + len(forms_to_check(cells)))
        parities, results = run_cells(cells, limits, lambda text: progress.update(task, description=text, advance=1))
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table(results))
    for reason in sorted({result.skipped for result in results if result.skipped}):
        console.print(f"{sum(r.skipped == reason for r in results)} not measured: {reason}")
    output = options.output or (None if options.quick else OUTPUT)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report(parities, results, limits, time.perf_counter() - begin), indent=1) + "\n")
        console.print(f"written to {output}")


if __name__ == "__main__":
    main()
