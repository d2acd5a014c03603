"""Configurations of the language model by name."""

from domains.text import config
from titans_seq.config import Variant


def debug(variant: Variant = "mag") -> config.TextConfig:
    """A backbone of two layers of width 16: for tests and for a first look."""
    return config.of_preset("debug", variant)
