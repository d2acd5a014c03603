"""What a domain's model offers for training. Importing this loads no Lightning: a model that is only read needs none."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from titans_seq.config import Config
from titans_seq.state import State
from titans_seq.training.loaders import Batch


@dataclass(frozen=True)
class Metric:
    """How a domain shows its loss: `name` in its own unit ("bits per byte"), and that unit's number in one nat a unit; `units` are what a
    step reads.
    """

    name: str
    factor: float = 1.0
    units: str = "tokens"

    @property
    def column(self) -> str:
        """The name as it stands in tables: "bits_per_byte"."""
        return self.name.replace(" ", "_")


BITS = 1 / math.log(2)


class LossOutput(NamedTuple):
    """What `loss` of a model returns.

    loss: () the mean over the units, in nats a unit (or the domain's own measure), differentiable. units: () how many, any number type.
    state: after the batch; None if the model carries none.
    """

    loss: Tensor
    units: Tensor
    state: State | None


class Trainable(Protocol):
    """A domain's model as training needs it: a `titans_seq.checkpoint.Pretrained` that also has these."""

    config: Config
    metric: Metric

    def loss(self, batch: Batch, state: State | None) -> LossOutput:
        """Loss of a batch of the domain's loader, going on from `state` (None: every row begins a stream)."""
        ...

    def init_state(self, batch_size: int) -> State | None:
        """The state before the first token of `batch_size` rows; None if the model carries none."""
        ...
