"""The tasks of the benchmark of classification, and how each is split.

GUE          official parts, the same for every seed.
Genomic      as Caduceus splits them (arXiv 2403.03234, appendix; five seeds): the official test part, and a tenth of the training part
Benchmarks   for validation, another for each seed. A folder or an archive of the name lies in dna/genomic_benchmarks.
re-split     official TEST parts of Genomic Benchmarks, which alone may be at hand: a fifth of one for the test, the same for every seed,
             and a tenth of the rest for validation, another for each. Not to be compared with anything that is published.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from domains.dna.data.labelled import Task, hold_out
from domains.dna.data.labelled_files import ARCHIVES, read_task
from titans_seq.errors import UserError

Split = Literal["official", "caduceus", "re-split"]
_SHARE, _TEST_SHARE = 0.1, 0.2


@dataclass(frozen=True)
class Source:
    """Where a task lies, under dna/, and what is published of it.

    published: AUROC of a classifier on mean-pooled embeddings of Caduceus-Ph, not trained further (Nature Communications 2025,
    s41467-025-65823-8), of GUE; accuracy of Caduceus-Ph, fine-tuned, of Genomic Benchmarks (arXiv 2403.03234, table 1).
    """

    path: str
    split: Split = "official"
    published: float | None = None


TASKS = {
    "prom_core_tata": Source("gue/prom/prom_core_tata", published=0.810),
    "prom_core_notata": Source("gue/prom/prom_core_notata", published=0.896),
    "prom_core_all": Source("gue/prom/prom_core_all", published=0.875),
    "tf/0": Source("gue/tf/0", published=0.880),
    "tf/1": Source("gue/tf/1", published=0.869),
    "tf/2": Source("gue/tf/2", published=0.825),
    **{
        name: Source(f"genomic_benchmarks/{name}", "caduceus", published)
        for name, published in (
            ("dummy_mouse_enhancers_ensembl", 0.754),
            ("demo_coding_vs_intergenomic_seqs", 0.915),
            ("demo_human_or_worm", 0.973),
            ("human_enhancers_cohn", 0.747),
            ("human_enhancers_ensembl", 0.893),
            ("human_ensembl_regulatory", 0.872),
            ("human_nontata_promoters", 0.946),
            ("human_ocr_ensembl", 0.828),
        )
    },
    **{
        f"{name} re-split": Source(f"genomic_benchmarks/{file}_test.csv.gz", "re-split")
        for name, file in (
            ("cohn", "human_enhancers_cohn"),
            ("nontata", "human_nontata_promoters"),
            ("stark", "drosophila_enhancers_stark"),
        )
    },
}
GUE = [name for name, source in TASKS.items() if source.split == "official"]


def find(data: Path, name: str) -> Path:
    """Where a task lies.

    Raises:
        UserError: it is not there.
    """
    path = data / "dna" / TASKS[name].path
    candidates = [path, *(path.with_name(path.name + suffix) for suffix in ARCHIVES)]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    packed = "" if path.suffix == ".gz" else " (a folder, or an archive of that name)"
    raise UserError(f"task {name}: {path}{packed} is not there. Put it there, name another folder with --data, or leave the task out.")


@cache
def _read(path: Path) -> Task:
    return read_task(path)


def load(data: Path, name: str, seed: int) -> Task:
    """A task as it is split for a seed.

    Raises:
        UserError: it is not there, or has not the parts that it is split from.
    """
    task, split = _read(find(data, name)), TASKS[name].split
    if split == "official":
        return task
    if split == "re-split":
        task = hold_out(task, 0.0, 0, test=_TEST_SHARE)
    elif task.test is None:
        raise UserError(f"task {name}: has no test part, so it is not the set of Genomic Benchmarks. It has: {', '.join(task.parts)}.")
    return hold_out(task, _SHARE, seed)
