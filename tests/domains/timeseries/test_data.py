import gzip
import os
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from domains.timeseries.data import check_length, load_example, map_table, quiet_pandas, read_table, split
from domains.timeseries.data.missing import masked_words
from titans_seq.errors import UserError

WIDE = """\
date,a,b,note
2020-01-01,1,10,x
2020-01-02,2,20,y
2020-01-03,3,30,z
2020-01-04,4,40,x
"""


def daily(n, start=datetime(2020, 1, 1), step=timedelta(days=1)):
    return [start + i * step for i in range(n)]


def csv(times, *columns, names="abcdefgh"):
    rows = zip(times, *columns, strict=True)
    return "\n".join([",".join(["date", *names[: len(columns)]]), *(",".join(map(str, row)) for row in rows)]) + "\n"


# ---- what it reads


def test_wide_csv(write):
    table = read_table(write(WIDE))
    assert table.frame.columns == ["item_id", "timestamp", "a", "b"]
    assert table.frame.dtypes == [pl.String, pl.Datetime("us"), pl.Float64, pl.Float64]
    assert (table.targets, table.freq, table.step, table.ignored) == (("a", "b"), "D", "D", {"note": "text"})
    (entry,) = table.to_gluonts()
    assert entry["item_id"] == "t"
    assert entry["start"] == pd.Period("2020-01-01", "D")
    assert entry["target"].dtype == np.float32
    np.testing.assert_array_equal(entry["target"], [[1, 2, 3, 4], [10, 20, 30, 40]])


def test_one_target_is_still_2d(write):
    assert read_table(write(WIDE), target=["b"]).to_gluonts()[0]["target"].shape == (1, 4)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.tsv", "t.tsv.gz", "T.CSV"])
def test_kinds_of_text_file(write, name):
    text = WIDE.replace(",", "\t") if "tsv" in name else WIDE
    assert_frame_equal(read_table(write(text, name)).frame.drop("item_id"), read_table(write(WIDE)).frame.drop("item_id"))


@pytest.mark.parametrize("text", [WIDE.replace(",", ";"), "\ufeff" + WIDE, WIDE.replace("\n", "\r\n"), WIDE + "\n\n"])
def test_dialects(write, text):
    assert_frame_equal(read_table(write(text)).frame, read_table(write(WIDE)).frame)


def test_parquet_equals_csv(write):
    frame = pl.read_csv(write(WIDE), try_parse_dates=True)
    assert frame["date"].dtype == pl.Date
    assert_frame_equal(read_table(write(frame, "t.parquet")).frame, read_table(write(WIDE)).frame)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_name_is_no_pattern(tmp_path, ending):
    for name, value in (("mine[1]", 1.0), ("mine1", 2.0)):
        days = [f"2024-01-{day:02}" for day in range(1, 21)]
        frame = pl.DataFrame({"date": days, "a": [value] * 20})
        frame.write_csv(tmp_path / f"{name}.csv")
        frame.write_parquet(tmp_path / f"{name}.parquet")
    assert read_table(tmp_path / f"mine[1].{ending}").frame["a"].unique().to_list() == [1.0]


def test_long_equals_wide(write):
    times = daily(5)
    wide = {name: read_table(write(csv(times, range(k, k + 5)), f"{name}.csv")) for name, k in (("x", 0), ("y", 7))}
    rows = [f"{time},{name},{k + i}" for i, time in enumerate(times) for name, k in (("y", 7), ("x", 0))]
    long = read_table(write("\n".join(["date,shop,a", *reversed(rows)])), item_id="shop")
    assert_frame_equal(long.frame, pl.concat([wide["x"].frame, wide["y"].frame]))
    assert [entry["item_id"] for entry in long.to_gluonts()] == ["x", "y"]


def test_items_may_start_and_end_apart(write):
    text = "when,id,v\n" + "".join(f"{t},1,{i}\n" for i, t in enumerate(daily(6)))
    text += "".join(f"{t},2,{i}\n" for i, t in enumerate(daily(4, datetime(2021, 5, 5))))
    first, second = read_table(write(text), item_id="id").to_gluonts()
    assert first["target"].shape == (1, 6)
    assert second["target"].shape == (1, 4)
    assert second["start"] == pd.Period("2021-05-05", "D")


def test_unnamed_index_column_is_no_target(write):
    lines = WIDE.splitlines()
    text = "\n".join(["," + lines[0], *(f"{i},{line}" for i, line in enumerate(lines[1:]))])
    assert read_table(write(text)).targets == ("a", "b")


@pytest.mark.parametrize(
    ("form", "step", "freq"),
    [
        ("%Y/%m/%d", "D", "D"),
        ("%Y-%m-%dT%H:%M:%S", "h", "h"),
        ("%Y/%m/%d %H:%M", "15min", "15min"),
        ("%Y-%m-%d %H:%M:%S.%f", "30s", "30s"),
        ("%Y-%m", "MS", "M"),
        ("%Y.%m.%d", "ME", "M"),
        ("%Y-%m-%d", "W-TUE", "W-TUE"),
        ("%Y-%m-%d", "QS-OCT", "Q-DEC"),
        ("%Y-%m-%d", "YS-JAN", "Y-DEC"),
        ("%Y-%m-%d", "B", "B"),
        ("%Y-%m-%d %H:%M:%S", "2h", "2h"),
    ],
)
def test_forms_of_time_and_frequencies(write, form, step, freq):
    stamps = pd.date_range("2019-12-31", periods=24, freq=step)
    table = read_table(write(csv(stamps.strftime(form), range(24))))
    assert (table.step, table.freq) == (step, freq)
    assert table.frame["timestamp"].to_list() == list(stamps.to_pydatetime())
    (entry,) = table.to_gluonts()
    with quiet_pandas():
        assert table.stamps("t", entry["start"] + 22, 4) == list(stamps.union(stamps[-2:] + 2 * stamps.freq))[-4:]


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%m/%d/%Y %H:%M"])
@pytest.mark.parametrize("timestamp", [None, "date"])
def test_dates_that_end_with_the_year_are_named_where_no_day_tells_the_order(write, fails, form, timestamp):
    path = write(csv(pd.date_range("2020-03-01", periods=12).strftime(form), range(12)))
    fails(
        path, "the dates of column 'date' end with the year (", "only days above 12 tell it", "Write them year first", timestamp=timestamp
    )


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%m/%d/%Y %H:%M", "%d-%m-%YT%H:%M:%SZ", " %d/%m/%Y"])
@pytest.mark.parametrize("timestamp", [None, "date"])
def test_a_day_above_12_tells_the_order_of_all_dates(write, form, timestamp):
    stamps = pd.date_range("2020-03-01", periods=13)
    table = read_table(write(csv(stamps.strftime(form), range(13))), timestamp=timestamp)
    assert table.frame["timestamp"].to_list() == list(stamps.to_pydatetime())


def test_dates_that_contradict_each_other_are_refused(write, fails):
    dates = ["31.12.2020", "01.01.2021", "01.13.2021", "02.01.2021"]
    fails(write(csv(dates, range(4))), "(31.12.2020)", "all in the same place")
    fails(write(csv(["31.12.2020", "01.01.2021", "2021-01-02", "soon"], range(4))), "line 5: 'soon' is no time")


def test_single_digit_dates(write):
    table = read_table(write(csv(["1990/1/9 0:00", "1990/1/10 0:00", "1990/1/11 0:00"], [1, 2, 3])))
    assert table.frame["timestamp"][0] == datetime(1990, 1, 9)


def test_times_with_a_zone_are_said_to_be_in_utc(write):
    stamps = ["2024-03-30T23:00:00+01:00", "2024-03-31T00:00:00+01:00", "2024-03-31T01:00:00+01:00", "2024-03-31T03:00:00+02:00"]
    table = read_table(write(csv(stamps, range(4))))
    assert table.utc
    assert table.frame["timestamp"][0] == datetime(2024, 3, 30, 22)
    assert not read_table(write(csv(daily(4), range(4)))).utc
    assert not read_table(write(csv(["2024-03-30T00:00+01:00", "2024-03-31T00:00+01:00", "2024-04-01T00:00+02:00"], range(3)))).utc  # days


def test_semicolons_with_decimal_commas_show_the_value(write, fails):
    fails(
        write("day;sales\n2024-01-01;0,5\n2024-01-02;1,5\n2024-01-03;2,5\n"), "column 'sales', line 2: '0,5' is not read", "decimal point"
    )


def test_decimal_commas(write, fails):
    path = write("day;sales;code\n2024-01-01;0,5;x\n2024-01-02;-1,5;y\n2024-01-03; 2 ;z\n")
    table = read_table(path, decimal=",")
    assert table.targets == ("sales",)
    assert table.frame["sales"].to_list() == [0.5, -1.5, 2.0]
    quoted = write('day,sales\n2024-01-01,"0,5"\n2024-01-02,"1e3"\n2024-01-03,"2,25"\n')
    assert read_table(quoted, decimal=",").frame["sales"].to_list() == [0.5, 1000.0, 2.25]
    fails(path, "Or say --decimal , where a comma stands for the point.")
    mixed = write("day;sales\n2024-01-01;1,5\n2024-01-02;1.234\n2024-01-03;2,5\n")  # in such a file more than a thousand
    fails(mixed, "line 3: '1.234' is no number. Write numbers with a decimal comma", decimal=",")


def test_the_order_of_dates_is_known_from_elsewhere(write, fails):
    short = write(csv(["03/04/2025", "04/04/2025", "05/04/2025"], range(3)))
    assert read_table(short, date_order="day").frame["timestamp"].to_list() == [datetime(2025, 4, day) for day in (3, 4, 5)]
    long = write(csv(["12/04/2025", "13/04/2025", "14/04/2025"], range(3)))
    assert read_table(long).date_order == "day"
    assert read_table(write(csv(daily(3), range(3)), "days.csv"), date_order="day").frame["timestamp"].to_list() == daily(3)
    parts = "line 3: '13/04/2025' is no time (2 such values", "Dates are read with the month first. Write times year first"
    fails(long, *parts, date_order="month", timestamp="date")


def test_all_kinds_of_bad_values_are_told_at_once(write, fails):
    bad = ["closed", "n/a", "closed", "1", "?", "shut", "n/a", "closed"]
    said = "line 2: 'closed' is no number (6 such values in all: 3 of 'closed', 2 of 'n/a', 1 of 'shut'). Mend the value"
    fails(write(csv(daily(8), bad)), "column 'a'", said, target=["a"])
    more = "(13 such values in all: 2 of 'v0', 2 of 'v1', 2 of 'v2', 2 of 'v3', 2 of 'v4', and 2 other ones)"
    fails(write(csv(daily(14), [f"v{n % 7}" for n in range(13)] + [1])), more, target=["a"])
    fails(
        write(csv(["", "2020-01-02", "soon", "2020-01-04", "2020-01-05"], range(5))),
        "(2 such values in all: 1 of an empty value, 1 of 'soon')",
    )


@pytest.mark.parametrize("value", ["1,5", "-1.234,5", "1'234.5", "1 234"])
def test_other_marks_in_a_target_are_told_with_the_decimal_point(write, fails, value):
    text = f"day;shop;sales\n2024-01-01;a;{value}\n2024-01-02;a;{value}\n"
    said = f"line 2: '{value}' is no number (2 such values in all). Write numbers with a decimal point and without thousands separators"
    fails(write(text), "column 'sales'", said, target=["sales"], item_id="shop")


def written(*values: str) -> str:
    """A table with a column of numbers, and one of such values."""
    rows = zip(daily(len(values)), values, strict=True)
    return "date\ttemp\tload_kw\n" + "".join(f"{day:%Y-%m-%d}\t{n}\t{value}\n" for n, (day, value) in enumerate(rows))


@pytest.mark.parametrize(
    "values",
    [
        ("12,015.27", "11,940.00", "950.5"),
        ("1.234.567", "2.234.567", "2.234.567"),
        ("1,20,015", "1,30,015", "1,40,015"),
        ("$105.2", "$104.1", "-$3.5"),
        ("99 €", "98 €", "97 €"),
        ("1 234", "1\u202f234", "950"),
        ("45%", "46 %", "47.5%"),
        ("12.5 kW", "13kW", "n/a"),
        ("(1,234.5)", "-", "\u22121,234.5"),
    ],
)
def test_numbers_that_are_not_read_are_no_column_to_leave_out(write, fails, values):
    path = write(written(*values), "t.tsv")
    fails(path, "column 'load_kw'", f"line 2: '{values[0]}' is not read as a number", "thousands separators", "--target")
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert "--decimal" not in str(caught.value), "that would not read them"
    assert read_table(path, target=["temp"]).ignored == {"load_kw": "text"}


@pytest.mark.parametrize(
    "values",
    [
        ("2024-01-01", "2024-01-02", "2024-01-03 06:00"),
        ("31.12.2023", "1.1.2024", "02.01.24"),
        ("1/2/2024", "1/3/2024", "2024/1/4"),
        ("12:30", "13:30:05", "1:30 pm"),
        ("9 am", "10 am", "11am"),
        ("1 Jan", "2 Jan", "3 Jan"),
        ("1st", "2nd", "3rd"),
        ("A-17", "A-18", "B 19"),
        ("17A", "18A", "19A"),
        ("17AB", "17AC", "18AB"),
        ("15 min", "15 min", ""),
        ("2024-W05", "2024Q1", "Q1 2024"),
        ("10.0.0.1", "10.0.0.2", "v1.2.3"),
        ("1 July", "2 July", "3 July"),
        ("08 h", "09 h", "10 h"),
        ("10.100.200.100", "10.100.200.101", "10.100.200.102"),
        ("030 123 456", "030 123 457", "030 123 458"),
        ("12_345", "12_346", "12_347"),
        ("1234 AB", "1235 AB", "1236 AB"),
        ("48.137,11.575", "48.138,11.576", "48.139,11.577"),
        ("48.1 N", "48.2 N", "48.3 N"),
        ("64 GB", "32 GB", "128 GB"),
        ("low", "3 kW", "high"),
        ("", "", ""),
    ],
)
def test_text_that_is_no_number_is_left_out(write, values):
    ignored = read_table(write(written(*values), "t.tsv"), timestamp="date").ignored
    assert ignored == {"load_kw": "text" if any(values) else "empty"}


def test_the_other_decimal_mark_is_named_where_it_reads_more(write, fails):
    fails(write(written("120,15", "119,5", "121"), "t.tsv"), "line 2: '120,15'", "Or say --decimal , where a comma stands for the point.")
    path = write(written("12,015.27", "11,940.00", "11,950.00"), "t.tsv")
    said = "decimal comma and without thousands separators, currency or unit, such as 1234,5. Or leave out --decimal"
    fails(path, "line 2: '12,015.27'", said, decimal=",", target=["load_kw"])
    fails(write(written("1.5", "2.5", "3"), "t.tsv"), "line 2: '1.5'", "Or leave out --decimal", decimal=",")


def test_a_minus_that_is_no_hyphen_is_named(write, fails):
    fails(write(written("\u22125", "3", "\u22124"), "t.tsv"), "line 2: '\u22125'", "negative ones with a hyphen, such as -1234.5")


def test_what_is_left_out_says_why(write):
    assert read_table(write(WIDE), target=["a"]).ignored == {"b": "not named in --target", "note": "text"}
    flags = pl.DataFrame({"date": daily(3), "a": [1.0, 2.0, 3.0], "open": [True, False, True]})
    assert read_table(write(flags, "t.parquet")).ignored == {"open": "no numbers"}


@pytest.mark.parametrize(("name", "form"), [("time", "{:02}:00"), ("at", "{}:00:00"), ("hour", "{}"), ("at", "{:02}:30 PM")])
def test_date_and_time_in_two_columns(write, fails, name, form):
    """The time of the day tells no series apart."""
    rows = [f"{day:%Y-%m-%d},{form.format(hour)},{100 * day.day + hour}" for day in daily(6) for hour in range(1, 13)]
    text = f"date,{name},kw\n" + "\n".join(rows) + "\n"
    fails(write(text), "comes twice", f"column '{name}' holds times of the day. Put date and time into one column")
    with pytest.raises(UserError) as caught:
        read_table(write(text))
    assert "--item-id" not in str(caught.value)


def test_a_time_of_the_day_does_not_hide_a_forgotten_item_id(write, fails):
    rows = [f"{day:%Y-%m-%d},0{hour}:00,{shop},{day.day}" for day in daily(6) for hour, shop in ((7, "a"), (8, "b"))]
    fails(write("date,opens,shop,sold\n" + "\n".join(rows) + "\n"), "--item-id shop.")


def test_blanks_around_names_are_no_part_of_them(write, fails):
    assert read_table(write("date, sales , b\n2024-01-01, 1, 2\n2024-01-02, 2, 3\n2024-01-03, 3, 4\n")).targets == ("sales", "b")
    fails(write("date,a, a\n2024-01-01,1,2\n"), "2 columns are called 'a'")


@pytest.mark.parametrize("argument", ["target", "past_features", "future_features", "static_features"])
def test_one_text_is_no_list_of_names(write, tmp_path, argument):
    with pytest.raises(UserError, match=rf"{argument}='ab' is a text. List the names of the columns: {argument}=\['ab'\]"):
        read_table(write(WIDE), **{argument: "ab"})
    with pytest.raises(UserError, match=f"{argument}='ab' is a text"):
        map_table(write(WIDE), tmp_path, **{argument: "ab"})


@pytest.mark.parametrize(
    "line", ["2023-01-01 00:00,1.2,2.7,0.3", "2023/01/01,1,1,1", "31.12.2023 23:00;1,2;2,7", "1,2023-01-01T00:00:00Z", "a,2023-01-01,-1e3"]
)
def test_a_file_without_a_header_says_so(write, line, fails):
    count = len(line.split(";" if ";" in line else ","))
    names = f"Put a line of names before it, one for each of its {count} columns."
    fails(write(f"{line}\n{line}\n"), "line 1 looks like data", names)


@pytest.mark.parametrize("header", ["date,1,2", "date,2020-01,2020-02", "date,2020.5,2020.6"])
def test_names_may_be_numbers_or_dates(write, header):
    assert read_table(write(WIDE.replace("date,a,b,note", header + ",note"))).targets == tuple(header.split(",")[1:])


def test_a_forgotten_item_id_is_named(write, fails):
    text = "when,v,shop\n" + "".join(f"{t},{i},{shop}\n" for shop in "ab" for i, t in enumerate(daily(6)))
    fails(write(text), "comes twice", "name the column that tells them apart: --item-id shop.")


def test_years_only_where_the_column_is_named(write):
    text = "year,a\n1990,1\n1991,2\n1992,4\n"
    assert read_table(write(text), timestamp="year").freq == "Y-DEC"
    with pytest.raises(UserError, match="no column holds dates"):
        read_table(write(text))


@pytest.mark.parametrize("parquet", [False, True])
def test_zones_become_utc_and_daylight_saving_vanishes(write, parquet):
    """Berlin, 25 October 2020: 02:00 comes twice on the wall, once in UTC."""
    stamps = pd.date_range("2020-10-24 22:00", periods=8, freq="h", tz="UTC").tz_convert("Europe/Berlin")
    if parquet:
        times = pl.Series(daily(8, datetime(2020, 10, 24, 22), timedelta(hours=1))).dt.replace_time_zone("UTC")
        path = write(pl.DataFrame({"date": times.dt.convert_time_zone("Europe/Berlin"), "a": range(8)}), "t.parquet")
    else:
        path = write(csv([stamp.isoformat() for stamp in stamps], range(8)))
    table = read_table(path)
    assert table.freq == "h"
    assert table.frame["timestamp"].to_list() == daily(8, datetime(2020, 10, 24, 22), timedelta(hours=1))
    z = write(csv([f"{t:%Y-%m-%dT%H:%M:%S}Z" for t in table.frame["timestamp"]], range(8)), "z.csv")
    assert read_table(z).frame["timestamp"].equals(table.frame["timestamp"])
    postgres = write(csv([f"{t:%Y-%m-%d %H:%M:%S}+00" for t in table.frame["timestamp"]], range(8)), "p.csv")
    assert read_table(postgres).frame["timestamp"].equals(table.frame["timestamp"])


def test_unsorted_rows_are_sorted(write):
    lines = WIDE.splitlines()
    assert_frame_equal(read_table(write("\n".join([lines[0], *reversed(lines[1:])]))).frame, read_table(write(WIDE)).frame)


@pytest.mark.parametrize(
    ("freq", "first", "step"),
    [("M", "2020-01-01", "MS"), ("M", "2020-01-31", "ME"), ("W", "2020-01-01", "W-WED"), ("D", "2020-01-01", "D")],
)
def test_given_frequency_takes_its_anchor_from_the_data(write, freq, first, step):
    stamps = pd.date_range(first, periods=2, freq=step)
    assert read_table(write(csv(stamps, [1, 2])), freq=freq).step == step


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32) | st.none(), min_size=3, max_size=30).filter(
        lambda values: any(value is not None for value in values)
    ),
    step=st.sampled_from([timedelta(minutes=10), timedelta(hours=1), timedelta(days=1)]),
)
def test_round_trip_of_any_values(tmp_path_factory, values, step):
    frame = pl.DataFrame({"date": daily(len(values), step=step), "a": values}, schema_overrides={"a": pl.Float64})
    folder = tmp_path_factory.mktemp("trip")
    frame.write_csv(folder / "t.csv")
    frame.write_parquet(folder / "t.parquet")
    for path in folder.iterdir():
        table = read_table(path, missing="mask")
        assert table.frame["a"].to_list() == values
        expected = np.array([[np.nan if value is None else value for value in values]], dtype=np.float32)
        np.testing.assert_array_equal(table.to_gluonts()[0]["target"], expected)


# ---- missing values and steps


GAPPY = csv([*daily(4), *daily(4, datetime(2020, 1, 7))], [1, 2, "", 4, 5, "NaN", 7, 8])


def test_mask_keeps_holes_as_holes(write):
    table = read_table(write(GAPPY), missing="mask")
    assert table.frame["a"].to_list() == [1, 2, None, 4, None, None, 5, None, 7, 8]
    np.testing.assert_array_equal(table.to_gluonts()[0]["target"], np.float32([[1, 2, np.nan, 4, np.nan, np.nan, 5, np.nan, 7, 8]]))


def test_gaps_do_not_hide_a_monthly_frequency(write):
    stamps = pd.date_range("2015-01-01", periods=40, freq="MS").delete([7, 19, 33])
    table = read_table(write(csv(stamps, range(37))), missing="mask")
    assert (table.step, table.frame.height, table.frame["a"].null_count()) == ("MS", 40, 3)


def test_missing_value_is_named(write, fails):
    fails(write(GAPPY), "'a'", "2 missing values", "line 4", "2020-01-03", "--missing mask")


def test_all_columns_with_missing_values_are_told_at_once(write, fails):
    text = csv([*daily(4), *daily(4, datetime(2020, 1, 7))], [1, "", 3, 4, 5, "NaN", 7, 8], range(8), [1, 2, 3, 4, "", 6, 7, 8])
    said = (
        "2 columns have missing values: 'a' 2, the first on line 3 (2020-01-02 00:00:00); 'c' 1, the first on line 6 (2020-01-07 00:00:00)."
        " 2 time steps of 'D' are missing, the first 2020-01-05 00:00:00 of 't', after line 5. Fill them in yourself, or pass "
        "--missing mask (in Python, missing='mask')"
    )
    fails(write(text), said, "--freq B")
    many = csv(daily(4), *[[1, "", 3, 4]] * 8)
    with pytest.raises(UserError, match=r"8 columns have missing values: 'a' 1, .*; 'e' 1, [^;]*; and 3 more columns\. Fill"):
        read_table(write(many))


def test_what_is_masked_is_told(write):
    table = read_table(write(csv([*daily(4), *daily(4, datetime(2020, 1, 6))], [1, "", 3, 4, 5, "NaN", 7, 8], range(8))), missing="mask")
    assert (table.masked, table.filled) == ({"a": 3, "b": 1}, 1)
    assert "3 of a, 1 of b" in table._repr_html_()
    whole = read_table(write(csv(daily(4), range(4))), missing="mask")
    assert whole.masked == {}
    wide = read_table(write(csv(daily(4), *[[1, "", 3, 4]] * 7)), missing="mask")
    assert masked_words(wide.masked) == "1 of a, 1 of b, 1 of c, 1 of d, 1 of e and 2 of 2 more columns"


def test_missing_step_is_named(write, fails):
    text = csv([*daily(3), *daily(6, datetime(2020, 1, 5))], range(9))
    fails(write(text), "A step of 'D' is missing: 2020-01-04", "after line 4", "--missing mask", "--freq B")


@pytest.mark.parametrize("first", ["0001-01-01", "0000-01-01", "1677-12-31", "2200-01-01", "9999-01-01"])
def test_times_that_pandas_cannot_hold_are_refused(write, first, fails):
    fails(write(f"date,a\n{first},1\n2020-01-02,2\n2020-01-03,3\n"), "line 2", first[:10], "1678 to 2199")


def test_parquet_that_ends_its_reader_is_refused():
    """Of 1,221 bytes, one bit of which asks polars for 2**61 of them."""
    path = Path(__file__).with_name("damaged.parquet")
    with pytest.raises(UserError, match=r"damaged.parquet: cannot be read as .parquet: its reader was ended \(memory.* it is damaged"):
        read_table(path)


def test_parquet_times_that_python_cannot_hold_are_refused(write, fails):
    days = pl.Series([-(10**9), 0, 1], dtype=pl.Int64).cast(pl.Int32).cast(pl.Date)
    fails(write(pl.DataFrame({"date": days, "a": [1, 2, 3]}), "t.parquet"), "row 1: '-1000000000' is no time")
    times = pl.Series([-(2**62), 0, 86_400_000_000]).cast(pl.Datetime("us"))
    fails(write(pl.DataFrame({"date": times, "a": [1, 2, 3]}), "t.parquet"), f"row 1: '{-(2**62)}' is outside the years 1678 to 2199")


def test_a_column_called_as_our_own_is_refused(write, fails):
    fails(write("__row__,a\n2020-01-01,1\n"), "__row__", "Rename it")


def test_a_path_that_no_system_holds(tmp_path, fails):
    fails(tmp_path / ("x" * 300 + ".csv"), "no usable path")


def test_mask_refuses_a_channel_without_values(write, fails):
    fails(write(csv(daily(3), [1, 2, 3], ["", "", ""])), "'b'", "no number", target=["b"], missing="mask")


# ---- what it refuses


@pytest.mark.parametrize(
    ("text", "parts", "options"),
    [
        pytest.param("", ["empty", "header"], {}, id="empty"),
        pytest.param("date,a\n", ["no rows below its header"], {}, id="header only"),
        pytest.param(WIDE.replace("30", "3o"), ["'b'", "line 4", "'3o'", "no number"], {}, id="text in a target"),
        pytest.param(WIDE, ["'note'", "line 2", "'x'"], {"target": ["note"]}, id="a text column as target"),
        pytest.param(WIDE.replace("30", "inf"), ["'b'", "line 4", "'inf'", "not finite"], {}, id="inf"),
        pytest.param(WIDE.replace("30", "1e39"), ["'b'", "line 4", "float32"], {}, id="beyond float32"),
        pytest.param(WIDE.replace("01-03", "13-03"), ["'date'", "line 4", "2020-13-03", "no time"], {}, id="bad time"),
        pytest.param(WIDE.replace("2020-01-03", ""), ["'date'", "line 4", "empty value"], {}, id="no time"),
        pytest.param(WIDE.replace("01-03", "01-02"), ["lines 3 and 4", "2020-01-02", "twice", "--item-id"], {}, id="twice"),
        pytest.param(WIDE.replace("01-03,", "01-03 07:00,"), ["line 4", "07:00", "regular grid"], {"freq": "D"}, id="grid"),
        pytest.param(WIDE, ["'bb'", "--target", "Did you mean 'b'?", "date, a, b, note"], {"target": ["bb"]}, id="target"),
        pytest.param(WIDE, ["'Date'", "--timestamp", "'date'"], {"timestamp": "Date"}, id="timestamp"),
        pytest.param(WIDE, ["'shop'", "--item-id"], {"item_id": "shop"}, id="item"),
        pytest.param(WIDE, ["each column has one role"], {"item_id": "a", "target": ["a"]}, id="two roles"),
        pytest.param(WIDE.replace("date,", "date,a,", 1), ["more fields|two columns"], {}, id="two columns of a name"),
        pytest.param("a,b\n1,2\n3,4\n", ["no column holds dates", "--timestamp", "a, b"], {}, id="no dates"),
        pytest.param("t,u,a\n2020-01-01,2020-01-01,2\n", ["t, u all hold dates", "--timestamp"], {}, id="two dates"),
        pytest.param("date,n\n2020-01-01,x\n2020-01-02,y\n", ["no column of numbers", "date, n"], {}, id="no numbers"),
        pytest.param("date,a\n2020-01-01,1,2\n", ["more fields than the header"], {}, id="ragged"),
        pytest.param(b"date,a\n2020-01-01,\xe9\n", ["UTF-8"], {}, id="latin1"),
        pytest.param("date,a\n2020-01-01,1\n2020-01-02,2\n", ["2 time steps", "--freq"], {}, id="two rows"),
        pytest.param(
            csv(["2020-01-01 00:00:00", "2020-01-01 00:00:01", "2024-01-01 00:00:00"], [1, 2, 3]),
            ["3 rows", "steps of 's'", "--freq"],
            {"freq": "s"},
            id="mostly gaps",
        ),
    ],
)
def test_refused(write, text, parts, options):
    with pytest.raises(UserError) as caught:
        read_table(write(text), **options)
    for part in ("t.csv", *parts):
        assert any(choice in str(caught.value) for choice in part.split("|")), str(caught.value)


@pytest.mark.parametrize(
    ("freq", "part"),
    [("fortnight", "no pandas frequency"), ("SMS", "not supported"), ("0D", "not supported"), ("-1D", "not supported")],
)
def test_refused_frequency(write, freq, part):
    with pytest.raises(UserError, match=part):
        read_table(write(WIDE), freq=freq)


def test_zoned_time_among_times_without_a_zone(write, fails):
    fails(write(WIDE.replace("01-03,", "01-03T00:00:00Z,")), "'date'", "line 4", "no time")


def test_refused_policy_for_missing(write):
    with pytest.raises(UserError, match="Use 'error' or 'mask'"):
        read_table(write(WIDE), missing="interpolate")


def test_refused_item(write, fails):
    fails(write("date,id,a\n2020-01-01,x,1\n2020-01-02,,1\n"), "'id'", "line 3", "no item", item_id="id")


def test_item_off_the_common_frequency(write, fails):
    text = "t,id,a\n" + "".join(f"{t},x,1\n" for t in daily(9)) + "".join(f"{t},y,1\n" for t in daily(5, step=timedelta(hours=12)))
    fails(write(text), "line 12", "12:00", "'y'", "regular grid", item_id="id")


def test_numeric_item_id_left_unnamed(write, fails):
    fails(write("date,item_id,a\n2020-01-01,1,1\n2020-01-02,1,2\n2020-01-03,1,3\n"), "'item_id'", "--item-id")


def test_refused_files(write, tmp_path, fails):
    fails(tmp_path / "none.csv", "no such file")
    fails(write(WIDE, "t.xlsx"), "unknown kind", ".parquet")
    fails(write("not parquet", "t.parquet"), "cannot be read as .parquet")
    fails(tmp_path, "is a folder")


@pytest.mark.parametrize(
    ("text", "encoding", "line", "byte"),
    [
        ("Tag,Stück\n2020-01-01,1\n", "latin1", 1, "fc"),
        ("date,shop,a\n2020-01-01,x,1\n2020-01-02,Gänse,1\n", "latin1", 3, "e4"),
        ("date,a\n2020-01-01,1\n", "utf-16", 1, "ff"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_no_utf8_says_how_it_becomes_so(write, fails, text, encoding, line, byte, packed):
    """The command that it says, run by a shell, gives a file that is read."""
    content = text.encode(encoding)
    path = write(gzip.compress(content) if packed else content)
    path = path.rename(path.with_suffix(".csv.gz")) if packed else path
    fails(path, f"line {line} is no UTF-8 (byte 0x{byte})", f"if it is {encoding}, by ")
    with pytest.raises(UserError) as caught:
        read_table(path)
    command = str(caught.value).rpartition(" by ")[2].replace("utf8.csv", f"'{path.parent}/utf8.csv'")
    subprocess.run(command, shell=True, check=True)
    assert (path.parent / "utf8.csv").read_text(encoding="utf-8") == text


def test_the_sign_for_what_is_no_letter_may_stand_in_a_name(write):
    assert read_table(write(WIDE.replace("a,b", "a\ufffd,b"))).targets == ("a\ufffd", "b")


def test_parquet_counts_rows(write, fails):
    frame = pl.DataFrame({"date": daily(3), "a": [1.0, float("inf"), 2.0]})
    fails(write(frame, "t.parquet"), "'a'", "row 2", "not finite")
    fails(write(frame.with_columns(a=pl.col("date")), "t.parquet"), "'a'", "not numbers", target=["a"], timestamp="date")


# ---- lengths, splits, examples


def test_check_length_states_what_is_needed(write):
    table = read_table(write(csv(daily(30), range(30))))
    check_length(table, 4, 10, 4)
    with pytest.raises(UserError, match=r"has 30 steps of D; 31 are needed: context 11 .* 4 held-out windows of 4"):
        check_length(table, 4, 11, 4)
    with pytest.raises(UserError, match=r"31 are needed: season 14 \+ 1 .*--season-length"):
        check_length(table, 4, 2, 4, season_length=14)


def test_check_length_wants_something_to_learn_from(write):
    values = [""] * 20 + list(range(10))
    table = read_table(write(csv(daily(30), values)), missing="mask")
    with pytest.raises(UserError, match="Column 'a' of series 't' has no value before the 10 held-out"):
        check_length(table, 5, 5, 2)


def test_split_holds_out_the_end(write):
    table = read_table(write(csv(daily(30), range(30), range(30))))
    training, test = split(table, prediction_length=4, windows=3)
    assert [entry["target"].shape for entry in training] == [(2, 18)]
    assert [(past["target"].shape[1], int(label["target"][0, 0])) for past, label in test] == [(18, 18), (22, 22), (26, 26)]
    assert [label["target"].shape for label in test.label] == [(2, 4)] * 3


@pytest.mark.parametrize(("windows", "distance"), [(8, None), (24, 1)])
def test_split_refuses_series_that_are_held_out_whole(write, windows, distance):
    table = read_table(write(csv(daily(27), range(27))))
    with pytest.raises(UserError, match=r"Series 't' has 27 steps; \d+ are needed"):
        split(table, 4, windows, distance)
    _, test = split(table, 4, windows - 2, distance)
    assert len(list(test)) == windows - 2


def test_example():
    table = load_example()
    assert table.targets == ("temp_max", "temp_min", "precipitation", "wind")
    assert (table.freq, table.frame.height, table.ignored) == ("D", 1461, {"weather": "text"})
    assert table.units["precipitation"] == "mm"
    with pytest.raises(UserError, match="seattle_weather"):
        load_example("paris")


@pytest.mark.skipif("TITANS_SEQ_DATA" not in os.environ, reason="TITANS_SEQ_DATA names no folder of data sets")
@pytest.mark.parametrize(
    ("name", "freq", "shape"),
    [
        ("ett/ETTh1.csv", "h", (7, 17420)),
        ("ett/ETTm2.parquet", "15min", (7, 69680)),
        ("exchange_rate/exchange_rate.csv", "D", (8, 7588)),
    ],
)
def test_public_data_sets(name, freq, shape):
    table = read_table(Path(os.environ["TITANS_SEQ_DATA"]) / "timeseries" / name)
    (entry,) = table.to_gluonts()
    assert (table.freq, entry["target"].shape) == (freq, shape)
    assert np.isfinite(entry["target"]).all()
