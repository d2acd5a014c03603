"""Variants and embeddings of a model whose context memory changes its tables in place: each as if it were read alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from domains.dna import reading
from domains.dna.context_config import ContextMemoryConfig
from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from domains.dna.embed import embed
from domains.dna.generate import generate
from domains.dna.model import TitansForDNA
from domains.dna.mutagenesis import mutagenesis
from domains.dna.presets import debug
from domains.dna.settings import ReadingConfig
from domains.dna.variants import score_variants
from tests.domains.dna.small import tokens_of, turned
from tests.domains.dna.test_variants import VARIANTS, ratio, table

GenomeOf = Callable[..., Genome]
TEXT = "TTGACCAGTTTACGACGTTGCAGGCTAAGATTACAGATACCATTAGAC" + "GTTGCAGGCTAAGATTACAGACGTTTACCAG"  # what comes again is known by then
CONTEXTS = ContextMemoryConfig(lengths=(1, 2, 4, 6), skips=(0, 0, 0, 2), table_bits=6)  # contexts of 4 and 6 share slots


def make_model() -> TitansForDNA:
    torch.manual_seed(0)
    config = debug("lmm").to_dict()
    model = TitansForDNA(type(debug()).from_dict({**config, "contexts": CONTEXTS.to_dict()}))
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.constant_(model.contexts.weights.bias, 0.3)
    return model.double().eval()


def test_variants_have_the_scores_of_the_definition(genome_of: GenomeOf) -> None:
    """Every window is read from the state after its context, whatever stood in the batch, on either strand."""
    model, genome = make_model(), genome_of({"one": TEXT})
    places = [*VARIANTS, (60, TEXT[59], "ACGT".replace(TEXT[59], "")[0])]
    for batch, segment in ((1, 1024), (3, 5), (16, 1)):
        config = ReadingConfig(context_length=40, batch_size=batch, segment_length=segment)
        found = score_variants(model, genome, table(*(("one", *x) for x in places)), downstream=9, config=config)
        for row in found.rows(named=True):
            start, ref, alt = row["pos"] - 1, row["ref"], row["alt"]
            stop = len(TEXT) - start - len(ref)
            assert row["forward"] == pytest.approx(ratio(model, TEXT, start, ref, alt, 40, 9), abs=1e-5)
            assert row["reverse"] == pytest.approx(ratio(model, turned(TEXT), stop, turned(ref), turned(alt), 40, 9), abs=1e-5)
    frozen = score_variants(model, genome, table(("one", *places[-1])), downstream=9, config=ReadingConfig(context_length=40, learn=False))
    assert abs(frozen["forward"][0] - found["forward"][-1]) > 1e-2  # what was read is what tells


def test_mutagenesis_is_that_of_single_variants_and_the_strands_change_places(genome_of: GenomeOf) -> None:
    model, length = make_model(), len(TEXT)
    config = ReadingConfig(context_length=30, batch_size=4)
    made = mutagenesis(model, genome_of({"one": TEXT}), 0, 50, 56, downstream=5, config=config)
    variants = table(*(("one", row["pos"], row["ref"], row["alt"]) for row in made.rows(named=True)))
    alone = score_variants(model, genome_of({"one": TEXT}), variants, downstream=5, config=ReadingConfig(context_length=30, batch_size=1))
    np.testing.assert_allclose(made["llr"], alone["llr"], atol=1e-5)
    other = [("one", length - row["pos"] + 1, turned(row["ref"]), turned(row["alt"])) for row in made.rows(named=True)]
    opposite = score_variants(model, genome_of({"one": turned(TEXT)}, "other.fa"), table(*other), downstream=5, config=config)
    np.testing.assert_allclose(opposite["forward"], made["reverse"], atol=1e-5)
    np.testing.assert_allclose(opposite["llr"], made["llr"], atol=1e-5)


@torch.no_grad()
def test_embeddings_are_those_of_each_stretch_alone(genome_of: GenomeOf) -> None:
    model = make_model()
    genome = genome_of({"one": TEXT, "two": TEXT[::-1]})
    stretches = Intervals.of([0, 1, 0, 1], [30, 10, 44, 0], [70, 22, 79, 79])
    for batch, segment in ((1, 1024), (3, 7), (16, 1)):
        config = ReadingConfig(context_length=20, batch_size=batch, segment_length=segment)
        found = embed(model, genome, stretches, strands=(1,), config=config)
        for i, row in enumerate(found):
            record, start, stop = (int(x[i]) for x in (stretches.record, stretches.start, stretches.stop))
            text = (TEXT, TEXT[::-1])[record]
            before = text[max(0, start - 20) : start]
            y, _ = model.hidden(tokens_of(before + text[start:stop]))
            np.testing.assert_allclose(row, y[0, 1 + len(before) :].mean(0).numpy(), atol=1e-5)


def test_sequences_that_are_drawn_together_do_not_touch() -> None:
    prompt = np.frombuffer(TEXT.encode(), np.uint8)
    codes = np.array([b"ACGT".index(letter) for letter in prompt.tobytes()], np.uint8)
    together = generate(make_model(), 30, codes, 3, seed=1)
    np.testing.assert_array_equal(generate(make_model(), 30, codes, 1, seed=1), together[:1])


def test_large_tables_are_read_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    assert CONTEXTS.table_bytes == sum(
        x.nbytes for x in (model.init_state(1).contexts.memory.counts, model.init_state(1).contexts.memory.tags)
    )
    monkeypatch.setattr(reading, "TABLE_BYTES", 10 * CONTEXTS.table_bytes)
    assert [reading.rows_at_once(model, 16, states) for states in (1, 3, 20)] == [10, 3, 1]
    assert reading.rows_at_once(TitansForDNA(debug("lmm")), 16, 99) == 16
