"""`titans-seq dna embed`: embeddings of records, regions, bins or bases."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.dna.cli.bits import STRANDS, Strand
from domains.dna.cli.options import Cache, Genomes, Quiet, SkipOtherRecords
from domains.dna.cli.reading import Model, load, of_genome
from domains.dna.settings import ReadingConfig
from titans_seq.errors import UserError
from titans_seq.options import TOP_LEVEL, ConfigFile, configured, refuse
from titans_seq.progress import progress

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from domains.dna.data.genome import Genome
    from domains.dna.embed import Rows

_PART = 1 << 17  # rows that are made Parquet at a time


class _Part(NamedTuple):
    """A genome, what is read of it, and columns that say more of each stretch."""

    genome: "Genome"
    rows: "Rows"
    columns: "list[pl.Series]"

    def table(self, first: int, last: int) -> "pl.DataFrame":
        """Of rows `first` to `last` - 1: file, record, start, end, bases; of regions also name and strand."""
        import numpy as np
        import polars as pl

        numbers = np.arange(first, last)
        stretch = self.rows.stretch(numbers)
        file = pl.lit(str(self.genome.source)).alias("file")
        return self.rows.table(numbers).select(file, pl.all(), *(column.gather(stretch) for column in self.columns))


@configured(reading=ReadingConfig)
def embed(
    genomes: Genomes,
    /,
    *,
    model: Model,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="Folder for the embeddings.")],
    regions: Annotated[
        Path | None, Parameter(help="BED, GFF3, GTF or VCF file: embed these regions of the one genome. Default: every record.")
    ] = None,
    bin_size: Annotated[
        int | None,
        Parameter(name="--bin", help="Bases of a row; 1: a row a base. Default: a row a record or region.", validator=Number(gte=1)),
    ] = None,
    strand: Annotated[
        Strand, Parameter(help="Along which strand is read, of a region relative to its own; of both the mean is given.")
    ] = "both",
    file_format: Annotated[
        Literal["parquet", "npy"],
        Parameter(name="--format", help="embeddings.parquet; or embeddings.npy, float32, with rows.parquet saying what each row is."),
    ] = "parquet",
    skip_other_records: SkipOtherRecords = False,
    cache: Cache = None,
    quiet: Quiet = False,
    reading: Annotated[ReadingConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Write embeddings: the backbone's output, as a mean over the bases of each record, region or bin, N left out.

    Each record or region is read from a fresh state, with the bases before it as context, in memory that does not grow with its length.
    """
    from titans_seq.outputs import check_folder, write_all

    check_folder("--output", output)
    if regions is not None and len(genomes) > 1:
        raise UserError(f"--regions {regions}: are places in one genome, but {len(genomes)} files are given. Name one.")
    from domains.dna.data.genome import open_genome

    if regions is None:
        refuse({"--skip-other-records": skip_other_records or None}, "is of --regions, and every record is embedded")
    parts = [_part(open_genome(path, cache, not quiet), regions, bin_size, skip_other_records) for path in genomes]
    fill = partial(_fill, model, parts, bin_size, strand, reading, quiet)
    writers: dict[str, Callable[[Path], object]] = (
        {"embeddings.npy": fill, "rows.parquet": lambda path: _write_parquet(parts, None, path)}
        if file_format == "npy"
        else {"embeddings.parquet": lambda path: _write_parquet(parts, fill(path.with_suffix(".npy")), path)}
    )
    for path in write_all(output, writers):
        print(path)


def _part(genome: "Genome", regions: Path | None, bin_size: int | None, skip_other_records: bool) -> _Part:
    from domains.dna.data.region_files import read_regions
    from domains.dna.data.regions import locate
    from domains.dna.data.windows import whole
    from domains.dna.embed import Rows

    if regions is None:
        return _Part(genome, Rows(genome, whole(genome), bin_size), [])
    table = of_genome(read_regions(regions), genome, regions, skip_other_records)
    rows = Rows(genome, locate(table, genome, regions), bin_size)
    if not len(rows):
        raise UserError(f"{regions}: none of its regions holds a base. Name regions whose end lies behind their start.")
    return _Part(genome, rows, [table["name"], table["strand"]])


def _fill(
    name: str, parts: Sequence[_Part], bin_size: int | None, strand: Strand, reading: ReadingConfig, quiet: bool, path: Path
) -> "np.ndarray":
    """The embeddings of all genomes, one after the other, in a file that is mapped."""
    import numpy as np

    from domains.dna.embed import embed as run

    model, strands = load(name), STRANDS[strand]
    out = np.lib.format.open_memmap(path, "w+", np.float32, (sum(len(part.rows) for part in parts), model.config.titans.dim))
    total = sum(int(part.rows.stretches.lengths.sum()) for part in parts) * len(strands)
    first = 0
    with progress("reading", total, quiet) as advance:
        for genome, rows, _ in parts:
            own = out[first : first + len(rows)]
            run(model, genome, rows.stretches, bin_size=bin_size, strands=strands, config=reading, out=own, advance=advance)
            first += len(rows)
    out.flush()
    return out


def _write_parquet(parts: Sequence[_Part], embeddings: "np.ndarray | None", path: Path) -> None:
    """What each row is, and if there are any its embedding, an array of float32, null where all is N; few rows are held at a time."""
    import polars as pl

    written = []
    for n, table in enumerate(_tables(parts, embeddings)):
        written.append(path.with_name(f"part-{n}.parquet"))
        table.write_parquet(written[-1])
    pl.scan_parquet(written, glob=False).sink_parquet(path)


def _tables(parts: Sequence[_Part], embeddings: "np.ndarray | None") -> "Iterator[pl.DataFrame]":
    import numpy as np
    import polars as pl

    before = 0
    for part in parts:
        for first in range(0, len(part.rows), _PART):
            last = min(first + _PART, len(part.rows))
            table = part.table(first, last)
            if embeddings is not None:
                values = np.array(embeddings[before + first : before + last])
                column = pl.Series("embedding", values, dtype=pl.Array(pl.Float32, values.shape[1]))
                table = table.with_columns(column).with_columns(pl.when(pl.col("bases") > 0).then("embedding").alias("embedding"))
            yield table
        before += len(part.rows)
