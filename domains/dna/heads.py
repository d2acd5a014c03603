"""Models that read sequences for something else than the next base: a class for each, a label for each base, a value for each bin.

Shapes: B rows, T bases, S strands that are read (1 or 2), K classes.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.head_config import ClassifierConfig, EncoderConfig, LabellerConfig, ProfileConfig
from domains.dna.model import TitansForDNA
from domains.dna.strands import BothStrands, OneStrand, StrandHead, StrandReader, pooled
from titans_seq import transfer
from titans_seq.checkpoint import Pretrained
from titans_seq.training.trainable import LossOutput, Metric


def make_encoder(config: EncoderConfig) -> OneStrand | BothStrands:
    """An encoder with new weights."""
    reader = StrandReader(config.titans, config.stem_width)
    return BothStrands(reader) if config.strands == "both" else OneStrand(reader)


class DNAClassifier(Pretrained):
    """A class for each sequence, from what an encoder makes of all its bases.

    Of an encoder of both strands a sequence and its reverse complement get the same, exactly.

    >>> model = DNAClassifier(ClassifierConfig(classes=("enhancer", "other")))
    >>> logits = model(torch.from_numpy(encode("ACGTTGCA")).long()[None])
    """

    model_type = "titans_dna_classifier"
    config_class = ClassifierConfig
    metric = Metric("nats per sequence")

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config.encoder)
        self.head = nn.Linear(config.encoder.titans.dim, len(config.classes))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def init_state(self, batch_size: int) -> None:
        """None: no sequence goes on from another."""

    def forward(self, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of the classes.

        Args:
            codes: (B, T) int64, codes of bases.
            mask: (B, T) bool; a base that is False is padding, and changes nothing.

        Returns:
            (B, K).

        Raises:
            ValueError: codes is not (B, T) int64 codes, or mask not (B, T) bool.
        """
        return self.head(pooled(self.encoder(codes, mask), mask, self.config.pooling))

    def loss(self, batch: dict[str, Any], state: None = None) -> LossOutput:
        """Cross entropy in nats a sequence, of a batch of `labelled_batches`; the units are sequences."""
        logits = self(batch["codes"], batch["mask"])
        units = torch.tensor(len(logits), device=logits.device)
        return LossOutput(F.cross_entropy(logits.float(), batch["labels"]), units, None)


class WindowModel(Pretrained):
    """What models of each base of a window share: an encoder, and a head of `num_values` for each base and strand that is read."""

    def __init__(self, config: LabellerConfig | ProfileConfig, num_values: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config.encoder)
        self.head = StrandHead(config.encoder.titans.dim, num_values, self.encoder.strands)
        nn.init.normal_(self.head.linear.weight, std=0.02)
        nn.init.zeros_(self.head.linear.bias)

    def init_state(self, batch_size: int) -> None:
        """None: windows are trained on by themselves."""


class DNALabeller(WindowModel):
    """A label for each base: of what lies on the strand that is read, and of an encoder of both strands also of what lies on the other.

    With both, the labels of a reverse complement are those of the sequence, turned round, exactly. With one, the other strand's labels are
    those of the reverse complement.
    """

    model_type = "titans_dna_labeller"
    config_class = LabellerConfig
    metric = Metric("nats per base")
    config: LabellerConfig

    def __init__(self, config: LabellerConfig) -> None:
        super().__init__(config, 1 + len(config.classes))

    def forward(self, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of the labels of each base.

        Args:
            codes: (B, T) int64, codes of bases.
            mask: (B, T) bool; a base that is False is padding, and changes nothing.

        Returns:
            (B, T, S, 1 + K): of the strand that is given, and (S = 2) of the other one. Label 0 is none of the classes.

        Raises:
            ValueError: codes is not (B, T) int64 codes, or mask not (B, T) bool.
        """
        return self.head(self.encoder(codes, mask))

    def loss(self, batch: dict[str, Any], state: None = None) -> LossOutput:
        """Cross entropy in nats a base and strand, of a batch of `labelled_batches`; bases that are N or padding do not count."""
        codes, mask = batch["codes"], batch["mask"]
        logits = self(codes, mask)
        labels = batch["labels"][:, :, : logits.shape[2]]  # (B, T, S)
        counted = (codes & BASE_BITS) < N
        if mask is not None:
            counted = counted & mask
        labels = labels.masked_fill(~counted.unsqueeze(-1), -100)
        nats = F.cross_entropy(logits.float().flatten(0, 2), labels.flatten(), ignore_index=-100, reduction="sum")
        units = counted.sum() * logits.shape[2]
        return LossOutput(nats / units.clamp(min=1), units, None)


class DNAProfile(WindowModel):
    """A value for each bin of bases, such as coverage: of both strands together.

    With an encoder of both strands the profile of a reverse complement is that of the sequence reversed, exactly, where bins are whole.
    """

    model_type = "titans_dna_profile"
    config_class = ProfileConfig
    metric = Metric("loss per bin")
    config: ProfileConfig

    def __init__(self, config: ProfileConfig) -> None:
        super().__init__(config, 1)

    def forward(self, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """Values of the bins.

        Args:
            codes: (B, T) int64, codes of bases.
            mask: (B, T) bool; a base that is False is padding, and changes nothing.

        Returns:
            (B, T / bin_width rounded up): of each `bin_width` bases from the begin, of the last as many as there are.

        Raises:
            ValueError: codes is not (B, T) int64 codes, or mask not (B, T) bool.
        """
        values = self.head(self.encoder(codes, mask)).mean(2).squeeze(-1)  # (B, T)
        return self.binned(values, torch.ones_like(codes, dtype=torch.bool) if mask is None else mask)

    def binned(self, values: Tensor, mask: Tensor) -> Tensor:
        """What is said of bins from what the head says of bases (B, T): (B, T / bin_width rounded up)."""
        width = self.config.bin_width
        behind = (0, -values.shape[1] % width)
        sums = F.pad(values * mask, behind).unflatten(1, (-1, width)).sum(2)
        means = sums / F.pad(mask.to(values.dtype), behind).unflatten(1, (-1, width)).sum(2).clamp(min=1)
        return F.softplus(means) if self.config.loss == "poisson" else means

    def loss(self, batch: dict[str, Any], state: None = None) -> LossOutput:
        """Mean loss of the bins of a batch of `labelled_batches`: Poisson (but for a constant) or squared error; NaN does not count."""
        said, labels = self(batch["codes"], batch["mask"]).float(), batch["labels"]
        known = ~labels.isnan()
        labels = labels.nan_to_num()
        of_bins = (
            F.poisson_nll_loss(said, labels, log_input=False, reduction="none") if self.config.loss == "poisson" else (said - labels) ** 2
        )
        units = known.sum()
        return LossOutput((of_bins * known).sum() / units.clamp(min=1), units, None)


def take_over(model: DNAClassifier | DNALabeller | DNAProfile, start: str | Path) -> None:
    """Put the embedding and the backbone of a `TitansForDNA` into `model`; its stem and head stay as they are.

    start: its folder, or its name on the hub.

    Raises:
        UserError: there is no such model, or its weights do not fit the backbone of `model`; what differs is named.
    """
    reader, trained = model.encoder.reader, TitansForDNA.from_pretrained(start)
    modules = (reader.embedding, trained.embedding), (reader.titans, trained.titans)
    transfer.take_over(modules, model.config.encoder.titans, trained.config.titans, str(start))
