"""Bits per base: one pass, whatever the segments; both strands; learning from nothing but what was scored; the command."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from domains.dna.bits import OnlineTrainer, Reader, WindowSums, mean_of_strands, per_base, score_bases, usual_window
from domains.dna.config import DNAConfig
from domains.dna.data.alphabet import encode, reverse_complement
from domains.dna.data.genome import Genome
from domains.dna.model import BEGIN, TitansForDNA
from domains.dna.presets import debug
from titans_seq import MemoryConfig, TitansConfig
from titans_seq.errors import UserError

GenomeOf = Callable[..., Genome]
Words = Callable[[int, int], str]
RECORDS = {"one": "ACGTTGCANNACgtacgtTTGACCAGTTTACG", "two": "NN", "three": "TTGACNACGTTGCATTGACC"}


def make_model(variant: str = "mag") -> TitansForDNA:
    torch.manual_seed(0)
    model = TitansForDNA(debug(variant))
    torch.nn.init.normal_(model.head.weight)
    return model


def bits_of(reader: Reader, genome: Genome, **options: object) -> list[np.ndarray]:
    """Bits of each record in the direction of the file, NaN where nothing is counted."""
    found = [np.full(int(length), np.nan) for length in genome.lengths]
    for part in score_bases(reader, genome, **options):
        assert np.isnan(found[part.record][part.start : part.stop]).all()  # no base twice
        found[part.record][part.start : part.stop] = np.where(part.counted, part.bits, np.nan)
    return found


def all_bits(*arguments: object, **options: object) -> np.ndarray:
    return np.concatenate(bits_of(*arguments, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("strand", [1, -1])
def test_the_segments_do_not_change_the_bits(genome_of: GenomeOf, memory: bool, strand: int) -> None:
    genome = genome_of(RECORDS)
    whole = all_bits(Reader(make_model(), memory), genome, strand=strand, segment_length=100)
    assert np.isnan(whole).sum() == 5
    for length in (1, 7, 16):
        np.testing.assert_allclose(all_bits(Reader(make_model(), memory), genome, strand=strand, segment_length=length), whole, rtol=1e-4)


@torch.no_grad()
def test_bits_are_those_of_the_logits(genome_of: GenomeOf) -> None:
    """A record by itself: the logits after BEGIN and the bases before, by hand."""
    model, text = make_model("lmm").eval(), RECORDS["one"]
    found = all_bits(Reader(model), genome_of({"one": text}), segment_length=5)
    codes = torch.from_numpy(encode(text).copy()).long()
    chances = model(torch.cat([torch.tensor([BEGIN]), codes[:-1]])[None])[0][0].double().softmax(-1)
    for t, letter in enumerate(text.upper()):
        if letter == "N":
            assert np.isnan(found[t])
        else:
            assert found[t] == pytest.approx(-float(chances[t, "ACGT".index(letter)].log2()), rel=1e-4)


def test_the_other_strand_is_the_reverse_complement_read_forward(genome_of: GenomeOf) -> None:
    """In places of the file; the mean over both strands does not know which of them the file holds."""
    text = RECORDS["one"]
    other = reverse_complement(encode(text))
    genome = genome_of({"one": text})
    opposite = genome_of({"one": "".join("ACGTN"[code & 7] for code in other)}, "other.fa")
    model = make_model()
    forward, reverse = (all_bits(Reader(model), genome, strand=strand) for strand in (1, -1))
    forward_opposite, reverse_opposite = (all_bits(Reader(model), opposite, strand=strand) for strand in (1, -1))
    np.testing.assert_allclose(reverse, forward_opposite[::-1], rtol=1e-5)
    np.testing.assert_allclose(forward + reverse, (forward_opposite + reverse_opposite)[::-1], rtol=1e-5)
    assert not np.allclose(forward, reverse, equal_nan=True)


def test_a_later_base_changes_no_earlier_bit(genome_of: GenomeOf) -> None:
    """Also while all weights are trained: a segment is scored before it is learned from."""
    text = "ACGTTGCATTGACCAGTTTACG" * 2
    for make in (Reader, OnlineTrainer):
        first = all_bits(make(make_model()), genome_of({"one": text}), segment_length=8)
        changed = text[:24] + text[24:].translate(str.maketrans("ACGT", "CATG"))
        second = all_bits(make(make_model()), genome_of({"one": changed}, "changed.fa"), segment_length=8)
        np.testing.assert_allclose(first[:24], second[:24], rtol=1e-5)
        assert not np.allclose(first[24:], second[24:])


def test_what_was_read_is_carried_to_the_next_record_or_not(genome_of: GenomeOf) -> None:
    genome, alone = genome_of(RECORDS), genome_of({"three": RECORDS["three"]}, "alone.fa")
    model = make_model()
    by_itself = all_bits(Reader(model), alone)
    np.testing.assert_allclose(bits_of(Reader(model), genome, carry=False)[2], by_itself, rtol=1e-5)
    assert not np.allclose(bits_of(Reader(model), genome)[2], by_itself, equal_nan=True)


def test_training_in_the_pass_learns_words_and_leaves_n_alone(genome_of: GenomeOf, random_words: Words) -> None:
    """Below the two bits of chance and below order-2 counts in the last part; a segment of N takes no step."""
    torch.manual_seed(0)
    backbone = TitansConfig(dim=32, num_layers=2, variant="lmm", memory=MemoryConfig(num_heads=2, depth=1, expansion=1, chunk_size=16))
    model = TitansForDNA(DNAConfig(titans=backbone))
    trainer = OnlineTrainer(model)
    bits = all_bits(trainer, genome_of({"one": random_words(1200, 1)}), segment_length=128)
    assert bits[:500].mean() > 1.8
    assert bits[-3000:].mean() < 1.4
    before = [parameter.clone() for parameter in model.parameters()]
    list(score_bases(trainer, genome_of({"n": "N" * 300}, "n.fa"), segment_length=128))
    assert all(torch.equal(x, y) for x, y in zip(before, model.parameters(), strict=True))


def test_the_usual_window_draws_a_hundred_points_where_there_are_bases_for_it(genome_of: GenomeOf) -> None:
    for length, window in ((40, 50), (9_999, 50), (20_000, 200), (154_478, 1000), (3_000_000, 10_000)):
        assert usual_window([genome_of({"short": "ACGT"}, "a.fa"), genome_of({"long": "A" * length}, "b.fa")]) == window


def test_windows_hold_all_bits_of_their_bases(genome_of: GenomeOf) -> None:
    genome = genome_of(RECORDS)
    bits, tables = bits_of(Reader(make_model()), genome), []
    for strand in (1, -1):
        sums = WindowSums(genome, 12)
        for part in score_bases(Reader(make_model()), genome, strand, segment_length=5):
            sums.add(part)
        tables.append(sums.table())
    assert tables[0].select("record", "start", "end", "bases").rows() == [
        ("one", 0, 12, 10),
        ("one", 12, 24, 12),
        ("one", 24, 32, 8),
        ("two", 0, 2, 0),
        ("three", 0, 12, 11),
        ("three", 12, 20, 8),
    ]
    expected = [np.nansum(bits[record][start:end]) for record, start, end in ((0, 0, 12), (0, 12, 24), (0, 24, 32), (1, 0, 2), (2, 0, 12))]
    np.testing.assert_allclose(tables[0]["bits"].to_numpy()[:5], expected, rtol=1e-4)
    both = per_base(mean_of_strands(*tables))
    assert both["bits_per_base"][3] is None
    assert both["bits_per_base"][0] == pytest.approx((tables[0]["bits"][0] + tables[1]["bits"][0]) / 20)


def test_from_a_model_to_tables_and_a_picture(
    write: Callable[..., Path], run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genome = write("".join(f">{name}\n{letters}\n" for name, letters in RECORDS.items()))
    make_model().save_pretrained(tmp_path / "model")
    command = ("bits", genome, "--model", tmp_path / "model", "--window", 12, "--segment-length", 7)
    run(*command, "--strand", "both", "-o", tmp_path / "out", "--format", "parquet")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] if "all" in line else line.split()[4] for line in printed[1:5]] == ["one", "two", "three", "all"]
    assert printed[2].split()[:4] == ["-", "-", "-", "0"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"records.parquet", "windows.parquet", "bits.png"}
    records = pl.read_parquet(tmp_path / "out" / "records.parquet")
    assert records.columns == ["file", "record", "length", "bases", "bits_per_base", "forward", "reverse"]
    row = records.row(0, named=True)
    assert row["bits_per_base"] == pytest.approx((row["forward"] + row["reverse"]) / 2)
    run(*command, "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["bits_per_base"] == pytest.approx(row["forward"], rel=1e-5)
    run(*command, "--json", "--no-learn")
    frozen = json.loads(capsys.readouterr().out.splitlines()[0])
    assert frozen["bits_per_base"] != pytest.approx(row["forward"], rel=1e-4)


def test_quiet_leaves_the_result_and_no_remarks(
    write: Callable[..., Path],
    run: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(">one\nACGTTGCANNACRtacgt\n")
    make_model().save_pretrained(tmp_path / "model")
    run("bits", "./../" + tmp_path.name + "/g.fa", "--model", "model")
    said = capsys.readouterr()
    assert "1 letter for several bases (such as R and Y) is read as N." in said.err
    assert said.out.splitlines()[1].endswith(f"one (../{tmp_path.name}/g.fa)")
    run("bits", "./../" + tmp_path.name + "/g.fa", "--model", "model", "--quiet")
    quiet = capsys.readouterr()
    assert (quiet.out, quiet.err) == (said.out, "")


def test_training_in_the_pass_needs_no_model(write: Callable[..., Path], run: Callable[..., None], random_words: Words) -> None:
    genome = write(f">one\n{random_words(20, 1)}\n")
    with pytest.raises(UserError, match=r"Name one with --model, or train one in this pass with --train\."):
        run("bits", genome)
    with pytest.raises(UserError, match="--learning-rate must be positive"):
        run("bits", genome, "--train", "--learning-rate", "0", "--preset", "debug")
    run("bits", genome, "--train", "--preset", "debug", "-o", genome.parent / "out", "--quiet")
    windows = pl.read_csv(genome.parent / "out" / "windows.csv")
    assert windows.select("record", "start", "end", "bases").row(0) == ("one", 0, 50, 50)
    assert windows["bases"].sum() == 240
    assert 1.5 < windows["bits_per_base"][0] < 2.5


def test_a_folder_that_cannot_be_written_is_refused_before_reading(write: Callable[..., Path], run: Callable[..., None]) -> None:
    genome = write(">one\nACGT\n")
    with pytest.raises(UserError, match="--output"):
        run("bits", genome, "--train", "--preset", "debug", "-o", genome / "out")
