"""Configurations of the language model by name."""

from domains.text.config import TextConfig
from titans_seq import presets
from titans_seq.config import Variant


def debug(variant: Variant = "mag") -> TextConfig:
    """A backbone of two layers of width 16: for tests and for a first look."""
    return TextConfig(titans=presets.debug(variant))
