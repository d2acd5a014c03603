"""Files of tables: what is in them as it stands, and errors that name the place."""

import codecs
import difflib
import gzip
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import polars as pl

from titans_seq.errors import UserError
from titans_seq.isolated import end_of

ROW = "__row__"
Decimal = Literal[".", ","]
"""The mark before the fraction of numbers in a text file."""
_PROBE = "import sys, polars; polars.read_parquet(sys.argv[1], glob=False)"
SUFFIXES = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t", ".parquet": None}
"""Kinds of tables with their separators. A Monash .tsf is no table (tsf.py)."""
_KINDS = 5  # of bad values that one message names
_TIME_CELL = re.compile(r"(\d{4}([-/.]\d{1,2}){1,2}|\d{1,2}([-/.])\d{1,2}\3\d{4})([ T]\d{1,2}:\d{2}.*)?")
_NUMBER_CELL = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?")


class TableError(UserError):
    """A file that cannot be used as it is read. problem: what is wrong with it, without the other choices that the message offers."""

    def __init__(self, problem: str, choices: str) -> None:
        super().__init__(f"{problem} {choices}")
        self.problem = problem


@dataclass(frozen=True)
class Source:
    """A file, or a part of one, as read: its own columns and `ROW`, the number of each row in terms of `unit` ("line" or "row").

    decimal: the mark before fractions in text.
    """

    path: Path
    frame: pl.DataFrame
    unit: str
    decimal: Decimal = "."

    @property
    def columns(self) -> list[str]:
        """Names of the file's own columns."""
        return [column for column in self.frame.columns if column != ROW]

    def fail(self, message: str, choices: str = "") -> NoReturn:
        """Raise a UserError that names the file. choices: of columns or step that mend it too, where they are free (`TableError`)."""
        message = f"{self.path}: {message}"
        raise (TableError(message, choices) if choices else UserError(message)) from None

    def require(self, column: str, why: str = "", option: str = "") -> None:
        """Refuse the name of a column that the file does not have. why: it needs it; option: by which it was asked for."""
        if column in self.columns:
            return
        close = difflib.get_close_matches(column, self.columns, n=1, cutoff=0.5)
        guess = f" Did you mean '{close[0]}'?" if close else ""
        needed = f" ({why})" if why else ""
        asked = f"It was asked for by {option}." if option else ""
        self.fail(f"there is no column '{column}'{needed}.{guess} The columns are: {', '.join(self.columns)}.", asked)

    def refuse_first(self, column: str, bad: pl.Series, what: str, mend: str, choices: str = "") -> None:
        """Refuse the first row where `bad` holds, if there is one, with its value, and the other values that are bad.

        choices: as of `fail`.
        """
        if not bad.any():
            return
        found = self.frame.filter(bad).select(ROW, column)
        try:
            row, value = found.row(0)
        except (ValueError, OverflowError, pl.exceptions.PanicException):  # polars has years that Python has not
            row, value = found.select(ROW, pl.col(column).to_physical()).row(0)
        more = f" ({bad.sum()} such values in all{_kinds(found[column])})" if bad.sum() > 1 else ""
        self.fail(f"column '{column}', {self.unit} {row}: {_shown(value)} is {what}{more}. {mend}.", choices)


def _kinds(values: pl.Series) -> str:
    """How often which text is among `values`, the most frequent ones first; nothing where all are one, or no text."""
    if values.dtype != pl.String or values.n_unique() == 1:
        return ""
    kinds = values.alias("value").to_frame().group_by("value", maintain_order=True).len().sort("len", descending=True, maintain_order=True)
    shown = ", ".join(f"{count} of {_shown(value)}" for value, count in kinds.head(_KINDS).iter_rows())
    left = kinds.height - _KINDS
    return f": {shown}{f', and {left} other ones' if left > 0 else ''}"


def _shown(value: object) -> str:
    return "an empty value" if value is None else f"'{value!s:.40}'"


def find_file(path: Path, suffixes: tuple[str, ...]) -> str:
    """The suffix of a file that exists and ends in one of `suffixes`."""
    try:
        exists = path.exists()
    except OSError as error:  # too long a name
        raise UserError(f"{path}: is no usable path ({error.strerror}).") from None
    if not exists:
        raise UserError(f"{path}: no such file. Check the path; it is looked up from {Path.cwd()}.")
    if path.is_dir():
        raise UserError(f"{path}: is a folder. Name one file in it.")
    suffix = next((s for s in suffixes if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise UserError(f"{path}: unknown kind of file. Use one of {', '.join(suffixes)}.")
    return suffix


def open_source(path: Path, suffix: str, decimal: Decimal = ".") -> Source:
    """The rows of a table; blank lines are left out. decimal: as of `Source`."""
    separator = SUFFIXES[suffix]
    unit = "row" if separator is None else "line"
    try:
        frame = _read_parquet(path) if separator is None else _read_text(path, separator)
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: the file is empty. It needs a header line and one line a time step.") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserError(f"{path}: cannot be read as {suffix}: {explain(error)}") from None
    if ROW in frame.columns:
        raise UserError(f"{path}: a column is called '{ROW}', a name that is used inside. Rename it.")
    source = Source(path, frame.with_row_index(ROW, offset=1 if unit == "row" else 2), unit)
    if unit == "line" and _is_data(frame.columns):
        source.fail(
            f"line 1 looks like data ('{frame.columns[0]:.40}' and so on), not like names of columns. "
            f"Put a line of names before it, one for each of its {len(frame.columns)} columns."
        )
    for column in frame.columns:
        if unit == "line" and "_duplicated_" in column and column.rpartition("_duplicated_")[0] in frame.columns:
            source.fail(f"two columns are called '{column.rpartition('_duplicated_')[0]}'. Rename one of them.")
    rows = source.frame.filter(~pl.all_horizontal(pl.all().exclude(ROW).is_null()))
    if rows.is_empty():
        source.fail("holds no rows below its header. It needs one row a time step.")
    return Source(path, rows, unit, decimal)


def _is_data(header: list[str]) -> bool:
    """Whether a cell of the header is a time and another one a number; 2020.5 is a number."""
    numbers = [name for name in header if _NUMBER_CELL.fullmatch(name.strip())]
    return bool(numbers) and any(_TIME_CELL.fullmatch(name.strip()) for name in header if name not in numbers)


def _read_parquet(path: Path) -> pl.DataFrame:
    """Once in a process of its own first: where a damaged file has polars ask for more memory than there is, it ends the process."""
    why = end_of(_PROBE, str(path))
    if why is not None:
        raise UserError(
            f"{path}: cannot be read as .parquet: its reader was ended ({why:.200}). If the file is larger than memory, read it from the "
            "disk with --cache FOLDER; else it is damaged, and must be written again."
        )
    return pl.read_parquet(path, glob=False)


def _read_text(path: Path, separator: str) -> pl.DataFrame:
    """Every column as text, so that a value that is no number can be shown as it stands in the file."""
    header = pl.read_csv(path, separator=separator, infer_schema=False, glob=False, n_rows=0).columns
    if any("\ufffd" in name for name in header):  # what polars puts in names for bytes that are no UTF-8
        _refuse_encoding(path)
    if len(header) == 1 and ";" in header[0]:
        separator = ";"
    try:
        return plain_names(path, pl.read_csv(path, separator=separator, infer_schema=False, glob=False))
    except pl.exceptions.ComputeError as error:
        if "utf-8" in str(error):
            _refuse_encoding(path)
        raise


def plain_names(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    """A text file's columns without blanks around their names."""
    names = [column.strip() or column for column in frame.columns]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path}: {count} columns are called '{name}'. Each needs a name of its own.")
    frame.columns = names
    return frame


def _refuse_encoding(path: Path) -> None:
    """Refuse a file that is not UTF-8, with the first line that shows it and a command that mends it."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                encoding = "utf-16" if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin1"
                byte = f"byte 0x{line[error.start]:02x}"
                source, command = ("", f"gunzip -c '{path}' | iconv") if packed else (f" '{path}'", "iconv")
                raise UserError(
                    f"{path}: line {number} is no UTF-8 ({byte}). Write the file in UTF-8; if it is {encoding}, by "
                    f"{command} -f {encoding} -t utf-8{source} > utf8.csv"
                ) from None


def explain(error: Exception) -> str:
    """An error of polars in one line, with what mends it."""
    message = str(error).strip().splitlines()[0]
    if "utf-8" in message:
        return f"{message}. Save it with UTF-8 encoding."
    if "more fields" in message:
        return "a line has more fields than the header. Quote values that hold the separator, or mend the line."
    return f"{message}. Write the file again, or check that its ending tells its kind."
