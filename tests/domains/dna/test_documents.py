"""Genomes as documents: what is read, on which strand, and what is held out."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domains.dna.data.alphabet import decode, encode, reverse_complement
from domains.dna.data.genome import Genome
from domains.dna.data.windows import both_strands, whole
from domains.dna.documents import NucleotideDocuments, record_on, split_ends, split_records
from domains.dna.model import BEGIN
from titans_seq.errors import UserError

GenomeOf = Callable[..., Genome]


@pytest.fixture
def genome(genome_of: GenomeOf) -> Genome:
    return genome_of({"one": "ACGTTGCAnnACGT", "two": "GGGC"})


def letters(documents: NucleotideDocuments) -> list[str]:
    read = [documents.read(n, 0, int(length)) for n, length in enumerate(documents.lengths)]
    assert all(tokens[0] == BEGIN for tokens in read)
    return [decode(tokens[1:]) for tokens in read]


def test_a_document_is_begin_and_the_bases_of_a_strand(genome: Genome, genome_of: GenomeOf) -> None:
    other = genome_of({"three": "TTA"}, "other.fa")
    documents = NucleotideDocuments([(genome, both_strands(whole(genome))), (other, whole(other))])
    assert documents.lengths.tolist() == [15, 5, 15, 5, 4]
    assert letters(documents) == ["ACGTTGCAnnACGT", "GGGC", "ACGTnnTGCAACGT", "GCCC", "TTA"]
    assert letters(record_on(genome, 1, -1)) == ["GCCC"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.data())
def test_any_part_is_that_part_of_the_whole(genome: Genome, data: st.DataObject) -> None:
    documents = NucleotideDocuments([(genome, both_strands(whole(genome)))] * 2)
    document = data.draw(st.integers(0, len(documents) - 1))
    length = int(documents.lengths[document])
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    assert np.array_equal(documents.read(document, start, stop), documents.read(document, 0, length)[start:stop])


def test_ends_are_held_out_behind_a_guard(genome_of: GenomeOf) -> None:
    random = np.random.default_rng(0)
    text = "".join(random.choice(list("ACGTacgtN"), 400))
    training, validation = split_ends([genome_of({"long": text, "short": "ACG"})], 0.05, 30, mirrored=True)
    assert letters(validation) == [text[380:]]
    other = decode(reverse_complement(encode(text[:350])))
    assert letters(training) == [text[:350], "ACG", other, "CGT"]


def test_whole_records_are_held_out_by_name(genome: Genome) -> None:
    training, validation = split_records([genome], ["two"], mirrored=False)
    assert (letters(training), letters(validation)) == (["ACGTTGCAnnACGT"], ["GGGC"])
    with pytest.raises(UserError, match=r"no record 'tow'.*two"):
        split_records([genome], ["tow"], mirrored=False)
    with pytest.raises(UserError, match="none is left"):
        split_records([genome], ["one", "two"], mirrored=False)


def test_the_card_names_records_and_strands(genome: Genome) -> None:
    assert NucleotideDocuments([(genome, both_strands(whole(genome)))]).describe() == (
        "2 records, 18 bases: `one` of `g.fa` (14), `two` of `g.fa` (4), and their reverse complements."
    )
