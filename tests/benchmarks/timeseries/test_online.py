"""The online benchmark runs, its ridges are least squares on what is known, its streams are the model's, and nothing looks ahead."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.timeseries import online, online_ridge, synthetic
from benchmarks.timeseries.online import PLAIN, SECTION, Half, Setting, filled
from benchmarks.timeseries.ours import OurNetwork
from benchmarks.timeseries.protocol import Windows
from benchmarks.timeseries.stream_training import StreamBudget, carried_mse, segments
from domains.timeseries.model import TitansForecaster

SETTING = Setting(horizon=12, forecasts=10, patch_length=4, linear_memory=6)


def half(steps: int = 500) -> Half:
    return Half(synthetic.regimes(steps, 2).float(), steps // 2, 1, SETTING)


def network() -> OurNetwork:
    """With weights that are not those of the start, where many parts are silent."""
    torch.manual_seed(0)
    config = replace(PLAIN, patch_length=4, linear_memory=6, dim=8).config(Windows(half().series_TC, 40, 12), 1)
    model = TitansForecaster(replace(config, linear_length=20))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        memory = model.linear_memory
        assert memory is not None
        memory.components.normal_()
        memory.step.fill_(0.1)
    return OurNetwork(model.eval(), {})


def test_it_runs_and_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(online, "DATASETS", {"made: regimes": (lambda: synthetic.regimes(4_200, 2), 1)})
    monkeypatch.setattr(online, "COLD", (24, 48, 256))
    monkeypatch.setattr(online, "TRAINED_AT", 256)
    monkeypatch.setattr(online, "LINEAR", (24, 48))
    output, page = tmp_path / "online.json", tmp_path / "page.md"
    small = {"forecasts": 8, "horizon": 8, "linear-memory": 8, "batches": 1, "segments": 2, "looks": 1}
    arguments = [f"--{name}={value}" for name, value in small.items()]
    online.main([*arguments, "--output", str(output)])
    found = json.loads(output.read_text())
    (trial,) = found["trials"]
    ways = ("naive", "ridge", "ridge, refitted", "cold 24", "cold 48", "cold 256", "carried", "carried, frozen", "streams")
    assert [*trial["scores"]] == [*ways, "streams, frozen backbone"]
    for way, scores in trial["scores"].items():
        assert 0 < scores["mse"] < 3, way
        assert scores["forecasts"] >= 8
    assert trial["scores"]["cold 256"]["tokens"] == 32
    assert found["runs"][0]["revision"]
    online.main([*arguments, "--output", str(output)])
    assert json.loads(output.read_text())["trials"] == [trial]
    page.write_text(f"{SECTION.begin}\n{SECTION.end}\n")
    online.main(["--table", "--docs", str(page), "--output", str(output)])
    assert f"{trial['scores']['carried']['mse']:.4f}" in page.read_text()
    assert "made: regimes" in capsys.readouterr().out


def test_every_forecast_knows_the_past_alone() -> None:
    """A change after an origin changes no forecast up to it, and one before it does."""
    plain, net = half(), network()
    changed = replace(plain, series_TC=plain.series_TC.clone())
    place = plain.origins[4]
    changed.series_TC[place:] += 3
    kind = online_ridge.Kind(24, per_channel=True, memory=50)
    ways = {
        "naive": online.naive,
        "ridge": lambda one: online.ridge(one, kind, 1.0),
        "cold": lambda one: online.cold(one, net, 40),
        "carried": lambda one: online.carried(one, net, online.first_half(one, net)),
    }
    with torch.inference_mode():
        for name, way in ways.items():
            before, after = (torch.stack(list(way(one))) for one in (plain, changed))
            torch.testing.assert_close(before[:5], after[:5], rtol=0, atol=0, msg=name)
            assert (before[5:] - after[5:]).abs().amax((1, 2)).min() > 1e-2, name


@pytest.mark.parametrize(
    "kind", [online_ridge.Kind(6, False), online_ridge.Kind(6, True, 40), online_ridge.Kind(6, True, None, refit=False)]
)
def test_the_ridge_is_least_squares_of_complete_windows(kind: online_ridge.Kind) -> None:
    x_TC, origin, horizon = synthetic.regimes(200, 2).float(), 150, 3
    first = 150 if kind.refit else 120
    *_, found = online_ridge.forecasts(x_TC, [120, origin], horizon, kind, [2.0])
    x, y, weight = [], [], []
    for channel in range(2):
        for start in range(first - 6 - horizon + 1):
            window = x_TC[start : start + 6 + horizon, channel].double()
            x.append(torch.cat([window[:6] - window[5], torch.ones(1)]))
            y.append(window[6:] - window[5])
            weight.append(1.0 if kind.memory is None else torch.tensor(-(first - 6 - horizon - start) / 40).exp())
    x, y, weight = (torch.stack(list(map(torch.as_tensor, part))).double().unflatten(0, (2, -1)) for part in (x, y, weight))
    if not kind.per_channel:
        x, y, weight = (part.flatten(0, 1).unsqueeze(0).expand(2, *(-1,) * part[0].dim()) for part in (x, y, weight))
    penalty = torch.tensor([2.0] * 6 + [1e-6], dtype=torch.float64).diag()
    for channel in range(2):
        gram = (x[channel] * weight[channel].unsqueeze(1)).T
        solution = torch.linalg.solve(gram @ x[channel] + penalty, gram @ y[channel])
        past = x_TC[origin - 6 : origin, channel].double()
        expected = torch.cat([past - past[-1], torch.ones(1)]) @ solution + past[-1]
        torch.testing.assert_close(found[0, :, channel].double(), expected, rtol=1e-3, atol=1e-3)


def test_the_error_of_a_stream_is_that_of_observe_and_predict() -> None:
    one, net = half(), network()
    errors, state = [], net.model.init_state(1)
    with torch.inference_mode():
        for end in range(4, 500 - 12 + 1, 4):
            new = one.series_TC[end - 4 : end].unsqueeze(0)
            state = net.model.observe(state, new, torch.ones_like(new))
            (location, *_), loc, scale = net.model.predict(state)
            if end >= 100:
                errors.append((location * scale + loc - one.series_TC[end : end + 12]).square().mean())
    assert carried_mse(net.model, one.series_TC, 100) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


def test_segments_follow_one_another() -> None:
    x_TC = torch.arange(400.0).unsqueeze(1)
    budget = StreamBudget(streams=3, steps=20, segments=8, restart=4)
    pieces = list(segments(x_TC, network().model, budget, seed=0))
    assert [begins for _, begins in pieces] == [True, False, False, False] * 2
    for (before, _), (after, begins) in pairwise(pieces):
        assert before.shape == (3, 32, 1)
        if not begins:
            torch.testing.assert_close(after[:, 0], before[:, 20])


def test_sentinels_give_way_to_the_value_before() -> None:
    x = torch.tensor([[1.0, 2.0], [-9999.0, 3.0], [-9999.0, -9999.0], [4.0, 5.0]])
    assert filled(x).tolist() == [[1, 2], [1, 3], [1, 3], [4, 5]]


def test_forecasts_begin_at_many_times_of_day() -> None:
    one = Half(torch.zeros(17_420, 1), 8_710, 24, Setting())
    assert {origin % 24 for origin in one.origins} == {(8_710 + shift) % 24 for shift in (0, 8, 16)}
    assert 100 <= len(one.origins) <= 160
