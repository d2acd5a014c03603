"""The paper's ablations (arXiv 2501.00663, table 5) at a size that two cores train: `python -m benchmarks.text.ablations`.

Two layers of width 128, bytes of novels, everything as in `benchmarks.text.books` but for the steps, and, as the paper trains and scores,
in windows that begin afresh, here of 1,024 bytes; scored on the first 100,000 bytes of each unseen book. All have the same number of
parameters: what a part takes is given to the feed-forward layers. Nothing was chosen for any of them. The paper prepends persistent tokens
to all its models; ours are keys and values of attention, so that LMM has none and their ablation is MAC's.

`--steps 1600` trains for longer, into a file of its own. Results are written after every measurement, and a run goes on where one was
ended. `--table` prints them, and writes those of 400 and 1,600 steps into docs/text_benchmark.md.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from scipy.stats import ttest_1samp
from torch import Tensor

from benchmarks.reporting import RESULTS, Report, Section, integers, names
from benchmarks.text.baselines import BaselineConfig, BaselineForCausalLM, configure, count
from benchmarks.text.books import BASE, CONTEXT, PARAMETERS, TRAINED, TRAINING, UNSEEN, read
from benchmarks.text.cells import Cell, Say, add_shared, by_subject, check_names, measured_by, read_cells, run_cells, seeds_of, show
from benchmarks.text.training import BITS, fit, window_nats
from titans_seq.training import TrainingConfig

MODULE = "benchmarks.text.ablations"
OUTPUT = RESULTS / "text_ablations.json"
STEPS, SCORED, WINDOW = 400, 100_000, 1024
SECTIONS = {STEPS: Section("text-ablations"), 1600: Section("text-ablations-1600")}
"""Of the page, by the steps."""
CHANCE = 0.05
"""Level of the test: a difference of a larger p is none beyond seeds."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: in the table.
        subject: of `SUBJECTS`.
        variant: of the backbone.
        against: the row that it is compared with.
        perplexity: the paper's, and that of what it is compared with; None for what the paper does not have.
    """

    label: str
    subject: str
    variant: str
    against: str = "lmm"
    perplexity: tuple[float, float] | None = None


ROWS = {
    "lmm": Row("LMM", "titans", "lmm", perplexity=(27.01, 27.01)),
    "linear-memory": Row("LMM, linear memory", "titans-linear-memory", "lmm", perplexity=(28.49, 27.01)),
    "no-convolution": Row("LMM, no convolution", "titans-no-convolution", "lmm", perplexity=(28.73, 27.01)),
    "no-momentum": Row("LMM, no momentum", "titans-no-momentum", "lmm", perplexity=(28.98, 27.01)),
    "no-forgetting": Row("LMM, no forgetting", "titans-no-forgetting", "lmm", perplexity=(29.04, 27.01)),
    "to-first": Row("LMM, forgetting towards W^0", "titans-to-first", "lmm"),
    "memory-off": Row("LMM, memory off", "titans-memory-off", "lmm"),
    "mac": Row("MAC", "titans", "mac", perplexity=(26.67, 27.01)),
    "mag": Row("MAG", "titans", "mag", perplexity=(25.70, 27.01)),
    "mal": Row("MAL", "titans", "mal", perplexity=(25.91, 27.01)),
    "transformer": Row("transformer", "transformer", "lmm"),
    "no-persistent-tokens": Row("MAC, no persistent tokens", "titans-no-persistent-tokens", "mac", "mac", (27.63, 27.01)),
}


def in_windows(seed: int, steps: int) -> TrainingConfig:
    """As many tokens a step as `benchmarks.text.books` has."""
    rows = max(1, TRAINING.batch_size * TRAINING.segment_length // WINDOW)
    return replace(TRAINING, carry_state=False, segment_length=WINDOW, batch_size=rows, max_steps=steps, seed=seed)


def measure(
    config: BaselineConfig, training: TrainingConfig, train: Tensor, books: Mapping[str, Tensor], say: Say, checkpoint: Path
) -> Report:
    torch.manual_seed(training.seed)
    model = BaselineForCausalLM(config)
    fitted = fit(
        model, train, training, lambda step, nats: say(f"step {step:,} of {training.max_steps:,}, {nats * BITS:.3f} bits"), checkpoint
    )
    scores = {name: window_nats(model, tokens, WINDOW, rows=4).mean().item() * BITS for name, tokens in books.items()}
    return {"scores": scores, "parameters": count(config), "cpu_seconds": round(fitted.cpu_seconds, 1)}


def cells(data: Path, rows: Sequence[str], seeds: Sequence[int], steps: int) -> dict[str, Cell]:
    train = torch.cat([read(data, name) for name in TRAINED])
    books = {name: read(data, name, SCORED) for name in UNSEEN}
    found = {}
    for seed in seeds:
        for name in rows:
            base = replace(BASE, titans=replace(BASE.titans, variant=ROWS[name].variant))
            config = configure(ROWS[name].subject, base, PARAMETERS, CONTEXT)
            training = in_windows(seed, steps)
            settings = {"model": config.to_dict(), "training": training.to_dict(), "scored": SCORED}
            found[f"{name} | {seed}"] = Cell(settings, lambda say, keep, c=config, t=training: measure(c, t, train, books, say, keep))
    return found


def output_of(steps: int, output: Path = OUTPUT) -> Path:
    """The results of so many steps."""
    return output if steps == STEPS else output.with_stem(f"{output.stem}_{steps}")


def markdown(found: Mapping[str, Report], steps: int = STEPS) -> str:
    """Bits per byte, the differences to what each is compared with, and whether the paper's sign is found."""
    scores = {key: fmean(cell["scores"].values()) for key, cell in found.items()}
    if not found:
        return f"Not measured yet: `python -m {_command(steps)}`."
    lines = ["| | seeds | bits per byte | difference | paper, perplexity | its difference, % | here |", f"|{' --- |' * 7}"]
    for name in (name for name in ROWS if name in by_subject(found)):
        row = ROWS[name]
        values = [value for key, value in scores.items() if key.split(" | ")[0] == name]
        differences = _differences(scores, name)
        paper = "| | " if row.perplexity is None else f"| {row.perplexity[0]:.2f} | {_percent(row):+.1f} "
        apart = "" if row.against == name else _with_spread(differences, "+.4f")
        lines.append(f"| {row.label} | {len(values)} | {_with_spread(values, '.4f')} | {apart} {paper}| {_verdict(name, differences)} |")
    books = ", ".join(next(iter(found.values()))["scores"])
    head = f"Mean of {books}; ± is the standard deviation over seeds (of {seeds_of(found)}), of differences"
    return "\n".join([f"{head} between models of one seed, p of a t test of them. {measured_by(found, _command(steps))}", "", *lines])


def _command(steps: int) -> str:
    return MODULE if steps == STEPS else f"{MODULE} --steps {steps}"


def _differences(scores: Mapping[str, float], name: str) -> list[float]:
    """To the row that it is compared with, of one seed."""
    seeds = [key.split(" | ")[1] for key in scores if key.split(" | ")[0] == name]
    pairs = ((f"{name} | {seed}", f"{ROWS[name].against} | {seed}") for seed in seeds)
    return [scores[one] - scores[other] for one, other in pairs if other in scores]


def _verdict(name: str, differences: Sequence[float]) -> str:
    """Whether seeds tell the difference from 0 (t test, two-sided), and its sign is the paper's."""
    row = ROWS[name]
    if row.against == name:
        return ""
    if len(differences) < 2:
        return "too few seeds"
    chance = ttest_1samp(differences, 0.0).pvalue
    p = f"p = {chance:.2g}"
    if not chance < CHANCE:
        return f"no difference beyond seeds, {p}"
    worse = fmean(differences) > 0
    if row.perplexity is None:
        return f"{'worse' if worse else 'better'}, {p}"
    return f"{'worse' if worse else 'better'}, {'as' if worse == (_percent(row) > 0) else 'unlike'} the paper, {p}"


def _percent(row: Row) -> float:
    assert row.perplexity is not None
    return 100 * (row.perplexity[0] / row.perplexity[1] - 1)


def _with_spread(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    return f"{fmean(values):{form}}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rows", type=names, default=list(ROWS), help=f"comma-separated: {', '.join(ROWS)}")
    add("--seeds", type=integers, default=[0, 1, 2], help="comma-separated")
    add("--steps", type=int, default=STEPS, help=f"of training (default: {STEPS})")
    add_shared(parser, OUTPUT)
    options = parser.parse_args(arguments)
    check_names(parser, options.rows, ROWS)
    output = output_of(options.steps, options.output)
    if not options.table:
        run_cells(cells(options.data, options.rows, options.seeds, options.steps), output, MODULE)
    show(markdown(read_cells(output), options.steps), SECTIONS.get(options.steps), options.table)


if __name__ == "__main__":
    main()
