"""Configurations of the language model by name."""

from domains.text.config import TextConfig
from titans_seq.config import Variant
from titans_seq.presets import PRESETS, Preset


def of_preset(preset: Preset, variant: Variant = "mag") -> TextConfig:
    """A language model on the backbone that has this name (`titans_seq.presets`)."""
    return TextConfig(titans=PRESETS[preset](variant))


def debug(variant: Variant = "mag") -> TextConfig:
    """A backbone of two layers of width 16: for tests and for a first look."""
    return of_preset("debug", variant)
