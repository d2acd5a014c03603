"""Regions of a genome as tables, 0-based and half-open everywhere; names of chromosomes; places in a `Genome`.

A table of regions has the columns `chrom`, `start`, `end` (Int64), `strand` ("+", "-" or "."), `name` and `line`, the line of its file.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl

from domains.dna.data.genome import Genome
from titans_seq.errors import UserError

COLUMNS = ("line", "chrom", "start", "end", "name", "strand")


@dataclass(frozen=True)
class Intervals:
    """Places in the records of a genome, all arrays (W,) int64: record, start, stop (half-open), strand (1 or -1).

    Raises:
        ValueError: the arrays are not of one length.
    """

    record: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    strand: np.ndarray

    def __post_init__(self) -> None:
        if len({len(x) for x in (self.record, self.start, self.stop, self.strand)}) != 1:
            raise ValueError("record, start, stop and strand must be of one length")

    @classmethod
    def of(cls, record: Iterable[int], start: Iterable[int], stop: Iterable[int], strand: Iterable[int] | None = None) -> "Intervals":
        """From anything that holds integers; strand 1 throughout where it is not given."""
        record, start, stop = (np.array(x, dtype=np.int64) for x in (record, start, stop))
        return cls(record, start, stop, np.ones_like(record) if strand is None else np.array(strand, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.record)

    def __getitem__(self, rows: slice | np.ndarray) -> "Intervals":
        """Some of them, by slice, mask or numbers."""
        return Intervals(self.record[rows], self.start[rows], self.stop[rows], self.strand[rows])

    @property
    def lengths(self) -> np.ndarray:
        """(W,) int64, bases of each."""
        return self.stop - self.start

    def to_frame(self, genome: Genome) -> pl.DataFrame:
        """As a table of regions, without names; `line` counts from 1."""
        return pl.DataFrame(
            {
                "line": np.arange(1, len(self) + 1),
                "chrom": np.array(genome.names, dtype=object)[self.record],
                "start": self.start,
                "end": self.stop,
                "name": [None] * len(self),
                "strand": np.where(self.strand < 0, "-", "+"),
            },
            schema_overrides={"name": pl.String, "chrom": pl.String},
        )


def match_names(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Which of the `known` names of chromosomes each of `names` means; those that mean none are left out.

    The same name, or else the one that is equal but for a prefix "chr" (1 and chr1), M for MT (MT, M, chrM, chrMT) and the version of an
    accession (NC_000913 and NC_000913.3). Where two known names would do, neither does.
    """
    plain: dict[str, list[str]] = {}
    for name in known:
        plain.setdefault(_plain(name), []).append(name)
    exact = set(known)
    found = {name: [name] if name in exact else plain.get(_plain(name), []) for name in names}
    return {name: candidates[0] for name, candidates in found.items() if len(candidates) == 1}


def _plain(name: str) -> str:
    """A chromosome's name without what tells styles apart."""
    short = re.sub(r"^chr|(?<=\d)\.\d+$", "", name, flags=re.IGNORECASE)
    return "MT" if short in ("M", "MT", "Mt", "mt") else short


def locate(regions: pl.DataFrame, genome: Genome, source: str | Path) -> Intervals:
    """Where regions lie in a genome, in the order of the table; their strand, where it is not known, counts as 1.

    Args:
        regions: a table with at least chrom, start and end.
        genome: names of chromosomes are mapped by `match_names`.
        source: what errors call the table, the path of its file.

    Raises:
        UserError: a chromosome is not in the genome, or a region reaches beyond its record; the line is named.
    """
    missing = {"chrom", "start", "end"} - set(regions.columns)
    if missing:
        raise UserError(f"{source}: a table of regions needs the columns chrom, start and end; missing: {', '.join(sorted(missing))}.")
    if "line" not in regions.columns:
        regions = regions.with_row_index("line", offset=1)
    names = regions["chrom"].unique().to_list()
    matched = match_names(names, genome.names)
    refuse(
        source,
        regions.filter(~pl.col("chrom").is_in(list(matched))),
        "chrom",
        f"is no record of {genome.source}, which has {', '.join(genome.names[:5])}{', ..' if len(genome) > 5 else ''}",
        "Use the genome that the file was made for, or its names",
    )
    number = {name: genome.record(known) for name, known in matched.items()}
    record = regions["chrom"].replace_strict(number, return_dtype=pl.Int64).to_numpy() if number else np.zeros(0, np.int64)
    start, stop = (regions[column].cast(pl.Int64).to_numpy() for column in ("start", "end"))
    beyond = pl.Series((start < 0) | (stop < start) | (stop > genome.lengths[record]))
    if beyond.any():
        row = int(beyond.arg_max() or 0)
        length = int(genome.lengths[record[row]])
        refuse(
            source, regions.filter(beyond), "end", f"lies beyond '{regions['chrom'][row]}' of {length} bases", "Check which genome it is of"
        )
    strand = np.where(regions["strand"].to_numpy() == "-", -1, 1) if "strand" in regions.columns else np.ones(len(record), np.int64)
    return Intervals(record, start, stop, strand)


def refuse(source: str | Path, bad: pl.DataFrame, column: str, what: str, mend: str) -> None:
    """Refuse the first of the `bad` rows, if there is one, with its line and its value in `column`."""
    if bad.is_empty():
        return
    value = bad[column][0]
    shown = "an empty value" if value in (None, "") else f"{str(value)[:40]!r}"
    more = f" ({bad.height} such lines in all)" if bad.height > 1 else ""
    fail(source, bad["line"][0], f"{column} {shown} {what}{more}. {mend}.")


def fail(source: str | Path, line: int, message: str) -> NoReturn:
    """Raise a UserError that names file and line."""
    raise UserError(f"{source}, line {line}: {message}") from None
