"""Genomes to read."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from Bio import bgzf

from domains.dna import DOMAIN
from domains.dna.data.genome import Genome, open_genome
from titans_seq import cli
from titans_seq.domain import Plugin

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes text or bytes to a file, packed as its name says, and gives its path."""

    def write(content: str | bytes, name: str = "g.fa") -> Path:
        path = tmp_path / name
        content = content.encode() if isinstance(content, str) else content
        if name.endswith(".bgz"):
            with bgzf.BgzfWriter(str(path), "wb") as file:
                file.write(content)
        else:
            path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


@pytest.fixture
def genome_of(write: Write) -> Callable[[dict[str, str]], Genome]:
    """The genome of records, name -> letters."""

    def genome_of(records: dict[str, str], name: str = "g.fa") -> Genome:
        return open_genome(write("".join(f">{key}\n{letters}\n" for key, letters in records.items()), name))

    return genome_of


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs `titans-seq dna ..` in this process, whether or not the package that is installed has the domain already."""
    monkeypatch.setattr(cli, "find_plugins", lambda: (Plugin("dna", "titans-seq", DOMAIN),))

    def run(*arguments: object) -> None:
        cli.build_app()(["dna", *map(str, arguments)])

    return run


@pytest.fixture
def random_words() -> Callable[[int, int], str]:
    """A number of words and a seed -> eight words of twelve bases in random order: a quarter of a bit a base, if one knows the words."""
    choose = random.Random(0)
    vocabulary = ["".join(choose.choices("ACGT", k=12)) for _ in range(8)]
    return lambda words, seed: "".join(random.Random(seed).choices(vocabulary, k=words))
