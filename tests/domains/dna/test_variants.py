"""Scores of variants: their definition by hand, what they must be equal to, which variants have none, and the command."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from domains.dna.data.genome import Genome
from domains.dna.data.region_files import read_regions
from domains.dna.settings import ReadingConfig
from domains.dna.variants import score_variants
from tests.domains.dna.small import log_likelihood, make_model, turned
from titans_seq.card import Card
from titans_seq.errors import UserError

GenomeOf = Callable[..., Genome]
Write = Callable[..., Path]
TEXT = "TTGACCAGTTTACGACGTTGCAGGCTAAGATTACAGATACCATTAGAC"
HEAD = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def table(*rows: tuple[str, int, str, str]) -> pl.DataFrame:
    """Variants (chrom, position from 1, ref, alternatives with commas) as `read_regions` gives them."""
    made = [(n, chrom, pos - 1, None, ref, alt.split(",") if alt else []) for n, (chrom, pos, ref, alt) in enumerate(rows, 1)]
    schema = {"line": pl.Int64, "chrom": pl.String, "start": pl.Int64, "name": pl.String, "ref": pl.String, "alt": pl.List(pl.String)}
    return pl.DataFrame(made, schema=schema, orient="row")


def ratio(model: object, text: str, start: int, ref: str, alt: str, context: int, downstream: int) -> float:
    """The definition: both windows begin at the variant and hold equally many bases."""
    after = text[start + len(ref) :]
    reference, alternative = ref + after, alt + after
    length = min(max(len(ref), len(alt)) + downstream, len(reference), len(alternative))
    before = text[max(0, start - context) : start]
    return log_likelihood(model, before, alternative[:length]) - log_likelihood(model, before, reference[:length])


VARIANTS = [
    (21, "C", "A"),
    (22, "A", "T"),
    (1, "T", "G"),
    (48, "C", "G"),
    (11, "TACG", "T"),
    (30, "A", "ATTG"),
    (5, "CC", "GA"),
    (3, "GAC", "G"),
]


@pytest.mark.parametrize("downstream", [0, 7])
def test_scores_are_those_of_the_definition(genome_of: GenomeOf, downstream: int) -> None:
    model = make_model().double()
    genome = genome_of({"one": TEXT})
    variants = table(*(("one", pos, ref, alt) for pos, ref, alt in VARIANTS if pos != 30 or downstream))
    found = score_variants(model, genome, variants, downstream=downstream, config=ReadingConfig(context_length=9, batch_size=3))
    for row in found.rows(named=True):
        start, ref, alt = row["pos"] - 1, row["ref"], row["alt"]
        stop = len(TEXT) - start - len(ref)
        forward = ratio(model, TEXT, start, ref, alt, 9, downstream)
        reverse = ratio(model, turned(TEXT), stop, turned(ref), turned(alt), 9, downstream)
        if row["reason"] is None:
            assert row["forward"] == pytest.approx(forward, abs=1e-5)
            assert row["reverse"] == pytest.approx(reverse, abs=1e-5)
            assert row["llr"] == pytest.approx((forward + reverse) / 2, abs=1e-5)
        else:
            assert row["reason"] == "same_window"
            assert forward * reverse == pytest.approx(0, abs=1e-9)
    assert found["llr"].count() >= found.height - 2


@pytest.mark.parametrize("variant", ["lmm", "mac", "mag", "mal"])
def test_segments_and_batches_do_not_change_the_scores(genome_of: GenomeOf, variant: str) -> None:
    genome, variants = genome_of({"one": TEXT}), table(*(("one", *x) for x in VARIANTS))
    whole = score_variants(make_model(variant), genome, variants, downstream=9)
    assert whole["llr"].abs().max() > 0.1
    for segment, batch in ((1, 8), (5, 3), (16, 1)):
        found = score_variants(
            make_model(variant), genome, variants, downstream=9, config=ReadingConfig(segment_length=segment, batch_size=batch)
        )
        np.testing.assert_allclose(found["llr"], whole["llr"], atol=2e-4)


def test_both_strands_are_the_same_for_the_other_strand(genome_of: GenomeOf) -> None:
    """The reverse complement of genome and variant: forward and reverse change places."""
    model = make_model()
    found = score_variants(model, genome_of({"one": TEXT}), table(*(("one", *x) for x in VARIANTS)), downstream=6)
    other = [("one", len(TEXT) - (pos - 1) - len(ref) + 1, turned(ref), turned(alt)) for pos, ref, alt in VARIANTS]
    opposite = score_variants(model, genome_of({"one": turned(TEXT)}, "other.fa"), table(*other), downstream=6)
    for ours, theirs in (("llr", "llr"), ("forward", "reverse"), ("reverse", "forward")):
        np.testing.assert_allclose(opposite[theirs], found[ours], atol=1e-5)
    assert opposite["reason"].to_list() == found["reason"].to_list()


def test_changing_back_has_the_opposite_score(genome_of: GenomeOf) -> None:
    model, changed = make_model(), TEXT[:20] + "A" + TEXT[21:]
    there = score_variants(model, genome_of({"one": TEXT}), table(("one", 21, "C", "A"), ("one", 21, "C", "C")))
    back = score_variants(model, genome_of({"one": changed}, "changed.fa"), table(("one", 21, "A", "C")))
    assert there["llr"][0] == pytest.approx(-back["llr"][0], abs=1e-5)
    assert abs(there["llr"][0]) > 0.01
    assert there["llr"][1] == pytest.approx(0, abs=1e-5)


def test_alternatives_of_a_line_are_those_of_lines_of_their_own(genome_of: GenomeOf) -> None:
    genome, model = genome_of({"one": TEXT}), make_model()
    together = score_variants(model, genome, table(("one", 21, "C", "A,CGGT,T,<DEL>,*")), downstream=8)
    alone = score_variants(model, genome, table(*(("one", 21, "C", alt) for alt in ("A", "CGGT", "T"))), downstream=8)
    np.testing.assert_allclose(together["llr"][:3], alone["llr"], atol=1e-5)
    assert together["reason"].to_list() == [None, None, None, "symbolic", "spanning_deletion"]
    assert together["llr"].to_list()[3:] == [None, None]


def test_what_cannot_be_scored_says_why(genome_of: GenomeOf) -> None:
    genome = genome_of({"one": TEXT[:30] + "N" + TEXT[30:], "poly": "C" + "A" * 30})
    rows = {
        ("one", 5, "C", ""): "no_alternative",
        ("one", 5, "C", "<DUP>"): "symbolic",
        ("one", 5, "C", "*"): "spanning_deletion",
        ("one", 5, "C", "C[one:30["): "breakend",
        ("one", 5, "C", ".A"): "breakend",
        ("one", 5, "C", "R"): "ambiguous_base",
        ("one", 5, "N", "A"): "ambiguous_base",
        ("two", 5, "C", "A"): "no_such_record",
        ("one", 49, "CG", "C"): "beyond_record",
        ("one", 5, "A", "C"): "ref_mismatch",
        ("one", 31, "A", "C"): "unknown_base",
        ("one", 28, "A", "T"): "unknown_base",
        ("poly", 2, "AA", "A"): "same_window",
        ("one", 5, "C", "A"): None,
    }
    found = score_variants(make_model(), genome, table(*rows), ref_mismatch="skip", downstream=4)
    assert dict(zip(rows, found["reason"], strict=True)) == rows
    assert found["llr"].is_null().to_list() == [reason is not None for reason in rows.values()]
    assert found.row(9, named=True)["ref_match"] is False


def test_a_mismatch_is_an_error_or_skipped_or_kept(genome_of: GenomeOf) -> None:
    """Kept, REF is scored as it is written: as on a genome that holds it."""
    genome, model = genome_of({"one": TEXT}), make_model()
    variants = table(("one", 5, "C", "T"), ("one", 21, "G", "T"), ("one", 22, "C", "T"))
    with pytest.raises(
        UserError, match=r"v\.vcf, line 2: REF G, but .*g\.fa holds C there \(2 such lines in all\)\. .*--ref-mismatch keep"
    ):
        score_variants(model, genome, variants, "v.vcf")
    skipped = score_variants(model, genome, variants, ref_mismatch="skip")
    assert skipped["reason"].to_list() == [None, "ref_mismatch", "ref_mismatch"]
    kept = score_variants(model, genome, variants, ref_mismatch="keep")
    assert kept["ref_match"].to_list() == [True, False, False]
    held = genome_of({"one": TEXT[:20] + "G" + TEXT[21:]}, "held.fa")
    assert kept["llr"][1] == pytest.approx(score_variants(model, held, variants[1:2])["llr"][0], abs=1e-5)
    assert score_variants(model, genome, table(("one", 5, "c", "t")))["llr"][0] == pytest.approx(skipped["llr"][0])  # case means nothing


def test_chromosomes_are_matched_with_and_without_chr(genome_of: GenomeOf) -> None:
    genome, model = genome_of({"chr1": TEXT, "chrM": turned(TEXT)}), make_model()
    found = score_variants(model, genome, table(("1", 21, "C", "A"), ("MT", 28, "G", "T")))
    assert found["llr"][0] == pytest.approx(found["llr"][1], abs=1e-5)
    with pytest.raises(UserError, match=r"none of its chromosomes \(2\) is a record of .* which has chr1, chrM"):
        score_variants(model, genome, table(("2", 20, "C", "A")))


def test_a_long_insertion_has_no_score_from_its_length(genome_of: GenomeOf, random_words: Callable[[int, int], str]) -> None:
    """Of a model that knows nothing every base costs the same: windows of equally many bases differ by nothing."""
    model = make_model()
    model.head.weight.data.zero_()
    text = random_words(20, 1)
    found = score_variants(model, genome_of({"one": text}), table(("one", 100, text[99], text[99] + "GATTACA" * 9)), downstream=12)
    assert found["llr"][0] == pytest.approx(0, abs=1e-5)


VCF = (
    '##fileformat=VCFv4.2\r\n##source=by hand\r\n##INFO=<ID=AC,Number=A,Type=Integer,Description="x">\r\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\r\n"
    "1\t21\trs1\tC\tA,CGG\t50\tPASS\tAC=1,2;DB\tGT:DP\t0/1:7\r\n"
    "1\t5\t.\tC\t<DEL>\t.\tq10\t.\tGT:DP\t./.:.\r\n"
    "1\t22\t.\tA\tT,*\t.\t.\tAC=3,4\tGT:DP\t1/1:9"
)


@pytest.mark.parametrize("name", ["in.vcf", "in.vcf.gz", "in.vcf.bgz"])
def test_from_a_vcf_to_a_vcf_and_a_table(write: Write, run: Callable[..., None], tmp_path: Path, name: str) -> None:
    """Nothing but INFO and the header changes, to the byte."""
    make_model().save_pretrained(tmp_path / "model")
    genome, vcf = write(f">chr1\n{TEXT}\n"), write(VCF, name)
    run("score-variants", vcf, genome, "--model", tmp_path / "model", "-o", tmp_path / "out", "--downstream", 5, "--quiet")
    scores = pl.read_parquet(tmp_path / "out" / "variants.parquet")
    assert scores.select("chrom", "pos", "id", "alt", "reason").rows()[:2] == [("1", 21, "rs1", "A", None), ("1", 21, "rs1", "CGG", None)]
    path = tmp_path / "out" / ("in.scored.vcf" + (".gz" if name != "in.vcf" else ""))
    text = (gzip.decompress(path.read_bytes()) if name != "in.vcf" else path.read_bytes()).decode()
    lines, before = text.split("\r\n"), VCF.split("\r\n")
    added = lines[3:7]
    assert lines[:3] + lines[7:8] == before[:4]
    assert [line.split(",")[0] for line in added] == [
        f"##INFO=<ID=TITANS_{name}" for name in ("LLR", "LLR_FORWARD", "LLR_REVERSE", "REASON")
    ]
    assert "Number=A,Type=Float" in added[0]
    for line, old in zip(lines[8:], before[4:], strict=True):
        fields, old_fields = line.split("\t"), old.split("\t")
        assert fields[:7] + fields[8:] == old_fields[:7] + old_fields[8:]
        assert old_fields[7] == "." or fields[7].startswith(old_fields[7] + ";")
    info = [dict(entry.split("=") for entry in line.split("\t")[7].split(";") if "=" in entry) for line in lines[8:]]
    assert [float(value) for value in info[0]["TITANS_LLR"].split(",")] == pytest.approx(scores["llr"][:2].to_list(), rel=1e-5)
    assert info[1] == {"TITANS_REASON": "symbolic"}
    assert info[2]["TITANS_LLR"].endswith(",.")
    assert info[2]["TITANS_REASON"] == ".,spanning_deletion"
    assert read_regions(path)["info"].str.contains("TITANS").all()  # it is a VCF again
    run("score-variants", path, genome, "--model", tmp_path / "model", "-o", tmp_path / "again", "--downstream", 5, "--quiet")
    (again,) = (tmp_path / "again").glob("*.vcf*")
    assert (gzip.decompress(again.read_bytes()) if name != "in.vcf" else again.read_bytes()).decode() == text  # replaced, not added to


def test_the_command_says_what_it_did(write: Write, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model().save_pretrained(tmp_path / "model")
    genome, vcf = write(f">chr1\n{TEXT}\n"), write(VCF, "in.vcf")
    command = ("score-variants", vcf, genome, "--model", tmp_path / "model", "-o", tmp_path / "out", "--context-length", 8)
    run(*command)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "scored 3 of 5 alternative alleles"
    assert printed[1].split(maxsplit=1) == ["1", "spanning_deletion: ALT is *"]
    llr = pl.read_parquet(tmp_path / "out" / "variants.parquet")["llr"].drop_nulls().to_numpy()
    low, middle, high = (f"{x:+.3f}" for x in np.sort(llr))
    assert printed[3:5] == [
        f"llr from {low} to {high}, median {middle}; {(llr < 0).sum()} of them negative",
        "llr: log p(ALT) / p(REF), natural logarithm; negative where ALT is less likely under the model.",
    ]
    run(*command, "--json", "--strand", "reverse")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5
    assert rows[0]["forward"] is None
    assert rows[0]["llr"] == rows[0]["reverse"]
    run(*command, "--json", "--no-learn")
    frozen = json.loads(capsys.readouterr().out.splitlines()[0])
    assert frozen["reverse"] != pytest.approx(rows[0]["reverse"], rel=1e-4)


@pytest.mark.parametrize("name", ["score-variants", "mutagenesis"])
def test_a_model_that_guesses_is_named(
    name: str, write: Write, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what its card tells of its validation; one that says nothing, or knows something, is not."""
    genome, model = write(f">chr1\n{TEXT}\n"), tmp_path / "model"
    files = (write(VCF, "in.vcf"), genome) if name == "score-variants" else (genome, "chr1:1-2")

    def warnings(card: Card, *more: str) -> str:
        make_model().save_pretrained(model, card=card)
        run(name, *files, "--model", model, "-o", tmp_path / "out", "--context-length", 8, *more)
        return capsys.readouterr().err.strip()

    guessing = Card(metrics={"bits per base, validation": 1.984321, "bits per base, training": 1.5})
    assert f"warning: {model} takes 1.984 bits a base in validation, and a guess takes 2" in warnings(guessing)
    assert "warning" not in warnings(guessing, "--quiet")
    assert "warning" not in warnings(Card(metrics={"bits per base, validation": 1.9, "bits per base, training": 1.99}))
    assert "warning" not in warnings(Card())
    (model / "README.md").unlink()
    run(name, *files, "--model", model, "-o", tmp_path / "out", "--context-length", 8)
    assert "warning" not in capsys.readouterr().err


def test_input_that_cannot_be_used_is_refused_before_reading(write: Write, run: Callable[..., None], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    genome = write(f">chr1\n{TEXT}\n")
    options = (genome, "--model", tmp_path / "model", "-o", tmp_path / "out")
    with pytest.raises(UserError, match=r"short\.vcf, line 2: has 5 fields, a VCF has at least 8"):
        run("score-variants", write("#CHROM\n1\t5\t.\tC\tA\n", "short.vcf"), *options)
    with pytest.raises(UserError, match=r"wrong\.vcf, line 3: REF G, but"):
        run("score-variants", write(HEAD + "1\t5\t.\tG\tA\t.\t.\t.\n", "wrong.vcf"), *options)
    with pytest.raises(UserError, match="--context-length must be at least 0"):
        run("score-variants", write(HEAD + "1\t5\t.\tC\tA\t.\t.\t.\n", "good.vcf"), *options, "--context-length", -1)
    assert not (tmp_path / "out").exists()


def test_a_model_that_gives_no_number_is_refused(genome_of: GenomeOf) -> None:
    model = make_model()
    model.head.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"the model gives nan for one:21 C>A, and no number for 1 alternatives in all"):
        score_variants(model, genome_of({"one": TEXT}), table(("one", 21, "C", "A")))
