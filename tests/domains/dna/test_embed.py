"""Embeddings: means of the backbone's output by hand; any segments and batches; regions, bins, strands; the command."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from domains.dna.embed import embed
from domains.dna.settings import ReadingConfig
from tests.domains.dna.small import make_model, tokens_of, turned
from titans_seq.errors import UserError

GenomeOf = Callable[..., Genome]
RECORDS = {"one": "ACGTTGCANNACgtacgtTTGACCAGTTTACG", "two": "NN", "three": "TTGACNACGTTGCATTGACC"}
REGIONS = Intervals.of([0, 2, 0, 2, 0], [3, 0, 12, 6, 5], [25, 20, 32, 9, 6], [1, -1, -1, 1, 1])


@torch.no_grad()
def outputs(model: torch.nn.Module, context: str, text: str) -> np.ndarray:
    """The backbone's output at each base of a text, (T, D): one pass over BEGIN, context and text."""
    model.eval()
    y, _ = model.titans(model.embedding(tokens_of(context + text) & 7))
    return y[0, 1 + len(context) :].numpy()


def mean(values: np.ndarray, text: str) -> np.ndarray:
    return values[[letter.upper() != "N" for letter in text]].mean(axis=0)


@pytest.mark.parametrize("strands", [(1,), (-1,), (1, -1)])
def test_embeddings_are_means_of_one_pass(genome_of: GenomeOf, strands: tuple[int, ...]) -> None:
    model, genome = make_model(), genome_of(RECORDS)
    found = embed(model, genome, REGIONS, strands=strands, config=ReadingConfig(context_length=6))
    for i in range(len(REGIONS)):
        text = RECORDS[genome.names[REGIONS.record[i]]]
        start, stop = int(REGIONS.start[i]), int(REGIONS.stop[i])
        by_strand = []
        for strand in strands:
            if strand * REGIONS.strand[i] > 0:
                context, inside = text[max(0, start - 6) : start], text[start:stop]
            else:
                context, inside = turned(text[stop : stop + 6]), turned(text[start:stop])
            by_strand.append(mean(outputs(model, context, inside), inside))
        np.testing.assert_allclose(found[i], np.mean(by_strand, axis=0), atol=1e-5)


@pytest.mark.parametrize(("variant", "bin_size"), [("lmm", None), ("mac", 1), ("mag", 7), ("mal", None)])
def test_segments_and_batches_do_not_change_embeddings(genome_of: GenomeOf, variant: str, bin_size: int | None) -> None:
    """Against whole records and regions in one pass, of very unequal lengths."""
    model, genome = make_model(variant).double(), genome_of(RECORDS)
    for stretches in (None, REGIONS):
        whole = embed(model, genome, stretches, bin_size=bin_size)
        assert whole.std(axis=0).min() > 1e-3 or np.isnan(whole).any()
        for segment, batch in ((1, 8), (5, 3), (16, 1)):
            config = ReadingConfig(segment_length=segment, batch_size=batch)
            np.testing.assert_allclose(embed(model, genome, stretches, bin_size=bin_size, config=config), whole, atol=1e-6)


def test_bins_and_bases_are_parts_of_the_whole(genome_of: GenomeOf) -> None:
    model, genome = make_model(), genome_of(RECORDS)
    bases, bins, records = (embed(model, genome, bin_size=size) for size in (1, 7, None))
    assert (len(bases), len(bins), len(records)) == (54, 5 + 1 + 3, 3)
    assert np.isnan(bases).all(axis=1).sum() == 5  # where there is N
    np.testing.assert_allclose(bins[0], bases[:7].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(bins[1], np.nanmean(bases[7:14], axis=0), atol=1e-6)
    np.testing.assert_allclose(records[0], np.nanmean(bases[:32], axis=0), atol=1e-6)
    assert np.isnan(records[1]).all()
    forward = embed(model, genome, bin_size=1, strands=(1,))
    np.testing.assert_allclose(forward[:32][: RECORDS["one"].index("N")], outputs(model, "", "ACGTTGCA"), atol=1e-5)


def test_the_other_strand_of_a_genome_has_the_same_embeddings(genome_of: GenomeOf) -> None:
    model, text = make_model(), RECORDS["one"]
    here, there = (embed(model, genome_of({"r": x}, f"{n}.fa"), bin_size=1) for n, x in enumerate((text, turned(text))))
    np.testing.assert_allclose(here, there[::-1], atol=1e-5)
    regions = [Intervals.of([0], [4], [20], [strand]) for strand in (1, -1)]
    along, against = (embed(model, genome_of({"r": text}, "r.fa"), region, strands=(1,)) for region in regions)
    assert not np.allclose(along, against)
    np.testing.assert_allclose(embed(model, genome_of({"r": text}, "r.fa"), regions[0], strands=(-1,)), against, atol=1e-6)


def test_a_result_may_be_given_and_must_fit(genome_of: GenomeOf) -> None:
    model, genome = make_model(), genome_of(RECORDS)
    out = np.full((3, 16), 7, np.float32)
    assert embed(model, genome, out=out) is out
    np.testing.assert_array_equal(out, embed(model, genome))
    with pytest.raises(ValueError, match=r"out must be \(3, 16\) float32, got \(2, 16\) float32"):
        embed(model, genome, out=np.zeros((2, 16), np.float32))
    with pytest.raises(ValueError, match="bin_size must be at least 1, got 0"):
        embed(model, genome, bin_size=0)


def test_memory_is_of_the_result_not_of_the_length(genome_of: GenomeOf, random_words: Callable[[int, int], str]) -> None:
    """The largest tensor that reading makes does not depend on the record's length."""
    sizes = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                sizes[-1] = max(sizes[-1], made.numel())
            return made

    for words in (10, 100):
        genome = genome_of({"one": random_words(words, 1)}, f"{words}.fa")
        sizes.append(0)
        with Watch():
            embed(make_model(), genome, strands=(1,), config=ReadingConfig(segment_length=64))
    assert sizes[0] == sizes[1] > 0


def test_from_genomes_to_tables(write: Callable[..., Path], run: Callable[..., None], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    first = write("".join(f">{name}\n{letters}\n" for name, letters in RECORDS.items()))
    second = write(f">x\n{RECORDS['three']}\n", "second.fa")
    command = ("embed", first, second, "--model", tmp_path / "model", "--quiet")
    run(*command, "-o", tmp_path / "out")
    made = pl.read_parquet(tmp_path / "out" / "embeddings.parquet")
    assert made.select("record", "start", "end", "bases").rows() == [
        ("one", 0, 32, 30),
        ("two", 0, 2, 0),
        ("three", 0, 20, 19),
        ("x", 0, 20, 19),
    ]
    assert made["embedding"].dtype == pl.Array(pl.Float32, 16)
    assert made["embedding"].is_null().to_list() == [False, True, False, False]
    np.testing.assert_allclose(made["embedding"][2].to_numpy(), made["embedding"][3].to_numpy(), atol=1e-6)
    run(*command, "-o", tmp_path / "bins", "--bin", 8, "--format", "npy", "--segment-length", 5)
    values, rows = np.load(tmp_path / "bins" / "embeddings.npy"), pl.read_parquet(tmp_path / "bins" / "rows.parquet")
    assert values.shape == (4 + 1 + 3 + 3, 16)
    assert rows.columns == ["file", "record", "start", "end", "bases"]
    assert rows.row(5)[1:] == ("three", 0, 8, 7)
    assert {path.name for path in (tmp_path / "bins").iterdir()} == {"embeddings.npy", "rows.parquet"}


def test_regions_of_one_genome(write: Callable[..., Path], run: Callable[..., None], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    genome = write("".join(f">{name}\n{letters}\n" for name, letters in RECORDS.items()))
    bed = write("one\t3\t25\ta\t0\t+\nthree\t0\t20\tb\t0\t-\n", "r.bed")
    command = ("embed", genome, "--model", tmp_path / "model", "-o", tmp_path / "out", "--context-length", 6)
    run(*command, "--regions", bed)
    made = pl.read_parquet(tmp_path / "out" / "embeddings.parquet")
    assert made.select("record", "start", "end", "name", "strand").rows() == [("one", 3, 25, "a", "+"), ("three", 0, 20, "b", "-")]
    with pytest.raises(UserError, match=r"--regions .*r\.bed: are places in one genome, but 2 files are given"):
        run(command[0], write(">x\nACGT\n", "x.fa"), *command[1:], "--regions", bed)
    with pytest.raises(UserError, match=r"beyond\.bed, line 1: end '33' lies beyond 'one' of 32 bases"):
        run(*command, "--regions", write("one\t3\t33\n", "beyond.bed"))
