"""The long-horizon protocol: borders, standardisation by the training rows, every window at stride 1, MSE and MAE on that scale.

Shape suffixes: B windows of a batch, W windows, T steps, L look-back, H horizon, C channels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.timeseries.datasets import SOURCES, read

HORIZONS = (96, 192, 336, 720)
BATCH = 256
"""Windows that are forecast at once in an evaluation."""

Predict = Callable[[Tensor, Tensor], Tensor]
"""From windows of the past (B, L, C), and the phase of the day (B,) at which their future begins, to the steps ahead (B, H, C)."""


@dataclass(frozen=True)
class Windows:
    """Every window of `look_back + horizon` steps of one piece of a multivariate series, at stride 1 (or more, for a sample).

    Attributes:
        series_TC: standardised values, float32.
        look_back, horizon: L and H.
        stride: steps from window to window.
        phase_T: the phase of the day of each step, int64; None for zeros.
    """

    series_TC: Tensor
    look_back: int
    horizon: int
    stride: int = 1
    phase_T: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.series_TC) < self.look_back + self.horizon:
            raise ValueError(f"{len(self.series_TC)} steps hold no window of {self.look_back} + {self.horizon}")

    def __len__(self) -> int:
        return (len(self.series_TC) - self.look_back - self.horizon) // self.stride + 1

    @property
    def all_WCT(self) -> Tensor:
        """The windows, (W, C, L + H): a view of the series, nothing is copied."""
        return self.series_TC.unfold(0, self.look_back + self.horizon, self.stride)

    def take(self, index: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """Past (B, L, C) and future (B, H, C) of some of the windows, and the phase at which the future begins (B,)."""
        window_BTC = self.all_WCT[index].transpose(1, 2)
        phase_T = torch.zeros(len(self.series_TC), dtype=torch.int64) if self.phase_T is None else self.phase_T
        phase_B = phase_T[self.look_back :: self.stride][: len(self)][index]
        return window_BTC[:, : self.look_back], window_BTC[:, self.look_back :], phase_B

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Past, future and phase of all windows in order; the last batch may be smaller, and is never dropped."""
        for first in range(0, len(self), size):
            yield self.take(slice(first, first + size))

    def sample(self, most: int) -> "Windows":
        """At most about `most` of the windows, evenly apart."""
        return replace(self, stride=max(1, -(-len(self) // most)))


@dataclass(frozen=True)
class Split:
    """A data set cut as the papers cut it; validation and test begin one look-back early, so that their first label is at the border."""

    train: Windows
    validation: Windows
    test: Windows
    season: int


def standardise(values_TC: Tensor, train_rows: int) -> Tensor:
    """Each channel less its mean and by its standard deviation over the first rows, float32; a channel that stands still is only moved."""
    train = values_TC[:train_rows]
    scale = train.std(0, correction=0)
    return ((values_TC - train.mean(0)) / torch.where(scale > 0, scale, 1.0)).float()


def split(dataset: str, look_back: int, horizon: int) -> Split:
    """Windows of one of `SOURCES`."""
    source = SOURCES[dataset]
    train_end, validation_end, test_end = source.borders()
    values_TC, phase_T = read(dataset)
    series_TC = standardise(values_TC, train_end)
    pieces = (slice(train_end), slice(train_end - look_back, validation_end), slice(validation_end - look_back, test_end))
    return Split(*(Windows(series_TC[piece], look_back, horizon, phase_T=phase_T[piece]) for piece in pieces), season=source.season)


@dataclass(frozen=True)
class Errors:
    """Mean squared and absolute error over windows, steps and channels, and the squared error of each step ahead."""

    mse: float
    mae: float
    mse_by_step: list[float]
    windows: int


class NotFinite(ValueError):
    """A forecast that is NaN or infinite."""


@torch.inference_mode()
def evaluate(predict: Predict, windows: Windows, batch: int = BATCH) -> Errors:
    """Errors of the forecasts of every window, summed in float64.

    Raises:
        ValueError: forecasts of another shape than the labels.
        NotFinite: forecasts that are not finite.
    """
    squared_HC = absolute_HC = torch.zeros((), dtype=torch.float64)
    for past_BLC, future_BHC, phase_B in windows.batches(batch):
        forecast_BHC = predict(past_BLC, phase_B)
        if forecast_BHC.shape != future_BHC.shape:
            raise ValueError(f"forecasts of shape {tuple(forecast_BHC.shape)}, expected {tuple(future_BHC.shape)}")
        error_BHC = (forecast_BHC - future_BHC).double()
        squared_HC = squared_HC + error_BHC.square().sum(0)
        absolute_HC = absolute_HC + error_BHC.abs().sum(0)
    if not torch.isfinite(squared_HC).all():
        raise NotFinite("forecasts that are not finite")
    by_step_H = squared_HC.mean(1) / len(windows)
    return Errors(float(by_step_H.mean()), float(absolute_HC.mean()) / len(windows), by_step_H.tolist(), len(windows))
