"""Settings of the model and of its training."""

from dataclasses import dataclass, field

from titans_seq.config import Config, MemoryConfig, TitansConfig
from titans_seq.training.config import TrainingConfig


def small_backbone() -> TitansConfig:
    """Two layers that mix by memory alone: there is no attention that could look back."""
    return TitansConfig(dim=32, num_layers=2, variant="lmm", memory=MemoryConfig(num_heads=2, depth=1, max_step=0.1))


def small_training() -> TrainingConfig:
    """About a quarter of a minute on one core."""
    return TrainingConfig(
        learning_rate=5e-3, max_steps=200, warmup_steps=10, batch_size=16, segment_length=64, validate_every=100, checkpoint_every=50
    )


@dataclass(frozen=True, kw_only=True)
class EventConfig(Config):
    """Architecture of `EventModel`.

    Attributes:
        smallest_spread: least standard deviation of a gap's logarithm; without a bound a gap that repeats exactly would have density
            without end.
        titans: the backbone.
    """

    smallest_spread: float = 0.01
    titans: TitansConfig = field(default_factory=small_backbone)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("smallest_spread", self.smallest_spread > 0, "positive")
