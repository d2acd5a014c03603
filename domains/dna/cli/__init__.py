"""`titans-seq dna`: pretrain, bits, embed, score-variants, mutagenesis, generate."""

from cyclopts import App

from domains.dna.cli.bits import bits
from domains.dna.cli.embed import embed
from domains.dna.cli.generate import generate
from domains.dna.cli.mutagenesis import mutagenesis
from domains.dna.cli.pretrain import pretrain
from domains.dna.cli.score_variants import score_variants

app = App(help="Models of DNA: train one on genomes, and have it tell bits per base, embeddings, scores of variants, or DNA of its own.")
for command in (pretrain, bits, embed, score_variants, mutagenesis, generate):
    app.command(command)
