"""The commands of every page run in their order, on small files of the names that the page says, with small sizes."""

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.docs.data import make
from tests.docs.pages import SHELL, blocks, commands
from tests.limits import HANG
from titans_seq.cli import build_app

PAGES = ["README.md", "docs/dna.md", "docs/text.md", "docs/text_tasks.md", "docs/timeseries.md", "docs/training.md"]
"""Those that go from a file to what is made of it. docs/cli.md only lists what there is."""
TRAINING = "--preset debug --batch-size 2 --max-steps 2 --quiet"
SMALL = {
    "text train": f"{TRAINING} --segment-length 32",
    "text task train": TRAINING,
    "text task evaluate": "--count 2 --quiet",
    "text task make": "--count 3",
    "text tokenizer": "--vocab-size 300 --quiet",
    "text generate": "--max-tokens 8",
    "text eval": "--limit 2 --quiet",
    "dna pretrain": f"{TRAINING} --segment-length 64",
    "dna finetune": TRAINING,
    "dna bits": "--quiet",
    "dna generate": "--length 50",
    "forecast train": "--max-steps 2",
    "forecast backtest": "--max-steps 2",
    "forecast watch": "--interval 0.05 --idle 0.1",
}
"""Flags by command: in place of the page's, or added."""
LARGE = {
    "--lengths 1024 4096 16384": "--lengths 1024",
    "--lengths 4000 1000000": "--lengths 4000",
    "--cache /scratch/big": "--cache big",
    "length=128 -s reserve=40": "length=512 -s reserve=40",  # a tokeniser of 300 pieces takes more of them for a story
}
"""What else of a command is made small, or fits what is small."""
STANDS_FOR = {"MODEL": "runs/novels/model"}


def small(words: list[str]) -> list[str]:
    """The words behind `titans-seq`, with small sizes."""
    line = shlex.join(STANDS_FOR.get(word, word) for word in words)
    for large, less in LARGE.items():
        line = line.replace(large, less)
    flags = next((flags for command, flags in SMALL.items() if line.startswith(f"{command} ")), "")
    if line == "forecast backtest":
        flags = SMALL[line]
    if "--start" in words:  # the size is that model's
        flags = flags.replace("--preset debug ", "")
    for flag in re.findall(r"--[a-z-]+(?= [^-])", flags):
        line = re.sub(rf" {flag} \S+", "", line)
    return shlex.split(f"{line} {flags}")


def outputs(words: list[str]) -> list[Path]:
    """What the command is told to write."""
    return [Path(place) for flag, place in pairwise(words) if flag in ("-o", "--output", "--state")]


def make_room(places: list[Path]) -> None:
    """Take away what an earlier command of the page made there."""
    for place in places:
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make(tmp_path)
    if page == "docs/text_tasks.md":
        build_app()(small(shlex.split("text train novels/ -o runs/novels")))
    app = build_app()
    for block in blocks(page, *SHELL):
        for name, *words in commands(block):
            if name != "titans-seq" or words[0] == "serve":  # a server is started by tests/domains/text/serve/test_docs.py
                continue
            given = small(words)
            if "--resume" not in given and "generate" not in given:  # which go on from what is there
                make_room(outputs(given))
            print(given, flush=True)
            if "--devices" in given:  # each further process is started by the same command line
                subprocess.run([sys.executable, "-m", "titans_seq.cli", *given], check=True, timeout=HANG)
            else:
                with open("live.csv") as table:
                    monkeypatch.setattr("sys.stdin", table)
                    app(given, exit_on_error=False, print_error=False)
            assert all(place.exists() for place in outputs(given))
