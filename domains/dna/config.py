"""Configuration of the nucleotide model."""

from dataclasses import dataclass, field

from domains.dna.context_config import ContextMemoryConfig
from titans_seq import presets
from titans_seq.config import Config, TitansConfig, Variant


@dataclass(frozen=True, kw_only=True)
class DNAConfig(Config):
    """The nucleotide model: a backbone between an embedding of bases and the chances of the next one.

    Attributes:
        titans: the backbone.
        soft_mask_weight: of a soft-masked (lower-case) base in the loss: 1 keeps it as any other, 0 leaves it out, between them it counts
            less. It is read in any case. N is read, and never counts.
        contexts: a memory of what followed the same bases before; None for none.
    """

    titans: TitansConfig = field(default_factory=lambda: presets.tiny("mag"))
    soft_mask_weight: float = 1.0
    contexts: ContextMemoryConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("soft_mask_weight", 0 <= self.soft_mask_weight <= 1, "in [0, 1]")


def of_preset(preset: presets.Preset, variant: Variant = "mag") -> DNAConfig:
    """A nucleotide model on the backbone that has this name (`titans_seq.presets`)."""
    return DNAConfig(titans=presets.PRESETS[preset](variant))
