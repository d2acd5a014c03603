"""How a trained model reads."""

from dataclasses import dataclass

from titans_seq.config import Config


@dataclass(frozen=True, kw_only=True)
class ReadingConfig(Config):
    """How stretches of a genome are read, each from a fresh state.

    Attributes:
        context_length: bases read before a stretch, in the direction of reading, for what they tell; fewer where the record begins.
        learn: let the memory learn what it reads; else it stays as training left it.
        segment_length: bases read at a time: speed and memory, not the result.
        batch_size: stretches read at a time: speed and memory, not the result.
    """

    context_length: int = 1024
    learn: bool = True
    segment_length: int = 1024
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("context_length", self.context_length >= 0, "at least 0")
        for name in ("segment_length", "batch_size"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
