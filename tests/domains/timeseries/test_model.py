"""The forecaster as a function of its inputs: units, missing values, streams, and the loss."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from domains.timeseries import presets
from domains.timeseries.config import ForecasterConfig, OutputConfig
from domains.timeseries.model import TitansForecaster
from domains.timeseries.reading import ForecasterState
from domains.timeseries.ridge import Shrinkage, Sums, start_from_ridge
from domains.timeseries.scaling import Moments, real_units, scan

FEATURES = {"num_time_features": 2, "num_feat_dynamic_real": 1, "num_past_feat_dynamic_real": 1, "num_feat_static_real": 2}


def make_model(**changes: object) -> TitansForecaster:
    """With weights that are not those of the start, where many parts are silent; float64."""
    torch.manual_seed(0)
    model = TitansForecaster(dataclasses.replace(presets.debug(), **changes)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("titans."):
                parameter.add_(0.1 * torch.randn_like(parameter))
        if model.linear_memory is not None:
            model.linear_memory.components.normal_()
            model.linear_memory.step.fill_(0.2)
            model.linear_memory.forgetting.fill_(0.01)
    return model


def make_inputs(config: ForecasterConfig, steps: int, rows: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    H = config.prediction_length
    made = {
        "target": 50 + 3 * torch.randn(rows, steps, config.num_channels, dtype=torch.float64).cumsum(1),
        "observed_values": (torch.rand(rows, steps, config.num_channels) > 0.2).double(),
        "feat": torch.rand(rows, steps, config.num_past_feat, dtype=torch.float64) - 0.5,
        "future_feat": torch.rand(rows, H, config.num_future_feat, dtype=torch.float64) - 0.5,
        "feat_static_real": torch.randn(rows, config.num_feat_static_real, dtype=torch.float64),
        "feat_static_cat": torch.zeros(rows, len(config.cardinality), dtype=torch.int64),
    }
    if config.season_length is not None:
        phases = (torch.arange(steps + H) + torch.arange(rows).unsqueeze(1)) % config.season_length
        made["feat"][..., 0], made["future_feat"][..., 0] = phases[:, :steps], phases[:, steps:]
    return made


def statics(x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x[name] for name in ("feat_static_real", "feat_static_cat")}


def stream(model: TitansForecaster, x: dict[str, torch.Tensor], cuts: list[int]) -> ForecasterState:
    """Observe the pieces between the cuts."""
    steps = x["target"].shape[1]
    state = model.init_state(len(x["target"]))
    for start, stop in zip([0, *cuts], [*cuts, steps], strict=True):
        if stop > start:
            piece = (x[name][:, start:stop] for name in ("target", "observed_values", "feat"))
            state = model.observe(state, *piece, **statics(x))
    return state


def assert_same(a: tuple, b: tuple) -> None:
    for left, right in zip((*a[0], *a[1:]), (*b[0], *b[1:]), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


VARIANTS = [{"titans": presets.debug(variant).titans} for variant in ("lmm", "mac", "mag", "mal")]
SEASON = {"season_length": 5, "channel_maps": True, "spread_prior": 0.3}
OTHERS = [{**FEATURES, "cardinality": (3,)}, {"channel_mixing": True}, {"absolute_level": False}, {"linear_memory": 5}]
CHANGES = [*VARIANTS, *OTHERS, {**FEATURES, **SEASON}, {**FEATURES, **SEASON, "linear_memory": 5}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@given(steps=st.integers(1, 41), cuts=st.lists(st.integers(0, 41), max_size=4))
def test_how_a_stream_is_cut_does_not_matter(changes: dict, steps: int, cuts: list[int]) -> None:
    model = make_model(**changes)
    x = make_inputs(model.config, steps)
    x["observed_values"][:, 0] = 1
    with torch.inference_mode():
        whole = stream(model, x, [])
        pieces = stream(model, x, sorted(min(cut, steps) for cut in cuts))
        assert_same(*(model.predict(state, x["future_feat"], **statics(x)) for state in (whole, pieces)))


@pytest.mark.parametrize("changes", [FEATURES, FEATURES | SEASON], ids=["plain", "season"])
@pytest.mark.parametrize("steps", [4, 8, 12])
def test_a_stream_forecasts_what_a_context_of_its_steps_forecasts(steps: int, changes: dict) -> None:
    model = make_model(**changes)
    x = make_inputs(model.config, steps)
    with torch.inference_mode():
        online = model.predict(stream(model, x, [5] if steps > 5 else []), x["future_feat"], **statics(x))
        cold = model(x["target"], x["observed_values"], x["feat"], x["future_feat"], x["feat_static_real"])
    assert_same(online, cold)


def test_an_unfinished_patch_counts(tmp_path: Path) -> None:
    model = make_model()
    x = make_inputs(model.config, 11)
    x["observed_values"][:] = 1
    with torch.inference_mode():
        state = stream(model, x, [])
        before = model.predict(state)
        state.save(tmp_path / "state.safetensors")
        assert_same(before, model.predict(ForecasterState.load(tmp_path / "state.safetensors")))
        x["target"][:, 9] += 5
        (changed,), _, _ = model.predict(stream(model, x, []))
    assert (changed - before[0][0]).abs().max() > 1e-3


def test_the_state_does_not_grow() -> None:
    model = make_model(**FEATURES)
    x = make_inputs(model.config, 403)
    sizes = {stream(model, {name: v[:, :n] if v.dim() == 3 else v for name, v in x.items()}, []).nbytes for n in (3, 40, 403)}
    assert len(sizes) == 1


def test_a_longer_look_back_costs_in_proportion() -> None:
    """From 32 to 32,768 steps: multiplications as counted by torch, a token more or less aside."""
    counts = {}
    for length in (32, 512, 8192, 32_768):
        sizes = {"prediction_length": 4, "context_length": length, "patch_length": 32, "linear_length": 32}
        model = TitansForecaster(dataclasses.replace(presets.debug(), num_channels=1, **sizes)).eval()
        x = torch.randn(1, length, 1)
        feat = torch.zeros(1, length, model.config.num_past_feat)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            (quantiles,), _, _ = model(x, torch.ones_like(x), feat)
        assert torch.isfinite(quantiles).all()
        counts[length] = counter.get_total_flops()
    per_patch = {length: count / (length / 32) for length, count in counts.items()}
    assert per_patch[32_768] < 1.01 * per_patch[8192] < 1.1 * per_patch[512]


@pytest.mark.parametrize(("factor", "offset"), [(1e3, 0.0), (1e-3, 1e3), (2.0, -1e6)])
def test_units_and_level_do_not_matter(factor: float, offset: float) -> None:
    model = make_model()
    x = make_inputs(model.config, 10)
    model.channel_loc.copy_(torch.tensor([50.0, 40.0]))
    (plain,), loc, scale = model(x["target"], x["observed_values"])
    model.channel_loc.mul_(factor).add_(offset)
    model.channel_scale.mul_(factor)
    (scaled,), loc_scaled, scale_scaled = model(factor * x["target"] + offset, x["observed_values"])
    expected = factor * (plain * scale.unsqueeze(-1) + loc.unsqueeze(-1)) + offset
    torch.testing.assert_close(scaled * scale_scaled.unsqueeze(-1) + loc_scaled.unsqueeze(-1), expected, rtol=1e-6, atol=1e-6 * factor)


def test_what_stands_in_a_missing_place_does_not_matter_but_that_it_is_missing() -> None:
    model = make_model(**FEATURES)
    x = make_inputs(model.config, 10)
    feat = x["feat"].clone()
    feat[:, :, 3] = (feat[:, :, 3] > 0).double()  # whether the feature known ahead is there
    arguments = (x["observed_values"], feat, x["future_feat"], x["feat_static_real"])
    plain = model(x["target"], *arguments)
    target = torch.where(x["observed_values"] > 0, x["target"], torch.nan)
    feat = feat.clone()
    feat[:, :, 2] = torch.where(feat[:, :, 3] > 0, feat[:, :, 2], torch.nan)
    assert_same(plain, model(target, x["observed_values"], feat, *arguments[2:]))
    (whole,), _, _ = model(x["target"], torch.ones_like(x["target"]), feat, *arguments[2:])
    assert (whole - plain[0][0]).abs().max() > 1e-3


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 7), st.integers(1, 50))
def test_moments_are_the_weighted_ones(values: list[float], patch: int, length: int) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    x = torch.nn.functional.pad(x, (0, -len(x) % patch)).view(1, -1, patch)
    seen = torch.nn.functional.pad(torch.ones(len(values)), (0, x.numel() - len(values))).view(x.shape)
    each, after = scan(x, seen, length, Moments.initial(1))
    weights = torch.exp(-patch / length * torch.arange(x.shape[1] - 1, -1, -1, dtype=torch.float64)).view(1, -1, 1) * seen
    mean = (weights * x).sum() / weights.sum()
    loc, scale = real_units(after)
    torch.testing.assert_close(loc, mean.view(1), rtol=1e-9, atol=1e-6)
    deviation = ((weights * (x - mean).square()).sum() / weights.sum()).sqrt().clamp(min=1e-12).maximum(1e-6 * mean.abs())
    torch.testing.assert_close(scale, deviation.view(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(each.mean[:, -1], after.mean)


def batch_of(model: TitansForecaster, rows: int = 8) -> dict[str, torch.Tensor]:
    x = make_inputs(model.config, model.config.context_length + model.config.prediction_length, rows)
    L = model.config.context_length
    return {
        "past_target": x["target"][:, :L],
        "past_observed_values": x["observed_values"][:, :L],
        "past_feat": x["feat"][:, :L],
        "future_feat": x["future_feat"],
        "future_target": x["target"][:, L:],
        "future_observed_values": torch.ones_like(x["target"][:, L:]),
        "series_spread": torch.full((rows, model.config.num_channels), 4.0),
    }


@pytest.mark.parametrize("kind", ["quantile", "normal"])
def test_training_in_other_units_is_the_same_training(kind: str) -> None:
    """The loss is in units of each series: a series in cents counts like the same in euros."""
    model = make_model(output=OutputConfig(kind=kind, beta=1.0 if kind == "normal" else 0.0))
    batch = batch_of(model)
    plain = model.loss(batch)
    model.channel_loc.mul_(100)
    model.channel_scale.mul_(100)
    cents = {name: 100 * x if name in ("past_target", "future_target", "series_spread") else x for name, x in batch.items()}
    torch.testing.assert_close(model.loss(cents), plain, rtol=1e-6, atol=0)


def test_an_earlier_forecast_is_the_one_that_a_shorter_context_gives() -> None:
    """loss(forecasts=2) is the mean of the losses from the last two patch ends."""
    model = make_model(**FEATURES)
    batch = batch_of(model)
    batch["past_observed_values"][:] = 1
    last, both = model.loss(batch), model.loss(batch, forecasts=2)
    P, L = model.config.patch_length, model.config.context_length
    joined = {name: torch.cat([batch[f"past_{name}"], batch[f"future_{name}"]], 1) for name in ("target", "observed_values")}
    ahead = torch.cat([batch["past_feat"][..., : model.config.num_future_feat], batch["future_feat"]], 1)
    earlier = batch | {
        "past_target": joined["target"][:, : L - P],
        "past_observed_values": joined["observed_values"][:, : L - P],
        "past_feat": batch["past_feat"][:, : L - P],
        "future_target": joined["target"][:, L - P : L - P + model.config.prediction_length],
        "future_observed_values": joined["observed_values"][:, L - P : L - P + model.config.prediction_length],
        "future_feat": ahead[:, L - P : L - P + model.config.prediction_length],
    }
    torch.testing.assert_close(both, (last + model.loss(earlier)) / 2, rtol=1e-9, atol=0)


def test_the_linear_start_is_the_ridge_regression() -> None:
    """With enough data of an autoregression the start forecasts nearly as its own law does, before any step of training."""
    torch.manual_seed(0)
    config = dataclasses.replace(presets.debug(), num_channels=1, context_length=12, prediction_length=2, patch_length=4)
    noise = torch.randn(2000, 64, dtype=torch.float64)
    x = torch.zeros_like(noise)
    for t in range(2, 64):
        x[:, t] = 1.2 * x[:, t - 1] - 0.5 * x[:, t - 2] + 0.1 * noise[:, t]
    x = x[:, -14:, None] + 30
    ones = torch.ones_like(x)
    batch = {
        "past_target": x[:, :12],
        "past_observed_values": ones[:, :12],
        "future_target": x[:, 12:],
        "future_observed_values": ones[:, 12:],
        "series_spread": x.std(1),
    }
    model = TitansForecaster(config).double().eval()
    start_from_ridge(model, lambda: [batch])
    (quantiles,), loc, scale = model(batch["past_target"], batch["past_observed_values"])
    median = quantiles[..., 4] * scale + loc
    error = (median[:, 0] - batch["future_target"][:, 0]).square().mean().sqrt()
    naive = (batch["past_target"][:, -1] - batch["future_target"][:, 0]).square().mean().sqrt()
    assert error < 0.115 < naive  # the noise alone is 0.1


def seasonal_batch(c: ForecasterConfig, rows: int = 600) -> dict[str, torch.Tensor]:
    """Windows of two channels, each its own season and level around a little noise."""
    torch.manual_seed(2)
    assert c.season_length is not None
    season = torch.randn(2, c.season_length, dtype=torch.float64)
    L, steps = c.context_length, c.context_length + c.prediction_length
    phases = (torch.arange(steps) + torch.randint(c.season_length, (rows, 1))) % c.season_length
    x = 20 + 5 * torch.randn(rows, 1, 2, dtype=torch.float64) + season.T[phases]
    x += 0.1 * torch.randn_like(x)
    ones, features = torch.ones_like(x), phases.unsqueeze(-1).double()
    batch = {"past_target": x[:, :L], "past_observed_values": ones[:, :L], "past_feat": features[:, :L], "future_feat": features[:, L:]}
    batch |= {"future_target": x[:, L:], "future_observed_values": ones[:, L:], "series_spread": ones[:, 0]}
    return batch


def test_a_season_longer_than_the_context_is_learned_in_closed_form() -> None:
    """The start knows a season that no context holds whole, and forecasts to about the noise; without it, it cannot."""
    errors = {}
    for season_length in (12, None):
        changes = {"context_length": 5, "prediction_length": 6, "season_length": season_length, "spread_prior": 5.0}
        model = TitansForecaster(dataclasses.replace(presets.debug(), **changes)).double().eval()
        batch = seasonal_batch(dataclasses.replace(model.config, season_length=12))
        if season_length is None:
            batch = {name: x[..., :0] if name.endswith("feat") else x for name, x in batch.items()}
        start_from_ridge(model, lambda batch=batch: [batch])
        forecast = model.linear_forecast(batch["past_target"], batch["past_observed_values"], batch["future_feat"])
        errors[season_length] = float((forecast - batch["future_target"]).detach().square().mean().sqrt())
        (quantiles,), loc, scale = model(*(batch[f"past_{name}"] for name in ("target", "observed_values", "feat")), batch["future_feat"])
        torch.testing.assert_close(quantiles[..., 4] * scale + loc, forecast, rtol=1e-9, atol=1e-6)  # training starts from it
    assert errors[12] < 0.15 < 0.5 < errors[None]


def test_the_start_forgets_what_the_linear_part_was() -> None:
    """A second start is that of a new model, and forecasts with the error that was chosen."""
    changes = {"context_length": 5, "prediction_length": 6, "season_length": 4, "channel_maps": True, "spread_prior": 5.0}
    config = dataclasses.replace(presets.debug(), **changes)
    batch, other = seasonal_batch(config, rows=60), seasonal_batch(dataclasses.replace(config, season_length=3), rows=60)
    again, fresh = (TitansForecaster(config).double().eval() for _ in range(2))
    start_from_ridge(again, lambda: [other])
    starts = [start_from_ridge(model, lambda: [batch], lambda: [other]) for model in (again, fresh)]
    for a, b in zip(again.linear.parameters(), fresh.linear.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    problem = again.linear_problem(other)  # of whole windows: the channel runs fastest, as the linear part expects
    distance = problem.targets - again.linear(problem.inputs, problem.seen, problem.phase)
    error = (distance.square().sum(1) * problem.weight).sum()
    assert starts[0] is not None
    assert starts[0].validation_error == pytest.approx(float(error.detach()))


def test_any_number_above_0_says_observed() -> None:
    model = make_model(season_length=7)
    x = make_inputs(model.config, 10)
    once, twice = (model(x["target"], n * x["observed_values"], x["feat"], x["future_feat"]) for n in (1, 2))
    assert_same(once, twice)


def test_a_season_needs_the_phase() -> None:
    model = make_model(season_length=7)
    x = make_inputs(model.config, 10)
    with pytest.raises(ValueError, match=r"past_feat is needed: its first column is the phase of the season of 7 steps"):
        model(x["target"], x["observed_values"])
    with pytest.raises(ValueError, match=r"ForecasterConfig.season_length must be"):
        dataclasses.replace(presets.debug(), season_length=7, output=OutputConfig(kind="negative_binomial"))


@pytest.mark.parametrize("towards", ["level", "last"])
def test_the_maps_are_those_of_scikit_learn(towards: str) -> None:
    """Of two channels together, and of each, held back towards the map of both."""
    from sklearn.linear_model import Ridge

    model = TitansForecaster(dataclasses.replace(presets.debug(), channel_maps=True)).double()
    batch = batch_of(model, 40)
    batch["past_observed_values"][:] = 1
    sums = Sums.of(model, lambda: [batch])
    shrinkage = Shrinkage(0.1, towards, 0.5)
    shared = sums.shared(shrinkage)
    problem = model.linear_problem(batch)
    naive = problem.inputs[:, -1:] if towards == "last" else 0.0
    alpha = 0.1 * float((problem.inputs.square() * problem.weight.unsqueeze(1)).sum(0).mean())
    reference = Ridge(alpha=alpha).fit(problem.inputs, problem.targets - naive, sample_weight=problem.weight)
    expected = torch.from_numpy(reference.predict(problem.inputs)) + naive
    torch.testing.assert_close(problem.inputs @ shared[:-1] + shared[-1], expected, rtol=1e-6, atol=1e-6)
    apart = sums.apart(shrinkage, shared)
    maps = shared + torch.nn.functional.pad(apart, (0, 0, 0, 1))
    for channel in range(2):
        x, y, weight = (part[problem.channel == channel] for part in (problem.inputs, problem.targets, problem.weight))
        rest = y - x @ shared[:-1] - shared[-1]
        alpha = 0.5 * float((x.square() * weight.unsqueeze(1)).sum(0).mean())
        reference = Ridge(alpha=alpha, fit_intercept=False).fit(x, rest, sample_weight=weight)
        torch.testing.assert_close(x @ (maps[channel] - shared)[:-1], torch.from_numpy(reference.predict(x)), rtol=1e-6, atol=1e-6)
    error = sum(
        float(((x @ maps[c][:-1] + maps[c][-1] - y).square() * w.unsqueeze(1)).sum())
        for c in range(2)
        for x, y, w in [(part[problem.channel == c] for part in (problem.inputs, problem.targets, problem.weight))]
    )
    assert sums.squared_error(maps) == pytest.approx(error, rel=1e-6)


def test_counts_are_forecast_by_a_negative_binomial() -> None:
    model = make_model(num_channels=1, output=OutputConfig(kind="negative_binomial"))
    x = torch.poisson(torch.full((4, 13, 1), 3.0)).double()
    ones = torch.ones_like(x)
    batch = {"past_target": x[:, :10], "past_observed_values": ones[:, :10], "future_target": x[:, 10:]}
    batch |= {"future_observed_values": ones[:, 10:], "series_spread": torch.ones(4, 1)}
    assert torch.isfinite(model.loss(batch))
    args, loc, scale = model(x[:, :10], ones[:, :10])
    assert (loc == 0).all()
    assert (model.distr_output.distribution(args, loc, scale).sample() >= 0).all()
