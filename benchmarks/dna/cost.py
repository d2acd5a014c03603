"""What reading and training cost at lengths from a thousand bases to ten million: `python -m benchmarks.dna.cost`.

One sequence of so many random bases, one thread, each cell in a process of its own; CPU seconds and the growth of its memory.

    read    log-likelihood of each base, in segments through the state; attention's state is all keys and values
    train   forward and backward: Titans in segments with the state carried on and cut from the graph, attention through the whole length

A cell that would take longer than --budget-seconds, by what a shorter one took, is left out and says so.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from time import process_time

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.reporting import (
    RESULTS,
    Report,
    Section,
    add_table_option,
    environment,
    integers,
    print_table,
    progress_bar,
    publish,
    write_json,
)
from benchmarks.speed.baselines import AttentionModel
from benchmarks.speed.measure import forget_peak, peak_mib
from domains.dna.config import of_preset
from domains.dna.model import VOCABULARY, TitansForDNA, base_nats
from titans_seq import presets

OUTPUT = RESULTS / "dna_cost.json"
SECTION = Section("dna-cost")
LENGTHS = [1_024, 16_384, 131_072, 1_048_576, 10_485_760]
SUBJECTS = ("Titans, memory alone", "Titans, memory and window", "attention")
MODES = ("read", "train")
SEGMENT = 1_024


class AttentionForDNA(nn.Module):
    """The attention model of the same width and depth between an embedding of bases and logits of the next one."""

    def __init__(self) -> None:
        super().__init__()
        config = presets.tiny("lmm")
        self.embedding = nn.Embedding(VOCABULARY, config.dim)
        self.model, self.head = AttentionModel(config), nn.Linear(config.dim, 4)

    def forward(self, tokens: Tensor, state: list | None = None) -> tuple[Tensor, list | None]:
        """Logits (B, T, 4) and the cache that went on."""
        y, state = self.model(self.embedding(tokens), state)
        return self.head(y), state


def loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return base_nats(logits[:, :-1], tokens[:, 1:]).mean()


def read(model: nn.Module, tokens: Tensor) -> None:
    """All of tokens (1, T), segment by segment."""
    state = model.model.new_cache(1, tokens.shape[1], torch.float32, "cpu") if isinstance(model, AttentionForDNA) else None
    with torch.inference_mode():
        for part in tokens.split(SEGMENT, dim=1):
            logits, state = model(part, state)
            loss(logits, part)


def train(model: nn.Module, tokens: Tensor) -> None:
    """One pass forward and backward over tokens (1, T)."""
    if isinstance(model, AttentionForDNA):
        loss(model(tokens)[0], tokens).backward()
        return
    state = None
    for part in tokens.split(SEGMENT, dim=1):
        logits, state = model(part, state)
        loss(logits, part).backward()
        state = state.detach()


def cell(subject: str, mode: str, length: int) -> dict[str, float]:
    """CPU seconds and MiB of memory, by which the process grew at most, after one warm-up on a segment."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    variant = {"Titans, memory alone": "lmm", "Titans, memory and window": "mag"}.get(subject)
    model = AttentionForDNA() if variant is None else TitansForDNA(of_preset("tiny", variant))  # type: ignore[arg-type]
    tokens, work = torch.randint(4, (1, length)), {"read": read, "train": train}[mode]
    work(model, tokens[:, : 2 * SEGMENT])
    forget_peak()
    before, begin = peak_mib(), process_time()
    work(model, tokens)
    return {"cpu_seconds": process_time() - begin, "memory_mib": peak_mib() - before}


def measured(subject: str, lengths: Sequence[int], mode: str, budget: float, tick: Callable[[str], None]) -> list[Report]:
    """A row a length. What the next will take is told by how the last two grew."""
    found: list[Report] = []
    for length in lengths:
        tick(f"{subject}, {mode}, {length:,}")
        if len(found) and (expected := _expected(found, length)) > budget:
            found.append({"length": length, "left_out": f"would take about {expected:,.0f} s"})
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append({"length": length, **pool.apply(partial(cell, subject, mode, length))})
    return found


def _expected(found: Sequence[Report], length: int) -> float:
    """Seconds by the quadratic of attention, or by what the last row took a base."""
    done = [row for row in found if "cpu_seconds" in row]
    ratio = length / done[-1]["length"]
    if len(done) == 1:
        return done[-1]["cpu_seconds"] * ratio
    grown = (done[-1]["cpu_seconds"] / done[-2]["cpu_seconds"]) / (done[-1]["length"] / done[-2]["length"])
    return done[-1]["cpu_seconds"] * ratio * (ratio if grown > 2 else 1)


def table(found: Report) -> Table:
    """A row a length, a column a subject and mode: thousand bases a CPU second, and memory."""
    columns = [(mode, subject) for mode in found["cells"] for subject in found["cells"][mode]]
    shown = Table("thousand bases a CPU second (MiB)", *(f"{mode}: {subject}" for mode, subject in columns))
    for i, length in enumerate(found["lengths"]):
        row = [found["cells"][mode][subject][i] for mode, subject in columns if i < len(found["cells"][mode][subject])]
        texts = ("-" if "left_out" in one else f"{length / one['cpu_seconds'] / 1000:,.1f} ({one['memory_mib']:,.0f})" for one in row)
        shown.add_row(f"{length:,}", *texts)
    return shown


def markdown(found: Report) -> str:
    """The same as `table`, and how it came about, for a page."""
    columns = [(mode, subject) for mode in found["cells"] for subject in found["cells"][mode]]
    where = f"`{found['command']}`, revision {(found['revision'] or '')[:10]}, {found['cpu']}"
    head = f"Thousand bases a CPU second (MiB by which the process grew). {where}."
    lines = [head, "", f"| bases | {' | '.join(f'{mode}: {subject}' for mode, subject in columns)} |", f"|{' --- |' * (1 + len(columns))}"]
    for i, length in enumerate(found["lengths"]):
        rows = [found["cells"][mode][subject][i] for mode, subject in columns]
        texts = [row.get("left_out") or f"{length / row['cpu_seconds'] / 1000:,.1f} ({row['memory_mib']:,.0f})" for row in rows]
        lines.append(f"| {length:,} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dna.cost", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--lengths", type=integers, default=LENGTHS, help="rising, comma-separated")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--budget-seconds", type=float, default=300.0, help="of a cell (default: 300)")
    add_table_option(parser, OUTPUT)
    options = parser.parse_args(arguments)
    if options.table:
        publish(json.loads(options.output.read_text()), SECTION, markdown, table)
        return
    found: Report = {**environment("benchmarks.dna.cost"), "segment": SEGMENT, "lengths": options.lengths, "cells": {}}
    with progress_bar() as progress:
        task = progress.add_task("", total=len(options.modes) * len(SUBJECTS) * len(options.lengths))
        tick = lambda text: progress.update(task, description=text, advance=1)  # noqa: E731
        for mode in options.modes:
            found["cells"][mode] = {}
            for subject in SUBJECTS:
                found["cells"][mode][subject] = measured(subject, options.lengths, mode, options.budget_seconds, tick)
                write_json(options.output, found)
    print_table(table(found))


if __name__ == "__main__":
    main()
