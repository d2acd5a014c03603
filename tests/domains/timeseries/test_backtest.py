"""Scores by window and by steps ahead add up to those of all, and a backtest looks at nothing that it could not have known."""

import numpy as np
import polars as pl
import pytest

from domains.timeseries.backtest import backtest, score
from domains.timeseries.data import load_example, split
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.metrics import (
    METRICS,
    evaluate,
    evaluate_by_horizon,
    evaluate_by_window,
    forecast_table,
    interval_coverage,
    seasonal_naive,
)
from domains.timeseries.plots import plot_coverage, plot_errors_by_horizon

CHANNELS = tuple(load_example().targets)


@pytest.fixture(scope="module")
def naive():
    """Two series, three windows of five steps each, and the seasonal naive's forecasts."""
    (entry,) = load_example().to_gluonts()
    other = {**entry, "item_id": "later", "target": entry["target"][:, 400:], "start": entry["start"] + 400}
    _, test = split([entry, other], 5, 3)
    return seasonal_naive(test.input, 5, 7), test


def test_by_window_and_by_horizon_add_up(naive):
    forecasts, test = naive
    whole = evaluate(forecasts, test, 7, CHANNELS)
    by_window, by_horizon = evaluate_by_window(forecasts, test, 7, CHANNELS), evaluate_by_horizon(forecasts, test, 7, CHANNELS)
    assert by_window["window"].unique(maintain_order=True).to_list() == [1, 2, 3]
    assert by_horizon["horizon"].unique(maintain_order=True).to_list() == [1, 2, 3, 4, 5]
    for parts, count in ((by_window, 3), (by_horizon, 5)):
        assert parts["channel"].unique(maintain_order=True).to_list() == [*CHANNELS, "mean"]
        means = parts.group_by("channel", maintain_order=True).agg(pl.col("MAE", "MASE", "coverage_80").mean(), pl.len())
        assert means["len"].unique().to_list() == [count]
        for metric in ("MAE", "MASE", "coverage_80"):
            np.testing.assert_allclose(means[metric], whole[metric], rtol=1e-5)
        squares = (
            parts.filter(pl.col("channel") != "mean").group_by("channel", maintain_order=True).agg((pl.col("RMSE") ** 2).mean().sqrt())
        )
        np.testing.assert_allclose(squares["RMSE"], whole["RMSE"][:-1], rtol=1e-5)


def test_scores_of_a_step_are_those_of_that_step(naive):
    forecasts, test = naive
    third = evaluate_by_horizon(forecasts, test, 7, CHANNELS).filter(pl.col("horizon") == 3, pl.col("channel") == "wind")
    errors = [abs(f.quantile(0.5)[2, 3] - label["target"][3, 2]) for f, label in zip(forecasts, test.label, strict=True)]
    assert third["MAE"].item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_coverage_of_the_80_percent_interval_is_that_of_the_scores(naive):
    forecasts, test = naive
    coverage = interval_coverage(forecasts, test, CHANNELS)
    assert coverage["nominal"].unique().sort().to_list() == [0.2, 0.4, 0.6, 0.8]
    outer = coverage.filter(pl.col("nominal") == 0.8)
    assert outer["channel"].to_list() == [*CHANNELS, "mean"]
    np.testing.assert_allclose(outer["coverage"], evaluate(forecasts, test, 7, CHANNELS)["coverage_80"])
    widths = coverage.group_by("channel", maintain_order=True).agg(pl.col("coverage").is_sorted())
    assert widths["coverage"].all()  # a wider interval holds no less


def test_forecasts_beside_what_came_true(naive):
    forecasts, test = naive
    rows = forecast_table(forecasts, CHANNELS, actuals=test.label)
    assert rows.height == 2 * 3 * 5 * 4
    assert rows.filter(pl.col("item_id") == "later")["start"].n_unique() == 3
    last = rows.filter(pl.col("item_id") == "later", pl.col("channel") == "temp_min").tail(5)
    np.testing.assert_allclose(last["actual"], load_example().frame["temp_min"].tail(5), rtol=1e-5)


def estimator(**settings):
    small = {"dim": 8, "num_layers": 1, "variant": "lmm", "memory": {"num_heads": 2, "expansion": 1}}
    sizes = {"prediction_length": 5, "freq": "D", "num_channels": 4, "context_length": 10, "batch_size": 4, "num_batches_per_epoch": 2}
    return TitansEstimator(**sizes, titans=small, max_epochs=1, progress=False, **settings)


@pytest.mark.parametrize("refit", ["no", "yes", "warm"])
def test_no_window_depends_on_its_future(refit):
    """The last window's truth may be anything: no forecast changes. What lies before a window may change it."""
    (entry,) = load_example().to_gluonts()
    entry = {**entry, "target": entry["target"][:, -200:]}
    changed = {**entry, "target": entry["target"].copy()}
    changed["target"][:, -5:] += 100
    settings = {"windows": 3, "distance": 2, "season_length": 7, "channel_names": CHANNELS, "refit": refit}
    begun: list[int] = []
    made, other = (backtest([one], estimator(), on_window=begun.append, **settings) for one in (entry, changed))
    assert begun == ([] if refit == "no" else [1, 2, 3, 1, 2, 3])
    assert [str(f.start_date - entry["start"]) for f in made.forecasts] == [f"<{n} * Days>" for n in (191, 193, 195)]
    for one, two in zip(made.forecasts, other.forecasts, strict=True):
        np.testing.assert_array_equal(one.quantile(0.9), two.quantile(0.9))
    assert not made.scores.by_channel.equals(other.scores.by_channel)
    assert made.last_window(made.test.input)[0]["target"].shape == (4, 195)


def test_plots_draw_the_scores(naive, tmp_path):
    forecasts, test = naive
    scores = score(forecasts, forecasts, test, 7, CHANNELS)
    assert [scores.by_channel.columns, scores.by_window.columns[:2]] == [["forecaster", "channel", *METRICS], ["forecaster", "window"]]
    figure = plot_errors_by_horizon(scores.by_horizon, tmp_path / "errors.png", {"wind": "m/s"})
    assert [ax.get_ylabel() for ax in figure.axes] == ["temp_max", "temp_min", "precipitation", "wind\n(m/s)"]
    wind = scores.by_horizon.filter(pl.col("channel") == "wind", pl.col("forecaster") == "titans")["MAE"]
    line = figure.axes[3].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), wind)
    np.testing.assert_array_equal(line.get_xdata(), range(1, 6))
    figure = plot_coverage(scores.coverage, scores.by_horizon, tmp_path / "coverage.png")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    mean = scores.coverage.filter(pl.col("channel") == "mean", pl.col("forecaster") == "titans")
    np.testing.assert_array_equal(lines["Titans"].get_ydata(), mean["coverage"])
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("errors.png", "coverage.png"))
