"""ClinVar's mitochondrial variants, scored by models that saw no label: `python -m benchmarks.dna.variants`.

255 single-base variants that are (likely) pathogenic against 1,431 that are (likely) benign. A way is a number for each variant, larger
where it is less likely benign:

    Titans            -log p(ALT)/p(REF) as of `titans-seq dna score-variants`, mean of both strands; trained from scratch, three seeds;
                      with --models contexts with a context memory, which knows of a variant what it has read of the genome before
    order k           the same of counts of the k bases before, on both strands of the same genomes
    orangutan         whether the orangutan's genome has REF, another base or ALT at the aligned place
    phyloP            conservation over 100 vertebrates
    consequence       a stop, then an exchanged amino acid or a base of an RNA, then the rest (code 2 of NCBI)
    BLOSUM62          of the exchanged amino acids, where there are any
    transversion      a purine for a pyrimidine or the other way round

Nothing is chosen on the variants: all that was tried stands in the table. Intervals: bootstrap over places. A column
leaves out MT-CYB, where 31 of ClinVar's (likely) pathogenic variants of this date exchange no amino acid: the labels there are doubtful.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.dna import mito
from benchmarks.reporting import RESULTS, Report, Section, environment, progress_bar, write_json
from domains.dna.config import DNAConfig
from domains.dna.context_config import ContextMemoryConfig
from domains.dna.data.genome import Genome, open_genome
from domains.dna.metrics import BITS_PER_BASE
from domains.dna.model import TitansForDNA
from domains.dna.settings import ReadingConfig
from domains.dna.train import pretrain
from domains.dna.variants import score_variants
from titans_seq import MemoryConfig, TitansConfig
from titans_seq.training.config import TrainingConfig
from titans_seq.training.metrics import read_metrics

OUTPUT = RESULTS / "dna_variants.json"
SECTION = Section("dna-variants")
RELATIVE = "MT-orang.fa"
OTHERS = ("lambda_virus.fa", "phix174.fasta", "NC_045512.2.fasta", "NC_000932.gb", "yeast_chr1.fa.gz")
SETS = {"orangutan": (RELATIVE,), "orangutan and 5 genomes": (RELATIVE, *OTHERS)}
"""What is trained on, by name. The human reference is in none of them."""
ORDERS = (2, 4, 6, 8)
SEEDS = (0, 1, 2)
BACKBONE = TitansConfig(
    dim=64, num_layers=2, variant="lmm", memory=MemoryConfig(num_heads=2, depth=1, expansion=1, chunk_size=64, max_step=0.1)
)
MODELS = {"plain": ("Titans", None), "contexts": ("Titans with a context memory", ContextMemoryConfig(table_bits=12))}
READING = ReadingConfig(context_length=256, batch_size=32)
DOWNSTREAM = 64
RESAMPLES = 200
DOUBTFUL = "MT-CYB"
PARTS = ("all", f"all but {DOUBTFUL}", "missense", "tRNA and rRNA")


def training(seed: int, steps: int) -> TrainingConfig:
    """A twentieth of each record is held out by `pretrain`, and looked at when all is done."""
    return TrainingConfig(learning_rate=3e-3, max_steps=steps, segment_length=256, seed=seed, validate_every=steps, checkpoint_every=steps)


def titans(
    genomes: Sequence[Path],
    genome: Genome,
    variants: pl.DataFrame,
    seed: int,
    steps: int,
    folder: Path,
    contexts: ContextMemoryConfig | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Scores (V,), and what training and reading cost."""
    begin = process_time()
    run = folder / f"{seed}-{len(genomes)}{'' if contexts is None else '-contexts'}"
    made = pretrain(genomes, run, DNAConfig(titans=BACKBONE, contexts=contexts), training(seed, steps), cache=folder, progress=False)
    trained = process_time() - begin
    model = TitansForDNA.from_pretrained(made)
    begin = process_time()
    found = -score_variants(model, genome, variants, downstream=DOWNSTREAM, config=READING)["llr"].to_numpy()
    column = f"validation_{BITS_PER_BASE.column}"
    bits = [float(row[column]) for row in read_metrics(run / "metrics.csv") if row[column]]
    return found, {"train_cpu_seconds": trained, "score_cpu_seconds": process_time() - begin, "held_out_bits_per_base": bits[-1]}


class Scores:
    """Areas under both curves in each part of the variants, with bootstrap intervals over places. A way may have several seeds."""

    def __init__(self, pathogenic: np.ndarray, places: np.ndarray, kinds: np.ndarray, genes: np.ndarray) -> None:
        self._labels, self._places = pathogenic, places
        parts = (np.ones(len(kinds), bool), genes != DOUBTFUL, kinds == "missense", np.isin(kinds, ["tRNA", "rRNA"]))
        self.parts = dict(zip(PARTS, parts, strict=True))

    def of(self, *scores: np.ndarray) -> dict[str, dict[str, Any] | None]:
        """For each part auroc and auprc, each mean over the seeds, interval, and single seeds; None where a score is missing."""
        found: dict[str, dict[str, Any] | None] = {}
        for name, part in self.parts.items():
            known = part & np.all([np.isfinite(score) for score in scores], axis=0)
            found[name] = None if known.sum() < part.sum() else self._of_part(part, [score[part] for score in scores])
        return found

    def _of_part(self, part: np.ndarray, scores: list[np.ndarray]) -> dict[str, Any]:
        labels, places = self._labels[part], self._places[part]
        by_place = [np.flatnonzero(places == place) for place in np.unique(places)]
        draw = np.random.default_rng(0)
        rows = [np.concatenate([by_place[i] for i in draw.integers(0, len(by_place), len(by_place))]) for _ in range(RESAMPLES)]
        entry: dict[str, Any] = {"pathogenic": int(labels.sum()), "benign": int((~labels).sum())}
        for name, area in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
            seeds = [float(area(labels, score)) for score in scores]
            resampled = [np.mean([area(labels[chosen], score[chosen]) for score in scores]) for chosen in rows]
            low, high = np.quantile(resampled, [0.025, 0.975])
            entry[name] = {"mean": float(np.mean(seeds)), "low": float(low), "high": float(high), "seeds": seeds}
        return entry


def measure(
    folder: Path, work: Path, seeds: Sequence[int], steps: int, say: Callable[[str], None], models: Sequence[str] = ("plain",)
) -> Report:
    """Every way's scores, and what the models cost."""
    genome = mito.read_genome(folder, work)
    variants, pathogenic = mito.read_variants(folder)
    genes = mito.read_genes(folder, genome)
    kinds, exchanges = mito.consequences(genome, genes, variants)
    names = variants["info"].str.extract(r"(?:^|;)GENE=([^;]+)").to_numpy()
    scores = Scores(pathogenic, variants["start"].to_numpy(), kinds, names)
    relative = open_genome(folder / "small_genomes" / RELATIVE, work, progress=False)
    say("without a model")
    ways = {
        "transversion": scores.of(mito.transversions(variants)),
        "consequence": scores.of(mito.rank(kinds)),
        "BLOSUM62": scores.of(exchanges),
        "orangutan's base": scores.of(mito.against_relative(genome, relative, variants, min(gene.start for gene in genes))),
        "phyloP, 100 vertebrates": scores.of(mito.read_phylop(folder)[variants["start"].to_numpy()]),
    }
    costs = {}
    for name, files in SETS.items():
        genomes = [folder / "small_genomes" / file for file in files]
        opened = [open_genome(path, work, progress=False) for path in genomes]
        codes = [one.read(record, 0, int(length)) for one in opened for record, length in enumerate(one.lengths)]
        for order in ORDERS:
            say(f"order {order}, {name}")
            ways[f"order {order}, {name}"] = scores.of(-mito.markov_ratios(codes, genome, variants, order))
        for label, contexts in (MODELS[model] for model in models):
            seen = []
            for seed in seeds:
                say(f"{label}, {name}, seed {seed}")
                found, costs[f"{label}, {name}, seed {seed}"] = titans(genomes, genome, variants, seed, steps, work, contexts)
                seen.append(found)
            ways[f"{label}, {name}"] = scores.of(*seen)
    counts = {kind: [int((pathogenic & (kinds == kind)).sum()), int((~pathogenic & (kinds == kind)).sum())] for kind in np.unique(kinds)}
    return {"pathogenic_and_benign": counts, "ways": ways, "costs": costs}


def table(found: Report) -> str:
    """Markdown: AUROC with its interval by part, and AUPRC of all."""
    sizes = next(iter(found["ways"].values()))
    heads = [f"{part}: {sizes[part]['pathogenic']} / {sizes[part]['benign']}" for part in PARTS]
    lines = [f"| AUROC (95 %) | {' | '.join(heads)} | AUPRC, all |", "|" + "---|" * (len(PARTS) + 2)]
    for way, parts in found["ways"].items():
        cells = ["-" if parts[part] is None else _cell(parts[part]["auroc"]) for part in PARTS]
        lines.append(f"| {way} | {' | '.join(cells)} | {_cell(parts['all']['auprc']) if parts['all'] else '-'} |")
    seeds, revision = found["settings"]["seeds"], (found["revision"] or "unknown")[:10]
    lines += [
        "",
        f"Pathogenic / benign above the columns; Titans: mean of {len(seeds)} seeds. `{found['command']}`, revision {revision}.",
    ]
    return "\n".join(lines)


def _cell(area: dict[str, Any]) -> str:
    return f"{area['mean']:.3f} ({area['low']:.3f} to {area['high']:.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dna.variants", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    data = os.environ.get("TITANS_SEQ_DATA")
    add("--data", type=Path, default=Path(data) if data else None, help="folder of the real data sets (default: TITANS_SEQ_DATA)")
    add("--seeds", type=int, nargs="+", default=SEEDS)
    add("--steps", type=int, default=300, help="of training")
    add("--models", nargs="+", choices=list(MODELS), default=["plain"], help="which networks (default: plain)")
    add("--output", type=Path, default=OUTPUT)
    add("--docs", type=Path, metavar="FILE", help="put the table of --output between the markers of this file, and measure nothing")
    options = parser.parse_args(arguments)
    if options.docs is not None:
        import json

        SECTION.write(options.docs, table(json.loads(options.output.read_text())))
        return
    if options.data is None or not (options.data / "dna" / "mito_variants").is_dir():
        parser.error("needs the folder with dna/mito_variants and dna/small_genomes: name it with --data or TITANS_SEQ_DATA")
    torch.set_num_threads(1)
    settings = {
        "backbone": BACKBONE.to_dict(),
        "training": training(0, options.steps).to_dict(),
        "reading": READING.to_dict(),
        "downstream": DOWNSTREAM,
        "seeds": list(options.seeds),
        "sets": {name: list(files) for name, files in SETS.items()},
        "resamples": RESAMPLES,
        "models": {
            name: None if contexts is None else contexts.to_dict() for name, contexts in (MODELS[model] for model in options.models)
        },
    }
    made: Report = {**environment("benchmarks.dna.variants"), "settings": settings}
    with progress_bar() as progress, tempfile.TemporaryDirectory() as work:
        task = progress.add_task("", total=None)
        made |= measure(
            options.data / "dna",
            Path(work),
            options.seeds,
            options.steps,
            lambda what: progress.update(task, description=what),
            options.models,
        )
    write_json(options.output, made)
    Console(highlight=False, soft_wrap=True).print(table(made), markup=False)


if __name__ == "__main__":
    main()
