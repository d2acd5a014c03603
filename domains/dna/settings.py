"""How a trained model reads, and how it writes."""

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


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How bases are drawn.

    Attributes:
        temperature: the logits are divided by it: below 1 likely bases come more often; 0 always takes the likeliest.
        top_k: draw from so many likeliest bases; 4 is all.
        top_p: draw from the fewest bases that together have this chance.
        seed: of the draws. The same seed draws the same sequences.
    """

    temperature: float = 1.0
    top_k: int = 4
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("temperature", self.temperature >= 0, "at least 0")
        self._require("top_k", 1 <= self.top_k <= 4, "from 1 to 4")
        self._require("top_p", 0 < self.top_p <= 1, "in (0, 1]")
        self._require("seed", self.seed >= 0, "at least 0")
