"""Training on streams: the state is carried from segment to segment, gradients are cut between them (truncated back-propagation through
time), and every patch of a segment ends with a forecast. Windows that begin cold show a memory nothing of what it has read for long.

Shapes: B streams, S steps of a segment, H horizon, C channels, R = B * C rows, N patches of a segment, P steps of one, K steps that the
linear part sees. What of `TitansForecaster` is private is used here: whether this training pays is what is measured, see docs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.timeseries.protocol import NotFinite
from domains.timeseries.model import TitansForecaster
from domains.timeseries.outputs import in_series_units
from domains.timeseries.reading import Context, ForecasterState, Outlook


@dataclass(frozen=True)
class StreamBudget:
    """streams: side by side; steps: of a segment; segments: in all; restart: segments after which every stream begins elsewhere; looks: at
    validation, evenly apart.
    """

    streams: int = 4
    steps: int = 512
    segments: int = 40
    restart: int = 16
    looks: int = 2


def read_on(model: TitansForecaster, state: ForecasterState, x_BTC: Tensor) -> tuple[ForecasterState, tuple[Tensor, ...], Outlook]:
    """Read S = T - H steps, whole patches, and forecast after each patch: the state, the output's arguments, each (R N, H), and where the
    forecasts were made.
    """
    c = model.config
    steps = x_BTC.shape[1] - c.prediction_length
    assert not state.pending
    assert steps % c.patch_length == 0
    x = x_BTC[:, :steps].transpose(1, 2).flatten(0, 1).double()  # (R, S)
    features = model.linear.weight.new_zeros(*x.shape, c.num_past_feat)
    context = Context(x, torch.ones_like(x), features, model.channel_embedding)
    reading = model._read(context, 0, state.titans, state.moments, state.learned, (state.values, state.seen))
    values, seen = torch.cat([state.values, x], 1), torch.cat([state.seen, context.seen], 1)
    ends = state.values.shape[1] + c.patch_length * torch.arange(1, steps // c.patch_length + 1)
    past, past_seen = (
        nn.functional.pad(part, (c.linear_steps, 0)).unfold(1, c.linear_steps, 1)[:, ends].flatten(0, 1) for part in (values, seen)
    )
    outlooks = Outlook(*(None if part is None else part.flatten(0, 1) for part in reading[:5]))  # type: ignore[arg-type]
    distr_args = model._forecast(outlooks, past, past_seen, features.new_zeros(len(past), c.prediction_length, c.num_future_feat))
    kept = state.values.shape[1]
    place = (reading.titans, reading.moments, reading.hidden[:, -1], values[:, -kept:], seen[:, -kept:], state.features, 0, reading.learned)
    return ForecasterState(*place), distr_args, outlooks


def in_units(model: TitansForecaster, x_BTC: Tensor, outlooks: Outlook) -> Tensor:
    """What came after each patch, in the units of its forecast, (R N, H)."""
    c = model.config
    future = x_BTC[:, c.patch_length :].transpose(1, 2).flatten(0, 1).double().unfold(1, c.prediction_length, c.patch_length)  # (R, N, H)
    return ((future.flatten(0, 1) - outlooks.loc.unsqueeze(1)) / outlooks.scale.unsqueeze(1)).clamp(-1e4, 1e4)


def segments(series_TC: Tensor, model: TitansForecaster, budget: StreamBudget, seed: int) -> Iterator[tuple[Tensor, bool]]:
    """Pieces (B, S + H, C) of streams that begin at random places, and whether they begin there."""
    piece = budget.steps + model.config.prediction_length
    draw = torch.Generator().manual_seed(seed)
    run = min(budget.restart, (len(series_TC) - model.config.prediction_length) // budget.steps)
    for segment in range(budget.segments):
        if segment % run == 0:
            latest = len(series_TC) - model.config.prediction_length - run * budget.steps
            places = torch.randint(latest + 1, (budget.streams,), generator=draw)
        yield torch.stack([series_TC[place : place + piece] for place in places.tolist()]), segment % run == 0
        places = places + budget.steps


@torch.inference_mode()
def carried_mse(model: TitansForecaster, series_TC: Tensor, first: int) -> float:
    """Squared error of the forecasts after every patch that ends at step `first` or later, of a stream that began with the series."""
    c = model.config
    H, P = c.prediction_length, c.patch_length
    model.eval()
    state, place, errors = model.init_state(1), first % P, []
    last = place + (len(series_TC) - H - place) // P * P
    while place < last:
        end = min(place + 128 * P, last)
        x_BTC = series_TC[place : end + H].unsqueeze(0)
        state, (location, *_), outlooks = read_on(model, state, x_BTC)
        error = (location - in_units(model, x_BTC, outlooks)) * outlooks.scale.unsqueeze(1)
        ends = torch.arange(place + P, end + 1, P)
        errors.append(error.square().unflatten(0, (-1, len(ends)))[:, ends >= first].mean((0, 2)))
        place = end
    return float(torch.cat(errors).mean())


def train_on_streams(model: TitansForecaster, series_TC: Tensor, border: int, lr: float, budget: StreamBudget, seed: int) -> list[float]:
    """Train in place on the steps before `border`; it ends with the weights that forecast the steps from there on best. The errors there,
    before training and at each look.

    Raises:
        NotFinite: an error is not finite.
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=budget.segments, pct_start=0.1)
    errors, state = [carried_mse(model, series_TC, border)], model.init_state(budget.streams)
    best = {name: x.clone() for name, x in model.state_dict().items()}
    for done, (x_BTC, begins) in enumerate(segments(series_TC[:border], model, budget, seed), start=1):
        model.train()
        after, distr_args, outlooks = read_on(model, model.init_state(budget.streams) if begins else state, x_BTC)
        loss = model.distr_output.loss(in_units(model, x_BTC, outlooks).to(distr_args[0].dtype), distr_args)
        loss = in_series_units(loss, outlooks.scale.unsqueeze(1), outlooks.scale.new_ones(len(loss), 1), model.config.output).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        state = after.detach()
        if done % (budget.segments // budget.looks) == 0:
            errors.append(carried_mse(model, series_TC, border))
            if not errors[-1] < float("inf"):
                raise NotFinite(f"a validation error of {errors[-1]}")
            if errors[-1] == min(errors):
                best = {name: x.clone() for name, x in model.state_dict().items()}
    model.load_state_dict(best)
    model.eval()
    return errors
