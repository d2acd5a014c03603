"""The text benchmarks in one table, for the README: `python -m benchmarks.text.summary` writes it there from the results that ship."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.machine import ROOT
from benchmarks.reporting import Report, Section
from benchmarks.text import books, memory_tasks, shakespeare
from benchmarks.text.cells import by_subject, entries, read_cells

SECTION, README = Section("text"), ROOT / "README.md"
COLUMNS = ("titans", "titans-to-first", "titans-to-first-far", "titans-memory-off", "transformer", "gated-delta")
RUNS = {"transformer": "transformer-nanogpt-rate"}
"""On tinyshakespeare, of the runs of a column the one at its better rate."""
TASKS = {
    "pairs told once, recalled (MQAR)": ("mqar", (1, 64)),
    "pairs recalled in noise (MAD)": ("mad_noisy_recall", (1,)),
    "digits of a needle in noise (RULER)": ("needle", (1, 64)),
    "digits of a needle in novels (RULER)": ("needle_essay", (1, 64)),
    "where somebody is (BABILong qa1)": ("babilong_qa1", (8, 1024)),
    "where a thing is (qa2)": ("babilong_qa2", (8, 64)),
    "where a thing was (qa3)": ("babilong_qa3", (8, 64)),
}
"""What is asked: the trial, and times the length of its training."""


@dataclass(frozen=True)
class Row:
    """A score of every column that has it, of each seed."""

    title: str
    scores: Mapping[str, list[float]]
    lower: bool = False

    def markdown(self) -> str:
        """Bold is the best."""
        texts = entries(self.scores, min if self.lower else max)
        return f"| {self.title} | {' | '.join(texts.get(key, '-') for key in COLUMNS)} |"


def markdown() -> str:
    """The table of what ships."""
    lines = [f"| | {' | '.join(map(memory_tasks.label, COLUMNS))} |", f"|{' --- |' * (1 + len(COLUMNS))}"]
    return "\n".join([*lines, *(row.markdown() for row in (*losses(), *tasks(read_cells(memory_tasks.OUTPUT))))])


def losses() -> Iterator[Row]:
    """Of language models: lower is better."""
    runs = by_subject(read_cells(shakespeare.OUTPUT))
    found = {key: runs[RUNS.get(key, key)] for key in COLUMNS if RUNS.get(key, key) in runs}
    nats = {key: [cell["scores"]["full_pass"] for cell in cells] for key, cells in found.items()}
    yield Row("tinyshakespeare, nats a character", nats, lower=True)
    read = by_subject(read_cells(books.OUTPUT))
    for book in books.UNSEEN:
        bits = {key: [cell["scores"][book]["carried"]["bits_per_byte"] for cell in read[key]] for key in COLUMNS if key in read}
        yield Row(f"{books.title(book)}, whole and unseen, bits a byte", bits, lower=True)


def tasks(cells: Mapping[str, Report]) -> Iterator[Row]:
    """Accuracy of memory tasks."""
    made, tokens = memory_tasks.rows(dict(cells)), memory_tasks.tokens_of(dict(cells))
    for title, (name, lengths) in TASKS.items():
        for times in lengths:
            scores = {key: values for key, values in made[name, str(times)].items() if key in COLUMNS}
            yield Row(f"{title}, {tokens[name, str(times)]:,.0f} tokens", scores)


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.text.summary", description=(__doc__ or "").partition(":")[0]).parse_args()
    SECTION.write(README, markdown())


if __name__ == "__main__":
    main()
