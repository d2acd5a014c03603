"""`titans-seq dna`: pretrain, bits, finetune, evaluate, annotate."""

from cyclopts import App

from domains.dna.cli.annotate import annotate
from domains.dna.cli.bits import bits
from domains.dna.cli.evaluate import evaluate
from domains.dna.cli.finetune import finetune
from domains.dna.cli.pretrain import pretrain

app = App(
    help="Models of DNA: train one on genomes, say how many bits a base of another genome needs, tell classes of sequences apart, "
    "and label the bases of a genome."
)
for command in (pretrain, bits, finetune, evaluate, annotate):
    app.command(command)
