"""Configurations of the models that read sequences for something else than the next base."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from titans_seq import presets
from titans_seq.config import Config, TitansConfig
from titans_seq.training.config import TrainingConfig

Strands = Literal["forward", "both"]
Pooling = Literal["mean", "max"]
ProfileLoss = Literal["poisson", "mse"]
VALIDATION_SHARE = 0.1
"""Of the training part, held out where a task has no validation part."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """How bases are read: a Titans backbone between an embedding and a head.

    Attributes:
        titans: the backbone.
        strands: "both" reads the reverse complement as well, with the same weights, so that a sequence and its reverse complement are one
            to the model, and a base is known from both sides; "forward" reads the strand that is given, causally, at half the cost.
        stem_width: bases that a causal convolution between embedding and backbone sees, for short words such as motifs; 0 for none.
    """

    titans: TitansConfig = field(default_factory=lambda: presets.tiny("mag"))
    strands: Strands = "both"
    stem_width: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("stem_width", self.stem_width == 0 or 2 <= self.stem_width <= 1024, "0, or from 2 to 1024")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Config):
    """A class for each sequence.

    Attributes:
        encoder: how bases are read.
        classes: names of the classes, in the order of their numbers.
        pooling: what is made of the features of all bases: their "mean", or the largest of each ("max").
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    classes: tuple[str, ...] = ("0", "1")
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("classes", len(set(self.classes)) == len(self.classes) >= 2, "two different names or more")


@dataclass(frozen=True, kw_only=True)
class LabellerConfig(Config):
    """A label for each base of either strand.

    Attributes:
        encoder: how bases are read.
        classes: names of the labels, such as CDS; what is none of them has the number 0, the first of them 1.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    classes: tuple[str, ...] = ("CDS",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("classes", 1 <= len(set(self.classes)) == len(self.classes) <= 255, "from 1 to 255 different names")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(Config):
    """A value for each bin of bases, such as coverage; of an encoder of both strands it turns with the sequence.

    Attributes:
        encoder: how bases are read.
        bin_width: bases of a bin.
        loss: "poisson" for counts, whose values are positive; "mse" for any others.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    bin_width: int = 32
    loss: ProfileLoss = "poisson"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("bin_width", self.bin_width >= 1, "at least 1")


def finetuning() -> TrainingConfig:
    """Settings that fine-tuning begins with: those of training, shorter, and the best validation is kept."""
    return TrainingConfig(batch_size=32, max_steps=1000, validate_every=100, choose="best")


def encoder_of(start: str | Path | None = None, preset: presets.Preset | None = None) -> EncoderConfig:
    """An encoder on the backbone of a pretrained model, or else on one that has a name.

    start: folder or name of a `TitansForDNA`; of its files the shapes are read alone. preset: None for tiny.

    Raises:
        UserError: there is no such model, or both are given.
    """
    from domains.dna.train import settings_of

    return EncoderConfig(titans=settings_of(start, preset).titans)
