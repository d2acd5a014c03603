"""Variants as alleles of a genome: which of them can be scored, and why the others cannot.

A table of alleles has a row for each alternative of each variant: line, chrom, pos (counted from 1, as VCF does), id, ref, alt, ref_match
(whether the genome holds REF there; null where it has no such place) and reason (a key of `REASONS`, null while it can be scored).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from domains.dna.data.alphabet import BASE_BITS, FROM_LETTER, N, decode
from domains.dna.data.genome import Genome
from domains.dna.data.regions import fail, match_names
from titans_seq.errors import UserError

RefMismatch = Literal["error", "skip", "keep"]

REASONS = {
    "no_alternative": "ALT is empty",
    "symbolic": "ALT is a symbol such as <DEL>, not bases",
    "spanning_deletion": "ALT is *",
    "breakend": "ALT is a breakend",
    "ambiguous_base": "REF or ALT holds a letter that is none of A C G T",
    "no_such_record": "the genome has no record of this name",
    "beyond_record": "the variant lies beyond the end of its record",
    "ref_mismatch": "REF is not what the genome holds there (--ref-mismatch skip)",
    "unknown_base": "the genome holds N at the variant or in the window around it",
    "same_window": "within the window, or up to the end of the record, REF and ALT read the same",
}
"""Why an alternative has no score."""

_SCHEMA = {
    "line": pl.Int64,
    "chrom": pl.String,
    "pos": pl.Int64,
    "id": pl.String,
    "ref": pl.String,
    "alt": pl.String,
    "ref_match": pl.Boolean,
    "reason": pl.String,
}


class Site(NamedTuple):
    """A variant that can be scored: its place, codes of its alleles, and which rows of the table of alleles the alternatives are."""

    record: int
    start: int
    ref: np.ndarray
    alts: tuple[np.ndarray, ...]
    rows: tuple[int, ...]

    @property
    def stop(self) -> int:
        """Where the bases behind REF begin."""
        return self.start + len(self.ref)


def find_alleles(
    genome: Genome, variants: pl.DataFrame, source: str | Path, ref_mismatch: RefMismatch = "error"
) -> tuple[pl.DataFrame, list[Site]]:
    """The alternatives of variants, and where in a genome those lie that can be scored.

    Args:
        genome: names of its records are matched as `match_names` does (1 and chr1, MT and chrM).
        variants: a table of `read_regions` on a VCF: line, chrom, start, name, ref, alt (list).
        source: what errors call it, the path of its file.
        ref_mismatch: where REF is not what the genome holds: an error, or no score ("skip"), or a score of REF as it is written, between
            the genome's bases on either side ("keep").

    Returns:
        A table of alleles (see above), and sites in the order of their rows.

    Raises:
        UserError: no chromosome is in the genome, or a mismatch that is an error; file, line, both alleles and the way out are named.
    """
    matched = match_names(variants["chrom"].unique().to_list(), genome.names)
    if not matched:
        names = ", ".join(variants["chrom"].unique(maintain_order=True)[:5])
        raise UserError(
            f"{source}: none of its chromosomes ({names}) is a record of {genome.source}, which has {', '.join(genome.names[:5])}. "
            "Use the genome that the file was made for."
        )
    records = {name: genome.record(known) for name, known in matched.items()}
    rows: list[tuple[Any, ...]] = []
    sites, mismatches = [], []
    for variant in variants.iter_rows(named=True):
        record, start, ref = records.get(variant["chrom"]), variant["start"], _codes(variant["ref"])
        held = None if record is None or start + len(ref) > genome.lengths[record] else genome.read(record, start, start + len(ref))
        found, match = _place_reason(record, held, ref, ref_mismatch)
        if match is False:
            mismatches.append((variant["line"], variant["ref"], None if held is None else decode(held).upper()))
        alts = variant["alt"] or [None]
        reasons = [found or _alt_reason(alt) for alt in alts]
        scored = [i for i, reason in enumerate(reasons) if reason is None]
        if scored and record is not None:
            sites.append(Site(record, start, ref, tuple(_codes(alts[i]) for i in scored), tuple(len(rows) + i for i in scored)))
        head = (variant["line"], variant["chrom"], start + 1, variant["name"], variant["ref"])
        rows += [(*head, alt, match, reason) for alt, reason in zip(alts, reasons, strict=True)]
    if mismatches and ref_mismatch == "error":
        _refuse_mismatch(source, genome, mismatches)
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row"), sites


def _codes(letters: str) -> np.ndarray:
    """Codes without the soft mask; letters that are no base have one above T as well."""
    return np.frombuffer(letters.encode("ascii", "replace").translate(FROM_LETTER), dtype=np.uint8) & BASE_BITS


def _place_reason(record: int | None, held: np.ndarray | None, ref: np.ndarray, policy: RefMismatch) -> tuple[str | None, bool | None]:
    """Why no alternative can be scored, and whether the genome holds REF, apart from its N; None where it has no such place."""
    if record is None:
        return "no_such_record", None
    if held is None:
        return "beyond_record", False
    if (ref >= N).any():
        return "ambiguous_base", None
    bases = held & BASE_BITS
    match = bool(((bases == ref) | (bases == N)).all())
    if policy == "keep":
        return None, match
    if not match:
        return "ref_mismatch", False
    return ("unknown_base" if (bases == N).any() else None), True


def _alt_reason(alt: str | None) -> str | None:
    if alt is None:
        return "no_alternative"
    if alt == "*":
        return "spanning_deletion"
    if alt.startswith("<"):
        return "symbolic"
    if any(mark in alt for mark in "[]."):
        return "breakend"
    return "ambiguous_base" if (_codes(alt) >= N).any() else None


def _refuse_mismatch(source: str | Path, genome: Genome, mismatches: list[tuple[int, str, str | None]]) -> None:
    line, ref, held = mismatches[0]
    more = f" ({len(mismatches):,} such lines in all)" if len(mismatches) > 1 else ""
    there = "ends before it" if held is None else f"holds {_short(held)} there"
    mend = "Use the genome that the file was made for, or leave such variants without a score (--ref-mismatch skip)"
    mend += "" if held is None else ", or score REF as it is written (--ref-mismatch keep)"
    fail(source, line, f"REF {_short(ref)}, but {genome.source} {there}{more}. {mend}.")


def _short(letters: str) -> str:
    return letters if len(letters) <= 20 else f"{letters[:20]}.. ({len(letters):,} bases)"


def count_reasons(alleles: pl.DataFrame) -> Iterator[tuple[str, int]]:
    """Each reason that comes, and how often, the most frequent first."""
    found = alleles["reason"].drop_nulls().value_counts(sort=True)
    yield from found.sort("count", "reason", descending=[True, False]).iter_rows()
