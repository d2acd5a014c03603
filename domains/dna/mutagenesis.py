"""In-silico saturation mutagenesis: every base of a region changed to the three others, each change scored as a variant."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from domains.dna.data.alphabet import BASES, N
from domains.dna.data.genome import Genome
from domains.dna.data.regions import match_names
from domains.dna.model import TitansForDNA
from domains.dna.reading import BOTH
from domains.dna.settings import ReadingConfig
from domains.dna.variants import DOWNSTREAM, score_variants
from titans_seq.errors import UserError


def parse_region(text: str, genome: Genome) -> tuple[int, int, int]:
    """Record, start and stop (0-based, half-open) of "record:start-end", which counts from 1 and includes the last base, as samtools does.

    Commas in numbers are left aside; a record's name alone is the whole record; names are matched as `match_names` does.

    Raises:
        UserError: it is not of this form, there is no such record, or it lies beyond its end.
    """
    name, start, stop = text, 1, None
    found = re.fullmatch(r"(.+):([\d,]+)-([\d,]+)", text)
    if text not in genome.names and found:
        name, start, stop = found[1], *(int(number.replace(",", "") or 0) for number in found.groups()[1:])
    record = genome.record(match_names([name], genome.names).get(name, name))
    length = int(genome.lengths[record])
    stop = length if stop is None else stop
    if not 1 <= start <= stop <= length:
        raise UserError(f"region {text}: must be RECORD:START-END with 1 <= START <= END <= {length:,}, the bases of '{name}'.")
    return record, start - 1, stop


def mutagenesis(
    model: TitansForDNA,
    genome: Genome,
    record: int,
    start: int,
    stop: int,
    *,
    downstream: int = DOWNSTREAM,
    strands: Sequence[int] = BOTH,
    config: ReadingConfig | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> pl.DataFrame:
    """Log-likelihood ratios of all changes of one base in `start` to `stop` - 1 of a record.

    Args:
        model, downstream, strands, config, advance: as `score_variants`.
        genome, record, start, stop: the region.

    Returns:
        Three rows a base, in the order A C G T without its own: chrom, pos (counted from 1), ref, alt, llr, forward, reverse, reason. A
        base N has one row, with a reason.

    Raises:
        ValueError: the region is not inside the record.
    """
    letters = genome.text(record, start, stop).upper()
    variants = pl.DataFrame(
        {
            "line": np.arange(1, stop - start + 1),
            "chrom": [genome.names[record]] * len(letters),
            "start": np.arange(start, stop),
            "name": [None] * len(letters),
            "ref": list(letters),
            "alt": [[base for base in BASES[:N] if base != letter] if letter != BASES[N] else [] for letter in letters],
        },
        schema_overrides={"name": pl.String, "alt": pl.List(pl.String)},
    )
    scores = score_variants(model, genome, variants, genome.source, downstream=downstream, strands=strands, config=config, advance=advance)
    return scores.select("chrom", "pos", "ref", "alt", "llr", "forward", "reverse", "reason")


def strongest(scores: pl.DataFrame, count: int) -> pl.DataFrame:
    """The bases whose changes have the largest mean, positive or negative, the largest first.

    scores: of `mutagenesis`. Returns pos, ref, mean (of llr over the changes of the base that have one), alt and llr of the likeliest.
    """
    known = scores.filter(pl.col("llr").is_not_null())
    likeliest = pl.col("llr").arg_max()
    by_base = known.group_by("pos", "ref").agg(
        pl.col("llr").mean().alias("mean"), pl.col("alt").get(likeliest), pl.col("llr").get(likeliest)
    )
    return by_base.sort(pl.col("mean").abs(), "pos", descending=[True, False]).head(count)


def as_matrix(scores: pl.DataFrame, column: str = "llr") -> tuple[str, np.ndarray]:
    """The letters of a region, and scores (T, 4) of A C G T at each base: 0 for its own, NaN where there is none.

    scores: of `mutagenesis`.
    """
    first = int(scores["pos"][0])
    letters = scores.group_by("pos", maintain_order=True).agg(pl.col("ref").first())["ref"]
    matrix = np.full((len(letters), N), np.nan)
    for place, letter in enumerate(letters):
        if letter in BASES[:N]:
            matrix[place, BASES.index(letter)] = 0.0
    known = scores.filter(pl.col(column).is_not_null())
    matrix[known["pos"].to_numpy() - first, [BASES.index(alt) for alt in known["alt"]]] = known[column].to_numpy()
    return "".join(letters), matrix
