"""What the memory found surprising, and what a forecast owes to it: by the real layers, for every variant."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.explain import BEFORE, FEWEST, memory_effect, surprise
from domains.timeseries.metrics import forecast_table
from domains.timeseries.plots import plot_memory_effect, plot_surprise
from domains.timeseries.predictor import TitansPredictor, make_predictor
from domains.timeseries.presets import debug
from domains.timeseries.training import ForecasterModule
from domains.timeseries.windows import calendar
from titans_seq.memory import NeuralMemory

START = pd.Period("2024-01-31", freq="D")


def untrained(variant: Any = "mag") -> TitansPredictor:
    """Two channels, patches of 4 days; weights as they were drawn, but steps of the memory large enough to matter."""
    features = calendar(np.zeros(1, np.int64), "D").shape[-1]
    module = ForecasterModule(replace(debug(variant), num_time_features=features).to_dict())
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1 and "first_state" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if name.endswith("momentum_and_step.bias"):
            parameter.data.fill_(4.0)
    return make_predictor(module.eval(), univariate=False, batch_size=4)


def entry(steps: int = 50) -> dict[str, Any]:
    return {"item_id": "a", "start": START, "target": np.random.default_rng(0).normal(size=(steps, 2)).T}


@pytest.mark.parametrize("variant", ["lmm", "mac", "mag", "mal"])
def test_each_step_that_was_read_has_a_surprise_of_each_head_of_each_block(variant: str) -> None:
    predictor = untrained(variant)
    c = predictor.model.config
    made = surprise(predictor, entry(50), ["x", "y"])
    blocks, heads, patches = c.titans.num_layers, c.titans.memory.num_heads, 50 // 4
    assert made.height == 2 * patches * 4 * blocks * heads
    assert made.select("channel", "timestamp", "block", "head").is_unique().all()
    stamps = made["timestamp"].unique().sort().to_list()
    assert [str(stamp.date()) for stamp in (stamps[0], stamps[1], stamps[-1])] == ["2024-01-31", "2024-02-01", "2024-03-18"]
    by_patch = made.group_by("channel", "patch", "block", "head").agg(pl.col("surprise").n_unique(), pl.len())
    assert (by_patch["surprise"] == 1).all()
    assert (by_patch["len"] == 4).all()
    assert (made["surprise"] > 0).all()
    first = surprise(predictor, entry(24), ["x", "y"])  # what comes later does not change what was surprising
    expected = made.filter(pl.col("patch") < 6)
    assert_frame_equal(first, expected, rel_tol=1e-3)


def test_relative_is_over_the_median_of_the_patches_before() -> None:
    predictor = untrained()
    made = surprise(predictor, entry(4 * (BEFORE + 10)))
    one = made.filter(channel="channel_1", block=1, head=0).unique("patch").sort("patch")
    raw = one["surprise"].to_numpy()
    assert one["relative"][:FEWEST].null_count() == FEWEST
    for n in (FEWEST, 20, BEFORE, BEFORE + 9):
        np.testing.assert_allclose(one["relative"][n], raw[n] / np.median(raw[max(0, n - BEFORE) : n]))


def test_an_event_surprises_more_than_what_is_regular() -> None:
    """A level shift in an otherwise regular series, after training on others like it."""
    x = 10 + 3 * np.sin(2 * np.pi * np.arange(640) / 24) + 0.2 * np.random.default_rng(0).normal(size=640)
    start = pd.Period("2024-01-01 00:00", freq="h")
    estimator = TitansEstimator(8, "h", context_length=48, patch_length=8, max_epochs=30, num_batches_per_epoch=20, progress=False)
    predictor = estimator.train([{"start": start, "target": x[:400]}])
    x[560:576] += 12
    made = surprise(predictor, {"start": start, "target": x})
    patches = made.filter(pl.col("patch") >= 32).group_by("patch").agg(pl.col("relative").mean())
    event = pl.col("patch").is_in([560 // 8, 560 // 8 + 1, 560 // 8 + 2])
    of_event, of_others = (patches.filter(which)["relative"] for which in (event, ~event))
    assert of_event.mean() > of_others.quantile(0.9)


@pytest.mark.parametrize("variant", ["lmm", "mac", "mag", "mal"])
def test_memory_off_is_a_memory_without_steps_and_without_forgetting(variant: str) -> None:
    """Against the same model with the biases of its gates set so low that theta and alpha are zero."""
    predictor = untrained(variant)
    before = forecast_table(predictor.predict([entry()]), ["x", "y"])
    effect = memory_effect(predictor, iter([entry()]), ["x", "y"])
    on, off = (effect.filter(memory=name).drop("memory") for name in ("on", "off"))
    assert_frame_equal(on, before)
    assert_frame_equal(forecast_table(predictor.predict([entry()]), ["x", "y"]), before)
    for memory in predictor.model.modules():
        if isinstance(memory, NeuralMemory):
            memory.momentum_and_step.bias.data.view(memory.config.depth, 2, memory.heads)[:, 1] = -1e9
            assert isinstance(memory.forgetting, torch.nn.Linear)
            memory.forgetting.bias.data.fill_(-1e9)
    assert_frame_equal(forecast_table(predictor.predict([entry()]), ["x", "y"]), off, rel_tol=1e-4, abs_tol=1e-5)
    assert not np.allclose(on["q0.5"], off["q0.5"], rtol=1e-3)


def test_what_cannot_be_explained_is_said() -> None:
    predictor = untrained()
    with pytest.raises(ValueError, match="item 'a': has 3 steps, the model reads patches of 4"):
        surprise(predictor, entry(3))
    with pytest.raises(ValueError, match="3 channel names for 2 channels"):
        surprise(predictor, entry(), ["x", "y", "z"])
    with pytest.raises(ValueError, match="its target has 5 channels"):
        surprise(predictor, {**entry(), "target": np.zeros((5, 50))})


def test_the_plots_show_the_numbers_they_are_given() -> None:
    predictor = untrained()
    one = entry()
    table = surprise(predictor, one, ["x", "y"])
    figure = plot_surprise(one, table)
    assert [ax.get_ylabel() for ax in figure.axes] == ["x", "surprise", "y", "surprise"]
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), one["target"][1])
    relative = table.filter(channel="x").group_by("patch", maintain_order=True).agg(pl.col("relative").mean())["relative"]
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), relative.fill_null(np.nan).to_numpy())

    entries = [one, {**entry(40), "item_id": "b"}]
    effect = memory_effect(predictor, entries, ["x", "y"])
    figure = plot_memory_effect(entries, effect)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "a", "b", "b"]
    lines = {line.get_label(): line for line in figure.axes[3].lines}
    for memory in ("on", "off"):
        expected = effect.filter(memory=memory, item_id="b", channel="y")["q0.5"]
        np.testing.assert_array_equal(lines[f"memory {memory}"].get_ydata(), expected)
