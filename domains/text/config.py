"""Configuration of the language model."""

from dataclasses import dataclass, field

from titans_seq import presets
from titans_seq.config import Config, TitansConfig, Variant


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """The language model: a backbone between an embedding of bytes and the logits of the next one.

    Attributes:
        titans: the backbone.
        tie_embeddings: predict with the weights of the embedding.
    """

    titans: TitansConfig = field(default_factory=lambda: presets.tiny("mag"))
    tie_embeddings: bool = True


def of_preset(preset: presets.Preset, variant: Variant = "mag") -> TextConfig:
    """A language model on the backbone that has this name (`titans_seq.presets`)."""
    return TextConfig(titans=presets.PRESETS[preset](variant))
