"""The forecaster as a GluonTS estimator: what must hold for any model, and what a trained one must reach."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import polars
import pytest
import torch
from gluonts.dataset.common import ListDataset
from gluonts.dataset.pandas import PandasDataset
from gluonts.dataset.split import split as gluonts_split
from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
from gluonts.model.evaluation import evaluate_model
from gluonts.model.predictor import Predictor
from gluonts.torch.distributions import NormalOutput, PoissonOutput, StudentTOutput
from torch.utils.data import DataLoader

from domains.timeseries.conformal import CalibratingEstimator
from domains.timeseries.data import load_example, split
from domains.timeseries.estimator import QUANTILES, TitansEstimator
from domains.timeseries.metrics import evaluate, seasonal_naive
from domains.timeseries.start import hold_out
from domains.timeseries.windows import RandomWindows, Series
from titans_seq import AttentionConfig, MemoryConfig, TitansConfig

SMALL = TitansConfig(
    dim=16,
    num_layers=1,
    variant="mag",
    memory=MemoryConfig(num_heads=2, expansion=2),
    attention=AttentionConfig(num_heads=2, sliding_window=8),
).to_dict()


def entries(*targets: Any, freq: str = "D") -> list[dict[str, Any]]:
    start = pd.Period("2020-01-01", freq=freq)
    return [{"item_id": f"s{i}", "start": start, "target": np.asarray(t, dtype=np.float32)} for i, t in enumerate(targets)]


def small_estimator(**settings: Any) -> TitansEstimator:
    defaults = {"prediction_length": 7, "freq": "D", "context_length": 28, "titans": SMALL, "progress": False}
    quick = {"max_epochs": 1, "num_batches_per_epoch": 4, "batch_size": 8}
    return TitansEstimator(**{**defaults, **quick, **settings})


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("variant", ["lmm", "mac", "mag", "mal"])
def test_multivariate_forecasts_have_the_right_place_and_shape(variant: str) -> None:
    data = entries(noise(3, 100), noise(3, 80, seed=1))
    predictor = small_estimator(num_channels=3, titans={**SMALL, "variant": variant}).train(data)
    forecasts = list(predictor.predict(data))
    assert [f.item_id for f in forecasts] == ["s0", "s1"]
    for forecast, entry in zip(forecasts, data, strict=True):
        assert forecast.start_date == entry["start"] + entry["target"].shape[1]
        assert forecast.quantile(0.5).shape == (7, 3)
        assert np.isfinite(forecast.quantile(0.1)).all()


@pytest.mark.parametrize("output", [None, NormalOutput(), StudentTOutput()], ids=["quantiles", "normal", "student-t"])
def test_univariate_targets_and_gluonts_outputs(output: Any) -> None:
    data = ListDataset([{"start": "2020-01-01", "target": noise(90)}], freq="D")
    predictor = small_estimator(distr_output=output).train(data)
    (forecast,) = predictor.predict(data)
    low, middle, high = (forecast.quantile(level) for level in (0.1, 0.5, 0.9))
    assert middle.shape == (7,)
    assert np.isfinite(middle).all()
    if output is not None:
        assert (low < middle).all()
        assert (middle < high).all()


def test_works_with_gluonts_evaluate_model() -> None:
    """The pieces that GluonTS users put together: split, generate_instances, evaluate_model, on univariate series."""
    data = entries(noise(120), noise(120, seed=1))
    training, template = gluonts_split(data, offset=-21)
    test = template.generate_instances(prediction_length=7, windows=3)
    predictor = small_estimator().train(list(training))
    scores = evaluate_model(predictor, test_data=test, metrics=[MASE(), MeanWeightedSumQuantileLoss(QUANTILES)])
    assert np.isfinite(scores.to_numpy()).all()


def test_a_predictor_survives_the_disk(tmp_path: Path) -> None:
    data = entries(noise(2, 90))
    predictor = small_estimator(num_channels=2).train(data)
    predictor.serialize(tmp_path)
    loaded = Predictor.deserialize(tmp_path)
    (before,), (after,) = predictor.predict(data), loaded.predict(data)
    assert np.array_equal(before.forecast_array, after.forecast_array)


def test_hyperparameters_and_inputs_make_the_estimator_that_its_arguments_make() -> None:
    plain = {"prediction_length": 7, "context_length": 28, "titans": SMALL}
    made = TitansEstimator.from_hyperparameters(**plain, freq="D", num_channels=2, lr="0.01")  # as a service passes them on: as text
    assert (made.config, made.lr) == (TitansEstimator(**plain, freq="D", num_channels=2).config, 0.01)
    data = entries(noise(2, 60), noise(2, 50))
    for n, entry in enumerate(data):
        entry |= {"feat_dynamic_real": noise(3, 67), "past_feat_dynamic_real": noise(1, 60), "feat_static_real": noise(2)}
        entry["feat_static_cat"] = np.array([n, 2 - n])
    found = TitansEstimator.from_inputs(data, **plain)
    features = {"num_feat_dynamic_real": 3, "num_past_feat_dynamic_real": 1, "num_feat_static_real": 2, "cardinality": [2, 3]}
    assert found.config == TitansEstimator(**plain, freq="D", num_channels=2, **features).config
    assert TitansEstimator.from_inputs(entries(noise(60)), **plain).config == TitansEstimator(**plain, freq="D").config


def test_training_goes_on_from_a_predictor() -> None:
    """Without steps to speak of it is the same forecaster; units are those it was trained in; with steps it is another."""
    data, other = entries(noise(2, 90)), entries(3 + noise(2, 90, seed=1))
    settings = {"num_channels": 2, "validation_windows": 0}
    first = small_estimator(**settings).train(data)
    (before,) = first.predict(other)
    arrays = []
    for lr in (1e-12, 1e-2):
        predictor = small_estimator(**settings, lr=lr).train_from(first, other)
        assert torch.equal(predictor.model.channel_loc, first.model.channel_loc)
        (after,) = predictor.predict(other)
        arrays.append(after.forecast_array)
    np.testing.assert_allclose(arrays[0], before.forecast_array, rtol=1e-4, atol=1e-5)
    assert np.abs(arrays[1] - before.forecast_array).max() > 1e-3


def test_the_same_seed_gives_the_same_model_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = entries(noise(2, 120))
    arrays = []
    for seed in (3, 3, 4):
        estimator = small_estimator(num_channels=2, seed=seed, trainer_kwargs={"callbacks": []})
        (forecast,) = estimator.train(data).predict(data)
        arrays.append(forecast.forecast_array)
    assert np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("factor", "offset"), [(100.0, 0.0), (1e-4, 3.0), (1.0, -1e4), (1e6, 1e6)])
def test_units_do_not_matter(factor: float, offset: float) -> None:
    """forecast(factor * x + offset) = factor * forecast(x) + offset."""
    x = noise(2, 90)
    predictor = small_estimator(num_channels=2, absolute_level=False).train(entries(x))
    (plain,), (scaled,) = predictor.predict(entries(x)), predictor.predict(entries(factor * x + offset))
    rounding = 1e-6 * (abs(offset) + factor) * 10  # float32 inputs hold a large offset only so well
    expected = factor * plain.forecast_array.astype(float) + offset
    np.testing.assert_allclose(scaled.forecast_array, expected, rtol=1e-4, atol=max(rounding, 2e-3 * factor))


def test_short_and_missing_histories() -> None:
    """A history shorter than the context is enough; of one without any observation nothing is claimed."""
    predictor = small_estimator(num_channels=1).train(entries(noise(1, 100)))
    short, one, missing = predictor.predict(entries(noise(1, 5), np.full((1, 1), 7.0), np.full((1, 40), np.nan)))
    assert np.isfinite(short.forecast_array).all()
    np.testing.assert_allclose(one.forecast_array, 7.0, rtol=1e-3)
    assert np.isnan(missing.forecast_array).all()


def test_what_a_user_would_try_first_is_told_the_way() -> None:
    table, frame = load_example(), pd.DataFrame({"target": noise(60)}, index=pd.period_range("2024-01-01", periods=60, freq="D"))
    wrong: list[tuple[Any, str]] = [
        (table, r"got a SeriesTable: give its to_gluonts\(\)"),
        (frame, r"got a DataFrame: give gluonts.dataset.pandas.PandasDataset\(frame"),
        (polars.DataFrame({"target": [1.0]}), r"got a DataFrame: write it to CSV or Parquet and give read_table\("),
        ("sales.csv", r"got a str: give read_table\("),
        (entries(noise(60))[0], "got a dict: give a list of it"),
        (None, "got a NoneType: of a file read_table"),
    ]
    for data, message in wrong:
        with pytest.raises(TypeError, match=rf"training_data must be entries of GluonTS \(.*\), {message}"):
            small_estimator().train(data)
    with pytest.raises(TypeError, match="validation_data must be entries of GluonTS"):
        small_estimator().train(entries(noise(60)), frame)
    for entry, message in (
        ([1.0, 2.0], "an entry must be a dictionary, got a list"),
        ({"target": [1.0]}, "an entry lacks 'start'; the data must be entries"),
        ({"target": [1.0], "start": "2024-01-01"}, r"start must be a pandas Period, got '2024-01-01': pandas.Period\("),
    ):
        with pytest.raises(TypeError, match=message):
            small_estimator().train([entry])
    assert small_estimator(max_steps=1).train(PandasDataset(frame, target="target")).prediction_length == 7
    for train in (CalibratingEstimator(small_estimator(), windows=3).train, partial(TitansEstimator.from_inputs, prediction_length=7)):
        with pytest.raises(TypeError, match=r"must be entries of GluonTS \(.*\), got a DataFrame: give gluonts.dataset.pandas"):
            train(frame)
    for name in ("num_batches_per_epoch", "accumulate"):
        with pytest.raises(ValueError, match=r"num_batches_per_epoch and accumulate must be at least 1, got .*\b0\b"):
            small_estimator(**{name: 0})
    with pytest.raises(ValueError, match=r"freq='fortnight' is no pandas frequency. Use one such as 15min, h, D"):
        TitansEstimator(prediction_length=7, freq="fortnight")


def test_too_short_a_series_and_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"longest training series has 10 steps.*needs at least 14"):
        small_estimator(num_channels=2).train(entries(noise(2, 10)))
    with pytest.raises(ValueError, match="longest training series has 0 steps"):
        small_estimator(num_channels=2).train([])
    with pytest.raises(ValueError, match="item 's0': its target has 3 channels, the estimator num_channels=2"):
        small_estimator(num_channels=2).train(entries(noise(3, 90)))


def test_a_failure_in_training_is_not_swallowed() -> None:
    class Fail(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise RuntimeError("disk on fire")

    estimator = small_estimator(max_epochs=4, validation_windows=0, trainer_kwargs={"callbacks": [Fail()]})
    with pytest.raises(RuntimeError, match="disk on fire"):
        estimator.train(entries(noise(120)))


def test_training_that_only_harms_leaves_the_forecaster_as_it_began() -> None:
    """The closed-form start counts among the epochs that validation chooses from."""
    data = entries(np.sin(np.arange(300) * 2 * np.pi / 7) + 0.3 * noise(300))
    weights = [small_estimator(lr=lr, max_epochs=3).train(data).model.linear.weight for lr in (1e-12, 10.0, 1e-3)]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-6)
    assert (weights[0] - weights[2]).abs().max() > 1e-4


def test_the_schedule_follows_the_trainers_epochs() -> None:
    """GluonTS users pass max_epochs in trainer_kwargs; the learning rate must end with it, and training must not stop before."""
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    settings = {"max_epochs": 3, "callbacks": [Watch()]}
    small_estimator(validation_windows=0, trainer_kwargs=settings).train(entries(noise(120)))
    assert len(seen) == 3 * 4
    assert seen[-1] < 0.05 * max(seen)  # the last of twelve steps


def test_a_constant_series_is_forecast_constant() -> None:
    levels = np.array([5.0, -3e4, 0.0, 2e-5])[:, None]
    predictor = small_estimator(num_channels=4).train(entries(np.repeat(levels, 120, axis=1)))
    (forecast,) = predictor.predict(entries(np.repeat(levels, 60, axis=1)))
    for level in QUANTILES:
        np.testing.assert_allclose(forecast.quantile(level), np.repeat(levels.T, 7, axis=0), rtol=1e-4, atol=1e-9)


def test_a_pure_seasonal_series_is_forecast_to_a_few_percent() -> None:
    """Two channels with a weekly season of other shape, phase and level; error over the amplitude at most 5 %."""
    t = np.arange(400)
    saw = (t % 7) / 6
    x = np.stack([20 + 5 * np.sin(2 * np.pi * t / 7), -3 + 10 * saw])
    estimator = small_estimator(num_channels=2, prediction_length=14, max_epochs=4, num_batches_per_epoch=20, batch_size=16, lr=5e-3)
    (forecast,) = estimator.train(entries(x[:, :386])).predict(entries(x[:, :386]))
    error = np.abs(forecast.quantile(0.5) - x[:, 386:].T).mean(axis=0)
    assert (error / np.array([10, 10]) < 0.05).all(), error


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_shipped_series_is_forecast_better_than_the_seasonal_naives(seed: int) -> None:
    """Seattle weather, 28 days ahead, 6 held-out windows that training never saw: CRPS and MASE, mean over the channels.

    The naives have honest intervals; all of the last day, the last week and the last year repeated must lose.
    """
    table = load_example()
    training, test = split(table, 28, 6)
    estimator = TitansEstimator(28, table.freq, len(table.targets), seed=seed, progress=False)
    scores = evaluate(estimator.train(training).predict(test.input), test, 365, table.targets)
    for season in (1, 7, 365):
        baseline = evaluate(seasonal_naive(test.input, 28, season), test, 365, table.targets)
        for metric in ("CRPS", "MASE"):
            assert scores[metric][-1] < 0.95 * baseline[metric][-1], (season, metric, scores, baseline)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction_length": 0}, "prediction_length must be at least 1, got 0"),
        ({"context_length": -5}, "context_length must be at least 1, got -5"),
        ({"titans": {"dim": 16, "num_layers": 1, "varient": "mag"}}, "unknown key 'varient'; did you mean 'variant'"),
        ({"distr_output": PoissonOutput()}, "distr_output must be one of QuantileOutput.*got PoissonOutput"),
        ({"num_channels": 0}, "num_channels must be at least 1"),
    ],
    ids=str,
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_estimator(**settings)


def test_a_short_series_takes_no_validation_from_the_long_ones() -> None:
    estimator = small_estimator(num_channels=1)
    config = estimator.config
    series = [Series(entry, config, univariate=False) for entry in entries(noise(1, 30), noise(1, 400))]
    training, validation = hold_out(series, config, windows=None)
    assert [one.length for one in training] == [30, 400 - 5 * 7]
    assert [one.length for one in validation] == [400 - n * 7 for n in range(5)]
    with pytest.raises(ValueError, match=r"no series is long enough to hold out.*the longest has 30 steps; or give validation_windows=0"):
        small_estimator(num_channels=1, validation_windows=2).train(entries(noise(1, 30)))


def test_a_series_of_another_frequency_is_refused() -> None:
    predictor = small_estimator().train(entries(noise(120)))
    with pytest.raises(ValueError, match="item 's0': its start has frequency h, the model D"):
        list(predictor.predict(entries(noise(60), freq="h")))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_draws_other_windows(workers: int) -> None:
    estimator = small_estimator(num_channels=1)
    series = [Series(entry, estimator.config, univariate=False) for entry in entries(noise(1, 400))]
    windows = RandomWindows(series, estimator.config, batch_size=4, num_batches=4, min_past=7, seed=0)
    loader = DataLoader(windows, batch_size=None, num_workers=workers)
    first, second = ([batch["past_target"] for batch in loader] for _ in range(2))
    assert len(first) == len(second) == 4
    assert not any(torch.equal(a, b) for a in first for b in [*second, *(other for other in first if other is not a)])
