"""Monash .tsf files: as GluonTS's own reader has them, and errors with their line."""

from datetime import datetime

import numpy as np
import pytest
from gluonts.dataset.repository._tsf_reader import TSFReader

from domains.timeseries.data import read_table

FILE = """\
# a comment
@relation Shops
@attribute series_name string
@attribute region string
@attribute start_timestamp date
@frequency monthly
@horizon 3
@missing true
@equallength false
@data
T1:north:2020-01-01 00-00-00:1,2.5,?,4
T2:south:2020-03-01 00-00-00:5,6,7
"""


def test_header_and_series(write):
    table = read_table(write(FILE, "t.tsf"), missing="mask", static_features=["region"])
    assert (table.step, table.freq, table.horizon, table.targets) == ("MS", "M", 3, ("value",))
    first, second = table.to_gluonts()
    np.testing.assert_array_equal(first["target"], np.float32([[1, 2.5, np.nan, 4]]))
    assert (first["item_id"], str(second["start"]), second["feat_static_cat"].tolist()) == ("T1", "2020-03", [1])
    assert table.stamps("T2", second["start"] + 3, 1) == [datetime(2020, 6, 1)]
    assert read_table(write(FILE, "t.tsf"), missing="mask").ignored == {"region": "not named in --static-features"}


@pytest.mark.parametrize(
    "name",
    ["electricity_weekly", "traffic_weekly", "tourism_monthly", "tourism_yearly", "m3_monthly", "fred_md", "solar_weekly", "saugeenday"],
)
def test_real_files_are_read_as_gluonts_reads_them(data_folder, name):
    path = data_folder / "timeseries" / "monash" / f"{name}_dataset.tsf"
    table = read_table(path)
    meta, series = TSFReader(path).read()
    entries = {entry["item_id"]: entry for entry in table.to_gluonts()}
    assert len(entries) == len(series)
    assert table.horizon == (int(meta.forecast_horizon) if hasattr(meta, "forecast_horizon") else None)
    for one in series:
        entry = entries[one["series_name"]]
        np.testing.assert_array_equal(entry["target"][0], one["target"].astype(np.float32))
        assert table.stamps(one["series_name"], entry["start"], 1) == [one["start_timestamp"]]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("5,6,7", "5,six,7", ["line 12", "'six'", "no number"]),
        ("@data", "data", ["line 10", "'data'", "before @data"]),
        ("@data\n", "", ["line 10", "before @data"]),
        ("@data\n", "@\n@data\n", ["line 10", "nothing after its @"]),
        ("T2:south:", "T2:", ["line 12", "3 fields", "make 4"]),
        ("T2:", "T1:", ["lines 11 and 12", "'T1'"]),
        ("2020-03-01 00", "2020-13-01 00", ["line 12", "'2020-13-01 00-00-00'", "no time"]),
        ("2020-03-01", "2020-03-02", ["line 12", "grid", "'MS'"]),
        ("monthly", "now_and_then", ["@frequency now_and_then", "10_minutes"]),
        ("@frequency monthly\n", "", ["no @frequency"]),
        ("@horizon 3", "@horizon soon", ["@horizon soon"]),
        ("equallength false", "equallength true", ["line 12", "3 values", "4", "@equallength"]),
        ("string\n@attribute region string", "string\n@attribute region", ["line 4", "NAME KIND"]),
        ("5,6,7", "?,?,?", ["line 12", "'T2'", "no number at all"]),
    ],
)
def test_errors_name_the_line(write, fails, old, new, parts):
    assert old in FILE
    fails(write(FILE.replace(old, new, 1), "t.tsf"), *parts, missing="mask")


def test_missing_values_and_foreign_options(write, fails):
    fails(write(FILE, "t.tsf"), "line 11", "'T1' has 1 missing value.", "@missing says so", "--missing mask")
    fails(write(FILE.replace("5,6", "?,?"), "t.tsf"), "line 11", "'T1' has 1 missing value; 2 series of 2 have such, 3 in all.")
    fails(write(FILE, "t.tsf"), "names its own", target=["value"])
    fails(write(FILE, "t.tsf"), "Did you mean 'region'?", static_features=["regions"], missing="mask")
    fails(write(FILE[: FILE.index("T1")], "t.tsf"), "line 10", "no series after @data")


@pytest.mark.parametrize(
    ("words", "step"), [("half_hourly", "30min"), ("10_minutes", "10min"), ("4_seconds", "4s"), ("quarterly", "QS-JAN"), ("daily", "D")]
)
def test_frequencies(write, words, step):
    text = FILE.replace("monthly", words).replace("?", "3").replace("2020-03-01", "2020-01-01")
    assert read_table(write(text, "t.tsf")).step == step


def test_series_without_start_begin_alike(write):
    text = FILE.replace("@attribute start_timestamp date\n", "").replace(":2020-01-01 00-00-00", "").replace(":2020-03-01 00-00-00", "")
    first, second = read_table(write(text, "t.tsf"), missing="mask").to_gluonts()
    assert str(first["start"]) == str(second["start"]) == "1900-01"
