"""What a genome's cache costs, and what a window costs to read: `python -m benchmarks.dna.genomes`, half a minute.

Of a synthetic FASTA of a hundred million bases, and of E. coli where TITANS_SEQ_DATA names the folder that has it. Beside it Biopython: the
file parsed, and windows as slices of its records, held in memory and encoded when they are read. Times are of the processor, in turns.
"""

import argparse
import gzip
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from Bio import SeqIO
from rich.console import Console
from rich.table import Table

from benchmarks.machine import positive
from benchmarks.reporting import RESULTS, Report, environment, write_json
from domains.dna.data.alphabet import encode
from domains.dna.data.genome import Genome, open_genome
from domains.dna.data.windows import sample, whole

LENGTHS = (1_024, 32_768, 1_048_576)
ECOLI = Path("dna") / "ecoli_k12" / "GCF_000005845.2_ASM584v2_genomic.fna.gz"


def write_synthetic(path: Path, bases: int, records: int = 6, width: int = 60) -> None:
    """Random bases of both cases, in records of equal lengths."""
    random = np.random.default_rng(0)
    lines = bases // records // width
    with path.open("wb") as file:
        for record in range(records):
            letters = np.frombuffer(b"ACGTacgt", np.uint8)[random.integers(0, 8, (lines, width), dtype=np.uint8)]
            file.write(b">chr%d\n" % record + np.pad(letters, ((0, 0), (0, 1)), constant_values=ord("\n")).tobytes())


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Of the processor, and on the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def measure(path: Path, folder: Path, windows: int) -> Report:
    build_cpu, build_clock = seconds(lambda: open_genome(path, folder, progress=False))
    open_cpu, _ = seconds(lambda: open_genome(path, folder))
    genome = open_genome(path, folder)
    records: list = []
    parse_cpu, _ = seconds(lambda: records.extend(parse(path)))
    return {
        "bases": int(genome.lengths.sum()),
        "build_cpu_s": build_cpu,
        "build_clock_s": build_clock,
        "open_cpu_ms": 1000 * open_cpu,
        "biopython_parse_cpu_s": parse_cpu,
        "windows": [compare(genome, records, length, windows) for length in LENGTHS if length <= genome.lengths.max()],
    }


def parse(path: Path) -> list:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return list(SeqIO.parse(file, "fasta"))


def compare(genome: Genome, records: list, length: int, count: int) -> Report:
    """Microseconds a window, the median of five turns: ours copied out of the mapped file, Biopython's slice encoded."""
    count = max(5, min(count, 200_000_000 // length // 10))
    drawn = sample(genome, whole(genome), length, count, np.random.default_rng(length))
    places = list(zip(drawn.record.tolist(), drawn.start.tolist(), drawn.stop.tolist(), strict=True))
    ours = [seconds(lambda: [genome.window(*place).copy() for place in places])[0] for _ in range(5)]
    theirs = [seconds(lambda: [encode(str(records[r].seq[a:b])) for r, a, b in places])[0] for _ in range(5)]
    return {
        "length": length,
        "count": count,
        "ours_us": 1e6 * float(np.median(ours)) / count,
        "biopython_us": 1e6 * float(np.median(theirs)) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=positive(int), default=102_000_000)
    parser.add_argument("--windows", type=positive(int), default=2_000)
    parser.add_argument("--output", type=Path, default=RESULTS / "dna_genomes.json")
    options = parser.parse_args()
    found: Report = {"environment": environment("benchmarks.dna.genomes"), "genomes": {}}
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        data = os.environ.get("TITANS_SEQ_DATA")
        if data and (Path(data) / ECOLI).is_file():
            sources["E. coli K-12, .fna.gz"] = Path(data) / ECOLI
        sources["synthetic, 6 records"] = Path(folder) / "synthetic.fa"
        write_synthetic(sources["synthetic, 6 records"], options.bases)
        for name, path in sources.items():
            found["genomes"][name] = measure(path, Path(folder) / "cache", options.windows)
    write_json(options.output, found)
    show(found)


def show(found: Report) -> None:
    table = Table(
        "genome", "bases", "cache built, CPU s", "clock s", "Biopython parses, CPU s", "opened, ms", *(f"window of {n:,}" for n in LENGTHS)
    )
    for name, row in found["genomes"].items():
        windows = (f"{w['ours_us']:.1f} us ({w['biopython_us']:.1f})" for w in row["windows"])
        numbers = (f"{row[key]:.2f}" for key in ("build_cpu_s", "build_clock_s", "biopython_parse_cpu_s", "open_cpu_ms"))
        table.add_row(name, f"{row['bases']:,}", *numbers, *windows)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
