"""Backbone configurations by name. Each is a function, so that a caller changes what it wants with `dataclasses.replace`."""

from titans_seq.config import AttentionConfig, MemoryConfig, TitansConfig


def debug(variant: str = "mac") -> TitansConfig:
    """Two layers of width 16: for tests and for a first look."""
    return TitansConfig(
        dim=16,
        num_layers=2,
        variant=variant,
        memory=MemoryConfig(num_heads=2, expansion=2, chunk_size=4),
        attention=AttentionConfig(num_heads=2, sliding_window=6, segment_length=6, persistent_tokens=2),
    )


def tiny(variant: str = "mac") -> TitansConfig:
    """Four layers of width 128: trains on a laptop."""
    return TitansConfig(dim=128, num_layers=4, variant=variant)


def small(variant: str = "mac") -> TitansConfig:
    """Twelve layers of width 768, heads of 64: the paper's 170M class of models."""
    return TitansConfig(
        dim=768,
        num_layers=12,
        variant=variant,
        memory=MemoryConfig(num_heads=12),
        attention=AttentionConfig(num_heads=12, sliding_window=512, segment_length=256, persistent_tokens=16),
    )
