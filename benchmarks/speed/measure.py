"""Measuring one cell, in a process of its own."""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.machine import available_mib
from benchmarks.speed.cells import BATCH, DECODE, DECODE_WINDOW, FORWARD, LONG, SHORT, TIMED_RUNS, Cell, Limits, Measurement, Result, Spread
from benchmarks.speed.operations import floor_of
from benchmarks.speed.peers import PEERS
from benchmarks.speed.subjects import LAYERS, Call, Stream, make_call, random_input

MEMORY_SHARE = 0.6  # of what is free: a cell that needs more fails by itself and takes nobody with it


def run_once(call: Call, backward: bool, device: str = "cpu") -> tuple[float, bool]:
    """Seconds of one run, and whether its output was finite."""
    synchronise(device)
    begin = time.perf_counter()
    if backward:
        y = call.function()[0]
        torch.autograd.grad(y, call.leaves, torch.ones_like(y), allow_unused=True)
    else:
        with torch.no_grad():
            y = call.function()[0]
    synchronise(device)
    seconds = time.perf_counter() - begin
    return seconds, bool(y.isfinite().all())


def decode_once(stream: Stream, device: str = "cpu") -> tuple[float, bool]:
    """Seconds of one window, token by token, and whether its outputs were finite."""
    tokens = random_input(stream.cell, DECODE_WINDOW, stream.dtype, device).split(1, dim=1)
    synchronise(device)
    begin = time.perf_counter()
    with torch.inference_mode():
        outputs = [stream.feed(x) for x in tokens]
    synchronise(device)
    seconds = time.perf_counter() - begin
    return seconds, all(bool(y.isfinite().all()) for y in outputs)


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def peak_mib(device: str = "cpu") -> float:
    """Largest resident size of this process so far (Linux counts it in KiB), or the largest allocated size on the GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak(device: str = "cpu") -> None:
    """Let the peak begin anew, where the system can: what making the inputs needed would hide a part of the growth."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def prepare(cell: Cell, device: str) -> tuple[Callable[[], tuple[float, bool]], Stream | None]:
    """A function that makes one timed run, after libraries are loaded, inputs made and, for decoding, the prompt read."""
    if cell.mode == DECODE:
        stream = Stream(cell, device=device)
        with torch.inference_mode():
            stream.prefill()
        return lambda: decode_once(stream, device), stream
    backward = cell.mode != FORWARD
    if cell.subject not in PEERS:
        run_once(make_call(replace(cell, tokens=1), device=device), backward, device)  # loads libraries, starts threads
    call = make_call(cell, device=device)
    return lambda: run_once(call, backward, device), None


def measure_here(cell: Cell, limits: Limits) -> Measurement:
    """Measure in this process. Peers get fewer than five runs where they would not fit the budget, and the row says so."""
    torch.set_num_threads(limits.threads)
    begin = time.perf_counter()
    run, stream = prepare(cell, limits.device)
    setup = time.perf_counter() - begin
    state_mib = stream.state_bytes() / 2**20 if stream else None  # after the prompt
    forget_peak(limits.device)
    before = peak_mib(limits.device)
    warm_up, finite = run()
    refuse_what_cannot_fit(cell, warm_up, limits)
    seconds: list[float] = []
    cpu = 0.0
    shorter = shorter_runs(cell, limits.device)
    growth: list[float] = []
    while len(seconds) < TIMED_RUNS and not (seconds and beyond_budget(cell, warm_up, seconds, limits)):
        begin = time.process_time()
        taken, ok = run()
        cpu += time.process_time() - begin
        seconds.append(taken)
        finite = finite and ok
        if shorter is not None:
            growth.append(taken / LONG / (statistics.median(shorter()[0] for _ in range(TIMED_RUNS)) / SHORT))
    memory = peak_mib(limits.device) - before
    tokens = DECODE_WINDOW if stream else cell.tokens
    return Measurement(
        runs=len(seconds),
        warm_up_seconds=warm_up,
        setup_seconds=setup,
        seconds=Spread.of(seconds),
        tokens_per_second=Spread.of([BATCH * tokens / s for s in seconds]),
        memory_mib=memory,
        finite=finite,
        cpu_per_wall=cpu / sum(seconds),
        state_mib=state_mib,
        growth=Spread.of(growth) if growth else None,
        floor=floor_of(cell, statistics.median(seconds), limits.device),
        note=f"timed runs: {len(seconds)}, more would not fit the budget" if len(seconds) < TIMED_RUNS else None,
    )


def shorter_runs(cell: Cell, device: str) -> Callable[[], tuple[float, bool]] | None:
    """The same thing at SHORT tokens, after its warm-up, for a cell whose time a token is compared with that."""
    if not compares_lengths(cell):
        return None
    run, _ = prepare(replace(cell, tokens=SHORT), device)
    run()
    return run


def compares_lengths(cell: Cell) -> bool:
    return cell.tokens == LONG and cell.mode != DECODE and cell.subject in LAYERS


class BeyondBudgetError(Exception):
    """The timed runs of a cell would not end before it is ended."""


def refuse_what_cannot_fit(cell: Cell, warm_up: float, limits: Limits) -> None:
    if reason := beyond_deadline(cell, warm_up, limits):
        raise BeyondBudgetError(reason)


def beyond_deadline(cell: Cell, seconds: float, limits: Limits) -> str | None:
    """Why a cell whose run takes so long does not fit, None if it does: a warm-up and five runs of ours, one of a peer's; with the runs at
    SHORT tokens if there are any.
    """
    runs: float = 1 + (1 if cell.subject in PEERS else TIMED_RUNS)
    if compares_lengths(cell):
        runs += (1 + TIMED_RUNS**2) * SHORT / LONG
    if runs * seconds <= 2 * limits.budget_seconds:
        return None
    return f"{runs:.0f} runs would take about {runs * seconds:.0f} s, more than twice the budget of {limits.budget_seconds:g} s"


def beyond_budget(cell: Cell, warm_up: float, seconds: list[float], limits: Limits) -> bool:
    return cell.subject in PEERS and warm_up + sum(seconds) + seconds[-1] > limits.budget_seconds


def bound_memory() -> None:
    """Allocations beyond what is free now fail, instead of taking other processes' memory."""
    free = int(MEMORY_SHARE * available_mib() * 2**20)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 0
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (used + free, hard))


def child(cell: Cell, limits: Limits, connection: Connection) -> None:
    if limits.device == "cpu":
        bound_memory()
    try:
        connection.send(measure_here(cell, limits))
    except BeyondBudgetError as error:
        connection.send(str(error))
    except Exception as error:  # noqa: BLE001 - whatever a subject raises is what the table says of it
        text = str(error).strip().splitlines() or [""]
        connection.send(f"failed: {type(error).__name__}: {text[0][:200]}")


def deadline(cell: Cell, limits: Limits) -> float:
    return 2 * limits.budget_seconds + (limits.prefill_seconds if cell.mode == DECODE else 0.0)


def measure(cell: Cell, limits: Limits) -> Result:
    """Measure in a fresh process, ended at twice the budget (and the time allowed for a prompt)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "titans_seq", "benchmarks.speed.measure"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(cell, limits, send))
    process.start()
    send.close()
    try:
        if not receive.poll(deadline(cell, limits)):
            return Result(cell, skipped=f"no result after {deadline(cell, limits):g} s, twice the budget of a cell")
        found = receive.recv()
        return Result(cell, skipped=found) if isinstance(found, str) else Result(cell, found)
    except EOFError:
        process.join()
        return Result(cell, skipped=f"the process ended with exit code {process.exitcode} (-9: out of memory)")
    finally:
        process.kill()
        process.join()
