"""What the columns of a table hold, and what each of them is for."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Literal

import numpy as np
import pandas as pd
import polars as pl

from domains.timeseries.data.files import ROW, Decimal, Source
from domains.timeseries.data.grid import quiet_pandas
from domains.timeseries.data.table import Roles, Static
from titans_seq.errors import UserError

_MISSING = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "none", "?", "-"]
_DATE_FORMATS = ["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m"]
_ZONED_FORMATS = ["%Y-%m-%d %H:%M%z", "%Y-%m-%d %H:%M:%S%.f%z"]
YEARS = (1678, 2199)
"""What pandas' nanoseconds hold, with room for a forecast."""
_YEAR_LAST = r"^([0-9]{1,2})[./-]([0-9]{1,2})[./-]([0-9]{4})([ T]|$)"
Order = Literal["day", "month"]
"""What comes first in dates that end with the year."""
_MARKS = {
    ".": ("point", "1234.5", "Or say --decimal , where a comma stands for the point."),
    ",": ("comma", "1234,5", "Or leave out --decimal where they have a decimal point."),
}
"""A decimal mark's name, a number with it, and what to say of the other one."""
_WRITTEN = (
    r"^\(?[-+\x{2212}]?\s*\p{Sc}?\s*[-+\x{2212}]?"  # sign, currency
    r"(?:[1-9]\d{0,2}(?:(?:,\d{2,3})*,\d{3}(?:\.\d*)?|(?:\.\d{3}){1,2}(?:,\d*)?"  # 1,234.5 or 1.234,5
    r"|(?:[ \x{a0}\x{202f}]\d{3})+(?:[.,]\d*)?|(?:['\x{2019}]\d{3})+(?:\.\d*)?)"  # 1 234,5 or 1'234.5
    r"|\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][-+]?\d+)?"  # 1234,5 or 1e3
    r"\s*(%|‰|\p{Sc}|°\p{L}?|[\p{L}°][\p{L}°²³/]{1,4}|\s\p{L})?\)?$"  # a unit
)
"""A number in one of the ways that people write one, with its unit as a group; no date, no time of the day, no id, address or version."""
_UNITS = (
    *("%", "‰", "°", "°c", "°f", "hpa", "mbar", "pa", "ppm", "lux", "ms", "sec", "min"),
    *("kw", "mw", "gw", "wh", "kwh", "mwh", "gwh", "kg", "mm", "cm", "km", "m²", "m³", "mm/h", "km/h", "m/s", "mph"),
    *("eur", "usd", "gbp", "chf", "jpy", "€", "$", "£", "¥", "₹"),
)
"""After a number, in small letters; others are taken for parts of a name, as in 12AB or 3 May."""
_TIME_OF_DAY = r"^\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*([AaPp]\.?[Mm]\.?)?$"
_OWN_NAMES = ("item_id", "timestamp")


def find_roles(
    source: Source,
    *,
    target: Sequence[str] | None,
    timestamp: str | None,
    item_id: str | None,
    past_features: Sequence[str] = (),
    future_features: Sequence[str] = (),
    static_features: Sequence[str] = (),
    date_order: Order | None = None,
) -> Roles:
    """The roles asked for, checked, with defaults for timestamp and target found in the data. date_order: as of `read_table`."""
    given = [
        *(("--timestamp", column) for column in [timestamp] if column is not None),
        *(("--item-id", column) for column in [item_id] if column is not None),
        *(("--target", column) for column in dict.fromkeys(target or ())),
        *(("--past-features", column) for column in past_features),
        *(("--future-features", column) for column in future_features),
        *(("--static-features", column) for column in static_features),
    ]
    options: dict[str, str] = {}
    for option, column in given:
        source.require(column, option=option)
        if column in options:
            source.fail(f"{option} {column} is also given as {options[column]}; each column has one role.")
        options[column] = option
    if static_features and item_id is None:
        source.fail("--static-features tell series apart: name the column of the series with --item-id.")
    time_column = timestamp or _timestamp_column(source, set(options), date_order)
    targets = tuple(dict.fromkeys(target)) if target else _target_columns(source, {time_column, *options})
    for column in (*targets, *past_features, *future_features, *static_features):
        if column == time_column or column in _OWN_NAMES:
            hint = " or name it with --item-id" if column == "item_id" and item_id is None else ""
            source.fail(f"column '{column}' cannot be a {options.get(column, '--target')[2:].rstrip('s')}: rename it, choose others{hint}.")
    return Roles(
        timestamp=time_column,
        item_id=item_id,
        target=targets,
        past_features=tuple(past_features),
        future_features=tuple(future_features),
        static_features=tuple(static_features),
    )


def refuse_text(**columns: Sequence[str] | None) -> None:
    """Refuse a text where names of columns are to be listed: its letters would be taken for them."""
    for argument, names in columns.items():
        if isinstance(names, str):
            raise UserError(f"{argument}={names!r} is a text. List the names of the columns: {argument}=[{names!r}].")


def _timestamp_column(source: Source, taken: set[str], order: Order | None) -> str:
    free = [column for column in source.columns if column not in taken]
    found = [c for c in free if _mostly(as_time(source.frame[c], order=order or date_order(source.frame[c])), source.frame[c])]
    if len(found) == 1:
        return found[0]
    for column in (c for c in free if not found):
        checked_order(source, column)
    problem = f"columns {', '.join(found)} all hold dates" if found else "no column holds dates such as 2012-01-31"
    source.fail(
        f"{problem}. Name the column of the time steps with --timestamp; dates are written year first (2012-01-31, "
        f"2012/01/31 06:00, 2012-01-31T06:00:00Z). The columns are: {', '.join(source.columns)}."
    )


def date_order(values: pl.Series) -> Order | None:
    """What comes first in dates of the column that end with the year, as a number above 12 is a day; None where that cannot be known."""
    if not _is_text(values):
        return None
    parts = values.str.strip_chars().str.extract_groups(_YEAR_LAST).struct.unnest()
    first, second = ((parts[name].cast(pl.Int64) > 12).any() for name in ("1", "2"))
    return None if first == second else "day" if first else "month"


def checked_order(source: Source, column: str, known: Order | None = None) -> Order | None:
    """What comes first in dates of the column that end with the year; None where they do not.

    known: from where more is known than these values tell.
    """
    values = _plain(source.frame[column])
    order = known or date_order(values)
    if order or not _is_text(values):
        return order
    dates = values.filter(values.str.contains(_YEAR_LAST).fill_null(False))
    if 2 * len(dates) > len(values):
        source.fail(
            f"the dates of column '{column}' end with the year ({dates[0]}), and whether day or month comes first cannot be known: "
            "only days above 12 tell it, all in the same place. Write them year first, as in 2012-01-31."
        )
    return None


def _target_columns(source: Source, taken: set[str]) -> tuple[str, ...]:
    free = [column for column in source.columns if column not in taken and column.strip()]
    found = tuple(c for c in free if _mostly(as_number(source.frame[c], source.decimal), source.frame[c]))
    for column in free:
        if column not in found:
            _refuse_unread(source, column)
    if not found:
        first = {column: source.frame[column].drop_nulls().head(1).to_list() for column in free}
        held = "".join(f" Column '{column}' holds '{value[0]!s:.20}'." for column, value in first.items() if value)
        source.fail(f"no column of numbers to forecast.{held} The columns are: {', '.join(source.columns)}.")
    return found


def _refuse_unread(source: Source, column: str) -> None:
    """Refuse a column, not chosen and not read, whose text is mostly numbers: it would be left out without a word."""
    values = _plain(source.frame[column])
    if not _is_text(values):
        return
    written = _written_numbers(values)
    if 2 * written.sum() > len(values) - values.null_count():
        numbers = as_number(values, source.decimal)
        assert numbers is not None  # of text
        mend, choices = _how_to_write(values, source.decimal)
        leave = "Or name the columns to forecast with --target, which leaves out all others."
        source.refuse_first(column, written & numbers.is_null(), "not read as a number", mend, f"{choices} {leave}".strip())


def _written_numbers(values: pl.Series) -> pl.Series:
    """Which texts are numbers to a human reader; none where units are unknown or several, or all values one with a unit, as of names."""
    units = values.str.extract(_WRITTEN, 1).str.strip_chars().str.to_lowercase()
    named = units.drop_nulls().unique()
    if len(named) > 1 or not named.is_in(_UNITS).all() or (len(named) and values.drop_nulls().n_unique() == 1):
        return pl.Series([False]).new_from_index(0, len(values))
    return values.str.contains(_WRITTEN).fill_null(False)


def _how_to_write(values: pl.Series, decimal: Decimal) -> tuple[str, str]:
    """How numbers are written with the decimal mark, and a hint at the other one; at the comma only where it reads more of the values."""
    name, example, hint = _MARKS[decimal]
    point, comma = _count(as_number(values, ".")), _count(as_number(values, ","))
    mend = f"Write numbers with a decimal {name} and without thousands separators, currency or unit, such as {example}"
    if values.str.contains(r"\x{2212}|\(").any():
        mend += f", and negative ones with a hyphen, such as -{example}"
    return mend, hint if decimal == "," or comma > point else ""


def _count(part: pl.Series | None) -> int:
    return 0 if part is None else len(part) - part.null_count()


def why_left_out(source: Source, column: str) -> str:
    """Why a column without a role has none, in a word."""
    values = source.frame[column]
    if _plain(values).null_count() == len(values):
        return "empty"
    if _mostly(as_number(values, source.decimal), values):
        return "not named in --target"
    return "text" if _is_text(values) else "no numbers"


def times_of_day(source: Source, columns: Sequence[str]) -> list[str]:
    """Those of the columns that hold times of the day, such as 06:00, or are called hour and hold numbers up to 24."""
    return [column for column in columns if _is_time_of_day(column, source.frame[column])]


def _is_time_of_day(name: str, values: pl.Series) -> bool:
    values, hours = _plain(values), as_number(values)
    if name.lower() in ("hour", "time") and hours is not None and _count(hours):
        return bool(hours.is_between(0, 24).all())
    return values.dtype == pl.Time or (_is_text(values) and 2 * int(values.str.contains(_TIME_OF_DAY).sum()) > len(values))


def is_zoned(values: pl.Series) -> bool:
    """Whether times say their zone."""
    if _is_text(values):
        zone = values.str.contains(r":\d{2}(\.\d+)?\s*(Z|[+-]\d{2}:?\d{2})\s*$")
        return 2 * zone.sum() > len(values)
    return getattr(values.dtype, "time_zone", None) is not None


def _mostly(part: pl.Series | None, values: pl.Series) -> bool:
    """Whether more than half of the present values are in `part`: such a column with a typo is not passed over."""
    return part is not None and 2 * _count(part) > _count(_plain(values))


def _is_text(values: pl.Series) -> bool:
    return values.dtype == pl.String


def _plain(values: pl.Series) -> pl.Series:
    """Text without surrounding blanks and with null for what stands for a missing value; other types as they are."""
    if isinstance(values.dtype, (pl.Categorical, pl.Enum)):
        values = values.cast(pl.String)
    if not _is_text(values):
        return values
    values = values.str.strip_chars()
    return values.set(values.is_in(_MISSING), None)


def as_number(values: pl.Series, decimal: Decimal = ".") -> pl.Series | None:
    """Float64 with null for missing and for what is no number; None for a column that is no table of numbers.

    decimal: the mark before fractions in text. With a comma, points are no part of a number: 1.234 may be more than a thousand.
    """
    values = _plain(values)
    if not (_is_text(values) or values.dtype.is_numeric()):
        return None
    if _is_text(values) and decimal == ",":
        values = values.set(values.str.contains(".", literal=True), None).str.replace(",", ".", literal=True)
    return values.cast(pl.Float64, strict=False).fill_nan(None)


def as_time(values: pl.Series, bare_years: bool = False, daily: bool | None = None, order: Order | None = None) -> pl.Series | None:
    """Datetime in microseconds without a zone (see `_without_zone`), null for what is no time, None for a column of no times.

    order: of dates that end with the year, which are no times without one.
    """
    values = _plain(values)
    if bare_years and values.dtype.is_integer():
        values = values.cast(pl.String)
    if values.dtype.is_temporal() and values.dtype not in (pl.Time, pl.Duration):
        if values.dtype == pl.Date:  # of others the microseconds would overflow
            values = values.set(~values.is_between(date.min, date.max), None)
        if getattr(values.dtype, "time_zone", None):
            values = _without_zone(values.dt.convert_time_zone("UTC").dt.replace_time_zone(None), values.dt.replace_time_zone(None), daily)
        return values.cast(pl.Datetime("us"))
    if not _is_text(values):
        return None
    if order:
        values = values.str.replace(_YEAR_LAST, "${3}-${2}-${1}${4}" if order == "day" else "${3}-${1}-${2}${4}")
    text = values.str.replace(r"^(\d{4})[/.](\d{1,2})[/.](\d{1,2})", "${1}-${2}-${3}").str.replace("T", " ")
    text = text.str.replace(r"\s*Z$", "+00:00").str.replace(r"(:\d{2}(?:\.\d+)?[+-]\d{2})$", "${1}:00")
    if bare_years:
        text = text.str.replace(r"^(\d{4})$", "${1}-01-01")
    naive = _parsed(text, _DATE_FORMATS)
    zoned = _parsed(text, _ZONED_FORMATS).dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if naive.null_count() <= zoned.null_count():  # times of the rarer kind count as no times
        return naive
    return _without_zone(zoned, _parsed(text.str.replace(r"\s*[+-]\d{2}:?\d{2}$", ""), _DATE_FORMATS), daily)


def _parsed(text: pl.Series, formats: list[str]) -> pl.Series:
    return pl.select(pl.coalesce(text.str.to_datetime(f, strict=False, time_unit="us") for f in formats)).to_series()


def is_daily(freq: str | None) -> bool | None:
    """Whether steps are days or longer; None where that is not known (yet)."""
    if freq is None:
        return None
    with quiet_pandas():
        try:
            offset = pd.tseries.frequencies.to_offset(freq)
        except ValueError:
            return None
    return not isinstance(offset, pd.tseries.offsets.Tick) or pd.Timedelta(offset) >= pd.Timedelta("1D")


def _without_zone(utc: pl.Series, wall: pl.Series, daily: bool | None) -> pl.Series:
    """UTC, in which daylight saving leaves no gap or duplicate; of `daily` steps the time on the wall if it is always the same.

    Days, weeks and months begin at midnight on the wall, which daylight saving moves in UTC. Where it is not known whether steps are daily,
    they are if the wall alone always says the same.
    """
    daily = utc.dt.time().n_unique() > 1 if daily is None else daily
    constant = daily and wall.dt.time().n_unique() == 1
    return wall if constant and wall.null_count() == utc.null_count() else utc


def checked_times(source: Source, column: str, bare_years: bool, daily: bool | None = None, order: Order | None = None) -> pl.Series:
    """The times of a column, all of them within the years that pandas holds. order: as of `checked_order`."""
    times = as_time(source.frame[column], bare_years, daily, order)
    read = f"Dates are read with the {order} first. " if order else ""
    advice = f"{read}Write times year first, such as 2012-01-31 or 2012-01-31 06:00"
    if times is None:
        source.fail(f"column '{column}' holds {source.frame[column].dtype}, not times. {advice}.")
    source.refuse_first(column, times.is_null(), "no time", f"{advice}, or drop the {source.unit}")
    outside = ~times.is_between(datetime(YEARS[0], 1, 1), datetime(YEARS[1] + 1, 1, 1), closed="left")
    source.refuse_first(column, outside, f"outside the years {YEARS[0]} to {YEARS[1]}", f"Mend it, or drop the {source.unit}")
    return times.alias("timestamp")


def checked_items(source: Source, column: str | None) -> pl.Series:
    """The name of each row's series; that of the file where no column tells."""
    if column is None:
        return pl.Series("item_id", [source.path.name.split(".")[0]], dtype=pl.String).new_from_index(0, source.frame.height)
    source.refuse_first(column, source.frame[column].is_null(), "no item", "Every row needs its series' name")
    return source.frame[column].cast(pl.String).alias("item_id")


def checked_numbers(source: Source, column: str) -> pl.Series:
    """The numbers of a column as Float64, null where one is missing."""
    numbers = as_number(source.frame[column], source.decimal)
    if numbers is None:
        source.fail(f"column '{column}' holds {source.frame[column].dtype}, not numbers. Choose other columns of numbers.")
    values = _plain(source.frame[column])
    present = values.is_not_null() if _is_text(values) else numbers.is_not_null()
    text = present & numbers.is_null() & (values.str.to_lowercase() != "nan" if _is_text(values) else present)
    written = bool(text.any()) and _is_text(values) and (_written_numbers(values) & text).any()
    mend, choices = _how_to_write(values, source.decimal) if written else ("Mend the value, or leave it empty", "")
    source.refuse_first(column, text, "no number", mend, choices)
    wide = (numbers.abs() > np.finfo(np.float32).max).fill_null(False)
    source.refuse_first(column, wide, "not finite in float32", "Mend the value, or leave it empty")
    return numbers.alias(column)


def checked_static(source: Source, items: pl.Series, roles: Roles, categories: Mapping[str, Sequence[str]] | None) -> Static | None:
    """One value an item of each static column: numbers where all are numbers, else categories.

    Args:
        source: the file.
        items: the name of each row's series.
        roles: the columns.
        categories: the known values of the columns of categories; None to take those in the file, in alphabetical order.
    """
    if not roles.static_features:
        return None
    columns = [_static_column(source, column, None if categories is None else column in categories) for column in roles.static_features]
    rows = source.frame.select(ROW, *columns).with_columns(items).sort("item_id", ROW)
    firsts = rows.group_by("item_id", maintain_order=True).first()
    for column in roles.static_features:
        other = rows.join(firsts.select("item_id", first=column), on="item_id").filter(pl.col(column) != pl.col("first"))
        if not other.is_empty():
            row, item, value, first = other.sort(ROW).select(ROW, "item_id", column, "first").row(0)
            source.fail(
                f"column '{column}', {source.unit} {row}: '{value}' differs from '{first}' before it in series '{item}'. "
                "A static feature has one value a series.",
                "Name a column that changes with --past-features or --future-features.",
            )
    texts = [column.name for column in columns if _is_text(column)]
    known = {c: tuple(sorted(firsts[c].unique())) if categories is None else tuple(categories[c]) for c in texts}
    for column in texts:
        new = rows.filter(~pl.col(column).is_in(known[column]))
        if not new.is_empty():
            row, value = new.sort(ROW).select(ROW, column).row(0)
            source.fail(f"column '{column}', {source.unit} {row}: the model knows no '{value}'. It knows: {', '.join(known[column])}.")
    return Static(firsts.select("item_id", *roles.static_features), known)


def _static_column(source: Source, column: str, as_category: bool | None) -> pl.Series:
    """Float64, or text where not all of it is numbers (None) or it is to be a category."""
    values = _plain(source.frame[column])
    missing = values.is_null() | values.is_nan() if values.dtype.is_float() else values.is_null()
    source.refuse_first(column, missing, "missing", "A static feature needs a value in every row; write one such as 'unknown'")
    numbers = None if values.dtype == pl.Boolean else as_number(values, source.decimal)
    if as_category is None:
        as_category = numbers is None or numbers.null_count() > 0
    if as_category:
        return values.cast(pl.String).alias(column)
    return checked_numbers(source, column)
