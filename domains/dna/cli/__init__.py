"""`titans-seq dna`: pretrain, bits, finetune, evaluate, annotate, embed, score-variants, mutagenesis, generate."""

from cyclopts import App

from domains.dna.cli.annotate import annotate
from domains.dna.cli.bits import bits
from domains.dna.cli.embed import embed
from domains.dna.cli.evaluate import evaluate
from domains.dna.cli.finetune import finetune
from domains.dna.cli.generate import generate
from domains.dna.cli.mutagenesis import mutagenesis
from domains.dna.cli.pretrain import pretrain
from domains.dna.cli.score_variants import score_variants

app = App(
    help="Models of DNA: train one on genomes; have it tell bits per base, classes of sequences, labels of bases, embeddings, scores of "
    "variants, or DNA of its own."
)
for command in (pretrain, bits, finetune, evaluate, annotate, embed, score_variants, mutagenesis, generate):
    app.command(command)
