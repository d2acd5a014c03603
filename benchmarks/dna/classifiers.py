"""The networks that are compared on sequences: ours, and two to stand beside it. All have `DNAClassifier`'s interface and train alike.

Shapes: B rows, T bases, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.data.labelled import Task
from domains.dna.head_config import ClassifierConfig, EncoderConfig, Pooling
from domains.dna.heads import DNAClassifier, take_over
from titans_seq import MemoryConfig, TitansConfig
from titans_seq.checkpoint import Pretrained
from titans_seq.config import AttentionConfig, Config

STEM = 9


@dataclass(frozen=True, kw_only=True)
class PeerConfig(Config):
    """Of a network for sequences of at most `length` bases."""

    classes: tuple[str, ...]
    length: int


class Peer(Pretrained):
    """A classifier that is no model of ours. `network` maps bases (B, length), 0 to 4, to logits (B, K)."""

    config_class = PeerConfig
    metric = DNAClassifier.metric
    loss = DNAClassifier.loss
    network: nn.Module

    def __init__(self, config: PeerConfig) -> None:
        super().__init__()
        self.config = config

    def init_state(self, batch_size: int) -> None:
        return None

    def forward(self, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        codes = codes & BASE_BITS if mask is None else torch.where(mask, codes & BASE_BITS, N)
        return self.network(nn.functional.pad(codes, (0, self.config.length - codes.shape[1]), value=N))


class CNN(Peer):
    """The CNN of Genomic Benchmarks (Grešová et al. 2023).

    An embedding of 100, three convolutions of 8 bases with 16, 8 and 4 channels, each with batch norm, ReLU and a maximum over pairs, then
    layers of 512 and K.
    """

    model_type = "benchmark_dna_cnn"

    def __init__(self, config: PeerConfig) -> None:
        super().__init__(config)
        left, layers = config.length, []
        for before, after in ((100, 16), (16, 8), (8, 4)):
            layers += [nn.Conv1d(before, after, 8), _BatchNorm(after), nn.ReLU(), nn.MaxPool1d(2)]
            left = (left - 7) // 2
        dense = [nn.Linear(4 * left, 512), nn.Linear(512, len(config.classes))]
        self.network = nn.Sequential(nn.Embedding(5, 100), _Transposed(), *layers, nn.Flatten(), *dense)


class _BatchNorm(nn.BatchNorm1d):
    """Counts its batches in a float, for a saved model has one dtype; nothing depends on the count."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.num_batches_tracked = torch.zeros(())


class _Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Transformer(Peer):
    """Attention from every base to every other, before it the stem of ours, seeing both sides, and learned positions.

    A pre-norm layer of width 64, and the largest of each feature over the bases. Padding is read as N.
    """

    model_type = "benchmark_dna_transformer"

    def __init__(self, config: PeerConfig, dim: int = 64, layers: int = 1) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(5, dim)
        self.stem = nn.Conv1d(dim, dim, STEM, padding="same")
        self.positions = nn.Parameter(0.02 * torch.randn(config.length, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, len(config.classes))
        nn.init.normal_(self.embedding.weight, std=0.02)

    def network(self, bases: Tensor) -> Tensor:  # type: ignore[override]
        x = self.embedding(bases)
        x = x + nn.functional.gelu(self.stem(x.transpose(1, 2)).transpose(1, 2))
        return self.head(self.encoder(x + self.positions).amax(1))


Make = Callable[[Task, Path | None], Any]


@dataclass(frozen=True)
class Subject:
    """A row of the table.

    Attributes:
        label: in the table.
        make: the network of a task, on what was pretrained if that is asked for.
        rate: of learning.
        architecture: what a result depends on beside the rate, as plain values.
        mirrored: it is trained on reverse complements as well, and tested by the mean over both strands.
        start: the name of the model of the next base that it begins as; None for new weights.
        ablation: it is measured only when it is named.
        longer: it is trained for so many times the steps of the others, where a step costs so much less.
    """

    label: str
    make: Make
    rate: float
    architecture: dict[str, Any]
    mirrored: bool = False
    start: str | None = None
    ablation: bool = False
    longer: int = 1


BACKBONE = TitansConfig(
    dim=64,
    num_layers=1,
    variant="lmm",
    dropout=0.1,
    memory=MemoryConfig(num_heads=2, depth=1, expansion=1, chunk_size=32),
    attention=AttentionConfig(num_heads=2, sliding_window=32),
)
RATE = 2e-3


def longest(task: Task) -> int:
    return max(int(part.lengths.max()) for part in task.parts.values())


def _peer(label: str, kind: type[Peer], rate: float, **traits: Any) -> Subject:
    def make(task: Task, start: Path | None) -> Peer:
        return kind(PeerConfig(classes=task.classes, length=longest(task)))

    return Subject(label, make, rate, {"kind": kind.model_type}, **traits)


def _titans(label: str, rate: float = RATE, pooling: Pooling = "max", traits: dict[str, Any] | None = None, **changes: Any) -> Subject:
    """changes: of the encoder (`stem_width`, `strands`) or of its backbone."""
    of_encoder = {name: changes.pop(name) for name in ("stem_width", "strands") if name in changes}
    encoder = EncoderConfig(titans=replace(BACKBONE, **changes), **{"stem_width": STEM, **of_encoder})

    def make(task: Task, start: Path | None) -> DNAClassifier:
        model = DNAClassifier(ClassifierConfig(encoder=encoder, classes=task.classes, pooling=pooling))
        if start is not None:
            take_over(model, start)
        return model

    return Subject(label, make, rate, {"encoder": encoder.to_dict(), "pooling": pooling}, **(traits or {}))


def _memory(**changes: Any) -> MemoryConfig:
    return replace(BACKBONE.memory, **changes)


_ABLATION = {"ablation": True}
_START = {"ecoli": "Titans, both strands, after E. coli", "human": "Titans, both strands, after 1 Mb of human chr9"}
SUBJECTS = {
    "cnn": _peer("CNN of Genomic Benchmarks", CNN, 1e-3, longer=5),
    "transformer": _peer("transformer", Transformer, 1e-3, mirrored=True),
    "titans": _titans("Titans, both strands"),
    "titans-pretrained": _titans(_START["ecoli"], traits={"start": "ecoli"}),
    "titans-pretrained-human": _titans(_START["human"], traits={"start": "human"}),
    "titans-forward": _titans("Titans, one strand", strands="forward", traits={"mirrored": True}),
    "titans-no-memory": _titans("Titans, memory off", memory=_memory(max_step=1e-12, forgetting="none"), traits=_ABLATION),
    "titans-no-momentum": _titans("Titans, no momentum", memory=_memory(momentum=False), traits=_ABLATION),
    "titans-no-forgetting": _titans("Titans, no forgetting", memory=_memory(forgetting="none"), traits=_ABLATION),
    "titans-no-convolution": _titans("Titans, no convolution", memory=_memory(convolution_width=1), traits=_ABLATION),
    "titans-depth-2": _titans("Titans, memory of depth 2", memory=_memory(depth=2), traits=_ABLATION),
    "titans-no-stem": _titans("Titans, no stem", stem_width=0, traits=_ABLATION),
    "titans-mean": _titans("Titans, mean over bases", pooling="mean", traits=_ABLATION),
    "titans-mag": _titans("Titans MAG", variant="mag", traits=_ABLATION),
    "titans-slow": _titans("Titans, half the rate", RATE / 2, traits=_ABLATION),
    "titans-fast": _titans("Titans, twice the rate", RATE * 2, traits=_ABLATION),
}
"""The network's own memory is of depth 1; switched off it neither learns nor forgets."""
