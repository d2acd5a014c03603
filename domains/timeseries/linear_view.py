"""What a forecaster's linear part sees of series: rows, patches, their units, their season; and what it says of them alone.

Shape suffixes: B batch, C channels, R = B * C rows, T steps, L context length, H prediction length, N patches, P patch length, F features
of a step, K steps that the linear part sees.
"""

import torch
from torch import Tensor, nn

from domains.timeseries.config import ForecasterConfig
from domains.timeseries.forecast_memory import Patches
from domains.timeseries.linear import LinearForecast, LinearProblem
from domains.timeseries.outputs import LOCATION
from domains.timeseries.scaling import SMALLEST, Moments, count_units, real_units, scan
from titans_seq.checkpoint import Pretrained


class LinearView(Pretrained):
    """The forecaster without its backbone and its head.

    Attributes:
        linear: the linear part.
        channel_scale: (C,) spread of each channel in the training data.
    """

    config: ForecasterConfig
    linear: LinearForecast
    channel_scale: Tensor

    def linear_problem(self, batch: dict[str, Tensor]) -> LinearProblem:
        """What the linear part would have to map to what, of the rows of a batch as of `loss` whose future is wholly observed."""
        x, seen = self._rows(batch["past_target"]), self._observed(batch["past_observed_values"])
        loc, scale, known = self._units_of(x, seen)
        targets = (self._rows(batch["future_target"]) - loc.unsqueeze(1)) / scale.unsqueeze(1)
        weight = (scale / batch["series_spread"].double().reshape(-1).clamp(min=SMALLEST)).clamp(max=100).square()
        phase = self._phase_ahead(batch.get("future_feat"), len(x))
        parts = (*self._linear_inputs(loc, scale, x, seen), targets, weight, self.linear.channels(len(x)), phase)
        whole = self._rows(batch["future_observed_values"]).all(1) & known
        return LinearProblem(*(part[whole] for part in parts))

    def linear_forecast(self, past_target: Tensor, past_observed_values: Tensor, future_feat: Tensor | None = None) -> Tensor:
        """What the linear part alone forecasts, (B, H, C); arguments (B, L, C) and (B, H, num_future_feat) as of `forward`."""
        x, seen = self._rows(past_target), self._observed(past_observed_values)
        loc, scale, _ = self._units_of(x, seen)
        dtype = self.linear.weight.dtype
        latest, there = (part.to(dtype) for part in self._linear_inputs(loc, scale, x, seen))
        y = self.linear(latest, there, self._phase_ahead(future_feat, len(x)))
        rows = y * scale.unsqueeze(1).to(dtype) + loc.unsqueeze(1).to(dtype)
        return rows.unflatten(0, (-1, self.config.num_channels)).transpose(1, 2)

    @torch.no_grad()
    def linear_patches(self, target: Tensor, observed_values: Tensor, phases: Tensor) -> Patches:
        """What the memory of the linear part reads of whole series. Steps at their begin that fill no patch are left out.

        target, observed_values: (B, T, C), as of `forward`. phases: (B, T) integers, of each step in the season; any where there is none.
        """
        begin = target.shape[1] % self.config.patch_length
        x, seen = self._rows(target)[:, begin:], self._observed(observed_values)[:, begin:]
        x_RNP, seen_RNP = self._patched(torch.where(seen > 0, x, 0.0), 0), self._patched(seen, 0)
        each, _ = scan(x_RNP, seen_RNP, self.config.scale_steps, Moments.initial(len(x), x.device))
        phases = phases[:, begin:].repeat_interleave(self.config.num_channels, 0)
        return self._patches_of(x, seen, phases, 0, x_RNP, seen_RNP, *self._units(each), None)

    @torch.no_grad()
    def _patches_of(
        self,
        x_RT: Tensor,
        seen_RT: Tensor,
        phases_RT: Tensor,
        padding: int,
        x_RNP: Tensor,
        seen_RNP: Tensor,
        loc: Tensor,
        scale: Tensor,
        before: tuple[Tensor, Tensor] | None,
    ) -> Patches:
        """Patches of a context with what the linear part sees and says after each."""
        K, P, length = self.config.linear_steps, self.config.patch_length, x_RT.shape[1]
        rows, patches = loc.shape
        values, there = (x_RT, seen_RT) if before is None else (torch.cat(part, 1) for part in zip(before, (x_RT, seen_RT), strict=True))
        ends = (torch.arange(1, patches + 1, device=values.device) * P - padding).clamp(max=length)
        at = ends + values.shape[1] - length
        values, there = (nn.functional.pad(part, (K, 0)).unfold(1, K, 1)[:, at] for part in (values, there))  # (R, N, K)
        units = torch.where(there > 0, (values - loc.unsqueeze(-1)) / scale.unsqueeze(-1), 0.0)
        enough = (there > 0).sum(-1) * 2 >= K
        inputs, seen = (part.to(self.linear.weight.dtype).transpose(0, 1).flatten(0, 1) for part in (units, there))  # (N R, K)
        phase = (phases_RT[:, ends - 1] + 1).T.flatten()
        rest = self.linear.without_season(inputs, seen, phase, self.linear.channels(len(inputs)))
        latest, forecast = (part.unflatten(0, (patches, rows)).transpose(0, 1) for part in (rest, self.linear.from_rest(rest, phase)))
        return Patches(x_RNP, seen_RNP, loc, scale, latest, enough, forecast)

    # ---- pieces

    def _linear_inputs(self, loc: Tensor, scale: Tensor, x_RT: Tensor, seen_RT: Tensor) -> tuple[Tensor, Tensor]:
        """The latest K values in units of loc and scale (R,), 0 where there is none, and whether there is, (R, K) float64 each."""
        K = self.config.linear_steps
        x, seen = (nn.functional.pad(part[:, -K:], (max(0, K - part.shape[1]), 0)) for part in (x_RT, seen_RT))
        return torch.where(seen > 0, (x - loc.unsqueeze(1)) / scale.unsqueeze(1), 0.0), seen

    @property
    def _counts(self) -> bool:
        """Whether the output is of counts, which have a scale but no level."""
        return self.config.output.kind not in LOCATION

    def _units(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """loc and scale of moments (R,) or (R, N)."""
        if self._counts:
            return count_units(moments)
        loc, scale = real_units(moments)
        if self.config.spread_prior:
            channel = self._of_rows(self.channel_scale.double(), len(scale))
            scale = torch.hypot(scale, self.config.spread_prior * (channel if scale.dim() == 1 else channel.unsqueeze(1)))
        return loc, scale

    def _units_of(self, x_RT: Tensor, seen_RT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """loc and scale of a context that begins cold, and whether anything was observed, (R,)."""
        x, seen = (self._patched(part, self._padding(x_RT.shape[1])) for part in (x_RT, seen_RT))
        _, moments = scan(x, seen, self.config.scale_steps, Moments.initial(len(x_RT), x_RT.device))
        return *self._units(moments), moments.weight > 0

    def _of_rows(self, of_channels: Tensor, rows: int) -> Tensor:
        """(C, ..) -> (R, ..)."""
        return of_channels.repeat(rows // len(of_channels), *(1,) * (of_channels.dim() - 1))

    def _phases(self, features: Tensor) -> Tensor:
        """Of features (.., F): integers (..), all 0 where there is no season."""
        season = self.config.season_length
        return features.new_zeros(features.shape[:-1], dtype=torch.int64) if season is None else features[..., 0].long() % season

    def _padding(self, length: int) -> int:
        """Unobserved steps in front of a context, so that it ends with a complete patch."""
        return -length % self.config.patch_length

    def _rows(self, x: Tensor) -> Tensor:
        """(B, T, C), or (B, T) of a univariate series, -> (R, T) float64."""
        return (x.unsqueeze(-1) if x.dim() == 2 else x).transpose(1, 2).flatten(0, 1).double()

    def _observed(self, x: Tensor) -> Tensor:
        """As `_rows`, 1 where x is above 0 and else 0."""
        return (self._rows(x) > 0).double()

    def _phase_ahead(self, feat_BHF: Tensor | None, rows: int) -> Tensor:
        """Of the first step ahead of each row, (R,)."""
        if feat_BHF is None:
            self._require_phase("future_feat")
            return torch.zeros(rows, dtype=torch.int64, device=self.linear.weight.device)
        return self._phases(feat_BHF[:, 0]).repeat_interleave(self.config.num_channels, 0)

    def _require_phase(self, name: str) -> None:
        if self.config.num_phase_feat:
            raise ValueError(f"{name} is needed: its first column is the phase of the season of {self.config.season_length} steps")

    def _patched(self, x: Tensor, padding: int) -> Tensor:
        """(R, T, ..) -> (R, N, P, ..), zeros in front and behind."""
        P = self.config.patch_length
        x = nn.functional.pad(x, (*(0, 0) * (x.dim() - 2), padding, -(padding + x.shape[1]) % P))
        return x.unflatten(1, (-1, P))
