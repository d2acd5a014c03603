"""Values along a genome: bedGraph into bins as a loop does it; models of them turn, stream, and are trained by the commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.dna.annotate import profile_genome
from domains.dna.data.genome import Genome, open_genome
from domains.dna.data.regions import Intervals
from domains.dna.data.values import bin_values, read_values
from domains.dna.data.windows import whole_units
from domains.dna.finetune import finetune_profile
from domains.dna.head_config import EncoderConfig, ProfileConfig
from domains.dna.heads import DNAProfile
from domains.dna.labelled_batches import ProfileWindows, collate
from domains.dna.strands import reverse_complement
from titans_seq import UserError, presets
from titans_seq.config import VARIANTS, Variant
from titans_seq.training import TrainingConfig

Run = Callable[..., None]
GenomeOf = Callable[[dict[str, str]], Genome]


def profile(variant: Variant, strands: str, bin_width: int = 4, loss: str = "poisson") -> DNAProfile:
    torch.manual_seed(0)
    encoder = EncoderConfig(titans=presets.debug(variant), strands=strands, stem_width=3)
    model = DNAProfile(ProfileConfig(encoder=encoder, bin_width=bin_width, loss=loss)).double().eval()
    torch.nn.init.normal_(model.head.linear.weight)
    return model


@given(
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=2),
    gaps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(1, 9), st.integers(-3, 9)), max_size=6),
    bin_width=st.integers(1, 8),
)
def test_bins_are_those_of_a_loop(sizes: list[int], gaps: list[tuple[int, int, int, int]], bin_width: int) -> None:
    values = [np.full(size, np.nan) for size in sizes]
    rows, ends = [], [0] * len(sizes)
    for which, gap, length, value in gaps:
        record = which % len(sizes)
        start, stop = ends[record] + gap, ends[record] + gap + length
        if stop <= sizes[record]:
            rows.append((len(rows) + 1, f"r{record}", start, stop, float(value)))
            values[record][start:stop] = value
            ends[record] = stop
    genome: Any = type(
        "G", (), {"names": tuple(f"r{i}" for i in range(len(sizes))), "lengths": np.array(sizes), "__len__": lambda self: len(sizes)}
    )()
    genome.record = lambda name: int(name[1:])
    genome.source = "g"
    table = pl.DataFrame(
        rows[::-1], schema={"line": pl.Int64, "chrom": pl.String, "start": pl.Int64, "end": pl.Int64, "value": pl.Float64}, orient="row"
    )
    for found, bases in zip(bin_values(genome, table, bin_width, "t"), values, strict=True):
        bins = [bases[start : start + bin_width] for start in range(0, len(bases), bin_width)]
        expected = [np.nan if np.isnan(one).all() else np.nanmean(one) for one in bins]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_bedgraph(tmp_path: Path, genome_of: GenomeOf) -> None:
    path = tmp_path / "a.bedgraph"
    path.write_text("track type=bedGraph\nchr1\t0\t2\t1.5\nchr1 4 6 3\n")
    assert read_values(path).rows() == [(2, "chr1", 0, 2, 1.5), (3, "chr1", 4, 6, 3.0)]
    genome = genome_of({"chr1": "ACGTACGT"})
    for line, message in (
        ("chr1\t5\t7\t1", r"line 4: start '5' lies in a region that has a value already"),
        ("chr1\t6\t9\t1", "line 4: end"),
    ):
        path.write_text(f"track type=bedGraph\nchr1\t0\t2\t1.5\nchr1 4 6 3\n{line}\n")
        with pytest.raises(UserError, match=message):
            bin_values(genome, read_values(path), 4, path)
    for value in (".", "x", "nan"):
        path.write_text(f"chr1\t0\t2\t{value}\n")
        with pytest.raises(UserError, match=r"a\.bedgraph, line 1: .* is no number"):
            read_values(path)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=4, deadline=None)
@given(bins=st.integers(1, 5), bin_width=st.integers(1, 4), loss=st.sampled_from(["poisson", "mse"]), seed=st.integers(0, 99))
@torch.no_grad()
def test_a_profile_turns_with_the_sequence(variant: Variant, bins: int, bin_width: int, loss: str, seed: int) -> None:
    model = profile(variant, "both", bin_width, loss)
    codes = torch.randint(0, 5, (2, bins * bin_width), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(model(reverse_complement(codes)), model(codes).flip(1))
    assert model(codes).shape == (2, bins)


@pytest.mark.parametrize("strands", ["forward", "both"])
@torch.no_grad()
def test_padding_changes_nothing_and_the_last_bin_may_be_short(strands: str) -> None:
    model = profile("mag", strands)
    codes = torch.randint(0, 5, (2, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(14) < torch.tensor([[14], [6]])
    together = model(codes, mask)
    assert together.shape == (2, 4)
    torch.testing.assert_close(together[0], model(codes[:1])[0])
    torch.testing.assert_close(together[1, :2], model(codes[1:, :6])[0])
    assert (together >= 0).all()


@pytest.mark.parametrize("loss", ["poisson", "mse"])
def test_the_loss_is_of_known_bins(loss: str, genome_of: GenomeOf) -> None:
    model = profile("lmm", "both", 4, loss)
    genome = genome_of({"a": "ACGTACGTACGTAC", "b": "GATTACA"})
    values = [np.array([1, np.nan, 2, 3], np.float32), np.array([0, 5], np.float32)]
    batch = collate([ProfileWindows(genome, values, Intervals.of([0, 1], [4, 0], [14, 7]), 4)[i] for i in range(2)])
    said = model(batch["codes"], batch["mask"])
    pairs = [(said[0, 1], 2), (said[0, 2], 3), (said[1, 0], 0), (said[1, 1], 5)]
    expected = [(x - y * torch.log(x)) if loss == "poisson" else (x - y) ** 2 for x, y in pairs]
    result = model.loss(batch)
    torch.testing.assert_close(result.loss.double(), torch.stack(expected).mean(), rtol=1e-5, atol=1e-5)
    assert int(result.units) == 4


@pytest.mark.parametrize("strands", ["forward", "both"])
@torch.no_grad()
def test_segments_give_what_one_pass_does(strands: str, genome_of: GenomeOf, tmp_path: Path) -> None:
    genome, model, scratch = genome_of({"a": "ACGTTGCANNCATTGACCagtacgattACGGCAT", "b": "A"}), profile("mac", strands), tmp_path / "scratch"
    scratch.mkdir()
    for segment, window in ((1, None), (9, None), (4096, None), (9, 8), (4096, 8), (5, 20)):
        parts: list[list[np.ndarray]] = [[], []]
        for part in profile_genome(model, genome, scratch, segment, window=window):
            parts[part.record].append(part.values)
        for record, found in enumerate(parts):
            codes = torch.from_numpy(genome.read(record, 0, int(genome.lengths[record])).astype(np.int64))[None]
            expected = torch.cat([model(piece)[0] for piece in codes.split(window or codes.shape[1], dim=1)])
            np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-6)
    assert not any(scratch.iterdir())
    with pytest.raises(UserError, match="6 is no multiple of 4, the bases of a bin"):
        list(profile_genome(model, genome, scratch, window=6))


def test_spans_are_whole_bins(genome_of: GenomeOf) -> None:
    genome = genome_of({"a": "A" * 22})
    found = whole_units(Intervals.of([0, 0, 0], [3, 9, 11], [9, 22, 14]), genome, 5)
    assert list(zip(found.start.tolist(), found.stop.tolist(), strict=True)) == [(10, 22)]


def test_a_planted_profile_is_learned_and_written(genome_of: GenomeOf, tmp_path: Path, run: Run) -> None:
    """The value of a bin is the number of G and C in it, on either strand."""
    random = np.random.default_rng(0)
    shares = np.repeat(random.uniform(0, 1, 500), 16)
    text = "".join(
        random.choice(list("GC" if draw < share else "AT")) for draw, share in zip(random.uniform(size=len(shares)), shares, strict=True)
    )
    genome = genome_of({"a": text})
    counts = [sum(base in "GC" for base in text[start : start + 8]) for start in range(0, len(text), 8)]
    bedgraph = tmp_path / "gc.bedgraph"
    bedgraph.write_text("".join(f"a\t{8 * i}\t{8 * i + 8}\t{count}\n" for i, count in enumerate(counts)))
    training = TrainingConfig(learning_rate=1e-2, max_steps=60, batch_size=4, segment_length=256, warmup_steps=5)
    encoder = EncoderConfig(titans=presets.debug("lmm"))
    folder = finetune_profile(genome, read_values(bedgraph), tmp_path / "run", encoder, training, bin_width=8, guard=64, progress=False)
    run("annotate", folder, genome.source, "-o", tmp_path / "out", "--segment-length", 100, "--quiet")
    written = read_values(tmp_path / "out" / "profile.bedgraph")
    assert written["start"].to_list() == list(range(0, len(text), 8))
    held_out = slice(int(len(counts) * 0.95), None)
    assert np.corrcoef(written["value"].to_numpy()[held_out], np.array(counts)[held_out])[0, 1] > 0.9
    card = (folder / "README.md").read_text()
    assert "in windows of 256.\n\nValidated on the last 5% of each record" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bin-width", 48), "windows must be of whole bins: --segment-length 256 is no multiple of --bin-width 48"),
        (("--classes", "CDS"), "--classes and --profile are two models"),
        ((), "has negative values, which are no counts"),
        (("--profile-loss", "mse", "--validation-records", "x"), "has no record 'x'"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments: tuple[Any, ...], message: str, run: Run, tmp_path: Path) -> None:
    path, bedgraph = tmp_path / "g.fa", tmp_path / "a.bedgraph"
    path.write_text(f">a\n{'ACGT' * 500}\n")
    bedgraph.write_text("a\t0\t5\t-1\n")
    with pytest.raises(UserError) as error:
        run("finetune", path, "--profile", bedgraph, *arguments, "-o", tmp_path / "run", "--preset", "debug", "--quiet")
    assert message in str(error.value)
    assert open_genome(path).names == ("a",)
    assert not (tmp_path / "run").exists()
