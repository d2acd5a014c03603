"""Configurations of the nucleotide model by name."""

from domains.dna import config
from titans_seq.config import Variant


def debug(variant: Variant = "mag") -> config.DNAConfig:
    """A backbone of two layers of width 16: for tests and for a first look."""
    return config.of_preset("debug", variant)


def tiny(variant: Variant = "mag") -> config.DNAConfig:
    """A backbone of four layers of width 128: trains on a laptop."""
    return config.of_preset("tiny", variant)
