"""Configurations of the forecaster by name."""

from domains.timeseries.config import ForecasterConfig
from titans_seq import presets
from titans_seq.config import AttentionConfig, MemoryConfig, TitansConfig, Variant


def debug(variant: Variant = "mag") -> ForecasterConfig:
    """Three steps ahead of two channels with a backbone of width 16: for tests and for a first look."""
    return ForecasterConfig(
        prediction_length=3, context_length=10, num_channels=2, freq="D", patch_length=4, horizon_dim=4, titans=presets.debug(variant)
    )


def default_backbone(variant: Variant = "mag") -> TitansConfig:
    """A small backbone that trains in about a minute on two CPU cores: what `TitansEstimator` takes where none is given."""
    return TitansConfig(
        dim=32,
        num_layers=2,
        variant=variant,
        dropout=0.1,
        memory=MemoryConfig(num_heads=2, expansion=2),
        attention=AttentionConfig(num_heads=2, sliding_window=16),
    )
