"""Whole unseen novels, byte by byte: `python -m benchmarks.text.books`.

Models of bytes, two layers of width 128 and as many parameters each, are trained on six novels for the same number of bytes and read two
others from the first byte to the last. What is carried is trained on rows that read the novels in order with their state, and begin anew
every 8,192 bytes; the transformer is trained on windows of its context. Each model reads each book in one or more ways:

    carried        one stream, the state of the first byte to the last: of a transformer the bytes that its window holds
    frozen         the same, but the memories neither learn nor forget: what the first states W^0 alone can do
    fresh context  a fresh state every 256 bytes, as many as a row was trained on at a time
    second half    the second half of the book from a fresh state, beside the same bytes with what was read of the first

Results are written after every measurement, and a run goes on where one was ended. `--table` prints them, draws them, and writes them into
docs/text_benchmark.md.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import ROOT
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
    read_cells,
    run_cells,
    seeds_of,
    show,
)
from benchmarks.text.plots import plot_books
from benchmarks.text.training import BITS, fit, stream_nats, window_nats
from domains.text.config import TextConfig
from domains.text.score import range_of
from titans_seq.config import AttentionConfig, MemoryConfig, TitansConfig
from titans_seq.memory import frozen_memory
from titans_seq.training import TrainingConfig

MODULE = "benchmarks.text.books"
OUTPUT = RESULTS / "text_books.json"
IMAGE = ROOT / "docs" / "images" / "text_books.png"
SECTION = Section("text-books")
FOLDER = Path("text") / "gutenberg"
TRAINED = (
    "Anna-Karenina_1399",
    "David-Copperfield_766",
    "Moby-Dick--Or-The-Whale_2701",
    "The-Brothers-Karamazov_28054",
    "Vanity-Fair_599",
    "War-and-Peace_2600",
)
UNSEEN = ("Dracula_345", "Pride-and-Prejudice_1342")
PARAMETERS, CONTEXT, PARTS = 450_000, 256, 16
DOCUMENT = 32
"""Segments after which a row begins anew: the state of a stream's begin is trained as well."""
BASE = TextConfig(
    titans=TitansConfig(
        dim=128,
        num_layers=2,
        variant="lmm",
        memory=MemoryConfig(num_heads=4, expansion=2, chunk_size=16),
        attention=AttentionConfig(num_heads=4, sliding_window=64),
    )
)
RATE = 3e-3
TRAINING = TrainingConfig(learning_rate=RATE, max_steps=1000, batch_size=8, segment_length=CONTEXT, beta2=0.99)
"""The rate is the one that was chosen on tinyshakespeare's training text (benchmarks.text.shakespeare --search)."""

Nats = Callable[[BaselineForCausalLM, Tensor], Tensor]


def frozen_nats(model: BaselineForCausalLM, tokens: Tensor) -> Tensor:
    with frozen_memory(model):
        return stream_nats(model, tokens)


def fresh_nats(model: BaselineForCausalLM, tokens: Tensor) -> Tensor:
    return window_nats(model, tokens, CONTEXT, rows=8)


READINGS: dict[str, Nats] = {"carried": stream_nats, "frozen": frozen_nats, "fresh context": fresh_nats}


@dataclass(frozen=True)
class Run:
    """A row of the table.

    Attributes:
        subject: of `SUBJECTS`.
        readings: ways in which it reads a book.
        carried: whether it is trained with the state carried on.
        rate: that it is trained at; another than all others is told in its label.
    """

    subject: str
    readings: tuple[str, ...] = ("carried", "fresh context")
    carried: bool = True
    rate: float = RATE

    @property
    def label(self) -> str:
        """In the table."""
        label = SUBJECTS[self.subject].label
        return label if self.rate == RATE else f"{label}, rate {self.rate:g}"


RUNS = {
    "titans-to-first": Run("titans-to-first", ("carried", "frozen", "fresh context")),
    "titans": Run("titans"),
    "transformer": Run("transformer", carried=False),
    "transformer-slow": Run("transformer", carried=False, rate=1e-3),
    "titans-memory-off": Run("titans-memory-off"),
    "sliding-window": Run("sliding-window"),
    "gated-delta": Run("gated-delta"),
    "linear-attention": Run("linear-attention"),
}


def read(data: Path, name: str, limit: int | None = None) -> Tensor:
    """The bytes of a book, the token of a document's end before them: (N + 1,) int64; the first `limit` of them."""
    text = (data / FOLDER / f"{name}.txt").read_bytes()[:limit]
    return torch.tensor([BASE.end, *text])


def by_position(nats: Tensor) -> Report:
    """Bits per byte of nats (N,): all of them, in ranges of positions that double (`domains.text.score`), and in equal parts."""
    bits = nats.double().numpy() * BITS
    place = range_of(np.arange(len(bits)))
    sums, counts = np.bincount(place, weights=bits), np.bincount(place)
    return {
        "bytes": len(bits),
        "bits_per_byte": float(bits.mean()),
        "ranges": (sums / counts).tolist(),
        "parts": [float(part.mean()) for part in np.array_split(bits, PARTS)],
    }


def measure(
    run: Run, config: BaselineConfig, training: TrainingConfig, train: Tensor, books: Mapping[str, Tensor], say: Say, checkpoint: Path
) -> Report:
    torch.manual_seed(training.seed)
    model = BaselineForCausalLM(config)
    fitted = fit(
        model,
        train,
        training,
        lambda step, nats: say(f"step {step:,} of {training.max_steps:,}, {nats * BITS:.3f} bits"),
        checkpoint,
        DOCUMENT,
    )
    scores: Report = {}
    for name, tokens in books.items():
        of_book: Report = {}
        for reading in run.readings:
            say(f"{name}, {reading}")
            nats = READINGS[reading](model, tokens)
            of_book[reading] = by_position(nats)
            if reading == "carried":
                half = len(nats) // 2
                of_book["second half, carried"] = by_position(nats[half:])
                of_book["second half, fresh"] = by_position(stream_nats(model, tokens[half:]))
        scores[name] = of_book
    return {"scores": scores, "parameters": count(config), "cpu_seconds": round(fitted.cpu_seconds, 1)}


def cells(data: Path, runs: Sequence[str], seeds: Sequence[int], limit: int | None) -> dict[str, Cell]:
    train = torch.cat([read(data, name) for name in TRAINED])
    books = {name: read(data, name, limit) for name in UNSEEN}
    found = {}
    for seed in seeds:
        for name in runs:
            run, config = RUNS[name], configure(RUNS[name].subject, BASE, PARAMETERS, CONTEXT)
            training = replace(TRAINING, carry_state=run.carried, learning_rate=run.rate, seed=seed)
            settings = {
                "model": config.to_dict(),
                "training": training.to_dict(),
                "document": DOCUMENT,
                "readings": list(run.readings),
                "limit": limit,
            }
            found[f"{name} | {seed}"] = Cell(
                settings, lambda say, keep, r=run, c=config, t=training: measure(r, c, t, train, books, say, keep)
            )
    return found


COLUMNS = ("carried", "fresh context", "second half, carried", "second half, fresh")


def rows(found: Mapping[str, Report]) -> dict[str, list[Report]]:
    """Scores of each seed by label, in the order of `RUNS`; a reading with frozen memories is a row of its own."""
    made: dict[str, list[Report]] = {}
    cells = by_subject(found)
    for name in RUNS:
        for cell in cells.get(name, ()):
            label = RUNS[name].label
            made.setdefault(label, []).append(cell["scores"])
            if "frozen" in RUNS[name].readings:
                alone = {book: {"carried": readings["frozen"]} for book, readings in cell["scores"].items()}
                made.setdefault(f"{label}, memories frozen as it reads", []).append(alone)
    return made


def title(book: str) -> str:
    return book.rpartition("_")[0].replace("-", " ")


def markdown(found: Mapping[str, Report]) -> str:
    """Bits per byte of the unseen books, lowest bold, and how they came about."""
    books = [book for book in UNSEEN if all(book in scores for of_label in rows(found).values() for scores in of_label)]
    lines = [f"| bits per byte | {' | '.join(f'{title(book)}: {column}' for book in books for column in COLUMNS)} |"]
    lines.append(f"|{' --- |' * (1 + len(books) * len(COLUMNS))}")
    shown = [entries(_column(found, book, column), min) for book in books for column in COLUMNS]
    lines += [f"| {label} | {' | '.join(column.get(label, '') for column in shown)} |" for label in rows(found)]
    return "\n".join([_head(found), "", *lines])


def _head(found: Mapping[str, Report]) -> str:
    sizes = [cell["parameters"] for cell in found.values()]
    steps = TrainingConfig.from_dict(next(iter(found.values()))["settings"]["training"])
    seconds = {RUNS[name].label: fmean(cell["cpu_seconds"] for cell in cells) for name, cells in by_subject(found).items()}
    return (
        f"Seeds {seeds_of(found)}; {min(sizes):,} to {max(sizes):,} parameters, {steps.max_steps * steps.tokens_per_step:,} bytes of "
        f"training. CPU seconds of it: {', '.join(f'{label} {x:.0f}' for label, x in seconds.items())}. {measured_by(found, MODULE)}"
    )


def _column(found: Mapping[str, Report], book: str, column: str) -> dict[str, list[float]]:
    """Bits a byte of each seed, by label, of those who have the column."""
    values = {label: [one[book][column]["bits_per_byte"] for one in scores if column in one[book]] for label, scores in rows(found).items()}
    return {label: bits for label, bits in values.items() if bits}


def draw(found: Mapping[str, Report], path: Path) -> None:
    """Means over books and seeds, of what is carried, of the models that are trained at the rate of all."""

    def mean(scores: Sequence[Report], what: str) -> list[float]:
        carried = [one[book]["carried"][what] for one in scores for book in one]
        whole = min(map(len, carried))
        return np.mean([one[:whole] for one in carried], axis=0).tolist()

    made = rows({key: cell for key, cell in found.items() if RUNS[key.split(" | ")[0]].rate == RATE})
    against = RUNS["titans-memory-off"].label
    plot_books(
        {label: mean(scores, "ranges") for label, scores in made.items()},
        {label: mean(scores, "parts") for label, scores in made.items()},
        against if against in made else next(iter(made)),
        path,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--runs", type=names, default=list(RUNS), help=f"comma-separated: {', '.join(RUNS)}")
    add("--seeds", type=integers, default=[0], help="comma-separated")
    add("--limit", type=int, help="read so many bytes of each book (default: all)")
    add_shared(parser, OUTPUT)
    options = parser.parse_args(arguments)
    check_names(parser, options.runs, RUNS)
    if not options.table:
        run_cells(cells(options.data, options.runs, options.seeds, options.limit), options.output, MODULE)
    found = read_cells(options.output)
    if options.table:
        draw(found, IMAGE)
    show(markdown(found), SECTION, options.table)


if __name__ == "__main__":
    main()
