"""tinyshakespeare as nanoGPT reads it on a CPU: `python -m benchmarks.text.shakespeare`.

Its configuration: characters (65), 4 layers of width 128 and 4 heads, 804,096 parameters, windows of 64, batches of 12, 2,000 steps of
AdamW at 1e-3 with 100 of warm-up and a cosine to a tenth, no dropout; the first 90 % of the text train, the last 10 % validate. Only the
rate is not nanoGPT's for all: it was chosen on the last tenth of the training text (--search), which is then trained on.

    estimate    nanoGPT's: the mean over 20 random batches of the validation text
    full pass   all of it, in windows of 64 that do not overlap, each from a fresh state
    stream      all of it in one stream from a fresh state: attention sees the 63 characters before, a memory whatever it kept

A carried model is trained on rows that read the training text in order with their state; it reads each character as often as the others.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.reporting import RESULTS, Report, Section, integers, names
from benchmarks.text.baselines import SUBJECTS, BaselineConfig, BaselineForCausalLM, configure, count
from benchmarks.text.cells import (
    Cell,
    Say,
    add_shared,
    by_subject,
    check_names,
    entries,
    measured_by,
    rates_table,
    read_cells,
    run_cells,
    seeds_of,
    show,
)
from benchmarks.text.training import fit, nats_at, stream_nats, window_nats
from domains.text.config import TextConfig
from titans_seq.config import AttentionConfig, MemoryConfig, TitansConfig
from titans_seq.training import TrainingConfig

MODULE = "benchmarks.text.shakespeare"
OUTPUT = RESULTS / "text_shakespeare.json"
SEARCH = RESULTS / "text_shakespeare_search.json"
SECTION = Section("text-shakespeare")
TEXT = Path("text") / "tinyshakespeare" / "input.txt"
PARAMETERS, CONTEXT = 804_096, 64
BASE = TextConfig(
    titans=TitansConfig(
        dim=128,
        num_layers=4,
        variant="mal",
        memory=MemoryConfig(num_heads=2, head_dim=32, expansion=2, chunk_size=16),
        attention=AttentionConfig(num_heads=4, sliding_window=CONTEXT),
    ),
    vocabulary=65,
    end=0,
    tokenizer="characters",
)
"""`end` is a character like any other: nothing here looks at it."""
TRAINING = TrainingConfig(max_steps=2000, batch_size=12, segment_length=CONTEXT, carry_state=False, beta2=0.99)
SEARCH_STEPS, ESTIMATED = 250, 20
COLUMNS = ("estimate", "full_pass", "stream")
PUBLISHED = {"nanoGPT, published": (1.88, None), "nanoGPT, its code on the same text": (1.8857, 1.8982)}
"""Estimate and full pass, in nats a character."""


@dataclass(frozen=True)
class Run:
    """A row of the table: a subject, whether it is carried, and the rate that was chosen for it."""

    subject: str
    rate: float
    carried: bool = False

    @property
    def label(self) -> str:
        return f"{SUBJECTS[self.subject].label}, {'carried' if self.carried else f'T {CONTEXT}, fresh state'}"


RUNS = {
    "titans": Run("titans", 3e-3),
    "transformer": Run("transformer", 3e-3),
    "titans-memory-off": Run("titans-memory-off", 3e-3),
    "titans-carried": Run("titans-to-first", 3e-3, carried=True),
    "titans-memory-off-carried": Run("titans-memory-off", 3e-3, carried=True),
    "sliding-window-carried": Run("sliding-window", 3e-3, carried=True),
    "linear-attention": Run("linear-attention", 3e-3),
    "gated-delta": Run("gated-delta", 3e-3),
    "transformer-nanogpt-rate": Run("transformer", 1e-3),
}


def parts(data: Path) -> tuple[Tensor, Tensor]:
    """Training and validation text as nanoGPT's prepare.py makes them: (N,) int64, characters in their order."""
    text = (data / TEXT).read_text(encoding="utf-8")
    place = {character: n for n, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([place[character] for character in text])
    cut = int(0.9 * len(tokens))
    return tokens[:cut], tokens[cut:]


def settings(config: BaselineConfig, training: TrainingConfig) -> Report:
    return {"model": config.to_dict(), "training": training.to_dict()}


def measure(config: BaselineConfig, training: TrainingConfig, train: Tensor, scored: Tensor, say: Say, checkpoint: Path) -> Report:
    """Train on one text, score another."""
    torch.manual_seed(training.seed)
    model = BaselineForCausalLM(config)
    fitted = fit(model, train, training, lambda step, nats: say(f"step {step:,} of {training.max_steps:,}, {nats:.3f} nats"), checkpoint)
    starts = torch.randint(len(scored) - CONTEXT, (ESTIMATED * training.batch_size,), generator=torch.Generator().manual_seed(0))
    scores = {
        "estimate": nats_at(model, scored, starts, CONTEXT).mean().item(),
        "full_pass": window_nats(model, scored, CONTEXT).mean().item(),
        "stream": stream_nats(model, scored).mean().item(),
    }
    every = max(1, training.max_steps // 20)
    means = [fmean(fitted.losses[n : n + every]) for n in range(0, training.max_steps, every)]
    return {"scores": scores, "parameters": count(config), "cpu_seconds": round(fitted.cpu_seconds, 1), "training_nats": means}


def cells(data: Path, runs: Sequence[str], seeds: Sequence[int]) -> dict[str, Cell]:
    train, validation = parts(data)
    found = {}
    for seed in seeds:
        for name in runs:
            run = RUNS[name]
            config = configure(run.subject, BASE, PARAMETERS, CONTEXT)
            training = replace(TRAINING, learning_rate=run.rate, carry_state=run.carried, seed=seed)
            found[f"{name} | {seed}"] = Cell(
                settings(config, training), lambda say, keep, c=config, t=training: measure(c, t, train, validation, say, keep)
            )
    return found


def search_cells(data: Path, subjects: Sequence[str], rates: Sequence[float]) -> dict[str, Cell]:
    """Rates, of shorter runs, scored on the last tenth of the training text."""
    train = parts(data)[0]
    train, held_out = train[: int(0.9 * len(train))], train[int(0.9 * len(train)) :]
    found = {}
    for rate in rates:
        for name in subjects:
            config = configure(name, BASE, PARAMETERS, CONTEXT)
            training = replace(TRAINING, learning_rate=rate, max_steps=SEARCH_STEPS)
            found[f"{name} | {rate:g}"] = Cell(
                settings(config, training), lambda say, keep, c=config, t=training: measure(c, t, train, held_out, say, keep)
            )
    return found


def markdown(found: Mapping[str, Report], chosen: Mapping[str, Report]) -> str:
    """Nats a character of the validation text, lowest bold, and the search that chose rates."""
    seconds = {name: fmean(cell["cpu_seconds"] for cell in cells) for name, cells in by_subject(found).items()}
    scores: dict[str, dict[str, Sequence[float]]] = {
        f"{label} | 804,096 | 0.001": {"estimate": [estimate]} | ({"full_pass": [full]} if full else {})
        for label, (estimate, full) in PUBLISHED.items()
    }
    for name, cells in by_subject(found).items():
        row = f"{RUNS[name].label} | {cells[0]['parameters']:,} | {RUNS[name].rate:g}"
        scores[row] = {column: [cell["scores"][column] for cell in cells] for column in COLUMNS}
    shown = [entries({row: values[column] for row, values in scores.items() if column in values}, min, 4) for column in COLUMNS]
    lines = ["| nats a character | parameters | rate | estimate | full pass | stream |", f"|{' --- |' * 6}"]
    lines += [f"| {row} | {' | '.join(column.get(row, '') for column in shown)} |" for row in scores]
    took = "; ".join(f"{RUNS[name].label}, rate {RUNS[name].rate:g}: {x / 60:.0f}" for name, x in seconds.items())
    head = f"Seeds {seeds_of(found)}. CPU minutes of training: {took}. {measured_by(found, MODULE)}"
    head_of_search = f"held-out training text, {SEARCH_STEPS} steps, full pass"
    return "\n".join([head, "", *lines, "", *rates_table(head_of_search, chosen, lambda cell: cell["scores"]["full_pass"])])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--runs", type=names, default=list(RUNS), help=f"comma-separated: {', '.join(RUNS)}")
    add("--seeds", type=integers, default=[0], help="comma-separated")
    add("--search", type=names, help="search instead: of these subjects, comma-separated")
    add("--rates", type=lambda text: [float(x) for x in names(text)], default=[1e-3, 3e-3, 6e-3], help="of the search, comma-separated")
    add_shared(parser, OUTPUT)
    options = parser.parse_args(arguments)
    check_names(parser, options.runs, RUNS)
    check_names(parser, options.search or (), SUBJECTS)
    if options.search:
        run_cells(search_cells(options.data, options.search, options.rates), SEARCH, MODULE)
        return
    if not options.table:
        run_cells(cells(options.data, options.runs, options.seeds), options.output, MODULE)
    show(markdown(read_cells(options.output), read_cells(SEARCH)), SECTION, options.table)


if __name__ == "__main__":
    main()
