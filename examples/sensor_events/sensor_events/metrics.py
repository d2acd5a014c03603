"""Bits per event of the model, beside a chain that knows one event."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sensor_events.data import EVENTS, FAULTS
from sensor_events.model import EventModel, log_seconds
from titans_seq.training.trainable import BITS

Nats = Callable[[Tensor], Tensor]
"""From a shift (T, 2) to the nats (T - 1, 2) of type and gap of every event after the first."""


def markov_renewal(shifts: list[np.ndarray]) -> Nats:
    """Order-1 Markov chain of the types with add-one smoothing, and a log-normal gap for every pair of types, fitted on `shifts`."""
    pairs = torch.from_numpy(np.concatenate([np.stack([shift[:-1, 0], shift[1:, 0]]) for shift in shifts], axis=1))
    gaps = torch.cat([log_seconds(torch.from_numpy(shift[1:])) for shift in shifts]).double()
    moments = torch.stack([torch.ones_like(gaps), gaps, gaps.square()], dim=-1)
    sums = moments.mean(0).repeat(len(EVENTS), len(EVENTS), 1)  # of one gap that is like all
    sums.index_put_(tuple(pairs), moments, accumulate=True)
    count, mean, square = sums[..., 0], sums[..., 1] / sums[..., 0], sums[..., 2] / sums[..., 0]
    chances, variance = count / count.sum(1, keepdim=True), square - mean.square()

    def nats(shift: Tensor) -> Tensor:
        pair = (shift[:-1, 0], shift[1:, 0])
        of_gap = F.gaussian_nll_loss(mean[pair], log_seconds(shift[1:]).double(), variance[pair], full=True, reduction="none")
        return torch.stack([-chances[pair].log(), of_gap], dim=-1)

    return nats


def trained(model: EventModel) -> Nats:
    """Of a model that reads every shift from its begin."""
    return lambda shift: model.nats(shift[None, :-1], shift[None, 1:])[0][0]


def late_fault(shift: np.ndarray) -> int | None:
    """Place of a shift's first fault, if it stands 30 events or more after the load."""
    at = np.flatnonzero(np.isin(shift[:, 0], [EVENTS.index(fault) for fault in FAULTS]))
    return int(at[0]) if at.size and at[0] >= 30 else None


@torch.inference_mode()
def evaluate(predict: Nats, shifts: list[np.ndarray]) -> dict[str, float]:
    """Mean bits: of all events, and of the types of late faults, which nothing but the load foretells (0 where there are none)."""
    nats = [predict(torch.from_numpy(shift)) for shift in shifts]
    of_type, of_gap = (torch.cat(nats).mean(0) * BITS).tolist()
    late = [float(part[at - 1, 0]) * BITS for part, at in zip(nats, map(late_fault, shifts), strict=True) if at is not None]
    found = {"bits_per_event": of_type + of_gap, "of_type": of_type, "of_gap": of_gap, "of_late_fault": sum(late) / max(len(late), 1)}
    return {name: round(value, 3) for name, value in found.items()}
