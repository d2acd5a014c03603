"""`titans-seq text`: train, tokenizer, score, eval, read, generate, serve, task."""

from cyclopts import App

from domains.text.cli.eval import evaluate
from domains.text.cli.generate import generate
from domains.text.cli.read import read
from domains.text.cli.score import score
from domains.text.cli.serve import serve
from domains.text.cli.task import app as task
from domains.text.cli.tokenizer import tokenizer
from domains.text.cli.train import train

app = App(name="text", help="Language models: train one on files, score files with it, have it read and go on with texts, serve it.")
for command in (train, tokenizer, score, read, generate, serve, task):
    app.command(command)
app.command(evaluate, name="eval")
