"""The human mitochondrial genome's variants, and what is known of each without a network: consequence, conservation, a relative's base.

Files: mito_variants (VCF with LABEL, rCRS, genes base by base, phyloP) and small_genomes. Shapes: V variants.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from Bio.Align import PairwiseAligner, substitution_matrices
from Bio.Seq import Seq

from domains.dna.data.alphabet import BASE_BITS, BASES, N
from domains.dna.data.genome import Genome, open_genome
from domains.dna.data.region_files import read_regions
from domains.dna.experts import LONGEST, chances, smoothing_of

CODE = 2
"""NCBI's number of the vertebrate mitochondrial code."""
PURINES = frozenset("AG")
_RANK = {"outside genes": 0, "synonymous": 0, "missense": 1, "tRNA": 1, "rRNA": 1, "stop": 2}


class Gene(NamedTuple):
    """Places 0-based and half-open; kind protein, tRNA or rRNA; strand of a protein's codons."""

    name: str
    kind: str
    start: int
    stop: int
    strand: int


def read_variants(folder: Path) -> tuple[pl.DataFrame, np.ndarray]:
    """The single-base variants, as of `read_regions`, and (V,) whether each is pathogenic."""
    variants = read_regions(folder / "mito_variants" / "clinvar_chrMT_plp_blb.vcf")
    return variants, (variants["info"].str.extract(r"(?:^|;)LABEL=([01])") == "1").to_numpy()


def read_genome(folder: Path, cache: Path) -> Genome:
    return open_genome(folder / "mito_variants" / "hs37d5.MT.fa", cache, progress=False)


def read_phylop(folder: Path) -> np.ndarray:
    """phyloP of 100 vertebrates at each base, from a wiggle of fixed steps of one; NaN where there is none."""
    found: dict[int, float] = {}
    place = 0
    for line in (folder / "mito_variants" / "chrM.phyloP100way.wigFix").read_text().splitlines():
        if line.startswith("fixedStep"):
            place = int(line.split("start=")[1].split()[0]) - 1
        else:
            found[place] = float(line)
            place += 1
    values = np.full(max(found) + 1, np.nan)
    values[list(found)] = list(found.values())
    return values


def read_genes(folder: Path, genome: Genome) -> list[Gene]:
    """Genes from the table that lists them base by base; a protein's strand is the one that it can be translated on."""
    path = folder / "mito_variants" / "gtf_annotations.bed.gz"
    columns = ["chrom", "start", "end", "names", "kinds"]
    rows = pl.read_csv(path, separator="\t", has_header=False, new_columns=columns, quote_char=None)
    lists = pl.col("names", "kinds").str.replace_all('"', "").str.split(";")
    listed = rows.select("start", lists).explode("names", "kinds")
    found = listed.group_by("names", "kinds", maintain_order=True).agg(pl.col("start").min(), (pl.col("start").max() + 1).alias("stop"))
    genes = []
    for name, biotype, start, stop in found.iter_rows():
        kind = {"Mt_tRNA": "tRNA", "Mt_rRNA": "rRNA"}.get(biotype, "protein")
        strands = [(1, -1), (1,)][kind != "protein"]
        strand = min(strands, key=lambda strand: protein(genome, Gene(name, kind, start, stop, strand)).rstrip("*").count("*"))
        genes.append(Gene(name, kind, start, stop, strand))
    return genes


def codons(genome: Genome, gene: Gene) -> str:
    """The bases of a gene along its strand; a last codon that is cut short is filled up with A, as the cell does."""
    text = genome.window_text(0, gene.start, gene.stop, gene.strand)
    return text + "A" * (-len(text) % 3)


def protein(genome: Genome, gene: Gene) -> str:
    return str(Seq(codons(genome, gene)).translate(table=CODE))


def consequence(genome: Genome, gene: Gene, place: int, alt: str) -> tuple[str, float]:
    """What a changed base does to a gene, and -BLOSUM62 of the amino acids that it exchanges; NaN where it exchanges none."""
    if gene.kind != "protein":
        return gene.kind, np.nan
    text = codons(genome, gene)
    offset = place - gene.start if gene.strand > 0 else gene.stop - 1 - place
    letter = alt if gene.strand > 0 else str(Seq(alt).complement())
    changed = text[:offset] + letter + text[offset + 1 :]
    codon = offset // 3
    before, after = (str(Seq(x).translate(table=CODE))[codon] for x in (text, changed))
    if before == after:
        return "synonymous", np.nan
    if "*" in (before, after):
        return "stop", np.nan
    return "missense", -float(_BLOSUM[before][after])


_BLOSUM = substitution_matrices.load("BLOSUM62")


def consequences(genome: Genome, genes: list[Gene], variants: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(V,) the gravest consequence of each over the genes that it lies in, and (V,) -BLOSUM62."""
    kinds, costs = [], []
    for row in variants.iter_rows(named=True):
        place = row["start"]
        found = [consequence(genome, gene, place, row["alt"][0]) for gene in genes if gene.start <= place < gene.stop]
        kind, cost = max(found, key=lambda pair: (_RANK[pair[0]], np.nan_to_num(pair[1], nan=-9)), default=("outside genes", np.nan))
        kinds.append(kind)
        costs.append(cost)
    return np.array(kinds), np.array(costs)


def rank(kinds: np.ndarray) -> np.ndarray:
    """0 for synonymous and outside genes, 1 for an exchanged amino acid or a base of an RNA, 2 for a stop that comes or goes."""
    return np.array([_RANK[kind] for kind in kinds], dtype=float)


def transversions(variants: pl.DataFrame) -> np.ndarray:
    """(V,) 1 where a purine and a pyrimidine are exchanged, which mitochondria do far more rarely."""
    pairs = zip(variants["ref"], variants["alt"].list.first(), strict=True)
    return np.array([(ref in PURINES) != (alt in PURINES) for ref, alt in pairs], dtype=float)


def against_relative(genome: Genome, relative: Genome, variants: pl.DataFrame, origin: int) -> np.ndarray:
    """(V,) 1 where the relative has REF at the aligned place, 0.5 where it has neither or nothing, 0 where it has ALT.

    origin: where the circle is opened: the relative's record begins with the same base.
    """
    text = genome.text(0, 0, int(genome.lengths[0])).upper()
    aligner = PairwiseAligner(mode="global", match_score=1, mismatch_score=-1, gap_score=-2, end_gap_score=0)
    opened = text[origin:] + text[:origin]
    alignment = aligner.align(opened, relative.text(0, 0, int(relative.lengths[0])).upper())[0]
    held = np.full(len(text), "-")
    for (start, stop), (other, _) in zip(*alignment.aligned, strict=True):
        held[start:stop] = list(alignment.query[other : other + stop - start])
    held = np.roll(held, origin)[variants["start"].to_numpy()]
    ref, alt = variants["ref"].to_numpy(), variants["alt"].list.first().to_numpy()
    return np.where(held == ref, 1.0, np.where(held == alt, 0.0, 0.5))


def markov_ratios(trained_on: list[np.ndarray], genome: Genome, variants: pl.DataFrame, order: int) -> np.ndarray:
    """(V,) log p(alt)/p(ref) in nats of counts of order k on both strands of codes: mean over the strands that are read."""
    table = np.log(_chances_of_words(trained_on, order).astype(np.float64))  # (4 ** order, 4)
    codes = genome.read(0, 0, int(genome.lengths[0])) & BASE_BITS
    return np.array(
        [
            np.mean([_change(table, codes, row["start"], BASES.index(row["alt"][0]), order, strand) for strand in (1, -1)])
            for row in variants.iter_rows(named=True)
        ]
    )


def _chances_of_words(trained_on: list[np.ndarray], order: int) -> np.ndarray:
    """(4 ** order, 4): how likely each base follows each word of `order` bases, words with N left out."""
    assert order < LONGEST
    counted = np.zeros(4 ** (order + 1), np.int64)
    for codes in trained_on:
        bases = (codes & BASE_BITS).astype(np.int64)
        for strand in (bases, np.where(bases < N, 3 - bases, N)[::-1]):
            windows = np.lib.stride_tricks.sliding_window_view(strand, order + 1)
            whole = windows[(windows < N).all(axis=1)]
            counted += np.bincount(whole @ (4 ** np.arange(order, -1, -1)), minlength=len(counted))
    return chances(counted.reshape(-1, 4).T, smoothing_of(order)).T


def _change(table: np.ndarray, codes: np.ndarray, place: int, alt: int, order: int, strand: int) -> float:
    """Of the words that hold the changed base along a strand, the logarithms of what follows, after less before."""
    first, last = max(0, place - order), min(len(codes), place + order + 1)
    texts = []
    for base in (alt, int(codes[place])):
        text = codes[first:last].astype(np.int64)
        text[place - first] = base
        texts.append(text if strand > 0 else 3 - text[::-1])
    return _log_chance(table, texts[0], order) - _log_chance(table, texts[1], order)


def _log_chance(table: np.ndarray, text: np.ndarray, order: int) -> float:
    windows = np.lib.stride_tricks.sliding_window_view(text, order + 1)
    windows = windows[(windows >= 0).all(axis=1) & (windows < N).all(axis=1)]
    return float(table[windows[:, :-1] @ (4 ** np.arange(order - 1, -1, -1)), windows[:, -1]].sum())
