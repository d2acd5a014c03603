"""Backbone configurations by name. Each is a function, so that a caller changes what it wants with `dataclasses.replace`.

`debug` and `tiny` are for tests and laptops. `titans_170m` to `titans_1_3b` are named after the sizes of the paper (arXiv 2501.00663),
which prints no widths; blocks, width and heads are those that its authors print for the same sizes in ATLAS (arXiv 2505.23735, table 7).
What the papers leave open is chosen here: windows and segments, 16 persistent tokens, SwiGLU of 8/3 the width, and in MAC, MAG and MAL
a memory beside attention in every block. Each docstring gives our parameters: backbone and a vocabulary of 32,000 whose embedding is also
the output layer. They are 12 to 29 % below the name at 170M, and above it elsewhere by 8 to 40 % but for LMM at 1.3B (13 % below).
tests/titans_seq/snapshots holds the counts of the backbone alone.
"""

from collections.abc import Callable
from typing import Literal

from titans_seq.config import AttentionConfig, MemoryConfig, TitansConfig, Variant
from titans_seq.errors import UserError


def debug(variant: Variant = "mac") -> TitansConfig:
    """Two layers of width 16: for tests and for a first look."""
    return TitansConfig(
        dim=16,
        num_layers=2,
        variant=variant,
        memory=MemoryConfig(num_heads=2, expansion=2, chunk_size=4),
        attention=AttentionConfig(num_heads=2, sliding_window=6, segment_length=6, persistent_tokens=2),
    )


def tiny(variant: Variant = "mac") -> TitansConfig:
    """Four layers of width 128: trains on a laptop."""
    return TitansConfig(dim=128, num_layers=4, variant=variant)


def titans_170m(variant: Variant = "mac") -> TitansConfig:
    """12 blocks of width 768, 16 heads of 48: 121 million parameters as LMM, 150 as MAC, MAG or MAL, with the embedding."""
    return _of_the_paper(variant, num_layers=12, dim=768, num_heads=16)


def titans_340m(variant: Variant = "mac") -> TitansConfig:
    """24 blocks of width 1,024, 16 heads of 64: 376 million parameters as LMM, 477 as MAC, MAG or MAL, with the embedding."""
    return _of_the_paper(variant, num_layers=24, dim=1024, num_heads=16)


def titans_760m(variant: Variant = "mac") -> TitansConfig:
    """24 blocks of width 1,536, 16 heads of 96: 818 million parameters as LMM, 1,045 as MAC, MAG or MAL, with the embedding."""
    return _of_the_paper(variant, num_layers=24, dim=1536, num_heads=16)


def titans_1_3b(variant: Variant = "mac") -> TitansConfig:
    """18 blocks of width 2,048, 8 heads of 256: 1,125 million parameters as LMM, 1,428 as MAC, MAG or MAL, with the embedding."""
    return _of_the_paper(variant, num_layers=18, dim=2048, num_heads=8)


Preset = Literal["debug", "tiny", "170m", "340m", "760m", "1.3b"]
"""Names of these functions on the command line."""


class _Presets(dict[Preset, Callable[[Variant], TitansConfig]]):
    def __missing__(self, name: object) -> Callable[[Variant], TitansConfig]:
        raise UserError(f"no preset is called {name!r}. Those that there are: {', '.join(self)}.")


PRESETS = _Presets(
    {
        "debug": debug,
        "tiny": tiny,
        "170m": titans_170m,
        "340m": titans_340m,
        "760m": titans_760m,
        "1.3b": titans_1_3b,
    }
)
"""The functions by these names; any other is a UserError."""


def _of_the_paper(variant: Variant, num_layers: int, dim: int, num_heads: int) -> TitansConfig:
    return TitansConfig(
        dim=dim,
        num_layers=num_layers,
        variant=variant,
        memory=MemoryConfig(num_heads=num_heads),
        attention=AttentionConfig(num_heads=num_heads, sliding_window=512, segment_length=256, persistent_tokens=16),
    )
