"""Genomes to read."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from Bio import bgzf

from domains.dna.data.genome import Genome, open_genome

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
