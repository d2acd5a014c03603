"""Genes below bits per base: where they lie, which way they point, which names there is room for; the command."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.collections import PolyCollection

from domains.dna.data.features import read_annotation
from domains.dna.plots import plot_bits
from domains.dna.track import GENES, Layout, usual_kinds
from titans_seq.errors import UserError


def windows_of(*rows: tuple[str, int, int]) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema=["record", "start", "end"], orient="row")
    return table.select(pl.lit("g.fa").alias("file"), pl.all(), pl.lit(1.9).alias("bits_per_base"))


def regions_of(*rows: tuple[str, int, int, str, str, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["chrom", "start", "end", "strand", "name", "feature"], orient="row")


WINDOWS = windows_of(("chr1", 100, 200), ("chr1", 200, 300), ("chr2", 0, 50))
"""A stretch of chr1, then all of chr2."""
REGIONS = regions_of(
    ("1", 50, 150, "+", "cut", "CDS"),
    ("1", 180, 240, "-", "whole", "CDS"),
    ("2", 10, 30, "+", "second", "tRNA"),
    ("1", 0, 100, "+", "before", "CDS"),
    ("2", 0, 50, "+", "other kind", "exon"),
    ("3", 0, 50, "+", "other record", "CDS"),
)


def test_regions_are_placed_along_the_picture() -> None:
    layout = Layout(WINDOWS)
    assert layout.edges.tolist() == [100, 200, 300, 350]
    assert (layout.names, layout.borders.tolist()) == (["chr1", "chr2"], [100, 300])
    placed = layout.place(REGIONS, ["CDS", "tRNA"])
    assert placed.select("name", "start", "end").rows() == [("cut", 100, 150), ("whole", 180, 240), ("second", 310, 330)]


def test_two_files_with_one_name_are_two_records() -> None:
    both = pl.concat([windows_of(("chr1", 0, 40)), windows_of(("chr1", 0, 40)).with_columns(file=pl.lit("h.fa"))])
    layout = Layout(both)
    assert layout.borders.tolist() == [0, 40]
    assert layout.place(regions_of(("1", 5, 9, "+", "a", "CDS")), ["CDS"])["start"].to_list() == [5, 45]


def test_arrows_point_where_their_strand_is_read_to() -> None:
    rows = (("chr2", 10, 30, "+", "a", "CDS"), ("chr2", 32, 48, "-", "b", "CDS"), ("chr2", 5, 8, ".", "c", "rRNA"))
    figure = plot_bits(windows_of(("chr2", 0, 50)), annotation=regions_of(*rows))
    coding, ribosomal = (found for found in figure.axes[1].collections if isinstance(found, PolyCollection))
    forward, reverse = (path.vertices for path in coding.get_paths())
    assert (forward[np.argmax(forward[:, 0])] == (30, 0.5)).all()
    assert (reverse[np.argmin(reverse[:, 0])] == (32, -0.5)).all()
    assert (forward[:, 1] > 0).all()
    assert (reverse[:, 1] < 0).all()
    (unknown,) = (path.vertices for path in ribosomal.get_paths())
    assert set(unknown[:, 0]) == {5, 8}
    assert [text.get_text() for text in figure.axes[1].texts] == ["a", "b"]


def test_genes_of_a_strand_that_overlap_lie_side_by_side() -> None:
    rows = [
        ("chr2", 0, 20, "+", "a", "CDS"),
        ("chr2", 5, 40, "+", "b", "CDS"),
        ("chr2", 22, 30, "+", "c", "tRNA"),
        ("chr2", 40, 48, "+", "d", "CDS"),
        ("chr2", 5, 30, "-", "e", "CDS"),
    ]
    figure = plot_bits(windows_of(("chr2", 0, 50)), annotation=regions_of(*rows))
    found = [path.vertices for part in figure.axes[1].collections for path in part.get_paths()]
    boxes = {(x[:, 0].min(), x[:, 0].max()): (x[:, 1].min(), x[:, 1].max()) for x in found}
    a, b, c, d, e = (boxes[start, end] for _, start, end, *_ in rows)
    assert a[1] < b[0]  # b over a
    assert a == c  # which do not overlap, in one lane, whatever their kinds
    assert d == (0.2, 0.8)  # begins where b ends: the whole height is its own
    assert e == (-0.8, -0.2)  # nothing else is on its strand
    assert 0.2 <= a[0] < b[1] <= 0.8
    many = [("chr2", start, 50, "+", "x", "CDS") for start in range(10)]
    figure = plot_bits(windows_of(("chr2", 0, 50)), annotation=regions_of(*many))
    tops = {path.vertices[:, 1].max() for part in figure.axes[1].collections for path in part.get_paths()}
    assert len(tops) == 6


def test_an_overlap_too_small_to_be_seen_is_none() -> None:
    """Genes of bacteria often share four bases."""
    rows = (("chr2", 0, 10_004, "+", "a", "CDS"), ("chr2", 10_000, 20_000, "+", "b", "CDS"))
    figure = plot_bits(windows_of(("chr2", 0, 50_000)), annotation=regions_of(*rows))
    (arrows,) = (part for part in figure.axes[1].collections if isinstance(part, PolyCollection))
    assert {(path.vertices[:, 1].min(), path.vertices[:, 1].max()) for path in arrows.get_paths()} == {(0.2, 0.8)}


def test_names_in_a_picture_do_not_overlap() -> None:
    """The 104 genes of a chloroplast: the longest ones are named, on both strands."""
    starts = range(0, 154_478, 1000)
    figure = plot_bits(
        windows_of(*(("NC_000932.1", start, min(start + 1000, 154_478)) for start in starts)), annotation=read_annotation("chloroplast")
    )
    figure.canvas.draw()
    names = figure.axes[1].texts
    assert {"ycf1", "ycf2", "rpoC2"} < {text.get_text() for text in names}
    for sign in (1, -1):
        boxes = sorted((text.get_window_extent() for text in names if text.get_position()[1] * sign > 0), key=lambda box: box.x0)
        assert len(boxes) > 8
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert boxes[-1].x1 <= figure.bbox.x1


def test_curves_have_names() -> None:
    better = WINDOWS.with_columns(bits_per_base=pl.Series([1.5, None, 0.2]))
    figure = plot_bits({"one": WINDOWS, "two": better})
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["one", "two"]
    assert figure.axes[0].get_ylim()[0] < 0.2


def test_nothing_to_draw_says_what_there_is() -> None:
    with pytest.raises(
        UserError, match=r"no gene of the annotation lies on chr1, chr2: its kinds are CDS, exon, tRNA, its records 1, 2, 3"
    ):
        plot_bits(WINDOWS, annotation=REGIONS, features=["gene"])
    with pytest.raises(ValueError, match="one to 4 tables of windows, got 5"):
        plot_bits(dict.fromkeys("abcde", WINDOWS))
    with pytest.raises(ValueError, match="'b' has other windows than 'a'"):
        plot_bits({"a": WINDOWS, "b": WINDOWS.with_columns(pl.col("start") + 1)})
    with pytest.raises(UserError, match="no CDS or tRNA or rRNA of the annotation lies on chrX"):
        plot_bits(windows_of(("chrX", 0, 9)), annotation=REGIONS)


def test_kinds_that_are_there_are_drawn_where_none_of_the_usual_is() -> None:
    def of(*kinds: str | None) -> pl.DataFrame:
        return pl.DataFrame({"feature": kinds}, schema={"feature": pl.String})

    assert usual_kinds(of("region", "exon", "rRNA", "gene")) == GENES
    assert usual_kinds(of("region", "gene", "exon", "gene", None)) == ["exon", "gene"]
    assert usual_kinds(of("region")) == usual_kinds(of(None)) == GENES


def test_the_command_draws_them(write: Callable[..., Path], run: Callable[..., None], tmp_path: Path) -> None:
    genome = write(f">chr1\n{'ACGTTGCATT' * 12}\n")
    genes = write("##gff-version 3\n1\tmade\tCDS\t11\t40\t.\t-\t0\tID=a\n1\tmade\texon\t11\t40\t.\t-\t.\tID=b\n", "genes.gff3")
    command = ("bits", genome, "--train", "--preset", "debug", "--quiet")
    sizes = []
    for name, extra in (("plain", ()), ("genes", ("--annotation", genes)), ("exons", ("--annotation", genes, "--features", "exon", "CDS"))):
        run(*command, "-o", tmp_path / name, *extra)
        png = (tmp_path / name / "bits.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(png[20:24]))
    assert sizes == [510, 630, 630]  # pixels high: there is a second panel
    with pytest.raises(UserError, match=r"--annotation .*: is for the picture, which is drawn with --output alone"):
        run(*command, "--annotation", genes)
    with pytest.raises(UserError, match="--features exon: are of an annotation, which --annotation names"):
        run(*command, "-o", tmp_path / "no", "--features", "exon")
    with pytest.raises(UserError, match="no tRNA of the annotation lies on chr1"):
        run(*command, "-o", tmp_path / "no", "--annotation", genes, "--features", "tRNA")
    assert not (tmp_path / "no").exists()
