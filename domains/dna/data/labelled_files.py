"""Files of labelled sequences: tables, GUE's folders, and those of Genomic Benchmarks, also in an archive."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from domains.dna.data.genome import Genome
from domains.dna.data.labelled import RawPart, Task, make_task
from domains.dna.data.regions import locate
from titans_seq.cache import FOLDER
from titans_seq.errors import UserError
from titans_seq.isolated import end_of
from titans_seq.unpack import UnpackLimits, unpack_archive

TABLES = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t", ".parquet": None}
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
SEQUENCE = ("sequence", "seq", "dna")
LABEL = ("label", "labels", "target", "class", "y")
LIMITS = UnpackLimits(max_bytes=16 << 30, max_members=2_000_000)
"""Of an archive: ensembl_regulatory of Genomic Benchmarks has 289,061 files."""
_PART = {"train": "train", "test": "test", **dict.fromkeys(("dev", "valid", "validation", "val", "eval"), "validation")}
_PROBE = "import sys, polars; polars.read_parquet(sys.argv[1], glob=False)"
_EXPECTED = (
    "Expected are tables called train, dev (or validation) and test, folders train/CLASS/*.txt, or interval lists train/CLASS.csv.gz "
    "with a genome, as of GUE and Genomic Benchmarks"
)
References = Genome | Mapping[str, Genome] | None


def read_task(path: str | Path, genome: References = None, sequence: str | None = None, label: str | None = None) -> Task:
    """A set for classification from a table, a folder or an archive.

    - A table (CSV, TSV, Parquet) with a column of sequences and one of labels: all of it for training (`hold_out` makes parts of it).
    - A folder of tables called train, dev or validation, and test, as GUE has them and the hub (train-00000-of-00001.parquet).
    - Genomic Benchmarks: train/CLASS/*.txt, a sequence each; or train/CLASS.csv.gz with id, region, start, end, strand, read from `genome`.
    - An archive of such a folder, which is unpacked once into `.titans_seq` beside it.

    Args:
        path: the table, folder or archive.
        genome: for interval lists, the genome they are of, or one for each class.
        sequence: column of sequences; None for the one called sequence, seq or dna.
        label: column of labels; None for the one called label, labels, target, class or y.

    Raises:
        UserError: nothing of that kind is there, or a row cannot be used; file and line are named.
    """
    path = Path(path)
    name = path.name.lower()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise UserError(f"{path!s:.200}: is no usable path ({error}).") from None
    if not (is_folder or is_file):
        raise UserError(f"{path}: no such file or folder. Check the path; it is looked up from {Path.cwd()}.")
    if is_folder:
        return make_task(path.name, _read_folder(path, genome, sequence, label))
    if name.endswith(ARCHIVES):
        return make_task(path.name, _read_folder(_unpacked(path), genome, sequence, label))
    if not name.endswith(tuple(TABLES)):
        raise UserError(
            f"{path}: unknown kind of file. Labelled sequences are one of {', '.join((*TABLES, *ARCHIVES))}, or a folder. What lies on a "
            "genome is learned with --classes or --profile."
        )
    return make_task(path.name, {"train": _read_table(path, sequence, label)})


def _unpacked(path: Path) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = path.parent / FOLDER / f"{path.name}-{digest[:12]}"
    return folder if folder.is_dir() else unpack_archive(path, folder, LIMITS)


def _read_folder(folder: Path, genome: References, sequence: str | None, label: str | None) -> dict[str, RawPart]:
    inside = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "__"))]
    if len(inside) == 1 and inside[0].is_dir() and inside[0].name not in _PART:
        return _read_folder(inside[0], genome, sequence, label)
    folders = [entry for entry in inside if entry.is_dir() and entry.name in _PART]
    if folders:
        return {_PART[entry.name]: _read_part(entry, genome) for entry in folders}
    tables: dict[str, list[Path]] = {}
    for entry in inside:
        part = _PART.get(entry.name.lower().split(".")[0].split("-")[0])
        if part is not None and entry.name.lower().endswith(tuple(TABLES)):
            tables.setdefault(part, []).append(entry)
    if not tables:
        raise UserError(f"{folder}: holds no set of labelled sequences. {_EXPECTED}.")
    return {part: _join([_read_table(path, sequence, label) for path in paths]) for part, paths in tables.items()}


def _join(parts: Sequence[RawPart]) -> RawPart:
    """The pieces that a table came in."""
    rows = [(part, row) for part in parts for row in range(len(part.labels))]

    def place(i: int) -> str:
        part, row = rows[i]
        return part.place(row)

    return RawPart([x for part in parts for x in part.sequences], [x for part in parts for x in part.labels], place)


def _read_part(folder: Path, genome: References) -> RawPart:
    """train/CLASS/*.txt or train/CLASS.csv.gz."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if classes:
        files = [file for entry in classes for file in sorted(entry.glob("*.txt"))]
        if not files:
            raise UserError(f"{folder}: no class folder in it holds a .txt. {_EXPECTED}.")
        return RawPart([_text(file) for file in files], [file.parent.name for file in files], lambda i: str(files[i]))
    lists = sorted(entry for entry in folder.iterdir() if entry.name.endswith((".csv.gz", ".csv")))
    if not lists:
        raise UserError(f"{folder}: holds neither folders of classes nor interval lists. {_EXPECTED}.")
    return _read_intervals(lists, genome)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error


def _read_intervals(lists: list[Path], genome: References) -> RawPart:
    """Interval lists, one a class: 0-based and half-open, as Genomic Benchmarks cuts sequences out of its references."""
    sequences: list[str] = []
    labels: list[str] = []
    places: list[tuple[Path, int]] = []
    regions = []
    for path in lists:
        name = path.name.removesuffix(".gz").removesuffix(".csv")
        reference = genome.get(name) if isinstance(genome, Mapping) else genome
        if reference is None:
            raise UserError(f"{path}: is a list of intervals of class '{name}'. Give the genome that they are of.")
        frame = _open_table(path)
        missing = {"region", "start", "end", "strand"} - set(frame.columns)
        if missing:
            raise UserError(
                f"{path}: an interval list has the columns id, region, start, end, strand; missing: {', '.join(sorted(missing))}."
            )
        table = _positions(path, frame.rename({"region": "chrom"}))
        found = locate(table, reference, path)
        where = zip(*(x.tolist() for x in (found.record, found.start, found.stop, found.strand)), strict=True)
        sequences += [reference.window_text(*place) for place in where]
        labels += [name] * table.height
        places += [(path, line) for line in table["line"]]
        chrom = f"{reference.source.name}:" + pl.Series("chrom", reference.names, dtype=pl.String)[found.record]
        regions.append(table.select(chrom.alias("chrom"), "start", "end", "strand"))
    return RawPart(sequences, labels, lambda i: f"{places[i][0]}, line {places[i][1]}", pl.concat(regions))


def _positions(path: Path, table: pl.DataFrame) -> pl.DataFrame:
    for column in ("start", "end"):
        bad = table.filter(pl.col(column).cast(pl.Int64, strict=False).is_null())
        if not bad.is_empty():
            raise UserError(f"{path}, line {bad['line'][0]}: {column} {str(bad[column][0])[:40]!r} is no whole number.")
    return table.with_columns(pl.col("start", "end").cast(pl.Int64))


def _read_table(path: Path, sequence: str | None, label: str | None) -> RawPart:
    frame = _open_table(path)
    columns = [column for column in frame.columns if column != "line"]
    found = {"sequence": _column(path, columns, sequence, SEQUENCE, "sequences"), "label": _column(path, columns, label, LABEL, "labels")}
    if found["sequence"] == found["label"]:
        raise UserError(f"{path}: column '{found['label']}' cannot hold both the sequences and the labels.")
    texts = {}
    for role, column in found.items():
        if frame[column].dtype.is_nested() or frame[column].dtype == pl.Binary:
            raise UserError(f"{path}: column '{column}' holds {frame[column].dtype}, not {role}s.")
        texts[role] = frame[column].cast(pl.String).str.strip_chars()
        bad = frame.filter((texts[role].is_null()) | (texts[role] == ""))
        if not bad.is_empty():
            raise UserError(f"{path}, line {bad['line'][0]}: the {role} is empty ({bad.height} such lines in all). Take the line out.")
    lines = frame["line"]
    return RawPart(texts["sequence"].to_list(), texts["label"].to_list(), lambda i: f"{path}, line {lines[i]}")


def _column(path: Path, columns: list[str], given: str | None, usual: tuple[str, ...], what: str) -> str:
    found = [column for column in columns if column == given or (given is None and column.strip().lower() in usual)]
    if len(found) == 1:
        return found[0]
    wanted = f"called '{given}'" if given is not None else f"of {what}, called {', '.join(usual)}"
    number = "no column is" if not found else f"{len(found)} columns are"
    flag = f"--{what.removesuffix('s')}-column"
    raise UserError(f"{path}: {number} {wanted}. The columns are: {', '.join(columns)}. Name the one that holds the {what}: {flag}.")


def _open_table(path: Path) -> pl.DataFrame:
    """All columns, as text unless it is a Parquet, and `line`: the line of each row, or the number of a Parquet's."""
    separator = next(value for suffix, value in TABLES.items() if path.name.lower().endswith(suffix))
    why = end_of(_PROBE, str(path)) if separator is None else None
    if why is not None:  # polars asks for more memory than there is, and ends the process
        raise UserError(f"{path}: cannot be read as Parquet: its reader was ended ({why:.200}). It is damaged, and must be written again.")
    try:
        frame = (
            pl.read_parquet(path, glob=False)
            if separator is None
            else pl.read_csv(path, separator=separator, infer_schema=False, glob=False)
        )
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: is empty. It needs a header line, and one line a sequence.") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).partition(chr(10))[0]}). Check it, or write it again.") from error
    if "line" in frame.columns:
        frame = frame.drop("line")
    if frame.is_empty():
        raise UserError(f"{path}: holds no sequence below its header.")
    return frame.with_row_index("line", offset=1 if separator is None else 2)
