"""`titans-seq dna`: pretrain, bits."""

from cyclopts import App

from domains.dna.cli.bits import bits
from domains.dna.cli.pretrain import pretrain

app = App(help="Models of DNA: train one on genomes, and say how many bits a base of another genome needs.")
for command in (pretrain, bits):
    app.command(command)
