"""The forecaster: running normalisation, patches, the Titans backbone over patches, a head for the whole horizon.

Shape suffixes: B batch, C channels, R = B * C rows, T steps, L context length, H prediction length, N patches, P patch length, E width,
F features of a step, K steps that the linear part sees.
"""

import math

from titans_seq.quiet import quiet_import

with quiet_import():
    from gluonts.torch.distributions import QuantileOutput

import torch
from torch import Tensor, nn

from domains.timeseries.config import ForecasterConfig
from domains.timeseries.forecast_memory import ForecastMemory, ForecastMemoryState
from domains.timeseries.linear import LinearForecast
from domains.timeseries.linear_view import LinearView
from domains.timeseries.outputs import in_series_units, make_output, shifted, start_neutral
from domains.timeseries.reading import Context, ForecasterState, Outlook, Reading
from domains.timeseries.scaling import SMALLEST, Moments, scan
from titans_seq import Titans, TitansState
from titans_seq.training.trainable import Metric

HARMONICS = 2
TOKEN_FACTS = 6
"""What a token says beside its values: change of level and spread, level and spread in the channel's units, history, share arrived."""


def fourier_features(time_features: Tensor) -> Tensor:
    """Sine and cosine of calendar features in [-0.5, 0.5]: (.., F) -> (.., 2 * HARMONICS * F), periodic without a jump."""
    angles = torch.cat([2 * math.pi * n * time_features for n in range(1, HARMONICS + 1)], dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ChannelMixing(nn.Module):
    """Attention between the tokens of all channels at the same steps, added to them; it begins as nothing."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)

    def forward(self, tokens_BCNE: Tensor) -> Tensor:
        """(B, C, N, E) -> (B, C, N, E)."""
        x = self.norm(tokens_BCNE).transpose(1, 2).flatten(0, 1)  # (B N, C, E)
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return tokens_BCNE + mixed.unflatten(0, (-1, tokens_BCNE.shape[2])).transpose(1, 2)


class TitansForecaster(LinearView):
    """Probabilistic forecasts of C channels, each read by the same backbone with an embedding that tells it apart.

    Values are cut into patches, each normalised by the level and spread of all before its end (`scaling`), and read in order with observed
    flags, calendar and features. What the backbone knows after the last one, and the calendar and features of each step ahead, give the
    parameters of `distr_output`, a GluonTS output, for every step and channel, around a linear forecast from the latest values (as in
    DLinear). A stream is carried on by `observe` and forecast by `predict`; `forward` does both for a context that begins cold.

    Attributes:
        channel_loc, channel_scale: (C,) level and spread of each channel in the training data.
        feature_loc, feature_scale: of features known ahead, past features and static features, in this order.
    """

    model_type = "titans_forecaster"
    config_class = ForecasterConfig
    channel_loc: Tensor
    feature_loc: Tensor
    feature_scale: Tensor

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = c = config
        self.distr_output = make_output(c.output)
        width = c.titans.dim
        calendar = 2 * HARMONICS * c.num_time_features
        dynamic = 2 * (c.num_feat_dynamic_real + c.num_past_feat_dynamic_real)
        self.embed = nn.Linear(c.patch_length * (2 + dynamic) + calendar + TOKEN_FACTS, width)
        self.channel_embedding = nn.Parameter(torch.zeros(c.num_channels, width))
        self.static = nn.Linear(c.num_feat_static_real, width, bias=False) if c.num_feat_static_real else None
        self.categories = nn.ModuleList(nn.Embedding(count, width) for count in c.cardinality)
        self.mixing = ChannelMixing(width, c.titans.attention.num_heads) if c.channel_mixing else None
        self.titans = Titans(c.titans)
        self.to_horizon = nn.Linear(width, c.prediction_length * c.horizon_dim)
        ahead = calendar + 2 * c.num_feat_dynamic_real
        self.ahead = nn.Linear(ahead, c.horizon_dim, bias=False) if ahead else None
        self.linear = LinearForecast(c)
        self.linear_memory = (
            ForecastMemory(c.linear_steps, c.prediction_length, c.patch_length, c.linear_memory) if c.linear_memory else None
        )
        self.args_proj = self.distr_output.get_args_proj(c.horizon_dim + 1)
        for weight in self.categories.parameters():
            nn.init.normal_(weight, std=0.02)
        start_neutral(self.args_proj, c.output)
        features = c.num_feat_dynamic_real + c.num_past_feat_dynamic_real + c.num_feat_static_real
        for name, size in (("channel", c.num_channels), ("feature", features)):
            self.register_buffer(f"{name}_loc", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    # ---- what a user calls

    def forward(
        self,
        past_target: Tensor,
        past_observed_values: Tensor,
        past_feat: Tensor | None = None,
        future_feat: Tensor | None = None,
        feat_static_real: Tensor | None = None,
        feat_static_cat: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Parameters of the output and the scale that they are in, from a context that begins cold.

        Args:
            past_target: (B, L, C), or (B, L) of a univariate series; unobserved values are ignored.
            past_observed_values: the same shape, above 0 where observed.
            past_feat: (B, L, num_past_feat) and
            future_feat: (B, H, num_future_feat), columns as `ForecasterConfig` says; None where there are none.
            feat_static_real: (B, num_feat_static_real) and
            feat_static_cat: (B, len(cardinality)) integers; None where there are none.

        Returns:
            distr_args, each (B, H, C, ..), loc and scale (B, 1, C); without the dimension C for a univariate series. Nothing is
            known of a channel without any observed value: its loc, and so its forecast, is NaN.
        """
        context = self._context(past_target, past_observed_values, past_feat, feat_static_real, feat_static_cat)
        reading = self._read(context, self._padding(context.x.shape[1]))
        last = reading.outlook(-1)
        distr_args = self._forecast(last, context.x, context.seen, self._features_ahead(future_feat, len(context.x)))
        return self._for_gluonts(distr_args, last, univariate=past_target.dim() == 2)

    def init_state(self, batch_size: int) -> ForecasterState:
        """The state before the first step of `batch_size` series."""
        c, rows, device = self.config, batch_size * self.config.num_channels, self.linear.weight.device
        values = torch.zeros(rows, max(c.linear_steps, c.patch_length), dtype=torch.float64, device=device)
        features = self.linear.weight.new_zeros(rows, c.patch_length, c.num_past_feat)
        hidden = self.linear.weight.new_zeros(rows, c.titans.dim)
        titans = self.titans.init_state(rows)
        learned = None if self.linear_memory is None else self.linear_memory.init_state(rows)
        return ForecasterState(titans, Moments.initial(rows, device), hidden, values, torch.zeros_like(values), features, 0, learned)

    def observe(
        self,
        state: ForecasterState,
        target: Tensor,
        observed_values: Tensor,
        feat: Tensor | None = None,
        feat_static_real: Tensor | None = None,
        feat_static_cat: Tensor | None = None,
    ) -> ForecasterState:
        """Read T >= 1 further steps; arguments as of `forward`, T for L. How steps are cut into pieces does not matter."""
        new = self._context(target, observed_values, feat, feat_static_real, feat_static_cat)
        values, seen = torch.cat([state.values, new.x], 1), torch.cat([state.seen, new.seen], 1)
        features = torch.cat([state.features, new.features], 1)
        titans, moments, hidden, learned = state.titans, state.moments, state.hidden, state.learned
        waiting = state.pending + new.x.shape[1]
        pending = waiting % self.config.patch_length
        if waiting > pending:
            complete = slice(-waiting, -pending or None)
            context = Context(values[:, complete], seen[:, complete], features[:, complete], new.static)
            before = values[:, :-waiting], seen[:, :-waiting]
            reading = self._read(context, 0, titans, moments, learned, before)
            titans, moments, hidden, learned = reading.titans, reading.moments, reading.hidden[:, -1], reading.learned
        kept, P = state.values.shape[1], self.config.patch_length
        return ForecasterState(titans, moments, hidden, values[:, -kept:], seen[:, -kept:], features[:, -P:], pending, learned)

    def predict(
        self,
        state: ForecasterState,
        future_feat: Tensor | None = None,
        feat_static_real: Tensor | None = None,
        feat_static_cat: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """As `forward`, of the steps after those that `state` has observed, an unfinished patch included; `state` stays as it is."""
        correction = None if state.learned is None else state.learned.correction
        last = Outlook(state.hidden, *self._units(state.moments), state.moments.weight, correction)
        if state.pending:
            rest = slice(-state.pending, None)
            static = self._static(feat_static_real, feat_static_cat)
            context = Context(state.values[:, rest], state.seen[:, rest], state.features[:, rest], static)
            before = state.values[:, : -state.pending], state.seen[:, : -state.pending]
            reading = self._read(context, 0, state.titans, state.moments, state.learned, before)
            last = reading.outlook(-1)
        distr_args = self._forecast(last, state.values, state.seen, self._features_ahead(future_feat, len(state.values)))
        return self._for_gluonts(distr_args, last, univariate=False)

    @property
    def metric(self) -> Metric:
        """How its loss is shown: that of quantiles is the CRPS, in units of each series' spread; else a likelihood's."""
        return Metric("scaled CRPS" if self.config.output.kind == "quantile" else "nats", units="windows")

    def loss(self, batch: dict[str, Tensor], forecasts: int = 1, unfinished: int = 0) -> Tensor:
        """Mean loss over observed future values, in units of each series' spread (a scalar); arguments as of `counted_loss`."""
        return self.counted_loss(batch, forecasts, unfinished)[0]

    def counted_loss(self, batch: dict[str, Tensor], forecasts: int = 1, unfinished: int = 0) -> tuple[Tensor, Tensor]:
        """The mean loss, and over how many values it is.

        Args:
            batch: the arguments of `forward`; future_target, future_observed_values (B, H, C) or (B, H); series_spread (B, C) or (B,), the
                standard deviation of the whole training series.
            forecasts: made from the ends of so many last patches of each context, as far as there are.
            unfinished: steps of the last patch, if it is not to be complete: what a stream meets.
        """
        names = ("past_target", "past_observed_values", "past_feat", "feat_static_real", "feat_static_cat")
        context = self._context(*(batch.get(name) for name in names))  # type: ignore[arg-type]
        length, H, P = context.x.shape[1], self.config.prediction_length, self.config.patch_length
        padding = self._padding(length - unfinished)
        reading = self._read(context, padding)
        x = torch.cat([context.x, self._rows(batch["future_target"])], 1)
        seen = torch.cat([context.seen, self._rows(batch["future_observed_values"])], 1)
        features = torch.cat(
            [context.features[..., : self.config.num_future_feat], self._features_ahead(batch.get("future_feat"), len(x))], 1
        )
        spread = batch["series_spread"].double().reshape(-1).clamp(min=SMALLEST)
        total, count = x.new_zeros(()), x.new_zeros(())
        for n in range(reading.loc.shape[1] - 1, -1, -1)[:forecasts]:
            end = min((n + 1) * P - padding, length)
            ahead = slice(end, end + H)
            last = reading.outlook(n)
            distr_args = self._forecast(last, x[:, :end], seen[:, :end], features[:, ahead])
            loc, scale = last.loc.unsqueeze(1), last.scale.unsqueeze(1)
            counted = (seen[:, ahead] > 0) & (last.weight > 0).unsqueeze(1)
            if self._counts:
                loss = self.distr_output.loss(x[:, ahead].to(features.dtype), distr_args, scale=scale.to(features.dtype))
            else:
                target = ((x[:, ahead] - loc) / scale).clamp(-1e4, 1e4).to(features.dtype)
                loss = in_series_units(self.distr_output.loss(target, distr_args), scale, spread.unsqueeze(1), self.config.output)
            total, count = total + torch.where(counted, loss, 0.0).sum(), count + counted.sum()
        return total / count.clamp(min=1), count

    # ---- pieces

    def _context(
        self, target: Tensor, observed: Tensor, feat: Tensor | None, static_real: Tensor | None, static_cat: Tensor | None
    ) -> Context:
        x, seen = self._rows(target), self._observed(observed)
        x = torch.where(seen > 0, x, 0.0)
        return Context(x, seen, self._features(feat, *x.shape), self._static(static_real, static_cat))

    def _features(self, feat_BTF: Tensor | None, rows: int, steps: int) -> Tensor:
        """Past features of each row, (R, T, F), those of the user in units of the training data."""
        c, dtype = self.config, self.linear.weight.dtype
        if feat_BTF is None:
            self._require_phase("past_feat")
            return torch.zeros(rows, steps, c.num_past_feat, dtype=dtype, device=self.linear.weight.device)
        of_time, known, known_seen, past, past_seen = feat_BTF.split(
            [c.num_phase_feat + c.num_time_features, *(2 * [c.num_feat_dynamic_real]), *(2 * [c.num_past_feat_dynamic_real])], dim=-1
        )
        values = self._standard(torch.cat([known, past], -1), torch.cat([known_seen, past_seen], -1), 0)
        known, past = values.split([c.num_feat_dynamic_real, c.num_past_feat_dynamic_real], dim=-1)
        return torch.cat([of_time, known, known_seen, past, past_seen], -1).to(dtype).repeat_interleave(c.num_channels, 0)

    def _features_ahead(self, feat_BHF: Tensor | None, rows: int) -> Tensor:
        """Features of the steps ahead of each row, (R, H, num_future_feat)."""
        c, dtype = self.config, self.linear.weight.dtype
        if feat_BHF is None:
            self._require_phase("future_feat")
            return torch.zeros(rows, c.prediction_length, c.num_future_feat, dtype=dtype, device=self.linear.weight.device)
        of_time, known, seen = feat_BHF.split(
            [c.num_phase_feat + c.num_time_features, c.num_feat_dynamic_real, c.num_feat_dynamic_real], dim=-1
        )
        return torch.cat([of_time, self._standard(known, seen, 0), seen], -1).to(dtype).repeat_interleave(c.num_channels, 0)

    def _standard(self, values: Tensor, seen: Tensor | None, first: int) -> Tensor:
        """Features from number `first` on in units of the training data; 0 where not seen."""
        units = slice(first, first + values.shape[-1])
        standard = ((values - self.feature_loc[units]) / self.feature_scale[units]).clamp(-10, 10)
        return standard if seen is None else torch.where(seen > 0, standard, 0.0)

    def _static(self, real_BS: Tensor | None, cat_BK: Tensor | None) -> Tensor:
        """What a row's channel and series add to each of its tokens, (R, E) or (C, E) where the series tells nothing."""
        c, of_channel = self.config, self.channel_embedding
        of_series = []
        if self.static is not None and real_BS is not None:
            dynamic = c.num_feat_dynamic_real + c.num_past_feat_dynamic_real
            of_series.append(self.static(self._standard(real_BS, None, dynamic).to(of_channel.dtype)))
        if self.categories and cat_BK is not None:
            of_series.extend(table(cat_BK[:, i].long()) for i, table in enumerate(self.categories))
        return (sum(of_series).unsqueeze(1) + of_channel).flatten(0, 1) if of_series else of_channel

    def _read(
        self,
        context: Context,
        padding: int,
        titans: TitansState | None = None,
        moments: Moments | None = None,
        learned: ForecastMemoryState | None = None,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> Reading:
        """Read T steps after `padding` unobserved ones; where they do not fill the last patch, it counts as unfinished.

        titans, moments, learned: of the stream so far; before: its latest values and whether they were observed, (R, any) each.
        """
        c, rows = self.config, len(context.x)
        x, seen, features = (self._patched(part, padding) for part in context[:3])  # (R, N, P), (R, N, P, F)
        first = Moments.initial(rows, x.device) if moments is None else moments
        each, after = scan(x, seen, c.scale_steps, first)
        loc, scale = self._units(each)
        arrived = x.new_ones(x.shape[1])
        arrived[-1] -= -(padding + context.x.shape[1]) % c.patch_length / c.patch_length
        facts = self._facts(each, first, loc, scale, arrived)
        tokens = self._tokens(x, seen, features, loc, scale, facts, context.static)
        if self.mixing is not None:
            tokens = self.mixing(tokens.unflatten(0, (-1, c.num_channels))).flatten(0, 1)
        hidden, titans = self.titans(tokens, titans)
        correction = None
        if self.linear_memory is not None:
            learned = self.linear_memory.init_state(rows) if learned is None else learned
            with torch.autocast(x.device.type, enabled=False):
                patches = self._patches_of(*context[:2], self._phases(context.features), padding, x, seen, loc, scale, before)
                correction, learned = self.linear_memory(patches, learned)
        hidden = hidden.to(self.linear.weight.dtype)  # of lower precision under autocast
        return Reading(hidden, loc, scale, each.weight, correction, titans, after, learned)

    def _facts(self, each: Moments, before: Moments, loc: Tensor, scale: Tensor, arrived: Tensor) -> Tensor:
        """The facts of each token, (R, N, TOKEN_FACTS)."""
        first_loc, first_scale = self._units(before)
        loc_before = torch.cat([first_loc.unsqueeze(1), loc[:, :-1]], 1)
        scale_before = torch.cat([first_scale.unsqueeze(1), scale[:, :-1]], 1)
        goes_on = torch.cat([before.weight.unsqueeze(1), each.weight[:, :-1]], 1) > 0
        known = (each.weight > 0) & self.config.absolute_level
        repeats = len(loc) // self.config.num_channels
        channel_loc, channel_scale = (x.double().repeat(repeats).unsqueeze(1) for x in (self.channel_loc, self.channel_scale))
        facts = (
            torch.where(goes_on, torch.asinh((loc - loc_before) / scale), 0.0),
            torch.where(goes_on, (scale / scale_before).log().clamp(-5, 5), 0.0),
            torch.where(known, torch.asinh((loc - channel_loc) / channel_scale), 0.0),
            torch.where(known, (scale / channel_scale).log().clamp(-5, 5), 0.0),
            torch.log1p(each.weight) / math.log1p(self.config.scale_steps),
            arrived.expand_as(loc),
        )
        return torch.stack(facts, -1)

    def _tokens(
        self, x_RNP: Tensor, seen_RNP: Tensor, feat_RNPF: Tensor, loc: Tensor, scale: Tensor, facts: Tensor, static: Tensor
    ) -> Tensor:
        """(R, N, E)."""
        first, dtype = self.config.num_phase_feat, self.linear.weight.dtype
        last = first + self.config.num_time_features
        season = self.linear.seasonal(self._phases(feat_RNPF).flatten(1), self.linear.channels(len(x_RNP))).view_as(x_RNP)
        values = torch.where(seen_RNP > 0, (x_RNP - loc.unsqueeze(-1)) / scale.unsqueeze(-1) - season, 0.0)
        calendar = fourier_features(feat_RNPF[:, :, 0, first:last])  # of a patch's first step, zeros where that stands before the context
        parts = (values, (seen_RNP > 0).double(), feat_RNPF[..., last:].flatten(2), calendar, facts)
        tokens = self.embed(torch.cat([part.to(dtype) for part in parts], -1))
        return tokens + static.repeat(len(tokens) // len(static), 1).unsqueeze(1)

    def _forecast(self, last: Outlook, x_RT: Tensor, seen_RT: Tensor, feat_RHF: Tensor) -> tuple[Tensor, ...]:
        """distr_args (R, H, ..) of the steps after T, in the units of the last patch; under autocast too in the parameters' dtype."""
        c, dtype = self.config, last.hidden.dtype
        latest, seen = (part.to(dtype) for part in self._linear_inputs(last.loc, last.scale, x_RT, seen_RT))
        with torch.autocast(x_RT.device.type, enabled=False):
            linear = self.linear(latest, seen, self._phases(feat_RHF[:, 0]))  # (R, H)
            if last.correction is not None:
                linear = linear + last.correction
            h = self.to_horizon(last.hidden).unflatten(-1, (c.prediction_length, c.horizon_dim))
            if self.ahead is not None:
                calendar, rest = feat_RHF[..., c.num_phase_feat :].tensor_split([c.num_time_features], dim=-1)
                h = h + self.ahead(torch.cat([fourier_features(calendar), rest], -1))
            distr_args = self.args_proj(torch.cat([nn.functional.gelu(h), linear.unsqueeze(-1)], -1))
        if not self._counts:
            distr_args = shifted(distr_args, linear, c.output)
        if isinstance(self.distr_output, QuantileOutput) and not self.training:
            distr_args = (distr_args[0].sort(dim=-1).values,)  # quantiles that cross are put in order (Chernozhukov et al. 2010)
        return distr_args

    def _for_gluonts(self, distr_args: tuple[Tensor, ...], last: Outlook, *, univariate: bool) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Rows as (B, H, C, ..), loc and scale as (B, 1, C), without C for a univariate series; loc is NaN where nothing was observed."""
        dtype, loc = distr_args[0].dtype, torch.where(last.weight > 0, last.loc, torch.nan)
        if univariate:
            return distr_args, loc.unsqueeze(1).to(dtype), last.scale.unsqueeze(1).to(dtype)
        channels = self.config.num_channels
        args = tuple(argument.unflatten(0, (-1, channels)).transpose(1, 2) for argument in distr_args)
        return args, *(x.unflatten(0, (-1, channels)).unsqueeze(1).to(dtype) for x in (loc, last.scale))
