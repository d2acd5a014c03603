"""The results as JSON, as a table on the terminal, and as tables of the README and of docs/speed_benchmark.md."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from benchmarks import reporting
from benchmarks.machine import available_mib, installed, source_digest
from benchmarks.reporting import Report, Section
from benchmarks.speed import operations, parity
from benchmarks.speed.cells import BACKWARD, BATCH, DECODE, DECODE_WINDOW, DEPTH, FORWARD, TIMED_RUNS, WIDTH, Cell, Limits, Result
from benchmarks.speed.goals import judge
from benchmarks.speed.peers import PEERS, packages
from benchmarks.speed.subjects import LAYERS

SCHEMA = 2
README, FULL = Section("speed"), Section("speed-all")


def environment(limits: Limits) -> Report:
    """Command, date, revision, versions, machine."""
    return {
        "schema": SCHEMA,
        **reporting.environment("benchmarks.speed"),
        "source": source_digest(),
        "free_mib": round(available_mib()),
        "gpu": torch.cuda.get_device_name(limits.device) if limits.device != "cpu" else None,
        "device": limits.device,
        "threads": limits.threads,
        "budget_seconds": limits.budget_seconds,
        "peers": {
            name: {"package": peer.package, "version": installed(peer.package), "computes": peer.computes} for name, peer in PEERS.items()
        },
    }


def report(
    start: Report, parities: Sequence[parity.Parity], results: Sequence[Result], elapsed: float, profile: Report | None = None
) -> Report:
    """Everything, ready for JSON; `start` is the environment as it was when the run began."""
    return {
        **start,
        "load_at_end": round(os.getloadavg()[0], 2),
        "elapsed_seconds": round(elapsed, 1),
        "not_installed": [package for package in packages() if installed(package) is None],
        "sizes": {"width": WIDTH, "depth": DEPTH, "batch": BATCH, "dtype": "float32", "runs": TIMED_RUNS, "decode_window": DECODE_WINDOW},
        "counted": {
            "forward_units": operations.FORWARD_UNITS,
            "backward_units": operations.BACKWARD_UNITS,
            "unit": "2 D h operations a token and head; inside the chunk 4 C (D + h) more forward, 2 C (5 D + 6 h) backward",
        },
        "parity": {
            "tokens": parity.TOKENS,
            "dtype": "float64",
            "tolerance": parity.TOLERANCE,
            "checks": [check.to_dict() for check in parities],
        },
        "goals": judge(results) if start["device"] == "cpu" else [],
        "cells": [result.to_dict() for result in results],
        "profile": profile,
    }


def read_results(found: Report) -> list[Result]:
    return [Result.from_dict(cell) for cell in found["cells"]]


def kept(path: Path, start: Report) -> dict[Cell, Result]:
    """What an earlier run of the same source, machine and options measured."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    names = ("schema", "source", "python", "torch", "cpu", "cpus", "gpu", "device", "threads", "budget_seconds", "peers")
    if any(found.get(name) != start[name] for name in names):
        return {}
    return {result.cell: result for result in read_results(found) if result.measurement}


# Tables


def table(results: Sequence[Result], title: str) -> Table:
    """What was measured, one line a cell."""
    shown = Table(title=title, box=box.SIMPLE_HEAD)
    for name in ("", "T", "mode", "tokens / s", "quartiles", "range", "runs", "CPU/s", "MiB", "GFLOP/s", "of floor"):
        shown.add_column(name, justify="left" if name in ("", "mode") else "right", no_wrap=True)
    for result in results:
        m = result.measurement
        if m is None:
            continue
        speed = m.tokens_per_second
        ranges = [f"{number(a)} - {number(b)}" for a, b in ((speed.lower_quartile, speed.upper_quartile), (speed.min, speed.max))]
        floor = [f"{m.floor.gflop_per_second:.1f}", f"{m.floor.reached:.0%}"] if m.floor else ["", ""]
        mark = "" if m.finite else " (not finite)"
        memory = f"{m.memory_mib:,.0f}" if m.state_mib is None else f"{m.state_mib:.1f} carried"
        name = result.cell.label + mark
        shown.add_row(
            name,
            f"{result.cell.tokens:,}",
            result.cell.mode,
            number(speed.median),
            *ranges,
            str(m.runs),
            f"{m.cpu_per_wall:.2f}",
            memory,
            *floor,
        )
    return shown


def number(x: float) -> str:
    """Three digits are all that such a measurement has."""
    if x >= 1000:
        digits = len(str(int(x))) - 3
        return f"{round(x / 10**digits) * 10**digits:,}"
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}"


def sections(found: Report) -> dict[Section, str]:
    """The README's tables, of layers and other implementations, and those of docs/speed_benchmark.md, of operator and models as well."""
    results = read_results(found)
    layers = [r for r in results if r.cell.subject in (*LAYERS, *PEERS)]
    return {README: _tables(found, "python -m benchmarks.speed", layers), FULL: _tables(found, found["command"], results)}


def _tables(found: Report, command: str, results: Sequence[Result]) -> str:
    """Tokens a second, forward / forward + backward, and peak memory; below it, decoding."""
    passes = [r for r in results if r.cell.mode in (FORWARD, BACKWARD)]
    parts = [
        _sentence(found, command),
        _markdown_table(passes, "tokens/s, forward / forward + backward (peak memory)", _both_modes),
    ]
    decoded = [r for r in results if r.cell.mode == DECODE and r.measurement]
    if decoded:
        parts.append(_markdown_table(decoded, "decoding, tokens/s one at a time (state carried) after T tokens", _decoded))
    return "\n\n".join(parts)


def _sentence(found: Report, command: str) -> str:
    where = found["gpu"] or f"{found['cpu']}, {found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    sizes, revision, changes = found["sizes"], found["revision"] or "?", " with changes" if found["changes"] else ""
    return (
        f"Medians of {sizes['runs']} runs on {where}, torch {found['torch']}, float32, batch 1, heads of {sizes['width']}, memory of depth "
        f"{sizes['depth']}; E expansion, C chunk size; `{command}`, revision {revision[:10]}{changes}, {found['date'][:10]}."
    )


def _markdown_table(results: Sequence[Result], corner: str, text: Any) -> str:
    lengths = sorted({r.cell.tokens for r in results})
    labels = list(dict.fromkeys(r.cell.label for r in results if any(x.measurement for x in results if x.cell.label == r.cell.label)))
    lines = [f"| {corner} | " + " | ".join(f"T = {T:,}" for T in lengths) + " |", "|---|" + "---|" * len(lengths)]
    for label in labels:
        cells = [text({r.cell.mode: r for r in results if r.cell.label == label and r.cell.tokens == T}) for T in lengths]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _both_modes(found: dict[str, Result]) -> str:
    speeds, memory = [], []
    for mode in (FORWARD, BACKWARD):
        m = found[mode].measurement if mode in found else None
        speeds.append(f"{number(m.tokens_per_second.median)}{_few(m.runs)}{'' if m.finite else ' (not finite)'}" if m else "-")
        memory.append(_mib(m.memory_mib) if m else "-")
    return "-" if speeds == ["-", "-"] else f"{' / '.join(speeds)} ({' / '.join(memory)})"


def _decoded(found: dict[str, Result]) -> str:
    m = found[DECODE].measurement if DECODE in found else None
    return f"{number(m.tokens_per_second.median)} ({_mib(m.state_mib or 0.0)})" if m else "-"


def _few(runs: int) -> str:
    return "" if runs >= TIMED_RUNS else f" ({runs} run{'s' if runs > 1 else ''})"


def _mib(x: float) -> str:
    return f"{x / 1024:.1f} GiB" if x >= 1024 else f"{x:.0f} MiB" if x >= 10 else f"{x:.1f} MiB"
