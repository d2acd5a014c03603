"""Features of GenBank as regions, and labels of bases, beside Biopython."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from Bio import SeqIO

from domains.dna.data.features import label_bases, read_annotation, read_features
from domains.dna.data.genome import Genome, open_genome
from titans_seq import UserError

SHIPPED = Path(str(files("domains.dna") / "datasets" / "phix174.gbk"))


def test_features_are_biopythons(tmp_path: Path) -> None:
    table = read_features(SHIPPED)
    record = SeqIO.read(SHIPPED, "genbank")
    expected = [
        (n, record.id, int(p.start), int(p.end), {1: "+", -1: "-"}[p.strand], f.type)
        for n, f in enumerate(record.features, 1)
        for p in f.location.parts
    ]
    assert table.select("line", "chrom", "start", "end", "strand", "feature").rows() == expected
    genes = table.filter(pl.col("feature") == "CDS")
    assert genes["line"].n_unique() == 11
    across = genes.filter(pl.col("line").is_duplicated())  # genes A and A* run across the origin
    assert set(across["start"]) >= {0}
    assert set(across["end"]) >= {5386}
    assert {"cell lysis protein", "major coat protein"} <= set(genes["name"])


def test_labels_of_bases(tmp_path: Path) -> None:
    genome = open_genome(SHIPPED, tmp_path)
    (labels,) = label_bases(genome, read_features(SHIPPED), ["CDS"], SHIPPED)
    expected = np.zeros(5386, np.uint8)
    for feature in SeqIO.read(SHIPPED, "genbank").features:
        if feature.type == "CDS":
            expected[[i % 5386 for i in feature.location]] = 1
    assert (labels.dtype, labels.tolist()) == (np.uint8, expected.tolist())


def test_the_first_class_goes_before_the_others(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "A" * 10, "b": "C" * 3})
    table = pl.DataFrame(
        {
            "chrom": ["a", "a", "b", "a"],
            "start": [0, 3, 1, 8],
            "end": [5, 7, 2, 10],
            "strand": ["+", "-", "+", "-"],
            "feature": ["gene", "exon", "gene", "other"],
        }
    )
    assert [x.tolist() for x in label_bases(genome, table, ["exon", "gene"], "t")] == [[2, 2, 2, 1, 1, 1, 1, 0, 0, 0], [0, 2, 0]]
    assert [x.tolist() for x in label_bases(genome, table, ["gene", "exon"], "t")] == [[1, 1, 1, 1, 1, 2, 2, 0, 0, 0], [0, 1, 0]]
    assert label_bases(genome, table, ["exon", "gene"], "t", strand="-")[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    for classes, message in [
        (["mRNA"], "t: no region is of class 'mRNA'. Those that are there: exon, gene, other"),
        ([], "from 1 to 255 different classes"),
        (["exon", "exon"], "different classes can be painted, got exon, exon"),
    ]:
        with pytest.raises(UserError, match=message):
            label_bases(genome, table, classes, "t")
    with pytest.raises(UserError, match="has no column 'kind'"):
        label_bases(genome, table, ["exon"], "t", column="kind")


def test_what_has_no_features(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    with pytest.raises(UserError, match="is no GenBank file"):
        read_features(tmp_path / "a.fa")
    with pytest.raises(UserError, match=r"genes.csv: is no annotation. Use a GFF3, GTF, BED or GenBank file."):
        read_annotation(tmp_path / "genes.csv")
    text = SHIPPED.read_text()
    start = text.index("FEATURES")
    (tmp_path / "a.gbk").write_text(text[:start] + "FEATURES             Location/Qualifiers\n" + text[text.index("ORIGIN") :])
    with pytest.raises(UserError, match="holds no feature"):
        read_features(tmp_path / "a.gbk")


def test_the_chloroplast(data_folder: Path, tmp_path: Path) -> None:
    path = data_folder / "dna" / "small_genomes" / "NC_000932.gb"
    genome = open_genome(path, tmp_path)
    (labels,) = label_bases(genome, read_features(path), ["CDS", "tRNA"], path)
    assert 0.4 < (labels == 1).mean() < 0.6
    assert 2000 < (labels == 2).sum() < 4000
