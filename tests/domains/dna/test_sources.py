"""Genomes through the training loaders: every base once in order, or windows at random places; resumable."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from Bio.Seq import Seq

from domains.dna.data.alphabet import decode, encode
from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from domains.dna.data.sources import GenomeDocuments, RandomWindows
from domains.dna.data.windows import BasePolicy, whole
from titans_seq import UserError
from titans_seq.training.loaders import DocumentStream, TrainingLoader

TEXT = "ACGTNacgtnGATTACA"


def test_documents_are_read_in_any_parts_on_both_strands(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": TEXT, "b": "ACC"})
    documents = GenomeDocuments(genome, Intervals.of([0, 0, 1], [2, 2, 0], [15, 15, 3], [1, -1, 1]))
    forward = TEXT[2:15]
    expected = [forward, str(Seq(forward).reverse_complement()), "ACC"]
    assert documents.lengths.tolist() == [13, 13, 3]
    for document, text in enumerate(expected):
        for start in range(len(text) + 1):
            for stop in range(start, len(text) + 1):
                assert decode(documents.read(document, start, stop)) == text[start:stop]


def test_a_stream_reads_every_base_in_order(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": TEXT, "b": "ACC"})
    stream = DocumentStream(GenomeDocuments(genome, whole(genome)), batch_size=1, segment_length=5, document_length=100)
    batches = list(TrainingLoader(stream, 4))
    targets = torch.cat([b["targets"][0][slice(None) if b["mask"] is None else b["mask"][0]] for b in batches])
    assert decode(targets.numpy()) == TEXT[1:] + "CC"
    assert [b["reset"] is not None for b in batches] == [True, False, False, True]
    weights = torch.from_numpy(BasePolicy(soft_masked="ignore").weights())[targets]
    assert weights.tolist() == [float(x in "ACGT") for x in TEXT[1:] + "CC"]


def test_random_windows(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "ACGTTGCA" * 20 + "N" * 30, "b": "GATTACA"})
    source = RandomWindows(genome, whole(genome), 6, 4, BasePolicy(unknown="reject"), seed=3)
    strands = {"ACGTTGCA" * 20, str(Seq("ACGTTGCA" * 20).reverse_complement()), "GATTACA", "TGTAATC"}
    for batch in islice(iter(TrainingLoader(source, 20)), 20):
        assert (batch["tokens"].shape, batch["tokens"].dtype) == ((6, 4), torch.int64)
        assert batch["tokens"][:, 1:].equal(batch["targets"][:, :-1])
        assert batch["mask"] is None
        assert batch["reset"].tolist() == [[True, False, False, False]] * 6
        for tokens, target in zip(batch["tokens"], batch["targets"][:, -1:], strict=True):
            window = decode(torch.cat([tokens, target]).numpy())
            assert any(window in strand for strand in strands)


def test_random_windows_go_on_where_they_were_on_any_number_of_devices(genome_of: Callable[..., Genome]) -> None:
    random = np.random.default_rng(0)
    genome = genome_of({"a": "".join(random.choice(list("ACGT"), 500))})

    def source(rank: int = 0, world_size: int = 1, seed: int = 0) -> RandomWindows:
        return RandomWindows(genome, whole(genome), 4, 10, BasePolicy(), seed, True, rank, world_size)

    straight = source()
    batches = [straight.take()["targets"] for _ in range(5)]
    first = source()
    first.take()
    for rank in range(2):
        second = source(rank, 2)
        second.load_state_dict(first.state_dict())
        assert all(second.take()["targets"].equal(batch[2 * rank : 2 * rank + 2]) for batch in batches[1:])
    with pytest.raises(UserError, match="started on other data or other batches: 0 seed then and 1 now"):
        source(seed=1).load_state_dict(first.state_dict())
    swapped = genome_of({"a": "".join(random.choice(list("ACGT"), 500))})
    with pytest.raises(UserError, match="started on other data: of the same sizes, but not the same ones"):
        RandomWindows(swapped, whole(swapped), 4, 10, BasePolicy()).load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="position in the data is damaged: -1"):
        source().load_state_dict(first.state_dict() | {"taken": -1})
    with pytest.raises(ValueError, match="batch_size=4 must be a multiple of the number of devices, 3"):
        source(0, 3)


def test_a_fixed_strand(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "AAAAAACCCCCC"})
    source = RandomWindows(genome, whole(genome), 8, 3, BasePolicy(), reverse_complement=False)
    assert set(torch.cat([source.take()["tokens"] for _ in range(10)]).flatten().tolist()) == set(encode("AC").tolist())
