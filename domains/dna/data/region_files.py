"""BED, GFF3, GTF and VCF, plain or packed by gzip or bgzf: tables of regions in, and out again.

GFF3, GTF and VCF count from 1 and include the last base; `_zero_based` is where that becomes 0-based and half-open.
"""

import os
import tempfile
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

import polars as pl

from domains.dna.data.regions import COLUMNS, refuse
from domains.dna.data.sequences import check_bgzf
from titans_seq.errors import UserError

Kind = Literal["bed", "gff3", "gtf", "vcf"]
SUFFIXES: dict[str, Kind] = {".bed": "bed", ".gff3": "gff3", ".gff": "gff3", ".gtf": "gtf", ".vcf": "vcf"}
PAIRS = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
"""The type of the column `attributes`."""
_FIELDS = {
    "bed": ("chrom", "start", "end", "name", "score", "strand"),
    "gff3": ("chrom", "source", "feature", "start", "end", "score", "strand", "phase", "attributes"),
    "gtf": ("chrom", "source", "feature", "start", "end", "score", "strand", "phase", "attributes"),
    "vcf": ("chrom", "start", "name", "ref", "alt", "qual", "filter", "info"),
}
_LEAST = {"bed": 3, "gff3": 9, "gtf": 9, "vcf": 5}
_NAMES = {"gff3": ("Name", "ID"), "gtf": ("gene_name", "gene_id")}
_LARGEST = 2**40  # of a position: more is no chromosome
_ALLELE = r"^([A-Za-z]+|\*|<[^<>\s]+>|[^\s,]*[\[\]][^\s,]*|\.[A-Za-z]+|[A-Za-z]+\.)$"
_RESERVED = str.maketrans({x: quote(x) for x in "\t\n\r%;=&,"})


def read_regions(path: str | Path, kind: Kind | None = None) -> pl.DataFrame:
    """A table of regions with the columns `regions.COLUMNS` (line, chrom, start, end, name, strand) and:

        BED           score (null where the fifth column is no number)
        GFF3, GTF     score, source, feature, phase, attributes (list of key and value; several values of a key are several pairs)
        VCF           ref, alt (list; empty where there is none), qual, filter, info (text); strand is "."

    Missing values ("." in the file) are null. Comments, blank lines, `track` and `browser` lines of BED and the sequences at the end of
    a GFF3 are left out; columns beyond the sixth of BED and the samples of VCF are not read.

    Args:
        path: the file, plain, gzip or bgzf.
        kind: what it is; None to tell it from the ending, before a .gz or .bgz.

    Raises:
        UserError: the file cannot be read, or a line of it is not of its kind.
    """
    path = Path(path)
    kind = kind or _kind_of(path)
    rows = _rows(path, kind)
    fields = _FIELDS[kind]
    split = pl.col("text").str.split("\t")
    short = rows.filter(split.list.len() < _LEAST[kind]).select("line", fields="text")
    if rows.height and rows["text"][0].startswith(">"):
        raise UserError(f"{path}: a FASTA, not a {kind}. Name the file of regions or variants here, and the genome where it is asked for.")
    refuse(path, short, "fields", f"are too few: {kind} has at least {_LEAST[kind]}, with a tab between two", "Mend the line")
    frame = rows.select("line", *(split.list.get(i, null_on_oob=True).alias(field) for i, field in enumerate(fields)))
    frame = frame.with_columns(pl.col(fields).replace({".": None, "": None}))
    refuse(path, frame.filter(pl.col("chrom").is_null()), "chrom", "is no name of a chromosome", "Mend the line")
    frame = _with_numbers(path, frame, kind)
    if kind == "vcf":
        return _as_vcf(path, frame)
    frame = _with_strand(path, frame)
    if kind == "bed":
        return frame.select(*COLUMNS, "score")
    return _as_gff(path, frame, kind)


def _kind_of(path: Path) -> Kind:
    name = path.name.lower()
    for packed in (".gz", ".bgz"):
        name = name.removesuffix(packed)
    kind = next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)
    if kind is None:
        raise UserError(f"{path}: unknown kind of file. Use one of {', '.join(SUFFIXES)}, also with .gz behind it, or say which it is.")
    return kind


def _rows(path: Path, kind: Kind) -> pl.DataFrame:
    """The lines that hold a region: their numbers, and their text."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if packed:
            check_bgzf(path)
        rows = pl.read_lines(path, name="text").with_row_index("line", offset=1)
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder. Name one file in it.") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Check the path; it is looked up from {Path.cwd()}.") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        mend = "Save it with UTF-8 encoding" if "utf" in str(error).lower() else "Copy or download it again"
        raise UserError(f"{path}: cannot be read ({str(error).partition(chr(10))[0]}). {mend}.") from error
    rows = rows.with_columns(pl.col("text").str.strip_chars_end("\r\n"))
    if kind == "gff3":
        ends = rows.filter(pl.col("text").str.starts_with("##FASTA") | pl.col("text").str.starts_with(">"))
        rows = rows if ends.is_empty() else rows.head(ends["line"][0] - 1)
    rows = rows.filter(~pl.col("text").str.starts_with("#") & (pl.col("text").str.strip_chars() != ""))
    if kind == "bed":
        rows = rows.filter(~pl.col("text").str.contains(r"^(track|browser)\b"))
        spaced = ~pl.col("text").str.contains("\t", literal=True)
        rows = rows.with_columns(pl.when(spaced).then(pl.col("text").str.replace_all(r"\s+", "\t")).otherwise("text").alias("text"))
    if rows.is_empty():
        raise UserError(f"{path}: holds no region. It needs a line for each.")
    return rows


def _with_numbers(path: Path, frame: pl.DataFrame, kind: Kind) -> pl.DataFrame:
    """With the numbers as such, and start and end 0-based and half-open."""
    positions = [column for column in ("start", "end") if column in frame.columns]
    least = 0 if kind == "bed" else 1
    for column in positions:
        number = pl.col(column).cast(pl.Int64, strict=False)
        bad = frame.filter(~number.is_between(least, _LARGEST).fill_null(False))
        refuse(path, bad, column, f"is no position: a whole number from {least} on", "Mend the line")
    for name in {"score", "qual"} & set(frame.columns):
        number = pl.col(name).cast(pl.Float64, strict=False)
        bad = frame.filter(number.is_null() & pl.col(name).is_not_null() & (kind != "bed"))
        refuse(path, bad, name, "is no number", "Write '.' where there is none")
        frame = frame.with_columns(number)
    frame = frame.with_columns(pl.col(positions).cast(pl.Int64))
    if kind == "vcf":
        frame = frame.with_columns(end=pl.col("start") - 1 + pl.col("ref").str.len_bytes().fill_null(0))
    frame = frame if kind == "bed" else _zero_based(frame)
    bad = frame.filter(pl.col("end") < pl.col("start"))
    refuse(path, bad, "end", "lies before the start", "Mend the line")
    return frame


def _zero_based(frame: pl.DataFrame) -> pl.DataFrame:
    """From counting from 1 with the last base included to counting from 0 without it: the end stays."""
    return frame.with_columns(start=pl.col("start") - 1)


def _with_strand(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    strand = pl.col("strand").fill_null(".").replace({"?": "."})
    refuse(
        path,
        frame.filter(~strand.is_in(["+", "-", "."])),
        "strand",
        "is none of + - .",
        "Mend the line, or leave out columns that are no strand",
    )
    return frame.with_columns(strand=strand)


def _as_vcf(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    refuse(path, frame.filter(~pl.col("ref").str.contains(r"^[A-Za-z]+$").fill_null(False)), "ref", "is no allele", "Write its bases")
    alt = pl.col("alt").str.split(",")
    bad = frame.filter(~alt.list.eval(pl.element().str.contains(_ALLELE)).list.all().fill_null(True))
    refuse(path, bad, "alt", "is no list of alleles", "Write bases, '*', a symbol such as <DEL>, or a breakend, with commas between them")
    frame = frame.with_columns(alt=alt.fill_null([]), strand=pl.lit("."))
    return frame.select(*COLUMNS, "ref", "alt", "qual", "filter", "info")


def _as_gff(path: Path, frame: pl.DataFrame, kind: Kind) -> pl.DataFrame:
    phase = pl.col("phase").cast(pl.Int8, strict=False)
    bad = frame.filter(pl.col("phase").is_not_null() & ~phase.is_between(0, 2).fill_null(False))
    refuse(path, bad, "phase", "is none of 0, 1, 2 and .", "Mend the line")
    refuse(path, frame.filter(pl.col("feature").is_null()), "feature", "is missing", "Write what the region is, such as gene or exon")
    pairs = _gff3_pairs(path, frame) if kind == "gff3" else _gtf_pairs(path, frame)
    names = [pairs.filter(pl.col("key") == key).group_by("line").agg(pl.col("value").first().alias(key)) for key in _NAMES[kind]]
    lists = pairs.group_by("line", maintain_order=True).agg(pl.struct("key", "value").alias("attributes"))
    for part in (*names, lists):
        frame = frame.drop(part.columns[1], strict=False).join(part, on="line", how="left", maintain_order="left")
    if kind == "gff3":
        frame = frame.with_columns(_decoded(frame[column]) for column in ("chrom", "source", "feature"))
    return frame.select(
        *("line", "chrom", "source", "feature", "start", "end", "score", "strand"),
        phase=phase,
        name=pl.coalesce(_NAMES[kind]),
        attributes=pl.col("attributes").cast(PAIRS).fill_null([]),
    ).select(*COLUMNS, "score", "source", "feature", "phase", "attributes")


def _gff3_pairs(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    """line, key, value of `key=value;key=one,two`, percent-encoded."""
    pairs = frame.select("line", pair=pl.col("attributes").str.split(";")).explode("pair").drop_nulls()
    pairs = pairs.with_columns(pl.col("pair").str.strip_chars()).filter(pl.col("pair") != "")
    refuse(path, pairs.filter(~pl.col("pair").str.contains("^[^=]+=")), "pair", "is no attribute key=value", "Mend the ninth column")
    parts = pl.col("pair").str.splitn("=", 2)
    pairs = pairs.select("line", key=parts.struct.field("field_0"), value=parts.struct.field("field_1").str.split(",")).explode("value")
    return pairs.with_columns(_decoded(pairs["key"]), _decoded(pairs["value"]))


def _decoded(values: pl.Series) -> pl.Series:
    """Without percent-encoding."""
    encoded = values.filter(values.str.contains("%", literal=True)).unique().drop_nulls().to_list()
    return values.replace(encoded, [unquote(value) for value in encoded]) if encoded else values


def _gtf_pairs(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    """line, key, value of `key "value"; key value;`."""
    pairs = frame.select("line", pair=pl.col("attributes").str.extract_all(r'(?:[^;"]|"[^"]*"|")+')).explode("pair").drop_nulls()
    pairs = pairs.with_columns(pl.col("pair").str.strip_chars()).filter((pl.col("pair") != "") & ~pl.col("pair").str.starts_with("#"))
    bad = ~pl.col("pair").str.contains(r'^[^\s="]+\s+("[^"]*"|[^"]+)$')
    refuse(path, pairs.filter(bad), "pair", 'is no attribute key "value"', "Mend the ninth column; a GFF3 ends in .gff3")
    value = pl.col("pair").str.extract(r'^\S+\s+"?([^"]*)"?$')
    return pairs.select("line", key=pl.col("pair").str.extract(r"^(\S+)"), value=value)


def attribute(regions: pl.DataFrame, key: str) -> pl.Series:
    """The first value of an attribute in each row of a GFF3 or GTF; null where it has none."""
    wanted = pl.element().filter(pl.element().struct.field("key") == key).struct.field("value")
    return regions.select(pl.col("attributes").list.eval(wanted).list.first().alias(key)).to_series()


def write_bed(regions: pl.DataFrame, path: str | Path) -> None:
    """Regions as a BED of six columns, whole or not at all. A name's blanks become underscores where they would break the line.

    Raises:
        UserError: it cannot be written.
    """
    score = pl.col("score").fill_null(0) if "score" in regions.columns else pl.lit(0)
    name = pl.col("name").str.replace_all(r"[\t\r\n]", "_").fill_null(".")
    _write(path, regions.select("chrom", "start", "end", name, _number(score), pl.col("strand").fill_null(".")), "")


def write_gff3(regions: pl.DataFrame, path: str | Path, source: str = "titans_seq", feature: str = "region") -> None:
    """Regions as GFF3, whole or not at all; source and feature where the table has no such columns, the name as attribute Name.

    Raises:
        UserError: it cannot be written.
    """
    columns = regions.columns
    keep = {column: pl.col(column) for column in ("source", "feature", "score", "phase") if column in columns}
    texts = [_encoded_text(row) for row in regions["attributes"]] if "attributes" in columns else [""] * regions.height
    named = (
        [f"Name={name.translate(_RESERVED)}" if name else "" for name in regions["name"]] if "name" in columns else [""] * regions.height
    )
    ninth = pl.Series([text or name or "." for text, name in zip(texts, named, strict=True)], dtype=pl.String)
    frame = regions.select(
        pl.Series("chrom", [name.translate(_RESERVED) for name in regions["chrom"]], dtype=pl.String),
        keep.get("source", pl.lit(source)).fill_null("."),
        keep.get("feature", pl.lit(feature)).alias("feature"),
        pl.col("start") + 1,
        "end",
        _number(keep.get("score", pl.lit(None, pl.Float64))),
        pl.col("strand").fill_null("."),
        keep.get("phase", pl.lit(None)).cast(pl.String).fill_null(".").alias("phase"),
        ninth.alias("attributes"),
    )
    _write(path, frame, "##gff-version 3\n")


def _encoded_text(pairs: list[dict[str, str]]) -> str:
    values: dict[str, list[str]] = {}
    for pair in pairs:
        values.setdefault(pair["key"], []).append(pair["value"].translate(_RESERVED))
    return ";".join(f"{key.translate(_RESERVED)}={','.join(found)}" for key, found in values.items())


def _number(score: pl.Expr) -> pl.Expr:
    """As text: a whole number without its point, "." for none."""
    whole = (score == score.cast(pl.Int64, strict=False)).fill_null(False)
    return (
        pl.when(whole)
        .then(score.cast(pl.Int64, strict=False).cast(pl.String))
        .otherwise(score.cast(pl.String))
        .fill_null(".")
        .alias("score")
    )


def _write(path: str | Path, frame: pl.DataFrame, head: str) -> None:
    path = Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".titans-seq-") as folder:
            made = Path(folder) / "regions"
            text = frame.write_csv(separator="\t", include_header=False, quote_style="never")
            made.write_text(head + text, encoding="utf-8")
            os.replace(made, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Name another file.") from error
