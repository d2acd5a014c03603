"""The files that the pages name, small: `make(folder)` writes them, as a reader would have them."""

import gzip
import json
import random
from datetime import date, timedelta
from pathlib import Path

import polars as pl
from Bio.Seq import Seq
from Bio.SeqFeature import SeqFeature, SimpleLocation
from Bio.SeqIO import write as write_sequences
from Bio.SeqRecord import SeqRecord

from tests.docs.pages import ROOT

BOOK = "It was the best of times, it was the worst of times. It was the age of wisdom, it was the age of foolishness. "
BASES = 12_000
MY_TASK = """
task: my_task
dataset_path: json
dataset_kwargs: {data_files: {test: my_tasks/rows.jsonl}}
output_type: loglikelihood
test_split: test
doc_to_text: prompt
doc_to_target: " {{answer}}"
"""
STORY = "1 Mary moved to the office.\n2 John went to the garden.\n3 Where is Mary?\toffice\t1\n"


def make(folder: Path) -> None:
    """All of it, the same each time."""
    draw = random.Random(0)
    tables(folder, draw)
    texts(folder)
    genomes(folder, draw)


def tables(folder: Path, draw: random.Random) -> None:
    """A shop's days, once more with what came after, and a panel of sensors."""
    days = [date(2024, 1, 1) + timedelta(days=i) for i in range(300)]
    rows = pl.DataFrame(
        {"date": days, "units": [20 + 5 * (i % 7) + draw.random() for i in range(300)], "price": [9 + draw.random() for _ in range(300)]}
    )
    rows.head(280).write_csv(folder / "sales.csv")
    for name in ("new.csv", "live.csv"):
        rows.write_csv(folder / name)
    panel = [rows.with_columns(pl.col("date").cast(pl.Datetime), sensor=pl.lit(name)) for name in ("north", "south")]
    pl.concat(panel).write_parquet(folder / "big.parquet")


def texts(folder: Path) -> None:
    """Novels, another text, tasks of lm-evaluation-harness and of one's own, a file of bAbI."""
    held = {
        "README.md": BOOK * 20,
        **{name: (ROOT / name).read_text() for name in ("examples/babilong.toml", "examples/parity.toml", "examples/recall.toml")},
        "novels/one.txt": BOOK * 20,
        "novels/two.txt": BOOK[::-1] * 20,
        "other.txt": BOOK * 20,
        "more.txt": BOOK * 20,
        "letters/one.txt": BOOK * 20,
        "texts/lambada/lambada_test.jsonl": json.dumps({"text": "It was the best"}) + "\n",
        "texts/piqa/valid.jsonl": json.dumps({"goal": "open", "sol1": "push", "sol2": "pull"}) + "\n",
        "texts/piqa/valid-labels.lst": "1\n",
        "my_tasks/rows.jsonl": json.dumps({"prompt": "It was", "answer": "best"}) + "\n",
        "my_tasks/task.yaml": MY_TASK,
        "babi/en/qa1_single-supporting-fact_test.txt": STORY,
    }
    for name, text in held.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def genomes(folder: Path, draw: random.Random) -> None:
    """Two genomes, what is known of them, and labelled sequences."""
    first, last = ("".join(draw.choices("ACGT", k=BASES)) for _ in range(2))
    (folder / "genome.fa").write_text(f">chr1\n{first}\n")
    (folder / "genome.fa.gz").write_bytes(gzip.compress(f">chr1\n{first}\n".encode()))
    (folder / "other.fa").write_text(f">chr1\n{first[:7000]}{last[7000:]}\n")
    lines = [f"chr1\t{at}\t.\t{first[at - 1]}\t{'A' if first[at - 1] != 'A' else 'C'}\t.\t.\t." for at in (500, 6000)]  # in both genomes
    calls = "\n".join(["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO", *lines]) + "\n"
    (folder / "calls.vcf").write_text(calls)
    (folder / "calls.vcf.gz").write_bytes(gzip.compress(calls.encode()))
    (folder / "genes.gff3").write_text("##gff-version 3\nchr1\tx\tCDS\t101\t900\t.\t+\t0\tID=one\n")
    (folder / "peaks.bed").write_text("chr1\t100\t400\tone\nchr1\t5000\t5200\ttwo\n")
    places = [("CDS" if i % 3 else "tRNA", 300 * i, 300 * i + 150) for i in range(BASES // 300)]
    features = [SeqFeature(SimpleLocation(start, end, 1), type=kind) for kind, start, end in places]
    record = SeqRecord(Seq(first), id="chr1", name="chr1", annotations={"molecule_type": "DNA"}, features=features)
    write_sequences([record], folder / "genome.gbk", "genbank")
    labelled(folder / "labelled.csv", draw, 60)
    (folder / "GUE/tf/0").mkdir(parents=True)
    for part in ("train", "dev", "test"):
        labelled(folder / f"GUE/tf/0/{part}.csv", draw, 20)


def labelled(path: Path, draw: random.Random, count: int) -> None:
    """Random sequences of 50 bases, every other one with a motif."""
    rows = ["".join(draw.choices("ACGT", k=50)) for _ in range(count)]
    lines = [f"{row[:20] + 'TGACTCA' + row[27:]},1" if i % 2 else f"{row},0" for i, row in enumerate(rows)]
    path.write_text("\n".join(["sequence,label", *lines]) + "\n")
