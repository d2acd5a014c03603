"""Columns beside the target: known up to now, known ahead, constant; long and wide; and the future at the end of a file."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from domains.timeseries.cli.report import print_table
from domains.timeseries.data import files, read_table, split
from titans_seq.errors import UserError

DAYS = [datetime(2020, 1, 1) + timedelta(days=i) for i in range(8)]


@pytest.fixture(autouse=True)
def whole_files(monkeypatch):
    monkeypatch.setattr(files, "_read_parquet", pl.read_parquet)  # without a process of its own for each


def sales(shops=("x",), known=6) -> pl.DataFrame:
    """Eight days of each shop, the last 8 - known of them without sales and visits."""
    rows = [
        {
            "day": day,
            "shop": shop,
            "region": "north" if shop == "x" else "south",
            "area": 10.0 * n,
            "price": 100.0 * n + i,
            "visits": 7.0 * i if i < known else None,
            "sales": float(n + i) if i < known else None,
        }
        for n, shop in enumerate(shops, 1)
        for i, day in enumerate(DAYS)
    ]
    return pl.DataFrame(rows)


LONG = {
    "item_id": "shop",
    "target": ["sales"],
    "past_features": ["visits"],
    "future_features": ["price"],
    "static_features": ["area", "region"],
}


def test_long_table_with_all_kinds_of_features(write):
    table = read_table(write(sales(("y", "x")), "t.parquet"), **LONG)
    x, y = table.to_gluonts(ahead=2)
    assert (x["item_id"], y["item_id"]) == ("x", "y")
    np.testing.assert_array_equal(y["target"], [[1, 2, 3, 4, 5, 6]])
    np.testing.assert_array_equal(y["past_feat_dynamic_real"], [7 * np.arange(6)])
    np.testing.assert_array_equal(y["feat_dynamic_real"], [100 + np.arange(8)])
    np.testing.assert_array_equal(y["feat_static_real"], [10])
    np.testing.assert_array_equal(x["feat_static_cat"], [0])
    np.testing.assert_array_equal(y["feat_static_cat"], [1])
    assert table.static.categories == {"region": ("north", "south")}
    assert all(x[name].dtype == np.float32 for name in ("target", "feat_dynamic_real", "past_feat_dynamic_real", "feat_static_real"))
    assert table.frame["timestamp"].max() == DAYS[5]
    assert table.ahead["timestamp"].unique().sort().to_list() == DAYS[6:]


def test_wide_table_in_csv_equals_parquet(write):
    frame = sales().drop("shop", "region", "area")
    options = {"target": ["sales"], "past_features": ["visits"], "future_features": ["price"]}
    (csv,) = read_table(write(frame.write_csv()), **options).to_gluonts(ahead=2)
    (parquet,) = read_table(write(frame, "t.parquet"), **options).to_gluonts(ahead=2)
    assert set(csv) == set(parquet) == {"item_id", "start", "target", "past_feat_dynamic_real", "feat_dynamic_real"}
    for name in ("target", "past_feat_dynamic_real", "feat_dynamic_real"):
        np.testing.assert_array_equal(csv[name], parquet[name])


def test_training_entries_know_nothing_ahead_and_windows_do(write):
    table = read_table(write(sales(known=8), "t.parquet"), **LONG)
    (entry,) = table.to_gluonts()
    assert entry["feat_dynamic_real"].shape == entry["target"].shape == (1, 8)
    training, test = split([entry], prediction_length=2, windows=2)
    assert [e["feat_dynamic_real"].shape[1] for e in training] == [4]
    assert [(e["target"].shape[1], e["feat_dynamic_real"].shape[1], e["past_feat_dynamic_real"].shape[1]) for e in test.input] == [
        (4, 6, 4),
        (6, 8, 6),
    ]


def test_too_little_known_ahead_says_how_much_is_missing(write):
    table = read_table(write(sales(), "t.parquet"), **LONG)
    with pytest.raises(UserError, match=r"'x': price must be known 3 steps of D beyond 2020-01-06 .* the file has 2\. Add rows"):
        table.to_gluonts(ahead=3)


def test_trailing_empty_targets_are_missing_where_nothing_is_known_ahead(write, fails):
    fails(write(sales(), "t.parquet"), "'sales' has 2 missing values", "row 7", target=["sales"], item_id="shop")


def test_an_empty_target_before_the_end_is_missing(write, fails):
    frame = sales().with_columns(sales=pl.when(pl.col("day") == DAYS[2]).then(None).otherwise("sales"))
    path = write(frame, "t.parquet")
    fails(path, "'sales' has 1 missing value, the first on", "row 3", **LONG)
    (entry,) = read_table(path, **LONG, missing="mask").to_gluonts()
    assert np.isnan(entry["target"]).sum() == 1


@pytest.mark.parametrize("column", ["price", "visits"])
def test_a_missing_feature_is_refused_or_kept_as_missing(write, fails, column):
    frame = sales().with_columns(pl.when(pl.col("day") == DAYS[3]).then(None).otherwise(column).alias(column))
    path = write(frame, "t.parquet")
    fails(path, f"'{column}' has 1 missing value, the first on", "row 4", "--missing mask", **LONG)
    (entry,) = read_table(path, **LONG, missing="mask").to_gluonts(ahead=2)
    field = {"price": "feat_dynamic_real", "visits": "past_feat_dynamic_real"}[column]
    assert np.flatnonzero(np.isnan(entry[field][0])).tolist() == [3]


def test_gaps_are_counted_and_null(write):
    frame = sales(("x", "y")).filter(~pl.col("day").is_in([DAYS[2], DAYS[3]]) | (pl.col("shop") == "x"))
    table = read_table(write(frame, "t.parquet"), **LONG, missing="mask")
    assert table.filled == 2
    gaps = table.frame.filter(pl.col("sales").is_null())
    assert gaps.select("item_id", "timestamp").rows() == [("y", DAYS[2]), ("y", DAYS[3])]
    assert gaps["price"].null_count() == gaps["visits"].null_count() == 2


def test_static_features_are_refused_where_they_vary_or_miss(write, fails):
    varies = sales().with_columns(region=pl.when(pl.col("day") == DAYS[4]).then(pl.lit("east")).otherwise("region"))
    fails(write(varies, "t.parquet"), "'region', row 5", "'east' differs from 'north'", "series 'x'", **LONG)
    misses = sales().with_columns(area=pl.when(pl.col("day") == DAYS[4]).then(None).otherwise("area"))
    fails(write(misses, "t.parquet"), "'area', row 5", "missing", **LONG, missing="mask")


def test_categories_keep_the_codes_of_training(write, fails):
    path = write(sales(("y",)), "t.parquet")
    (entry,) = read_table(path, **LONG, categories={"region": ("north", "south")}).to_gluonts()
    assert entry["feat_static_cat"].tolist() == [1]
    fails(path, "'region', row 1", "knows no 'south'", "It knows: north", categories={"region": ("north",)}, **LONG)


def test_numbers_that_were_categories_stay_categories(write):
    frame = sales(("x", "y")).with_columns(region=pl.when(pl.col("shop") == "x").then(pl.lit("1")).otherwise(pl.lit("2")))
    assert read_table(write(frame, "t.parquet"), **LONG).static.numbers == ("area", "region")
    table = read_table(write(frame, "t.parquet"), **LONG, categories={"region": ("1", "2", "b")})
    assert table.static.numbers == ("area",)
    assert [entry["feat_static_cat"].tolist() for entry in table.to_gluonts()] == [[0], [1]]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"past_features": ["visit"]}, ["'visit'", "--past-features", "Did you mean 'visits'?"]),
        ({"past_features": ["sales"]}, ["--past-features sales is also given as --target"]),
        ({"static_features": ["shop"]}, ["--static-features shop is also given as --item-id"]),
        ({"future_features": ["region"]}, ["'region'", "row 1", "'north'", "no number"]),
        ({"item_id": None, "static_features": ["area"]}, ["--item-id"]),
    ],
)
def test_misused_columns(write, fails, options, parts):
    fails(write(sales(known=8), "t.parquet"), *parts, **{"item_id": "shop", "target": ["sales"], **options})


def test_features_are_no_targets_by_default(write):
    frame = sales(known=8).drop("shop", "region", "area")
    assert read_table(write(frame, "t.parquet"), past_features=["visits"], future_features=["price"]).targets == ("sales",)


def test_a_series_without_any_target_has_no_future(write, fails):
    frame = sales(("x", "y")).with_columns(sales=pl.when(pl.col("shop") == "y").then(None).otherwise("sales"))
    fails(write(frame, "t.parquet"), "series 'y' has no value of sales", **LONG, missing="mask")


@pytest.mark.parametrize("parquet", [False, True])
def test_days_that_begin_at_midnight_on_the_wall_stay_days(write, parquet):
    """Berlin, 29 March 2020: midnight moves from 23:00 to 22:00 in UTC."""
    days = pl.Series([datetime(2020, 3, 27) + timedelta(days=i) for i in range(6)]).dt.replace_time_zone("Europe/Berlin")
    frame = pl.DataFrame({"date": days, "a": range(6)})
    path = write(frame, "t.parquet") if parquet else write(frame.write_csv(datetime_format="%Y-%m-%dT%H:%M:%S%:z"))
    table = read_table(path)
    assert table.step == "D"
    assert table.frame["timestamp"][0] == datetime(2020, 3, 27)


def test_days_of_winter_alone_stay_days_where_the_step_is_known(write):
    """As `predict` reads them: an hour east of UTC, midnight is 23:00 of the day before."""
    rows = "".join(f"2020-01-{d:02}T00:00:00+01:00,{d}\n" for d in range(1, 29))
    path = write(f"date,a\n{rows}")
    assert read_table(path, freq="D").frame["timestamp"][0] == datetime(2020, 1, 1)
    assert read_table(path, freq="h", missing="mask").frame["timestamp"][0] == datetime(2019, 12, 31, 23)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ({"future_features": ["promo"]}, "Features. Known ahead: promo.\n"),
        ({"past_features": ["visits"], "future_features": ["promo"]}, "Features. Known up to now: visits; known ahead: promo.\n"),
        ({}, ""),
    ],
)
def test_features_are_named_on_the_screen(
    write: Callable[..., Path], kinds: dict[str, list[str]], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    days = "".join(f"2023-01-{day:02},{day},1,0\n" for day in range(1, 10))
    print_table(read_table(write(f"day,sold,visits,promo\n{days}"), target=["sold"], **kinds))
    shown = capsys.readouterr().out
    assert said in shown
    assert ("Features" in shown) == bool(said)
