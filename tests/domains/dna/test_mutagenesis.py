"""Saturation mutagenesis: equal to the scores of the same variants, as a table, a matrix and a picture."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from domains.dna.data.genome import Genome
from domains.dna.logo import information, plot_mutagenesis
from domains.dna.mutagenesis import as_matrix, mutagenesis, parse_region
from domains.dna.settings import ReadingConfig
from tests.domains.dna.small import make_model
from titans_seq.errors import UserError

GenomeOf = Callable[..., Genome]
TEXT = "TTGACCAGTTTACGACGTTGCAGGCTAAGANTTACAGATACC"


def test_it_is_the_score_of_each_variant(write: Callable[..., Path], run: Callable[..., None], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    genome = write(f">chr1\n{TEXT}\n")
    places = range(8, 14)
    lines = [f"1\t{pos}\t.\t{TEXT[pos - 1]}\t{','.join(x for x in 'ACGT' if x != TEXT[pos - 1])}\t.\t.\t." for pos in places]
    vcf = write("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "\n".join(lines) + "\n", "all.vcf")
    options = ("--model", tmp_path / "model", "--downstream", 6, "--context-length", 7, "--quiet", "-o")
    run("mutagenesis", genome, "1:8-13", *options, tmp_path / "ism", "--format", "parquet")
    run("score-variants", vcf, genome, *options, tmp_path / "scores", "--batch-size", 1)
    made, scores = pl.read_parquet(tmp_path / "ism" / "mutagenesis.parquet"), pl.read_parquet(tmp_path / "scores" / "variants.parquet")
    assert made.select("pos", "ref", "alt").equals(scores.select("pos", "ref", "alt"))
    assert made.height == 18
    for column in ("llr", "forward", "reverse"):
        np.testing.assert_allclose(made[column], scores[column], atol=1e-5)
    assert (tmp_path / "ism" / "mutagenesis.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_changes(
    write: Callable[..., Path], run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    run("mutagenesis", write(f">chr1\n{TEXT}\n"), "chr1:1-2", "--model", tmp_path / "model", "-o", tmp_path / "out", "--json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["pos"], row["ref"], row["alt"]) for row in rows] == [(pos, "T", alt) for pos in (1, 2) for alt in "ACG"]


def test_the_command_says_which_bases_matter_most(
    write: Callable[..., Path], run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bases and changes are counted, an N has none; the strongest bases are those of the table; --quiet leaves the paths."""
    make_model().save_pretrained(tmp_path / "model")
    arguments = (write(f">chr1\n{TEXT}\n"), "chr1:26-33", "--model", tmp_path / "model", "--downstream", 0, "-o", tmp_path / "out")
    run("mutagenesis", *arguments)
    first, _, *bases, legend, table, picture = capsys.readouterr().out.splitlines()
    assert first == "scored 21 changes of 8 bases of chr1; those that matter most:"
    scores = pl.read_csv(tmp_path / "out" / "mutagenesis.csv").filter(pl.col("llr").is_not_null())
    means = {pos: float(part["llr"].mean()) for (pos,), part in scores.group_by("pos")}  # type: ignore[arg-type]
    expected = sorted(means, key=lambda pos: -abs(means[pos]))[:5]
    assert [int(line.split()[0]) for line in bases] == expected
    for line in bases:
        pos, ref, mean, alt, llr = line.split()
        own = scores.filter(pos=int(pos)).sort("llr").row(-1, named=True)
        assert (ref, mean, alt, llr) == (TEXT[int(pos) - 1], f"{means[int(pos)]:+.3f}", own["alt"], f"{own['llr']:+.3f}")
    assert legend.startswith("llr: log p(changed) / p(as it is)")
    assert [table, picture] == [str(tmp_path / "out" / name) for name in ("mutagenesis.csv", "mutagenesis.png")]
    run("mutagenesis", *arguments, "--quiet")
    assert capsys.readouterr().out.splitlines() == [table, picture]
    number = TEXT.index("N") + 1
    run("mutagenesis", arguments[0], f"chr1:{number}-{number}", *arguments[2:])
    first, *paths = capsys.readouterr().out.splitlines()
    assert first == "scored 0 changes of 1 bases of chr1; the table's column reason says why."
    assert paths == [table, picture]


def test_a_matrix_has_zero_for_the_base_that_is_there(genome_of: GenomeOf) -> None:
    genome = genome_of({"one": TEXT})
    scores = mutagenesis(make_model(), genome, 0, 24, 34, downstream=0, config=ReadingConfig(context_length=3))
    letters, matrix = as_matrix(scores)
    assert letters == TEXT[24:34]
    assert np.isnan(matrix[6]).all()  # N
    assert matrix[0, 1] == 0  # C
    assert matrix[0, 2] == scores.filter(pos=25, alt="G")["llr"][0]
    np.testing.assert_array_equal((matrix == 0).sum(axis=1), [1] * 6 + [0] + [1] * 3)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("chr1:3-10", (0, 2, 10)),
        ("1:3-1,0", (0, 2, 10)),
        ("chr1", (0, 0, 42)),
        ("a:b:1-2", (1, 0, 2)),
        ("a:b", (1, 0, 3)),
        ("x:1-2", (2, 0, 4)),
    ],
)
def test_regions_are_read_as_samtools_does(genome_of: GenomeOf, text: str, found: tuple[int, int, int]) -> None:
    genome = genome_of({"chr1": TEXT, "a:b": "ACG", "x:1-2": "ACGT"})
    assert parse_region(text, genome) == found


@pytest.mark.parametrize("text", ["chr1:0-3", "chr1:5-3", "chr1:3-43", "chr1:,-3"])
def test_regions_beyond_a_record_are_refused(genome_of: GenomeOf, text: str) -> None:
    with pytest.raises(UserError, match=f"region {text}: must be RECORD:START-END with 1 <= START <= END <= 42, the bases of 'chr1'"):
        parse_region(text, genome_of({"chr1": TEXT}))


def test_a_record_that_is_not_there_is_refused(genome_of: GenomeOf) -> None:
    with pytest.raises(UserError, match="has no record 'chr2'"):
        parse_region("chr2:1-5", genome_of({"chr1": TEXT}))


def test_heights_are_what_is_known_of_a_place() -> None:
    scores = np.array([[0, 0, 0, 0], [0, -50, -50, -50], [0, 0, -50, -50], [np.nan] * 4], dtype=float)
    np.testing.assert_allclose(information(scores), [[0] * 4, [2, 0, 0, 0], [0.5, 0.5, 0, 0], [0] * 4], atol=1e-6)


@pytest.mark.parametrize("length", [1, 100, 230])
def test_a_picture_has_a_logo_and_a_heat_map_for_each_hundred_bases(length: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    letters = "".join(draw.choice(list("ACGTN"), length))
    scores = draw.normal(-2, 2, (length, 4))
    scores[[letter == "N" for letter in letters]] = np.nan
    figure = plot_mutagenesis(letters, scores, "chr1", 1001, tmp_path / "m.png")
    lines = -(-length // 100)
    assert len(figure.axes) == 2 * lines + 1  # and the scale of colours
    assert (tmp_path / "m.png").stat().st_size > 1000


def test_a_long_region_is_drawn_in_part() -> None:
    figure = plot_mutagenesis("A" * 1500, np.zeros((1500, 4)), "one", 1)
    assert "500 more bases not drawn" in figure.get_suptitle()


def test_letters_of_a_weak_model_fill_the_axis_down_to_noise() -> None:
    scores = np.zeros((20, 4))
    scores[3, 1] = 0.4
    highest = information(scores).sum(axis=1).max()
    assert 0.01 < highest < 0.05
    logo, heat, _ = plot_mutagenesis("A" * 20, scores, "one", 1).axes
    assert logo.get_ylim() == (0, pytest.approx(highest))
    assert logo.get_ylabel() == "bits, of 2"
    assert heat.get_xlabel() == "position; a dot is the base that is there"
    assert plot_mutagenesis("A" * 20, scores / 100, "one", 1).axes[0].get_ylim() == (0, 0.01)


def test_pictures_that_are_compared_have_one_scale() -> None:
    weak, strong = np.full((20, 4), -0.1), np.full((20, 4), -8.0)
    for scores in (weak, strong):
        scores[:, 0] = 0
    alone = plot_mutagenesis("A" * 20, weak, "one", 1)
    one, other = (
        plot_mutagenesis("A" * 20, scores, "one", 1, title=title, compared=[weak, strong])
        for scores, title in ((weak, "nothing is known"), (strong, "all is known"))
    )
    assert one.axes[0].get_ylim() == other.axes[0].get_ylim() != alone.axes[0].get_ylim()
    assert one.axes[1].images[0].get_clim() == other.axes[1].images[0].get_clim() == (-8, 8)
    assert alone.axes[1].images[0].get_clim() == (-0.1, 0.1)
    assert one.get_suptitle() == "nothing is known\n" + alone.get_suptitle()
