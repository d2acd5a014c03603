import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from gluonts.model.forecast import SampleForecast
from matplotlib.image import imread

from domains.timeseries.data import load_example, split
from domains.timeseries.metrics import seasonal_naive
from domains.timeseries.plots import MAX_PANELS, plot_forecast


@pytest.fixture(scope="module")
def window():
    _, test = split(load_example(), 14, 1)
    ((past, label),) = test
    return past, label


def test_writes_a_png_with_all_parts(window, tmp_path):
    past, label = window
    table = load_example()
    path = tmp_path / "forecast.png"
    figure = plot_forecast(
        [past],
        seasonal_naive([past], 14, 365),
        table.targets,
        path,
        actuals=[label],
        baseline=seasonal_naive([past], 14, 7),
        units=table.units,
    )
    height, width = imread(path).shape[:2]
    assert width == 1500
    assert height > 800
    assert [ax.get_ylabel() for ax in figure.axes] == [f"{name}\n({unit})" for name, unit in table.units.items()]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["history", "80 % interval", "50 % interval", "median forecast", "seasonal naive", "came true"]
    assert figure.get_suptitle() == "seattle_weather: 14 steps ahead, 2015-12-18 to 2015-12-31"


def test_draws_the_numbers_it_is_given(window):
    past, label = window
    (forecast,) = seasonal_naive([past], 14, 7)
    figure = plot_forecast([past], [forecast], load_example().targets, actuals=[label])
    lines = {line.get_label(): line for line in figure.axes[2].lines}
    np.testing.assert_array_equal(lines["history"].get_ydata(), past["target"][2, -42:])
    np.testing.assert_array_equal(lines["median forecast"].get_ydata(), forecast.median[:, 2])
    np.testing.assert_array_equal(lines["came true"].get_ydata(), label["target"][2])
    dates = np.asarray(lines["came true"].get_xdata())
    np.testing.assert_array_equal(dates, pd.date_range("2015-12-18", periods=14).to_numpy())


@pytest.mark.parametrize(
    ("items", "channels", "panels", "left_out"),
    [(1, 11, MAX_PANELS, "first 8 of 11 channels"), (9, 2, 8, "first 4 of 9 series"), (2, 3, 6, None)],
)
def test_says_what_is_left_out(items, channels, panels, left_out):
    start = pd.Period("2020-01-01", "h")
    history = [{"item_id": f"i{i}", "start": start, "target": np.ones((channels, 30))} for i in range(items)]
    figure = plot_forecast(history, seasonal_naive(history, 5, 3), [f"c{i}" for i in range(channels)])
    assert len(figure.axes) == panels
    assert ("first" in figure.get_suptitle()) == (left_out is not None)
    assert left_out is None or left_out in figure.get_suptitle()


@pytest.mark.parametrize(("freq", "said"), [("h", "2024-Apr"), ("min", "2024-Apr-02"), ("M", "")])
def test_the_lowest_axis_says_the_month_or_day_that_its_ticks_do_not(freq, said):
    start = pd.Period("2024-04-02 05:00", freq)
    history = {"item_id": "a", "start": start, "target": np.random.default_rng(0).normal(size=(2, 90))}
    figure = plot_forecast([history], seasonal_naive([history], 30, 3), ["a", "b"])
    figure.draw_without_rendering()
    shown = [ax.xaxis.get_offset_text() for ax in figure.axes]
    assert [text.get_text() for text in shown if text.get_visible()] == [said]


def test_univariate_samples_short_history_and_holes():
    history = {"start": pd.Period("2020-01", "M"), "target": np.array([1, np.nan, 3], np.float32)}
    forecast = SampleForecast(np.random.default_rng(0).normal(size=(50, 6)), pd.Period("2020-04", "M"))
    figure = plot_forecast([history], [forecast], ["sales"])
    assert figure.get_suptitle() == "6 steps ahead, 2020-04 to 2020-09"
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "history")
    assert line.get_markevery() == [0, 2]  # values between gaps, which a line does not show


def test_leaves_pyplot_alone():
    code = "import sys, domains.timeseries.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
