# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A genome, read once
#
# A FASTA becomes a model of the next base. What the model needs to write a base down is measured along a chromosome, with the genes beside it;
# then variants are scored, and a region is mutated base by base. It takes about two minutes on two cores, with a genome that ships: the
# chloroplast of *Arabidopsis thaliana*, 154,478 bases.
#
# A model this small, trained for seconds on one genome, knows nothing of biology, and the notebook shows where that bites. What it does
# have is memory, and there is one place in this genome where that is worth everything.

# %%
import tempfile
from pathlib import Path

import polars as pl

from domains.dna.data import open_example, open_genome
from domains.dna.data.features import read_annotation

folder = Path(tempfile.mkdtemp())
shipped = open_example("chloroplast", cache=folder)
fasta = folder / "chloroplast.fa"
fasta.write_text(f">{shipped.names[0]}\n{shipped.text(0, 0, int(shipped.lengths[0]))}\n")

genome = open_genome(fasta)  # any FASTA, .2bit or GenBank, also packed; it is mapped, not held in memory
genome

# %% [markdown]
# Its genes come from the GenBank record. A GFF3, GTF or BED reads the same. Places count from 0 and are half-open, whatever the file does.

# %%
genes = read_annotation("chloroplast")  # or read_annotation("genes.gff3")
genes.filter(feature="CDS").sort("start").select("chrom", "start", "end", "strand", "name").head(4)

# %% [markdown]
# ## A model
#
# `pretrain` trains on whole records, both strands, with the state carried on from segment to segment. It keeps the last 5 % of each record to validate on. This
# is what one would do with a large genome and an hour; here it is half a minute, and the network is tiny.

# %%
from domains.dna.config import DNAConfig
from domains.dna.model import TitansForDNA
from domains.dna.train import pretrain
from titans_seq import MemoryConfig, TitansConfig
from titans_seq.training.config import TrainingConfig

backbone = TitansConfig(dim=64, num_layers=2, variant="lmm", memory=MemoryConfig(num_heads=2, depth=1, expansion=1, chunk_size=64))
training = TrainingConfig(max_steps=50, batch_size=16, segment_length=256, learning_rate=4e-3, validate_every=50)
pretrained = TitansForDNA.from_pretrained(pretrain([fasta], folder / "run", DNAConfig(titans=backbone), training))
pretrained

# %% [markdown]
# Two bits a base is no model: four letters, all alike. Only a little better, then, and most of that is composition: this genome is 64 % A and T,
# and `-sum p log2 p` of its four shares alone is

# %%
import numpy as np

codes = genome.read(0, 0, int(genome.lengths[0])).astype(np.int64)
shares = np.bincount(codes, minlength=4) / len(codes)
dict(zip("ACGT", shares.round(3).tolist(), strict=True)) | {"bits per base": round(float(-(shares * np.log2(shares)).sum()), 3)}

# %% [markdown]
# ## Bits along the chromosome
#
# A split of *one* genome is never quite honest: what is held out may have a copy in what is trained on. There is another way that needs no split.
# Read the genome once, from its first base to its last; predict each base *before* it is learned from, and count the bits. `OnlineTrainer` does that and
# then takes a step of gradient descent on each segment, so it begins with nothing and ends as a model.
#
# We do it twice: with the backbone, whose memories learn while they read; and with a second memory beside it, which keeps what followed each of
# sixteen kinds of context, on both strands (`ContextMemoryConfig`; [docs/dna.md](../docs/dna.md) says what it is: a linear memory under the same rule).

# %%
import torch

from domains.dna.bits import OnlineTrainer, per_base, score_windows
from domains.dna.context_config import ContextMemoryConfig
from titans_seq.progress import progress


def read_once(config: DNAConfig) -> tuple[TitansForDNA, pl.DataFrame]:
    """A model that has read the genome, and the bits of windows of 1,000 bases, each scored before it was learned from."""
    torch.manual_seed(0)
    model = TitansForDNA(config)
    with progress("reading", int(genome.lengths.sum())) as advance:
        return model, per_base(score_windows(OnlineTrainer(model), [genome], window=1000, segment_length=512, advance=advance))


_, plain = read_once(DNAConfig(titans=backbone))
model, remembering = read_once(DNAConfig(titans=backbone, contexts=ContextMemoryConfig()))

# %%
from domains.dna.plots import plot_bits

track = plot_bits({"backbone alone": plain, "with the memory of contexts": remembering}, annotation=genes)
track

# %% [markdown]
# For 128,000 bases there is hardly a difference. Then the orange line falls to nothing. That is the *inverted repeat*: chloroplasts carry 26,000 bases twice, the second
# time on the other strand. Look at the arrows: *ycf2*, *ndhB* and the ribosomal RNAs come again, pointing the other way. Nobody told the model. It remembers
# what it read once, 18,000 to 70,000 bases ago, and after some dozen bases that match it copies. The backbone's own memories are matrices of
# 32 x 32, and far too small to hold 26,000 bases: they adapt to composition, and start again.
#
# Is the copy what we say it is?

# %%
from domains.dna.data.alphabet import reverse_complement

PARTS = {
    "large single copy": (0, 84_170),
    "repeat": (84_170, 110_434),
    "small single copy": (110_434, 128_214),
    "repeat again": (128_214, 154_478),
}
(first, second) = (genome.read(0, *PARTS[name]) for name in ("repeat", "repeat again"))
bool((reverse_complement(first) == second).all())

# %% [markdown]
# Beside a number belongs what counting can do. Counts of what followed the last k bases, kept while reading as well, each base again scored before it is
# counted; the third line counts both strands:


# %%
def counted(order: int, smoothing: float, both_strands: bool = False) -> np.ndarray:
    """Bits of every base under counts of what followed the `order` bases before it so far."""
    words = np.lib.stride_tricks.sliding_window_view(codes, order + 1)
    seen = pl.DataFrame({"time": np.arange(len(words)), "asked": True, "word": words @ 4 ** np.arange(order + 1)[::-1]})
    if both_strands:  # the same bases are an event on the other strand, known when they were read
        other = pl.DataFrame(
            {"time": np.arange(len(words)), "asked": False, "word": (3 - words[:, ::-1]) @ 4 ** np.arange(order + 1)[::-1]}
        )
        seen = pl.concat([seen, other]).sort("time", "asked", descending=[False, True], maintain_order=True)
    earlier = pl.col("word").cum_count() - 1.0
    seen = seen.with_columns(this=earlier.over("word"), any=earlier.over(pl.col("word") // 4))
    p = (pl.col("this") + smoothing) / (pl.col("any") + 4 * smoothing)
    bits = seen.filter("asked").sort("time").select(-p.log(2)).to_series().to_numpy()
    return np.concatenate([np.full(order, 2.0), bits])


def by_part(bits: np.ndarray) -> list[float]:
    return [round(float(bits[start:stop].mean()), 3) for start, stop in PARTS.values()] + [round(float(bits.mean()), 3)]


def by_window(table: pl.DataFrame) -> np.ndarray:
    return np.repeat(table["bits_per_base"].to_numpy(), table["bases"].to_numpy())


rows = {
    "counts, order 2": counted(2, 1.0),
    "counts, order 4": counted(4, 1.0),
    "counts, order 16, both strands": counted(16, 1 / 64, both_strands=True),
    "backbone alone": by_window(plain),
    "with the memory of contexts": by_window(remembering),
}
pl.DataFrame([[name, *by_part(bits)] for name, bits in rows.items()], schema=["bits per base", *PARTS, "all"], orient="row")

# %% [markdown]
# So: outside the repeat, two bases of context and a table are as good as the backbone alone. In the repeat, counts of 16 bases find the copy too, and are
# of no use elsewhere. The network's part is to know *when* to trust which memory, without being told: with the contexts it has the best of each column, if only by
# a little in the first three. On larger genomes it is the same ([docs/dna.md](../docs/dna.md#bits-per-base)), and compressors that are made for DNA need
# fewer bits still.
#
# ## Variants
#
# A variant's score is the natural logarithm of p(alternative) / p(reference), with the bases behind it, on both strands. We make up a VCF: every change of a single
# base in the first 200 codons of *rbcL*, the gene of the enzyme that binds carbon dioxide. The genetic code says what each does.

# %%
from Bio.Seq import Seq

rbcl = genes.filter(feature="CDS", name="rbcL").row(0, named=True)
start, stop = rbcl["start"] + 3, rbcl["start"] + 603  # behind the start codon; the gene lies on the strand of the file
text = genome.text(0, start, stop).upper()


def consequence(place: int, alt: str) -> str:
    """What a change of one base does to the protein."""
    codon = place // 3 * 3
    before = text[codon : codon + 3]
    after = before[: place - codon] + alt + before[place - codon + 1 :]
    old, new = (str(Seq(x).translate(table=11)) for x in (before, after))
    return "same amino acid" if old == new else "stop" if new == "*" else "other amino acid"


lines = [f"{genome.names[0]}\t{start + i + 1}\t.\t{ref}\t{','.join(b for b in 'ACGT' if b != ref)}\t.\t.\t." for i, ref in enumerate(text)]
vcf = folder / "rbcl.vcf"
vcf.write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "\n".join(lines) + "\n")
print("\n".join(lines[:3]))

# %%
from domains.dna.data import read_regions
from domains.dna.settings import ReadingConfig
from domains.dna.variants import score_variants

variants = read_regions(vcf)
with progress("scoring", 2 * variants.height) as advance:
    settings = ReadingConfig(context_length=256, batch_size=64)
    scores = score_variants(pretrained, genome, variants, vcf, downstream=32, config=settings, advance=advance)
scores = scores.with_columns(
    consequence=pl.struct("pos", "alt").map_elements(lambda x: consequence(x["pos"] - 1 - start, x["alt"]), return_dtype=pl.String),
    adds_AT=pl.col("alt").is_in(["A", "T"]).cast(pl.Int8) - pl.col("ref").is_in(["A", "T"]).cast(pl.Int8),
)
scores.group_by("consequence").agg(pl.len(), mean_score=pl.col("llr").mean().round(3), adds_AT=pl.col("adds_AT").mean().round(2)).sort(
    "mean_score"
)

# %% [markdown]
# If it knew anything of genes, changes that keep the protein would score highest and stops, which destroy it, lowest. It is the other way round. The model has
# learned that this genome likes A and T; stop codons (TAA, TAG, TGA) are made of them, and the silent third positions of *rbcL* are rich in them
# already, so that a silent change mostly takes one away (`adds_AT`: 1 for a change that makes an A or a T of a C or a G, -1 for the other way, else 0; the mean). How well does a score tell harmful from harmless (0.5 is chance)?

# %%
import matplotlib.pyplot as plt
from sklearn.metrics import roc_auc_score

harmful = scores["consequence"] != "same amino acid"
transition = pl.Series([{ref, alt} in ({"A", "G"}, {"C", "T"}) for ref, alt in scores.select("ref", "alt").iter_rows()])
ranked = {"the model": -scores["llr"], "A or T added, alone": -scores["adds_AT"], "transversion, alone": ~transition}
{name: round(float(roc_auc_score(harmful, values)), 2) for name, values in ranked.items()}

# %%
_, ax = plt.subplots(figsize=(8, 3.2))
bins = np.linspace(float(scores["llr"].min()), float(scores["llr"].max()), 40)
for name, colour in (("other amino acid", "#0969da"), ("same amino acid", "#d4600a"), ("stop", "#24292f")):
    values = scores.filter(consequence=name)["llr"]
    ax.hist(values, bins, density=True, histtype="step", lw=1.5, color=colour, label=f"{name} ({len(values):,})")
ax.axvline(0, color="#8c959f", lw=0.8, ls=":")
ax.set(xlabel="score: log p(alternative) / p(reference)", ylabel="density", title="A small model does not know what breaks a protein")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Worse than chance, and worse than the one rule that needs no model (transversions harm more often than transitions). What it takes is many related genomes in
# training, not one; [docs/dna.md](../docs/dna.md#what-it-says-of-mitochondrial-variants) has the same finding on ClinVar's variants, beside conservation.

# %% [markdown]
# ## Mutating a region, base by base
#
# Where the memory of contexts does know something, one can watch it. *psaB* and *psaA* are neighbours and relatives, two proteins of one reaction centre: here
# and there a stretch of *psaA* reads as *psaB* did, 2,224 bases before. We mutate 60 bases of *psaA*, each to the three others, and read either the 500
# bases before them, or 2,600, in which the relative lies. Same model, same weights; what differs is what it has read a moment ago.
#
# (The memory's tables are state, not weights. So the same weights fit a model with smaller tables, which are copied for each change and need hold no more than
# a few thousand bases.)

# %%
from dataclasses import replace

from domains.dna.logo import information, plot_mutagenesis
from domains.dna.mutagenesis import as_matrix, mutagenesis

small = TitansForDNA(replace(model.config, contexts=replace(model.config.contexts, table_bits=12)))
small.load_state_dict(model.state_dict())


def mutate(context_length: int) -> tuple[str, np.ndarray]:
    """The letters of 60 bases, and the scores of all their changes (60, 4)."""
    settings = ReadingConfig(context_length=context_length, batch_size=64)
    with progress("scoring", 60) as advance:
        return as_matrix(mutagenesis(small, genome, 0, 40_926, 40_986, strands=(1,), downstream=24, config=settings, advance=advance))


(letters, unread), (_, read) = mutate(500), mutate(2600)
title = "After 500 bases of psaA itself the model minds hardly any change"
plot_mutagenesis(letters, unread, genome.names[0], 40_927, title=title, compared=[read])

# %%
title = "After 2,600 bases, psaB among them, it expects what psaB has there, and minds most changes"
plot_mutagenesis(letters, read, genome.names[0], 40_927, title=title, compared=[unread])

# %% [markdown]
# Both pictures have the same scales, and two bits a base is the most there is. A dot is the base that stands there; blue is a change that the model finds
# less likely than it, red one that it would rather have: a score of 2 is a chance e^2, or seven, times as high. Where the two genes go together the memory is sure.
# Where it would rather have another base, is that what *psaB* has there?

# %%
relative = genome.text(0, 40_926 - 2224, 40_986 - 2224)
wanted = "".join("ACGT"[base] if score > 2 else "." for base, score in zip(read.argmax(1), read.max(1), strict=True))
print(f"psaA    {letters}\npsaB    {relative}\nwanted  {wanted}\n")
for name, matrix in {"500": unread, "2,600": read}.items():
    print(f"after {name} bases: {information(matrix).sum(1).mean():.2f} bits of information a base")

# %% [markdown]
# Wherever it wants another base with a score above 2, it wants that of *psaB*. So the score says what it has read, not what photosynthesis needs. That is worth knowing of any model
# of DNA: a confident score may be nothing but a copy nearby.

# %% [markdown]
# ## What to try next
#
# - Your own genome: `titans-seq dna bits genome.fa --train --annotation genes.gff3 -o bits` draws the picture above; without a file at hand, `chloroplast` and
#   `phix174` ship.
# - `titans-seq dna pretrain *.fa.gz -o runs/relatives`, on many relatives, then variants again: does the order of the three kinds turn round?
# - `ContextMemoryConfig(inverted=False)`: the repeat is on the other strand. What is left of the picture?
# - `Reader(model)` in place of `OnlineTrainer(model)`: the weights stay and only the memories learn. A second chloroplast would show what that is worth.
# - Labels in place of bases: `titans-seq dna finetune genome.gbk --classes CDS tRNA -o runs/genes`, then `dna annotate`.
