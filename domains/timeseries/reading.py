"""What the forecaster reads, what it then knows, and where it stands in a stream.

Shape suffixes and letters as in model.py: R = B * C rows, T steps, H prediction length, N patches, P patch length, E width, F features,
K steps that the linear part sees.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from domains.timeseries.forecast_memory import ForecastMemoryState
from domains.timeseries.scaling import Moments
from titans_seq import TitansState
from titans_seq.state import State


@dataclass(frozen=True)
class ForecasterState(State):
    """Where streams stand: all that a forecast needs, of a size that does not grow. R = B * C rows.

    titans:   the backbone after the last complete patch.
    moments:  level and spread after the last complete patch.
    hidden:   (R, E), what the backbone knew after it; zeros before the first.
    values:   (R, max(K, P)) float64, the latest values, whatever where not observed.
    seen:     the same shape, 1 where observed.
    features: (R, P, F) of the latest steps.
    pending:  steps after the last complete patch, fewer than P.
    learned:  the memory of the linear part after the last complete patch, if it has one.
    """

    titans: TitansState
    moments: Moments
    hidden: Tensor
    values: Tensor
    seen: Tensor
    features: Tensor
    pending: int
    learned: ForecastMemoryState | None = None


class Context(NamedTuple):
    """Steps to read: x, seen (R, T) float64; features (R, T, F); static, what is added to each token, (R, E) or (C, E)."""

    x: Tensor
    seen: Tensor
    features: Tensor
    static: Tensor


class Outlook(NamedTuple):
    """Where a forecast is made from: hidden (R, E); loc, scale and weight of history (R,) float64; correction (R, H) of the linear part."""

    hidden: Tensor
    loc: Tensor
    scale: Tensor
    weight: Tensor
    correction: Tensor | None


class Reading(NamedTuple):
    """Of N patches: hidden (R, N, E); loc, scale and weight of history (R, N) float64; correction (R, N, H) of the linear part, if it goes
    on learning; titans, moments and learned after the last.
    """

    hidden: Tensor
    loc: Tensor
    scale: Tensor
    weight: Tensor
    correction: Tensor | None
    titans: TitansState
    moments: Moments
    learned: ForecastMemoryState | None

    def outlook(self, patch: int) -> Outlook:
        """From the end of a patch."""
        return Outlook(*(None if part is None else part[:, patch] for part in self[:5]))  # type: ignore[arg-type]
