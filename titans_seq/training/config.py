"""Settings of a training run."""

from dataclasses import dataclass
from typing import Literal

from titans_seq.config import Config

Schedule = Literal["cosine", "wsd"]
Strategy = Literal["auto", "ddp", "fsdp"]
Precision = Literal["32", "bf16", "16"]
Choice = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """How a model is trained. A step is one update of the weights, of `accumulate` batches.

    Attributes:
        learning_rate: at its highest, after the warm-up.
        weight_decay: of linear maps and convolutions.
        beta1: of AdamW.
        beta2: of AdamW.
        max_steps: steps of the whole run.
        warmup_steps: steps in which the learning rate rises linearly; None for a tenth of max_steps, at most 100.
        schedule: after that "cosine" falls along half a cosine to the end; "wsd" (warm-up, stable, decay; arXiv 2405.18392) stays, and
            falls as 1 - sqrt over the last decay_share of max_steps.
        decay_share: share of max_steps in which "wsd" falls.
        minimum_share: where the learning rate ends, as a share of the highest.
        gradient_clip: largest norm of the gradient; None for none.
        precision: "32"; "bf16" or "16" run matrix products under autocast, with float32 weights and memory state ("16" needs CUDA).
        batch_size: rows of a batch, over all devices.
        accumulate: batches a step; each unit counts alike, however the batches are filled.
        segment_length: tokens of a row in one batch; gradients reach no further (truncated back-propagation through time).
        carry_state: hand the state on from a segment to the next of the same document; else every segment starts anew.
        length_warmup: steps of each of n stages with shorter sequences, before those of segment_length: the first has segment_length / 2^n
            tokens a row, and each has twice those of the one before (HyenaDNA, arXiv 2306.15794). Rows grow as they shrink, so tokens a
            step stay. Such a sequence goes on from none. Empty for none.
        document_length: longer documents are cut to this many tokens; None for 64 segments, or fewer where rows had less than four pieces.
        ema_decay: of an exponential moving average of the weights, which is then what is validated and saved as the model; None for none.
        compile: `torch.compile` each block.
        choose: the weights that become the model: of the "last" step, or of the validation with the lowest loss ("best"). With "best" what
            validation says of the model is what it was chosen by.
        seed: of weights, order of the data and dropout.
        validate_every: steps between validations; the last step has one in any case.
        checkpoint_every: steps between checkpoints; the last step has one in any case.
        keep_checkpoints: how many, the newest.
        log_every: steps between rows of metrics.csv.
        devices: to train on, of each node: GPUs where there are any, else processes on the CPU.
        nodes: machines to train on.
        strategy: over several devices "ddp" or "fsdp" (docs/scaling.md); "auto" is one device, or ddp.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    max_steps: int = 1000
    warmup_steps: int | None = None
    schedule: Schedule = "cosine"
    decay_share: float = 0.2
    minimum_share: float = 0.1
    gradient_clip: float | None = 1.0
    precision: Precision = "32"
    batch_size: int = 8
    accumulate: int = 1
    segment_length: int = 256
    carry_state: bool = True
    length_warmup: tuple[int, ...] = ()
    document_length: int | None = None
    ema_decay: float | None = None
    compile: bool = False
    choose: Choice = "last"
    seed: int = 0
    validate_every: int = 500
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    log_every: int = 10
    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("learning_rate", self.learning_rate > 0, "positive")
        self._require("weight_decay", self.weight_decay >= 0, "at least 0")
        for name in ("beta1", "beta2", "minimum_share"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("decay_share", 0 < self.decay_share <= 1, "in (0, 1]")
        self._require("gradient_clip", self.gradient_clip is None or self.gradient_clip > 0, "positive or None")
        for name in ("max_steps", "batch_size", "accumulate", "segment_length", "validate_every", "checkpoint_every", "keep_checkpoints"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("log_every", "devices", "nodes"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        in_run = self.warmup_steps is None or 0 <= self.warmup_steps <= self.max_steps
        self._require("warmup_steps", in_run, f"between 0 and max_steps={self.max_steps}, or None")
        self._require("length_warmup", all(steps >= 1 for steps in self.length_warmup), "steps, each at least 1")
        shortest = 2 ** len(self.length_warmup)
        fits = self.segment_length % shortest == 0
        self._require("length_warmup", fits, f"of fewer stages: segment_length={self.segment_length} is no multiple of {shortest}")
        together = self.devices * self.nodes
        self._require("batch_size", self.batch_size % together == 0, f"a multiple of devices times nodes, {together}")
        self._require("document_length", self.document_length is None or self.document_length >= 1, "at least 1 or None")
        self._require("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "strictly between 0 and 1, or None")
        self._require("ema_decay", self.ema_decay is None or self.strategy != "fsdp", "None with strategy='fsdp'")
        self._require("choose", self.choose == "last" or self.strategy != "fsdp", "'last' with strategy='fsdp'")
        self._require("seed", 0 <= self.seed < 2**32, "between 0 and 2**32 - 1")

    @property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        return min(100, self.max_steps // 10) if self.warmup_steps is None else self.warmup_steps

    @property
    def length_warmup_steps(self) -> int:
        """Steps before those with sequences of segment_length."""
        return sum(self.length_warmup)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one update of the weights reads."""
        return self.batch_size * self.segment_length * self.accumulate
