"""Features of GenBank records as regions, and regions painted onto a genome: a label for each base."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from Bio.SeqFeature import SeqFeature

from domains.dna.data.genome import Genome, example_file, is_example
from domains.dna.data.region_files import SUFFIXES, read_regions
from domains.dna.data.regions import COLUMNS, locate
from domains.dna.data.sequences import find_kind, read_genbank
from titans_seq.errors import UserError

_NAMES = ("gene", "locus_tag", "product", "label", "note")


def read_features(path: str | Path) -> pl.DataFrame:
    """The features of a GenBank file as a table of regions, with a column `feature` (CDS, gene, ..).

    A feature in several pieces, such as a join of exons or one across the origin of a circle, is a row a piece; pieces share their
    `line`, which is the number of the feature in the file. Name is the gene, or else the locus_tag, product, label or note.

    Raises:
        UserError: the file is no GenBank file, or holds no feature.
    """
    path = Path(path)
    if find_kind(path) != "genbank":
        raise UserError(f"{path}: is no GenBank file, and holds no features. Those of a GFF3, GTF or BED are named with --annotation.")
    rows: list[tuple] = []
    number = 0
    for record in read_genbank(path):
        for feature in record.features:
            number += 1
            rows += _pieces(path, record.id, number, feature)
    if not rows:
        raise UserError(f"{path}: holds no feature.")
    kinds = {"line": pl.Int64, "chrom": pl.String, "start": pl.Int64, "end": pl.Int64, "name": pl.String, "strand": pl.String}
    return pl.DataFrame(rows, schema={**kinds, "feature": pl.String}, orient="row").select(*COLUMNS, "feature")


def _pieces(path: Path, record: str, number: int, feature: SeqFeature) -> list[tuple]:
    if feature.location is None:
        raise UserError(f"{path}: record '{record}', feature {number} ({feature.type}): its place cannot be read. Mend it.")
    qualifiers = feature.qualifiers
    name = next((str(qualifiers[key][0]) for key in _NAMES if qualifiers.get(key)), None)
    own = [part for part in feature.location.parts if part.ref in (None, record)]  # a piece may lie in another record
    strand = {1: "+", -1: "-"}
    return [(number, record, int(p.start), int(p.end), name, strand.get(p.strand, "."), feature.type) for p in own]


def label_bases(
    genome: Genome,
    regions: pl.DataFrame,
    classes: Sequence[str],
    source: str | Path,
    strand: Literal["+", "-"] | None = None,
    column: str = "feature",
) -> list[np.ndarray]:
    """A label for each base of each record: 0 where none of the classes is, else 1 + the place of its class in `classes`.

    Where regions of several classes overlap, the class that comes first in `classes` is taken.

    Args:
        genome: whose bases are labelled.
        regions: a table of regions with the column `column`, of `read_features` or `read_regions`.
        classes: kinds of regions, such as ("CDS", "tRNA"), at most 255; others are not painted.
        source: what errors call the table.
        strand: regions of this strand alone; None for both.
        column: which column tells the kind of a region.

    Returns:
        For each record (length,) uint8.

    Raises:
        UserError: there is no such column, none of a class, or a region is not in the genome.
    """
    if column not in regions.columns:
        raise UserError(f"{source}: has no column '{column}' that tells kinds of regions. The columns are: {', '.join(regions.columns)}.")
    if not 0 < len(classes) < 256 or len(set(classes)) < len(classes):
        raise UserError(f"from 1 to 255 different classes can be painted, got {', '.join(classes) or 'none'}.")
    found = regions[column].unique().drop_nulls().sort().to_list()
    for name in classes:
        if name not in found:
            raise UserError(f"{source}: no region is of class '{name}'. Those that are there: {', '.join(map(str, found[:20]))}.")
    labels = [np.zeros(int(length), np.uint8) for length in genome.lengths]
    for number, name in reversed(list(enumerate(classes, 1))):  # the first is painted last
        chosen = regions.filter(pl.col(column) == name)
        places = locate(chosen if strand is None else chosen.filter(pl.col("strand") == strand), genome, source)
        for record, start, stop in zip(places.record.tolist(), places.start.tolist(), places.stop.tolist(), strict=True):
            labels[record][start:stop] = number
    return labels


def read_annotation(path: str | Path) -> pl.DataFrame:
    """What is known to lie on a genome, as a table of regions whose column `feature` tells kinds.

    Of GFF3, GTF or GenBank, or of an example (`EXAMPLES`); of BED the names are the kinds.

    Raises:
        UserError: the file cannot be used.
    """
    if is_example(path):
        with example_file(str(path)) as shipped:
            return read_features(shipped)
    name = Path(path).name.lower().removesuffix(".gz").removesuffix(".bgz")
    if name.endswith((".csv", ".tsv", ".parquet")):
        raise UserError(f"{path}: is no annotation. Use a GFF3, GTF, BED or GenBank file.")
    regions = read_regions(path) if name.endswith(tuple(SUFFIXES)) else read_features(path)
    return regions if "feature" in regions.columns else regions.with_columns(feature=pl.col("name"))


def label_strands(
    genome: Genome, regions: pl.DataFrame, classes: Sequence[str], source: str | Path, column: str = "feature"
) -> list[np.ndarray]:
    """As `label_bases`, of each strand by itself: for each record (length, 2) uint8, on the strand of the file and on the other one.

    A region without a strand counts on both.
    """
    strands: tuple[Literal["+", "-"], ...] = ("+", "-")
    painted = []
    for strand in strands:
        of_strand = regions.with_columns(pl.col("strand").replace(".", strand))
        painted.append(label_bases(genome, of_strand, classes, source, strand, column))
    return [np.stack(record, axis=1) for record in zip(*painted, strict=True)]
