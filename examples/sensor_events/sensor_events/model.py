"""`EventModel`: the next event's type and the gap before it. Shapes: B rows, T events, V types."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensor_events.config import EventConfig
from sensor_events.data import EVENTS
from titans_seq import Titans, TitansState
from titans_seq.checkpoint import Pretrained
from titans_seq.training.trainable import BITS, LossOutput, Metric


class EventModel(Pretrained):
    """Embedding of type and gap, Titans backbone, and a head: chances of the types, and for each type a log-normal gap."""

    model_type = "sensor_events"
    config_class = EventConfig
    metric = Metric("bits per event", BITS)

    def __init__(self, config: EventConfig) -> None:
        super().__init__()
        self.config = config
        self.event = nn.Embedding(len(EVENTS), config.titans.dim)
        self.gap = nn.Linear(1, config.titans.dim, bias=False)
        nn.init.normal_(self.gap.weight, std=0.05)  # logarithms are large beside embeddings
        self.titans = Titans(config.titans)
        self.head = nn.Linear(config.titans.dim, 3 * len(EVENTS))

    def init_state(self, batch_size: int) -> TitansState:
        """The state before the first event of `batch_size` shifts."""
        return self.titans.init_state(batch_size)

    def forward(
        self, events: Tensor, state: TitansState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], TitansState]:
        """What follows each of the events (B, T, 2) int64; state, mask and reset as `Titans.forward`.

        Returns:
            Logits of the types, mean and standard deviation of the gap's logarithm for each type, (B, T, V) each; and the state after.
        """
        x = self.event(events[..., 0]) + self.gap(log_seconds(events).unsqueeze(-1))
        y, state = self.titans(x, state, mask=mask, reset=reset)
        logits, mean, spread = self.head(y).float().chunk(3, dim=-1)
        return (logits, mean, F.softplus(spread) + self.config.smallest_spread), state

    def nats(self, events: Tensor, targets: Tensor, state: TitansState | None = None, **marks: Any) -> tuple[Tensor, TitansState]:
        """What each target costs, (B, T, 2): -log of its type's chance, and -log of the density of its gap's logarithm; the state after."""
        (logits, mean, spread), state = self(events, state, **marks)
        kind = targets[..., :1]
        mean, spread = mean.gather(-1, kind).squeeze(-1), spread.gather(-1, kind).squeeze(-1)
        of_type = F.cross_entropy(logits.transpose(1, 2), kind.squeeze(-1), reduction="none")
        of_gap = F.gaussian_nll_loss(mean, log_seconds(targets), spread.square(), full=True, reduction="none")
        return torch.stack([of_type, of_gap], dim=-1), state

    def loss(self, batch: dict[str, Any], state: TitansState | None) -> LossOutput:
        """Mean nats an event, type and gap together, of a batch of `DocumentStream`."""
        mask = batch["mask"]
        nats, state = self.nats(batch["tokens"], batch["targets"], state, mask=mask, reset=batch["reset"])
        counted = nats.sum(-1).flatten() if mask is None else nats.sum(-1)[mask]
        units = torch.tensor(counted.numel(), device=counted.device)
        return LossOutput(counted.sum() / units.clamp(min=1), units, state)


def log_seconds(events: Tensor) -> Tensor:
    """Logarithm of the gaps of events (.., 2); one of no millisecond counts as one."""
    return (events[..., 1].clamp(min=1) / 1000).log()
