"""What the memory of a network keeps of a genome that it read: `python -m benchmarks.dna.strains`.

A network with a context memory (`domains.dna.context_memory`) is trained in one pass over another genome (--train-on), after which its
weights stand. Then, with an empty memory, it reads the second strain alone, after the first, and after the first and so many bases of a
genome that has nothing to do with them; each with memories that learn, and with memories that do not. Bits per base of the second.

    trained in the pass   the same pair, all weights trained as it reads, beginning with random ones
    experts               counts and copies, mixed online (`benchmarks.dna.online`), for the same bases
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import process_time

import numpy as np
import torch
from rich.table import Table

from benchmarks.dna.online import BACKBONE, CONTEXTS, FOLDER, GENOMES, NETWORK, SEGMENT, TRAINING, joined, mixed_experts, read
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
from domains.dna.bits import OnlineTrainer, Reader
from domains.dna.config import DNAConfig
from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.metrics import BITS_PER_BASE
from domains.dna.model import BEGIN, TitansForDNA, base_nats

OUTPUT = RESULTS / "dna_strains.json"
SECTION = Section("dna-strains")
FIRST, SECOND, BETWEEN, TRAIN_ON = "S. aureus COL", "S. aureus N315", "H. pylori G27", "E. coli MG1655"


def make_model(seed: int) -> TitansForDNA:
    torch.manual_seed(seed)
    return TitansForDNA(DNAConfig(titans=BACKBONE, contexts=CONTEXTS))


def cost(reader: Reader, codes: np.ndarray) -> tuple[float, float]:
    """Mean bits of the bases of `codes`, read on from where the reader stands as a record of its own; and CPU seconds."""
    tokens, begin = torch.from_numpy(np.concatenate([[BEGIN], codes]).astype(np.int64))[None], process_time()
    nats = 0.0
    for start in range(0, len(codes), SEGMENT):
        part = tokens[:, start : start + SEGMENT + 1]
        nats += float(base_nats(reader.read(part[:, :-1], part[:, 1:]), part[:, 1:]).double().sum())
    return nats * BITS_PER_BASE.factor / int(((codes & BASE_BITS) < N).sum()), process_time() - begin


class Trial:
    """One seed: rows of way, bits per base, CPU seconds."""

    def __init__(self, seed: int, genomes: dict[str, np.ndarray], gaps: Sequence[int], say: Callable[[str], None]) -> None:
        self.seed, self.genomes, self.gaps, self.say = seed, genomes, gaps, say

    def rows(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Cheapest first."""
        second = self.genomes[SECOND]
        for name, pieces in (("alone", [second]), ("after the first", [self.genomes[FIRST], second])):
            self.say(f"trained in the pass, {name}")
            trainer = OnlineTrainer(make_model(self.seed), True, TRAINING)
            yield f"trained in the pass, {name}", _row([cost(trainer, piece) for piece in pieces])
        self.say(f"training on {TRAIN_ON}")
        model = make_model(self.seed)
        yield (
            f"weights trained on {TRAIN_ON}: that, as it was read",
            _row([cost(OnlineTrainer(model, True, TRAINING), self.genomes[TRAIN_ON])]),
        )
        self.say("memory off")
        yield "weights of another genome, memory off", _row([cost(Reader(model, False), second)])
        self.say("alone")
        yield "weights of another genome, alone", _row([cost(Reader(model), second)])
        yield from self._after_gaps(model)

    def _after_gaps(self, model: TitansForDNA) -> Iterator[tuple[str, dict[str, float]]]:
        """The second strain after the first and so much else, from copies of one state that reads on."""
        reader = Reader(model)
        cost(reader, self.genomes[FIRST])
        read_so_far = 0
        for gap in self.gaps:
            self.say(f"after the first and {gap:,} other bases")
            if gap > read_so_far:
                cost(reader, self.genomes[BETWEEN][read_so_far:gap])
                read_so_far = gap
            kept = reader.state.clone()
            yield f"weights of another genome, after the first and {gap:,} other bases", _row([cost(reader, self.genomes[SECOND])])
            reader.state = kept


def _row(costs: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {"bits_per_base": costs[-1][0], "cpu_seconds": sum(seconds for _, seconds in costs)}


def experts_of(genomes: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The mixture of counts and copies on the second strain, alone and after the first."""
    first, second = genomes[FIRST], genomes[SECOND]
    found = {}
    for name, codes in (("alone", second), ("after the first", joined([first, second]))):
        begin = process_time()
        mixed = mixed_experts(codes)[-len(second) :]
        found[f"mixing network of counts and copies, {name}"] = {
            "bits_per_base": float(mixed.mean()),
            "cpu_seconds": process_time() - begin,
        }
    return found


def table(found: Report) -> Table:
    """A row a way: mean and range over seeds."""
    shown = Table("bits per base of the second strain", "mean", "lowest", "highest", "CPU s")
    names = dict.fromkeys(name for trial in found["trials"] for name in trial["rows"])
    for name, row in found["experts"].items():
        shown.add_row(name, f"{row['bits_per_base']:.4f}", "", "", f"{row['cpu_seconds']:.0f}")
    for name in names:
        rows = [trial["rows"][name] for trial in found["trials"] if name in trial["rows"]]
        values = [row["bits_per_base"] for row in rows]
        shown.add_row(
            name, f"{np.mean(values):.4f}", f"{min(values):.4f}", f"{max(values):.4f}", f"{np.mean([r['cpu_seconds'] for r in rows]):.0f}"
        )
    return shown


def markdown(found: Report) -> str:
    """The same as `table`, and how it came about, for a page."""
    sizes = ", ".join(f"{size:,} of {name}" for name, size in found["bases"].items())
    seeds = ", ".join(str(trial["seed"]) for trial in found["trials"])
    head = (
        f"Bases read: {sizes}. Mean (lowest to highest) of seeds {seeds}. `{found['command']}`, revision {(found['revision'] or '')[:10]}."
    )
    lines = [head, "", f"| bits per base of {SECOND} | |", "| --- | --- |"]
    lines += [f"| {name} | {row['bits_per_base']:.3f} |" for name, row in found["experts"].items()]
    names = dict.fromkeys(name for trial in found["trials"] for name in trial["rows"] if "as it was read" not in name)
    for name in names:
        values = [trial["rows"][name]["bits_per_base"] for trial in found["trials"] if name in trial["rows"]]
        lines.append(f"| {name} | {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}) |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dna.strains", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--folder", type=Path, default=FOLDER, help="where the examples of Debian's package ragout-examples lie")
    add("--bases", type=int, default=300_000, help="of each genome at most, but for the one between")
    add("--gaps", type=integers, default=[0, 100_000, 300_000, 1_000_000], help=f"bases of {BETWEEN} between the two, rising")
    add("--seeds", type=integers, default=[0, 1, 2])
    add_table_option(parser, OUTPUT)
    options = parser.parse_args(arguments)
    if options.table:
        publish(json.loads(options.output.read_text()), SECTION, markdown, table)
        return
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not there: apt-get install ragout-examples, or name its folder with --folder")
    torch.set_num_threads(1)
    settings = {
        "backbone": BACKBONE.to_dict(),
        "contexts": CONTEXTS.to_dict(),
        "training": asdict(TRAINING),
        "mixer": asdict(NETWORK),
        "segment": SEGMENT,
    }
    with progress_bar() as progress, tempfile.TemporaryDirectory() as temporary:
        task = progress.add_task("", total=None)
        limits = dict.fromkeys(GENOMES, options.bases) | {BETWEEN: max(options.gaps)}
        genomes = {name: read(options.folder, name, Path(temporary), limits[name]) for name in (FIRST, SECOND, BETWEEN, TRAIN_ON)}
        sizes = {name: len(codes) for name, codes in genomes.items()}
        found: Report = {**environment("benchmarks.dna.strains"), "settings": settings, "bases": sizes, "experts": {}, "trials": []}
        progress.update(task, description="experts")
        found["experts"] = experts_of(genomes)
        for seed in options.seeds:
            trial: Report = {"seed": seed, "rows": {}}
            found["trials"].append(trial)
            say = lambda what, seed=seed: progress.update(task, description=f"seed {seed}: {what}")  # noqa: E731
            for name, row in Trial(seed, genomes, options.gaps, say).rows():
                trial["rows"][name] = row
                write_json(options.output, found)
    print_table(table(found))


if __name__ == "__main__":
    main()
