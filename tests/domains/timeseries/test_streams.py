"""Rows as they arrive: whole lines only, in any pieces, with the errors of a table; and forecasts that go on where they were."""

import os
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from domains.timeseries import online
from domains.timeseries.data import Roles
from domains.timeseries.data.stream import RowReader, follow
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.streams import BadRow, Streams
from titans_seq.errors import UserError

STEPS, HEADER = 60, "day,shop,sold,visits,price,region"
ROLES = Roles(
    timestamp="day", item_id="shop", target=("sold",), past_features=("visits",), future_features=("price",), static_features=("region",)
)
CATEGORIES = {"region": ("north", "south")}
START = datetime(2024, 1, 1)


def row(n: int, shop: str = "a", future: bool = False) -> str:
    sold, visits = ("", "") if future else (n % 7 + 0.5, n % 5)
    return f"{START + timedelta(days=n):%Y-%m-%d},{shop},{sold},{visits},{n % 3},{'north' if shop == 'a' else 'south'}"


def numbered(*rows: str, first: int = 2) -> list[tuple[int, str]]:
    return list(enumerate(rows, first))


def reader() -> RowReader:
    return RowReader(Path("live.csv"), HEADER, ROLES, "D", CATEGORIES)


@pytest.fixture(scope="module")
def predictor():
    rng = np.random.default_rng(0)
    features = {"feat_dynamic_real": rng.normal(size=(1, STEPS)), "past_feat_dynamic_real": rng.normal(size=(1, STEPS))}
    entry = {"start": pd.Period(START, "D"), "target": rng.normal(size=(1, STEPS)), "feat_static_cat": np.array([0]), **features}
    small = {"dim": 8, "num_layers": 1, "variant": "lmm", "memory": {"num_heads": 2, "expansion": 1}}
    sizes = {"prediction_length": 3, "context_length": 8, "batch_size": 4, "num_batches_per_epoch": 2, "max_epochs": 1, "num_channels": 1}
    features_of_model = {"num_feat_dynamic_real": 1, "num_past_feat_dynamic_real": 1, "cardinality": [2]}
    return TitansEstimator(freq="D", titans=small, progress=False, **sizes, **features_of_model).train([entry])


def test_a_growing_file_is_followed_by_whole_lines(tmp_path):
    path = tmp_path / "live.csv"
    path.write_text("\ufeffa,b\r\n1,2\r\n3,")

    def grow():
        for text in ("4\n", "5,6\n7,8\n", "9"):
            time.sleep(0.2)
            with path.open("a") as file:
                file.write(text)

    thread = threading.Thread(target=grow)
    thread.start()
    lines = [line for batch in follow(path, interval=0.02, idle=4) for line in batch]
    thread.join()
    assert lines == [(1, "a,b"), (2, "1,2"), (3, "3,4"), (4, "5,6"), (5, "7,8")], "what is not complete is not read"


def test_a_pipe_ends_when_it_is_closed(monkeypatch):
    out, into = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(out))
    os.write(into, b"a,b\n1,2\n3")
    os.close(into)
    assert list(follow(None)) == [[(1, "a,b"), (2, "1,2")], [(3, "3")]]
    sys.stdin.close()


def test_a_file_that_shrinks_or_is_no_text(tmp_path):
    path = tmp_path / "live.csv"
    path.write_text("a,b\n1,2\n")
    lines = follow(path, interval=0.01, idle=5.0)
    next(lines)
    path.write_text("a\n")
    with pytest.raises(UserError, match=r"live\.csv: became shorter"):
        next(lines)
    path.write_bytes(b"a,b\n1,\xe9\n")
    lines = follow(path)
    assert next(lines) == [(1, "a,b")]
    with pytest.raises(UserError, match=r"live\.csv: line 2: is no UTF-8"):
        next(lines)
    with pytest.raises(UserError, match="no such file"):
        next(follow(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="is a folder"):
        next(follow(tmp_path))


def test_a_named_pipe_is_read_until_it_is_closed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a,b\n1,2\n3",))
    writer.start()
    lines = [line for batch in follow(pipe) for line in batch]
    writer.join(timeout=10)
    assert lines == [(1, "a,b"), (2, "1,2"), (3, "3")]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("2024-01-02,a,many,1,1,north", ["column 'sold', line 9", "'many'", "no number"]),
        ("2024-13-02,a,1,1,1,north", ["column 'day', line 9", "no time"]),
        ("2024-01-02 07:00,a,1,1,1,north", ["line 9", "07:00", "regular grid"]),
        ("2024-01-02,a,inf,1,1,north", ["'sold', line 9", "not finite"]),
        ("2024-01-02,a,1,1,1,east", ["'region', line 9", "knows no 'east'"]),
        ("2024-01-02,,1,1,1,north", ["'shop', line 9", "no item"]),
        ("2024-01-02,a,1,1,1,north,7", ["lines 9 to 9", "more fields"]),
    ],
)
def test_errors_name_the_line(line, parts):
    made = reader()
    made.read(numbered(row(0)))
    with pytest.raises(UserError) as caught:
        made.read(numbered(line, first=9))
    for part in ("live.csv", *parts):
        assert part in str(caught.value)


def test_a_day_above_12_tells_the_order_of_the_dates_after_it():
    def line(day: datetime) -> str:
        return f"{day:%d.%m.%Y},a,1,1,1,north"

    made = reader()
    with pytest.raises(UserError, match="whether day or month comes first cannot be known"):
        made.read(numbered(line(datetime(2024, 2, 1))))
    days = [datetime(2024, 1, 31), datetime(2024, 2, 1), datetime(2024, 2, 2)]
    read = [made.read(numbered(line(day)))[0]["timestamp"].to_list() for day in days]
    assert read == [[day] for day in days]


def test_a_header_without_a_column():
    with pytest.raises(UserError, match=r"live\.csv: there is no column 'visits' \(that the model was trained on\)"):
        RowReader(Path("live.csv"), HEADER.replace("visits", "visit"), ROLES, "D", CATEGORIES)


def rows_of_two_shops() -> list[str]:
    past = [row(n, shop) for n in range(30) for shop in "ab" if n != 12]
    return past + [row(n, shop, future=True) for n in (30, 31, 32) for shop in "ab"]


def test_pieces_of_any_size_and_a_state_give_the_same_forecasts(predictor, tmp_path):
    rows = rows_of_two_shops()
    whole = Streams(predictor, reader())
    assert whole.observe(numbered(*rows)) == ["a", "b"]
    assert whole.counts("a") == {"steps": 30, "missing": 1, "late": 0, "read before": 0}
    assert whole.last("b") == START + timedelta(days=29)
    pieces = Streams(predictor, reader(), tmp_path / "states")
    for first in range(0, 40, 7):
        pieces.observe(numbered(*rows[first : min(first + 7, 40)], first=2 + first))
    resumed = Streams(predictor, reader(), tmp_path / "states")  # reads the file anew
    resumed.observe(numbered(*rows))
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["a.safetensors", "b.safetensors"]
    assert resumed.counts("a") == {"steps": 30, "missing": 1, "late": 0, "read before": 20}
    for item in "ab":
        forecast, again = whole.forecast(item), resumed.forecast(item)
        assert forecast.start_date == pd.Period(START + timedelta(days=30), "D")
        np.testing.assert_allclose(again.quantile(0.9), forecast.quantile(0.9), rtol=1e-4, atol=1e-5)
        assert whole.history(item)["target"].shape == (1, 9)
    assert whole.stamps("a", forecast.start_date, 2) == [START + timedelta(days=30), START + timedelta(days=31)]


def test_late_rows_are_in_no_history(predictor, tmp_path):
    """They are left out of what is read, whether they come with the others, after them, or are read from the file again."""
    rows = [row(n) for n in range(12)]
    expected = Streams(predictor, reader())
    expected.observe(numbered(*rows))
    late = [row(n).replace(f",{n % 7 + 0.5},", ",900.5,") for n in (5, 9, 11)]
    streams = Streams(predictor, reader(), tmp_path)
    streams.observe(numbered(*rows, late[0]))
    streams.observe(numbered(*late[1:], first=15))
    again = Streams(predictor, reader(), tmp_path)
    again.observe(numbered(*rows, *late))
    again.observe(numbered(late[2], first=17))
    for made in (streams, again):
        assert made.last("a") == START + timedelta(days=11)
        np.testing.assert_array_equal(made.history("a")["target"], expected.history("a")["target"])
    assert streams.counts("a") == {"steps": 12, "missing": 0, "late": 3, "read before": 0}
    assert again.counts("a") == {"steps": 12, "missing": 0, "late": 4, "read before": 15}, "three were late when the state was kept"


def test_a_history_of_what_is_known_of_the_future_alone(predictor, tmp_path):
    Streams(predictor, reader(), tmp_path).observe(numbered(*(row(n) for n in range(4))))
    resumed = Streams(predictor, reader(), tmp_path)
    resumed.observe(numbered(*(row(n, future=True) for n in range(4, 7))))
    assert resumed.forecast("a") is not None
    assert np.isnan(resumed.history("a")["target"]).all()


def test_no_forecast_without_values_or_without_what_is_known_ahead(predictor):
    streams = Streams(predictor, reader())
    streams.observe(numbered(row(0)))
    assert streams.forecast("a") is None
    streams.observe(numbered(row(1, future=True), row(2, future=True)))
    assert streams.forecast("a") is None
    streams.observe(numbered(row(3, future=True)))
    first = streams.forecast("a")
    streams.observe(numbered(row(1)))  # what was the future comes true: one more step has to be known
    assert streams.forecast("a") is None
    streams.observe(numbered(row(4, future=True)))
    assert streams.forecast("a").start_date == first.start_date + 1


def test_a_gap_that_must_be_a_mistake_names_the_line(predictor, monkeypatch):
    monkeypatch.setattr(online, "LONGEST_GAP", 50)
    streams = Streams(predictor, reader())
    streams.observe(numbered(row(0)))
    with pytest.raises(UserError, match=r"live\.csv: series 'a', line 3: .* leaves a gap of"):
        streams.observe([(3, row(60))])


@pytest.mark.parametrize(
    "bad", [row(60), "2024-02-30,a,1,1,1,north", "2024-01-20,a,many,1,1,north", "2024-01-20,a,1,1"], ids=["gap", "time", "number", "fields"]
)
def test_what_comes_before_a_bad_row_is_read_and_kept(predictor, tmp_path, monkeypatch, bad):
    """As if the rows before it had come alone: the same forecast, from the state on the disk as well."""
    monkeypatch.setattr(online, "LONGEST_GAP", 20)
    rows = [row(n, shop) for n in range(10) for shop in "ab"]
    expected = Streams(predictor, reader())
    expected.observe(numbered(*rows))
    streams = Streams(predictor, reader(), tmp_path)
    with pytest.raises(BadRow, match="22") as caught:
        streams.observe(numbered(*rows, bad, row(70)))
    assert caught.value.items == ["a", "b"]
    assert streams.counts("a") == {"steps": 10, "missing": 0, "late": 0, "read before": 0}
    again = Streams(predictor, reader(), tmp_path)
    for streams_after in (streams, again):
        streams_after.observe(numbered(*(row(n, shop, future=True) for n in (10, 11, 12) for shop in "ab"), first=23))
        assert streams_after.counts("b")["steps"] == 10
    expected.observe(numbered(*(row(n, shop, future=True) for n in (10, 11, 12) for shop in "ab")))
    for item in "ab":
        for made in (streams.forecast(item), again.forecast(item)):
            np.testing.assert_allclose(made.quantile(0.9), expected.forecast(item).quantile(0.9), rtol=1e-4, atol=1e-5)
