"""Bits per base: what a model needs to write a genome down, each base predicted from those before it and scored before it is learned from.

One pass, in segments through the state: memory does not grow with the genome. What learns on the way is the memory (test-time learning, or
frozen), or with `OnlineTrainer` all weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.data.genome import Genome
from domains.dna.documents import record_on
from domains.dna.metrics import BITS_PER_BASE
from domains.dna.model import TitansForDNA, base_nats, base_weights
from titans_seq import TitansState
from titans_seq.config import Config
from titans_seq.errors import UserError
from titans_seq.memory import frozen_memory
from titans_seq.training.optimizer import parameter_groups


class Scored(NamedTuple):
    """Bases `start` to `stop` - 1 of a record, in the direction of the file: counted (T,) bool, which are no N, and bits (T,) float64."""

    record: int
    start: int
    stop: int
    counted: np.ndarray
    bits: np.ndarray


class Reader:
    """Reads with a trained model, and says what each base cost before it was read.

    Attributes:
        state: of the model after what was read; None before anything was, or to begin anew.

    Args:
        model: the model, in whose dtype and on whose device it reads.
        memory: whether its memory learns what it reads; else that stays as training left it.
    """

    def __init__(self, model: TitansForDNA, memory: bool = True) -> None:
        self.model, self._memory = model.eval(), memory
        self.state: TitansState | None = None

    @torch.inference_mode()
    def read(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """What is told of the bases `targets` that follow `tokens`, (1, T) codes each: (1, T, 4) logarithms of chances; `state` goes on."""
        logits, self.state = self.forward(tokens)
        return logits.float().log_softmax(-1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, TitansState]:
        """Logits (1, T, 4), and the state after."""
        if self._memory:
            return self.model(tokens, self.state)
        with frozen_memory(self.model):
            return self.model(tokens, self.state)


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(Config):
    """How all weights are trained in the one pass: a step of AdamW on each segment, after it was scored.

    Attributes:
        learning_rate: after the warm-up.
        warmup_steps: in which it rises linearly.
        weight_decay: of linear maps.
        beta1: of AdamW.
        beta2: of AdamW.
        gradient_clip: largest norm of the gradient.
    """

    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "gradient_clip"):
            self._require(name, getattr(self, name) > 0, "positive")
        for name in ("warmup_steps", "weight_decay"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("beta1", "beta2"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")


class OnlineTrainer(Reader):
    """Reads with a model that is trained as it reads: a segment is predicted and scored, then one step is taken on it.

    The state is carried on, its gradient is not.

    Args:
        model, memory: as `Reader`; the weights are changed.
        config: of the steps.

    Raises:
        UserError: the model has dropout, which would be in the scores: a segment is scored by the forward that it is trained by.
    """

    def __init__(self, model: TitansForDNA, memory: bool = True, config: OnlineConfig | None = None) -> None:
        super().__init__(model, memory)
        dropout = model.config.titans.dropout
        if dropout > 0:
            raise UserError(f"training while scoring needs a model without dropout, this one has titans.dropout={dropout}: set it to 0.")
        self._config = config or OnlineConfig()
        groups = parameter_groups(model.train(), self._config.weight_decay)
        betas = (self._config.beta1, self._config.beta2)
        self._optimizer = torch.optim.AdamW(groups, lr=self._config.learning_rate, betas=betas)
        warmup = max(1, self._config.warmup_steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: min(1.0, (step + 1) / warmup))

    def read(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """As of `Reader`; the model is another one afterwards."""
        logits, after = self.forward(tokens)
        self.state = after.detach()
        weights = base_weights(targets, self.model.config.soft_mask_weight)
        if weights.any():
            self._optimizer.zero_grad(set_to_none=True)
            ((base_nats(logits, targets) * weights).sum() / weights.sum()).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.gradient_clip)
            self._optimizer.step()
            self._schedule.step()
        return logits.detach().float().log_softmax(-1)


def score_bases(reader: Reader, genome: Genome, strand: int = 1, segment_length: int = 1024, carry: bool = True) -> Iterator[Scored]:
    """What each base of a genome costs, segment by segment in the order of reading, record after record.

    Args:
        reader: reads it; what it read before is part of what it knows.
        genome: what is read.
        strand: -1 reads the reverse complement of each record.
        segment_length: bases at a time. Of a `Reader` it changes speed and memory only; an `OnlineTrainer` takes a step for each.
        carry: go on from record to record with what the memory holds; else each is read from a fresh state.
    """
    device = next(reader.model.parameters()).device
    for record, length in enumerate(genome.lengths.tolist()):
        document = record_on(genome, record, strand)
        if not carry:
            reader.state = None
        for start in range(0, length, segment_length):
            stop = min(start + segment_length, length)
            codes = torch.from_numpy(document.read(0, start, stop + 1).astype(np.int64))[None]
            on_device = codes.to(device)
            told = reader.read(on_device[:, :-1], on_device[:, 1:])
            bits = base_nats(told, on_device[:, 1:])[0].double().cpu().numpy() * BITS_PER_BASE.factor
            counted = (codes[0, 1:] & BASE_BITS).numpy() < N
            if strand > 0:
                yield Scored(record, start, stop, counted, bits)
            else:
                yield Scored(record, length - stop, length - start, counted[::-1], bits[::-1])


def usual_window(genomes: Sequence[Genome]) -> int:
    """Bases of a window, 1, 2 or 5 times a power of ten from 50 to 10,000, of which the longest record has a hundred if it can."""
    longest = max(int(genome.lengths.max()) for genome in genomes)
    return max((size for size in (100, 200, 500, 1000, 2000, 5000, 10_000) if 100 * size <= longest), default=50)


class WindowSums:
    """Sums of bits over windows of `window` bases of each record; the last of a record may be shorter."""

    def __init__(self, genome: Genome, window: int) -> None:
        self._genome, self._window = genome, window
        windows = -(-genome.lengths // window)
        self._first = np.concatenate([[0], np.cumsum(windows)])
        self._bits, self._bases = np.zeros(self._first[-1]), np.zeros(self._first[-1], dtype=np.int64)

    def add(self, scored: Scored) -> None:
        """Count what was scored."""
        places = self._first[scored.record] + np.arange(scored.start, scored.stop) // self._window
        first, last = int(places[0]), int(places[-1]) + 1
        self._bits[first:last] += np.bincount(places - first, scored.bits)
        self._bases[first:last] += np.bincount(places[scored.counted] - first, minlength=last - first)

    def table(self) -> pl.DataFrame:
        """A row a window: file, record, start, end (0-based, half-open as in BED), bases that are no N, and bits in all."""
        record = np.repeat(np.arange(len(self._genome)), np.diff(self._first))
        start = (np.arange(self._first[-1]) - self._first[record]) * self._window
        end = np.minimum(start + self._window, self._genome.lengths[record])
        names = pl.Series(self._genome.names, dtype=pl.String).gather(record)
        table = pl.DataFrame({"record": names, "start": start, "end": end, "bases": self._bases, "bits": self._bits})
        return table.select(pl.lit(str(self._genome.source)).alias("file"), pl.all())


def score_windows(
    reader: Reader,
    genomes: Sequence[Genome],
    window: int = 10_000,
    strand: int = 1,
    segment_length: int = 1024,
    carry: bool = True,
    advance: Callable[[int], object] = lambda count: None,
) -> pl.DataFrame:
    """The table of `WindowSums` of all genomes, one after the other.

    Args:
        reader, strand, segment_length, carry: as `score_bases`.
        genomes: what is read.
        window: bases of a row.
        advance: is told how many bases were read.
    """
    parts = []
    for genome in genomes:
        sums = WindowSums(genome, window)
        for scored in score_bases(reader, genome, strand, segment_length, carry):
            sums.add(scored)
            advance(scored.stop - scored.start)
        parts.append(sums.table())
    return pl.concat(parts)


def mean_of_strands(forward: pl.DataFrame, reverse: pl.DataFrame) -> pl.DataFrame:
    """Two tables of the same windows, read along each strand: their mean `bits`, and `forward` and `reverse` by themselves."""
    both = forward.with_columns(forward=pl.col("bits"), reverse=reverse["bits"])
    return both.with_columns(bits=(pl.col("forward") + pl.col("reverse")) / 2)


def by_record(windows: pl.DataFrame) -> pl.DataFrame:
    """Sums over each record of a file, of a table of windows: file, record, length, bases, bits, .."""
    sums = (pl.col("end").max().alias("length"), pl.exclude("start", "end").sum())
    return windows.group_by("file", "record", maintain_order=True).agg(*sums)


def per_base(table: pl.DataFrame) -> pl.DataFrame:
    """The table with bits a base in place of bits; null where there is no base but N."""
    names = [name for name in ("bits", "forward", "reverse") if name in table.columns]
    quotients = [(pl.col(name) / pl.when(pl.col("bases") > 0).then(pl.col("bases"))).alias(name) for name in names]
    return table.with_columns(*quotients).rename({"bits": "bits_per_base"})
