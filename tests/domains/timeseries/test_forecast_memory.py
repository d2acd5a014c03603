"""The linear part goes on learning: by the delta rule, from errors of the past alone; and where there is something to learn, it pays."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.timeseries.synthetic import CUES, EVENT, cue_ends, recurring, regimes
from domains.timeseries import presets
from domains.timeseries.config import OutputConfig
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.forecast_memory import start_forecast_memory
from domains.timeseries.model import TitansForecaster
from domains.timeseries.ridge import start_from_ridge
from tests.domains.timeseries.test_model import make_model
from titans_seq.config import ConfigError
from titans_seq.memory import frozen_memory

P, H, STEP, FORGETTING = 4, 7, 0.2, 0.01
"""Two heads, the second of which forecasts less than a patch."""


def memory_model(**changes: object) -> TitansForecaster:
    return make_model(prediction_length=H, patch_length=P, linear_memory=6, linear_length=9, num_channels=1, **changes)


def walk(steps: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(1, steps, 1, dtype=torch.float64).cumsum(1)


def corrections(model: TitansForecaster, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    patches = model.linear_patches(x, seen, torch.zeros(x.shape[:2], dtype=torch.int64))
    return model.linear_memory(patches, model.linear_memory.init_state(1))[0][0]


def test_it_is_the_delta_rule_on_the_errors_of_the_past() -> None:
    """Head by head and patch by patch, from the equations, with a missing value and a begin without history."""
    model, x = memory_model(), walk(60)
    seen = torch.ones_like(x)
    seen[0, 29] = 0
    patches = model.linear_patches(x, seen, torch.zeros(x.shape[:2], dtype=torch.int64))
    x_NP, loc, scale, latest, enough, forecast = (part[0] for part in (patches.x, *patches[2:]))
    whole = (patches.seen[0] > 0).all(-1)
    key = torch.cat([latest @ model.linear_memory.components, torch.ones(len(latest), 1)], 1)
    expected = forecast * scale.unsqueeze(1) + loc.unsqueeze(1)
    memory = torch.zeros(key.shape[1], H, dtype=torch.float64)
    found = []
    for n in range(len(x_NP)):
        for head in range(2):
            made, steps = n - 1 - head, slice(head * P, min((head + 1) * P, H))
            if made < 0 or not whole[n] or not enough[made]:
                continue
            length = key[made].norm()
            value = (x_NP[n, : steps.stop - steps.start] - expected[made, steps]) / (scale[made] * length)
            weights = memory[:, steps].clone().requires_grad_()
            loss = ((key[made] / length) @ weights - value).square().sum()
            (gradient,) = torch.autograd.grad(loss, weights)
            memory[:, steps] = (1 - FORGETTING) * memory[:, steps] - STEP * min(1, scale[made] / scale[n]) ** 2 * gradient
        found.append(key[n] @ memory)
    assert not enough[0]
    assert not whole.all()
    torch.testing.assert_close(corrections(model, x, seen), torch.stack(found), rtol=1e-9, atol=1e-12)


def test_nothing_looks_ahead() -> None:
    model, x = memory_model(), walk(60)
    changed = x.clone()
    changed[:, 40:] += 10
    plain, other = (corrections(model, part, torch.ones_like(x)) for part in (x, changed))
    torch.testing.assert_close(plain[: 40 // P], other[: 40 // P], rtol=0, atol=1e-12)
    assert (plain[40 // P :] - other[40 // P :]).abs().max() > 1e-3


def test_a_forecast_differs_by_what_was_learned_and_a_frozen_memory_learns_nothing() -> None:
    model, x = memory_model(), walk(60)
    with torch.inference_mode():
        (learned, *_), *_ = model(x, torch.ones_like(x))
        with frozen_memory(model):
            (frozen, *_), *_ = model(x, torch.ones_like(x))
        model.linear_memory.step.zero_()
        with frozen_memory(model.titans):
            (still, *_), *_ = model(x, torch.ones_like(x))
    torch.testing.assert_close(frozen, still)
    assert (learned - frozen).abs().max() > 1e-3


def test_with_a_season_and_maps_it_reads_what_the_linear_part_says() -> None:
    """Of three channels in two series: after every patch the forecast and the inputs are those of the linear part on the same prefix."""
    model = make_model(
        prediction_length=H, patch_length=P, linear_memory=6, linear_length=9, num_channels=3, season_length=5, channel_maps=True
    )
    for parameter in model.linear.parameters():
        torch.nn.init.normal_(parameter)
    torch.manual_seed(3)
    x, begin = torch.randn(2, 26, 3, dtype=torch.float64), torch.tensor([[1], [4]])
    phases = begin + torch.arange(26)
    patches = model.linear_patches(x, torch.ones_like(x), phases)
    assert patches.forecast.shape == (6, 6, H)
    for n in range(6):
        end = 2 + (n + 1) * P  # the first two steps fill no patch
        rows = x[:, 2:end].transpose(1, 2).flatten(0, 1)[:, -9:]
        seen = torch.nn.functional.pad(torch.ones_like(rows), (9 - rows.shape[1], 0))
        units = (rows - patches.loc[:, n : n + 1]) / patches.scale[:, n : n + 1]
        inputs = torch.nn.functional.pad(units, (9 - rows.shape[1], 0))
        phase = (begin[:, 0] + end).repeat_interleave(3)
        torch.testing.assert_close(patches.forecast[:, n], model.linear(inputs, seen, phase))
        without = model.linear.without_season(inputs, seen, phase, torch.arange(6) % 3)
        torch.testing.assert_close(patches.latest[:, n], without)


def test_a_series_that_stood_still_and_moves_keeps_the_memory_small() -> None:
    """The spread was next to nothing when the first forecasts were made: their errors in its units are beyond all bounds."""
    model, x = memory_model(), walk(120)
    x[:, :40] = 5
    found = corrections(model, x, torch.ones_like(x))
    assert found.abs().max() < 100


def fitted(x_TC: torch.Tensor, linear_length: int, width: int) -> TitansForecaster:
    """As `TitansEstimator` fits it: chosen on the last two fifths for a linear part of the others, then fitted on all."""
    config = replace(
        presets.debug(), prediction_length=8, context_length=200, patch_length=8, linear_length=linear_length, linear_memory=width
    )
    torch.manual_seed(0)
    model = TitansForecaster(replace(config, num_channels=x_TC.shape[1], output=OutputConfig(kind="normal", beta=1.0))).eval()

    def batches(part: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        window = part.unfold(0, 208, 8).transpose(1, 2)
        past, future = window[:, :200], window[:, 200:]
        seen = {"past_observed_values": torch.ones_like(past), "future_observed_values": torch.ones_like(future)}
        return [{"past_target": past, "future_target": future, "series_spread": torch.ones_like(past[:, 0]), **seen}]

    stream = {"target": x_TC.unsqueeze(0), "observed_values": torch.ones_like(x_TC).unsqueeze(0), "counted": torch.tensor(0.4)}
    stream["phases"] = torch.zeros(1, len(x_TC), dtype=torch.int64)
    start_from_ridge(model, lambda: batches(x_TC[: round(0.6 * len(x_TC))]))
    start_forecast_memory(model, batches(x_TC), [stream | {"series_spread": x_TC.std(0).unsqueeze(0)}])
    start_from_ridge(model, lambda: batches(x_TC))
    return model


@torch.inference_mode()
def mse(model: TitansForecaster, x_TC: torch.Tensor, origins: list[int], context: int | None) -> float:
    """Of forecasts at origins, from a stream that is carried on, or each from the latest `context` steps."""
    state, read, errors = model.init_state(1), 0, []
    for origin in origins:
        if context is not None:
            state, read = model.init_state(1), origin - context
        new = x_TC[read:origin].unsqueeze(0)
        state, read = model.observe(state, new, torch.ones_like(new)), origin
        (mean, *_), loc, scale = model.predict(state)
        errors.append(float(((mean * scale + loc)[0] - x_TC[origin : origin + 8]).square().mean()))
    return sum(errors) / len(errors)


def test_changing_regimes_are_learned_while_they_last() -> None:
    """Of series that the model never saw; a cold context of 96 is too short to learn from, and one of 1,024 is ten times the reading."""
    model = fitted(regimes(6_000, 4, seed=0).float(), 16, 16)
    series, origins = [regimes(6_000, 4, seed=seed).float() for seed in (1, 2, 3)], list(range(3_000, 5_900, 96))

    def mean(context: int | None) -> float:
        return sum(mse(model, x, origins, context) for x in series) / len(series)

    carried = mean(None)
    assert carried < 0.8 * mean(96)
    assert carried < 1.02 * mean(1024)
    with frozen_memory(model):
        assert carried < 0.8 * mean(None)


@pytest.mark.slow
def test_what_returns_after_more_than_a_window_is_remembered() -> None:
    """Each cue and its answer come back after 1,152 steps. No other series and no window of 1,024 steps knows the answers."""
    assert CUES * EVENT > 1024 + 8
    model = fitted(recurring(12_000, 4, seed=0).float(), 8, 8)
    x = recurring(12_000, 4, seed=1).float()
    origins = [end for end in cue_ends(12_000) if end > 9_000]
    carried, cold = mse(model, x, origins, None), mse(model, x, origins, 1024)
    assert carried < 0.95 * cold


def test_where_there_is_nothing_to_learn_it_does_no_harm() -> None:
    torch.manual_seed(0)
    model = fitted(torch.randn(3_000, 4).cumsum(0), 16, 16)
    x, origins = torch.randn(3_000, 4).cumsum(0), list(range(1_000, 2_900, 40))
    carried = mse(model, x, origins, None)
    with frozen_memory(model):
        assert carried < 1.02 * mse(model, x, origins, None)


def test_the_estimator_makes_it_and_a_stream_learns() -> None:
    x = regimes(4_000, 2).numpy().T
    entry = {"start": pd.Period("2024-01-01 00:00", freq="h"), "target": x}
    settings = {"prediction_length": 8, "freq": "h", "num_channels": 2, "context_length": 64, "patch_length": 8, "progress": False}
    estimator = TitansEstimator(**settings, linear_memory=16, max_epochs=1, num_batches_per_epoch=4)
    predictor = estimator.train([entry])
    assert predictor.model.linear_memory.step.max() > 0
    online = predictor.online(entry["start"])
    online.observe(np.where(np.arange(3_000)[:, None] == 1_000, np.nan, x[:, :3_000].T))
    assert np.isfinite(online.predict().forecast_array).all()
    with pytest.raises(ValueError, match="ridge_start"):
        TitansEstimator(**settings, linear_memory=16, ridge_start=False)
    with pytest.raises(ConfigError, match=r"linear_memory.*patch_length=8"):
        TitansEstimator(**settings, linear_memory=4)
