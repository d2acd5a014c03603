"""Values along a genome, such as coverage: bedGraph, and means over bins."""

from pathlib import Path

import numpy as np
import polars as pl

from domains.dna.data.genome import Genome
from domains.dna.data.region_files import read_regions
from domains.dna.data.regions import locate, refuse


def read_values(path: str | Path) -> pl.DataFrame:
    """A bedGraph (chrom, start, end, value; plain, gzip or bgzf) as a table of regions with the column `value`, Float64.

    Raises:
        UserError: the file cannot be read, or a line of it is not of its kind.
    """
    table = read_regions(path, "bed").rename({"name": "value"})
    value = pl.col("value").cast(pl.Float64, strict=False)
    refuse(path, table.filter(~value.is_finite().fill_null(False)), "value", "is no number", "A bedGraph has chrom, start, end, value")
    return table.select("line", "chrom", "start", "end", value)


def bin_values(genome: Genome, table: pl.DataFrame, bin_width: int, source: str | Path) -> list[np.ndarray]:
    """The mean value of the bases of each bin that have one.

    Args:
        genome: whose records are cut into bins from their begin; the last of a record may be shorter.
        table: chrom, start, end, value and line, of `read_values`.
        bin_width: bases of a bin.
        source: what errors call the table.

    Returns:
        For each record (bins,) float32, NaN where no base of a bin has a value.

    Raises:
        UserError: a region is not in the genome, or two overlap.
    """
    places, value = locate(table, genome, source), table["value"].to_numpy()
    order = np.lexsort((places.start, places.record))
    places, value, lines = places[order], value[order], table["line"].to_numpy()[order]
    again = np.flatnonzero((places.record[1:] == places.record[:-1]) & (places.start[1:] < places.stop[:-1]))
    rows = pl.DataFrame({"line": lines[again + 1], "start": places.start[again + 1]})
    refuse(source, rows, "start", "lies in a region that has a value already", "Give each base one value")
    found = []
    for record, length in enumerate(genome.lengths.tolist()):
        own = places.record == record
        edges = np.minimum(np.arange(0, length + bin_width, bin_width), length)
        sums, bases = (_integral(places.start[own], places.stop[own], v, edges) for v in (value[own], np.ones(own.sum())))
        with np.errstate(invalid="ignore"):
            found.append((np.diff(sums) / np.diff(bases)).astype(np.float32))
    return found


def _integral(start: np.ndarray, stop: np.ndarray, value: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Sums of the values of all bases before each of the places `at`, of sorted regions that do not overlap."""
    before = np.concatenate([[0.0], np.cumsum((stop - start) * value)])
    region = np.searchsorted(start, at, side="right") - 1
    inside = np.minimum(at, stop[region]) - start[region] if len(start) else np.zeros(len(at))
    return np.where(region >= 0, before[region] + inside * value[region], 0.0) if len(start) else np.zeros(len(at))
