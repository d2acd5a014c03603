"""Bits per base of whole genomes, each base predicted from those before it, in one pass: `python -m benchmarks.dna.online`.

    order k           counts of what followed the k bases before, as read, or with inverted repeats (what was read counts on both strands)
    copy k            the latest place where k bases were the same is followed, whatever does not agree
    logistic          the experts with inverted repeats, mixed by weights that are learned online: of counts alone, and with copies
    mixing network    the same, and a hidden layer over all experts (`domains.dna.mixing`)
    Titans            of the first --network-bases: a network trained online in the one pass, its memory learning or frozen, and with a
                      context memory (`domains.dna.context_memory`); the last is one more expert in the mixture as well. Experts and
                      mixtures of the same bases stand beside it.

A pair is the second strain after the first: what of the first is remembered. The genomes are those of Debian's package ragout-examples.
Rates and sizes were chosen on the first 600,000 bases of E. coli. Results are written after every measurement, and a run goes on where one
was ended.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from time import process_time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.reporting import RESULTS, Report, environment, integers, names, progress_bar, write_json
from domains.dna.bits import OnlineConfig, OnlineTrainer, Reader
from domains.dna.config import DNAConfig
from domains.dna.context_config import ContextMemoryConfig
from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.data.genome import open_genome
from domains.dna.experts import COPY_ORDERS, ORDERS, bits, chances, counts, experts, smoothing_of
from domains.dna.mixing import MixerConfig, mix
from domains.dna.model import BEGIN, TitansForDNA
from titans_seq import MemoryConfig, TitansConfig, strict_json
from titans_seq.errors import UserError

OUTPUT = RESULTS / "dna_online.json"
FOLDER = Path("/usr/share/doc/ragout/examples")
GENOMES = {
    "E. coli MG1655": Path("E.Coli") / "references" / "MG1655-K12.fasta.gz",
    "H. pylori G27": Path("H.Pylori") / "references" / "G27.fasta.gz",
    "S. aureus COL": Path("S.Aureus") / "references" / "COL.fasta.gz",
    "S. aureus N315": Path("S.Aureus") / "references" / "N315.fasta.gz",
}
PAIRS = {"N315 after COL": ("S. aureus COL", "S. aureus N315")}
WHERE = ("revision", "changes", "date")
"""Of `environment`, what is kept with every row."""
BEST_WITHOUT = "mixing network of counts and copies"
NOT_INVERTED = (2, 4, 6, 12)
LOGISTIC, NETWORK = MixerConfig(hidden=0), MixerConfig()
REFERENCES = {  # measured by others' programs on the same files: ours to reach
    "E. coli MG1655": {"logistic mix of 12 orders": 1.8959, "GeCo3": 1.8881, "JARVIS3": 1.8708},
    "H. pylori G27": {"logistic mix of 12 orders": 1.8101, "GeCo3": 1.8078, "JARVIS3": 1.7989},
    "S. aureus COL": {"logistic mix of 12 orders": 1.8452, "GeCo3": 1.83, "JARVIS3": 1.8113},
    "N315 after COL": {"logistic mix of 12 orders": 0.354, "GeCo3 with COL as reference": 0.1856},
    "S. aureus N315": {"logistic mix of 12 orders": 1.8317},
}
BACKBONE = TitansConfig(
    dim=64, num_layers=2, variant="lmm", memory=MemoryConfig(num_heads=2, depth=1, expansion=1, chunk_size=64, max_step=0.1)
)
TRAINING = OnlineConfig(learning_rate=3e-3)
CONTEXTS = ContextMemoryConfig(table_bits=24)  # holds both strands of both strains: little is forgotten for want of room
PLAIN = "Titans trained in the pass"
NETWORKS = {  # what they have of a context memory, and whether memories learn
    "Titans trained in the pass, memory frozen": (None, False),
    PLAIN: (None, True),
    "Titans with a context memory, trained in the pass": (CONTEXTS, True),
}
SEGMENT = 512


def read(folder: Path, name: str, cache: Path, limit: int | None = None) -> np.ndarray:
    """Codes of all records of a genome, N between them; the first `limit` of them."""
    genome = open_genome(folder / GENOMES[name], cache, progress=False)
    return joined([genome.read(n, 0, int(length)) for n, length in enumerate(genome.lengths)])[:limit]


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([x for part in parts for x in (part, np.array([N], np.uint8))][:-1])


class Scores:
    """Mean bits over the bases of `part` that are no N, by the name of the way; `save` is called after each."""

    def __init__(self, codes: np.ndarray, part: slice, rows: dict[str, Report], save: Callable[[], None]) -> None:
        self._codes, self._part, self._save = codes, part, save
        self._counted = (codes[part] & BASE_BITS) < N
        where = environment("benchmarks.dna.online")
        self._where = {name: where[name] for name in WHERE}
        self.rows = rows

    def add(self, name: str, cost: np.ndarray, seconds: float) -> None:
        found = float(cost[self._part][self._counted].mean())
        if not math.isfinite(found):
            raise ValueError(f"{name}: {found} bits per base")
        self.rows[name] = {"bits_per_base": found, "cpu_seconds": seconds, **self._where}
        self._save()

    def chances(self, name: str, told: Callable[[], np.ndarray]) -> np.ndarray:
        begin = process_time()
        made = told()
        self.add(name, bits(self._codes, made), process_time() - begin)
        return made


def measure(codes: np.ndarray, scores: Scores, networks: Sequence[str], seeds: Sequence[int], say: Callable[[str], None]) -> None:
    """All ways to predict `codes` that `scores` lacks; networks: names in `NETWORKS`, each once a seed; the last is mixed in."""
    ways = {f"{name}, seed {seed}": (name, seed) for name, seed in product(networks, seeds)}
    mixed = f"mixing network of counts, copies and {list(ways)[-1]}" if ways else BEST_WITHOUT
    if mixed in scores.rows and scores.rows.keys() >= ways.keys():
        return
    told = np.empty((len(ORDERS) + 2 * len(COPY_ORDERS) + 1, 4, len(codes)), dtype=np.float16)
    for order in NOT_INVERTED:
        say(f"order {order} as read")
        scores.chances(f"order {order}, as read", lambda order=order: chances(counts(codes, order, False), smoothing_of(order)))
    made = experts(codes)
    for n in range(len(told) - 1):
        begin = process_time()
        name, one = next(made)
        say(name)
        scores.add(name, bits(codes, one), process_time() - begin)
        told[n] = np.log(one)
    experts_alone = told[:-1]
    for name, which, config in (
        ("logistic mix of counts", told[: len(ORDERS)], LOGISTIC),
        ("logistic mix of counts and copies", experts_alone, LOGISTIC),
        (BEST_WITHOUT, experts_alone, NETWORK),
    ):
        say(name)
        scores.chances(name, lambda which=which, config=config: mix(codes, which, config))
    for n, (way, (name, seed)) in enumerate(ways.items(), 1):
        if way in scores.rows and n < len(ways):  # what the last one tells is needed for the mixture
            continue
        contexts, memory = NETWORKS[name]
        say(way)
        begin = process_time()
        torch.manual_seed(seed)
        trainer = OnlineTrainer(TitansForDNA(DNAConfig(titans=BACKBONE, contexts=contexts)), memory, TRAINING)
        told[-1] = network(trainer, codes)
        scores.add(way, bits(codes, np.exp(told[-1].astype(np.float32))), process_time() - begin)
    if ways:
        say("mixture with Titans")
        scores.chances(mixed, lambda: mix(codes, told, NETWORK))


def mixed_experts(codes: np.ndarray) -> np.ndarray:
    """Bits of each base under the mixing network of counts and copies."""
    told = np.empty((len(ORDERS) + 2 * len(COPY_ORDERS), 4, len(codes)), dtype=np.float16)
    for n, (_, one) in enumerate(experts(codes)):
        told[n] = np.log(one)
    return bits(codes, mix(codes, told, NETWORK))


def network(reader: Reader, codes: np.ndarray) -> np.ndarray:
    """Logarithms of the chances (4, T) that a model told of each base before it was read."""
    sequence, told = torch.from_numpy(np.concatenate([[BEGIN], codes]).astype(np.int64))[None], []
    for start in range(0, len(codes), SEGMENT):
        part = sequence[:, start : start + SEGMENT + 1]
        told.append(reader.read(part[:, :-1], part[:, 1:])[0].T.numpy())
    return np.concatenate(told, axis=1)


def reading(codes: np.ndarray, part: slice, scores: Scores, trained_on: np.ndarray, seed: int, say: Callable[[str], None]) -> None:
    """A pair read by a network whose weights saw another genome only: what its memory keeps of the first, on and off."""
    readings = {
        f"Titans trained on E. coli, {how}, seed {seed}": (what, memory)
        for how, what, memory in (
            ("memory on", codes, True),
            ("memory on, the second alone", codes[part], True),
            ("memory frozen", codes, False),
        )
    }
    if scores.rows.keys() >= readings.keys():
        return
    torch.manual_seed(seed)
    model = TitansForDNA(DNAConfig(titans=BACKBONE))
    say("training on another genome")
    network(OnlineTrainer(model, True, TRAINING), trained_on)
    for way, (what, memory) in readings.items():
        say(way)
        begin = process_time()
        told = np.full((4, len(codes)), math.log(0.25), dtype=np.float32)
        told[:, -len(what) :] = network(Reader(model, memory), what)
        scores.add(way, bits(codes, np.exp(told)), process_time() - begin)


def tasks(options: argparse.Namespace, cache: Path) -> Iterator[tuple[str, np.ndarray, slice, bool]]:
    """Of each measurement: name, bases, the part of them that is scored, and whether networks read it."""
    for networks, limit in ((True, options.network_bases), (False, options.bases)):
        if limit == 0:
            continue
        for name in options.genomes:
            shown = f"{name}, first {{:,}}" if networks else name
            if name in GENOMES:
                codes = read(options.folder, name, cache, limit)
                yield shown.format(len(codes)), codes, slice(None), networks
            else:
                first, second = (read(options.folder, strain, cache, limit // 2 if networks else limit) for strain in PAIRS[name])
                shown = f"{shown} of each" if networks else shown
                yield shown.format(len(second)), joined([first, second]), slice(len(first) + 1, None), networks


def kept(output: Path, settings: Report) -> Report:
    """What was measured before, by genome; each row says where.

    Raises:
        UserError: it was measured with other settings.
    """
    if not output.exists():
        return {}
    before = strict_json.loads(output.read_text())
    if before["settings"] != json.loads(json.dumps(settings)):
        raise UserError(f"{output} was measured with other settings, and is not written over: name another file with --output, or move it.")
    where = {name: before[name] for name in WHERE}
    for entry in before["genomes"].values():
        entry["rows"] = {way: where | row for way, row in entry["rows"].items()}
    return before["genomes"]


def table(found: Report) -> Table:
    """Ways by genome; the best of a column is bold."""
    ways = list(dict.fromkeys(way for entry in found["genomes"].values() for way in entry["rows"]))
    shown = Table("bits per base", *found["genomes"])
    best = {name: min(row["bits_per_base"] for row in entry["rows"].values()) for name, entry in found["genomes"].items()}
    for way in ways:
        cells = []
        for name, entry in found["genomes"].items():
            value = entry["rows"].get(way, {}).get("bits_per_base")
            cells.append("" if value is None else f"[bold]{value:.4f}[/]" if value == best[name] else f"{value:.4f}")
        shown.add_row(way, *cells)
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dna.online", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    known = [*GENOMES, *PAIRS]
    add("--genomes", type=names, default=known, help=f"comma-separated: {', '.join(known)}")
    add("--folder", type=Path, default=FOLDER, help="where the package's examples lie")
    add("--bases", type=int, help="of each genome at most; 0 for the networks' part alone (default: all)")
    add("--network-bases", type=int, default=500_000, help="of each genome that the networks read; 0 for no networks")
    add(
        "--networks",
        nargs="*",
        choices=list(NETWORKS),
        default=list(NETWORKS),
        help=f"which (default: all); with {PLAIN!r} a pair is also read by weights of E. coli",
    )
    add("--seeds", type=integers, default=[0], help="of the networks, comma-separated; the last is mixed in (default: 0)")
    add("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.genomes if name not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not there: apt-get install ragout-examples, or name its folder with --folder")
    torch.set_num_threads(1)
    settings = {
        "mixer": asdict(NETWORK),
        "backbone": BACKBONE.to_dict(),
        "contexts": CONTEXTS.to_dict(),
        "training": asdict(TRAINING),
        "segment": SEGMENT,
    }
    try:
        before = kept(options.output, settings)
    except UserError as error:
        sys.exit(f"error: {error}")
    found: Report = {**environment("benchmarks.dna.online"), "settings": settings, "references": REFERENCES, "genomes": before}
    with progress_bar() as progress, tempfile.TemporaryDirectory() as temporary:
        task = progress.add_task("", total=None)
        name = ""

        def say(what: str) -> None:
            progress.update(task, description=f"{name}: {what}")

        for name, codes, part, networks in tasks(options, Path(temporary)):
            if found["genomes"].get(name, {}).get("bases") != len(codes):  # of another --bases
                found["genomes"][name] = {"bases": len(codes), "rows": {}}
            scores = Scores(codes, part, found["genomes"][name]["rows"], lambda: write_json(options.output, found))
            measure(codes, scores, options.networks if networks else (), options.seeds, say)
            if networks and part.start and PLAIN in options.networks:
                other = read(options.folder, "E. coli MG1655", Path(temporary), options.network_bases)
                for seed in options.seeds:
                    reading(codes, part, scores, other, seed, say)
    Console(highlight=False, width=None if os.isatty(1) else 200).print(table(found))


if __name__ == "__main__":
    main()
