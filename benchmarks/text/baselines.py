"""Causal language models to stand beside ours: embedding, norms, feed-forward layers, head, loss and state as in `TitansForCausalLM`, with
another mixer in each block; and ours with something taken away. All stream, and take padding and packed documents.

    configure("gated-delta", TextConfig(titans=presets.tiny()), parameters=800_000, context=256)

makes the configuration of one of `SUBJECTS` whose feed-forward layers are as wide as that number of parameters allows.

Shapes: B batch, H heads, T tokens, D head width.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.baselines import LinearAttentionLayer, chunked_linear_attention
from domains.text.config import TextConfig
from domains.text.model import TitansForCausalLM
from domains.text.tokenizers import Tokenizer
from titans_seq.attention import SlidingWindowAttention, SlidingWindowState
from titans_seq.blocks import MemoryMixer
from titans_seq.config import TitansConfig
from titans_seq.memory.layer import Learner
from titans_seq.state import State

Mixer = Literal["titans", "frozen", "attention", "linear", "delta", "reflecting"]
FORGOTTEN = -30.0
"""Log of the decay before a document: what was read leaves 1e-13 of itself, less than rounding."""


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(TextConfig):
    """A language model of a benchmark.

    Attributes:
        mixer: of each block. "titans" is ours, "frozen" ours with memories that never learn; "attention" sees a window; "linear" is gated
            linear attention; "delta" the gated delta rule, "reflecting" with steps of up to 2.
    """

    mixer: Mixer = "titans"


class BaselineForCausalLM(TitansForCausalLM):
    """A language model of a benchmark, with the interface of ours."""

    model_type = "benchmark_text"
    config_class = BaselineConfig

    def __init__(self, config: BaselineConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config, tokenizer)
        if config.mixer in MIXERS:
            for block in self.titans.blocks:
                block.mixer = MIXERS[config.mixer](config.titans)
            self.titans._initialise()
        for module in self.modules():
            if config.mixer == "frozen" and isinstance(module, Learner):
                module.frozen = True


class WindowAttention(SlidingWindowAttention):
    """Attention over the last `sliding_window` tokens with rotary positions: over all of a text that is no longer than the window."""

    state_class = SlidingWindowState

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config.dim, config.attention)


class GatedDelta(MemoryMixer):
    """Gated DeltaNet's rule (arXiv 2412.06464) S_t = (1 - alpha) S_{t-1} + beta k^T (v - k S_{t-1}), beta in (0, 1), S_0 = 0.

    It is our memory with one layer, without norm, residual and momentum, and with the gradient at the state of the token before; the
    convolution, output norm and gate around it are ours as well.

    beta: its bound; up to 2 a step can reflect what is at a key (arXiv 2411.12537).
    """

    def __init__(self, config: TitansConfig, beta: float = 1.0) -> None:
        rule: dict[str, Any] = {"depth": 1, "norm": False, "residual": False, "momentum": False, "gradient": "token"}
        heads = {"num_heads": config.attention.num_heads, "head_dim": config.attention.head_dim}
        memory = replace(config.memory, **rule, **heads, forgetting="head", max_step=beta / 2, chunk_size=64, local=None)
        super().__init__(replace(config, memory=memory))
        for first in self.first_state:
            nn.init.zeros_(first).requires_grad_(False)


@dataclass(frozen=True)
class LinearAttentionState(State):
    """sums: (B, H, D, D) of k^T v, decayed."""

    sums: Tensor


class LinearAttention(LinearAttentionLayer):
    """Gated linear attention S_t = a_t S_{t-1} + k_t^T v_t, with an RMS norm of what each head reads."""

    state_class = LinearAttentionState

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config.dim, config.attention.num_heads)
        self.norm = nn.RMSNorm(config.dim // self.heads, eps=config.norm_eps)

    def init_state(self, batch_size: int) -> LinearAttentionState:
        width = self.output.in_features // self.heads
        return LinearAttentionState(self.output.weight.new_zeros(batch_size, self.heads, width, width))

    def forward(  # type: ignore[override]
        self, x: Tensor, state: LinearAttentionState | None = None, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LinearAttentionState]:
        """x (B, T, dim) -> (B, T, dim) and the state; a token that `mask` (B, T) leaves out adds and decays nothing."""
        q, k, v = self.split(x)
        log_decay = F.logsigmoid(self.gate(x)).transpose(1, 2)  # (B, H, T)
        if reset is not None:
            log_decay = torch.where(reset.unsqueeze(1), FORGOTTEN, log_decay)
        if mask is not None:
            k, log_decay = torch.where(mask[:, None, :, None], k, 0), torch.where(mask.unsqueeze(1), log_decay, 0)
        y, sums = chunked_linear_attention(q, k, v, log_decay, (state or self.init_state(len(x))).sums)
        return self.join(self.norm(y)), LinearAttentionState(sums)


MIXERS: dict[str, Callable[[TitansConfig], nn.Module]] = {
    "attention": WindowAttention,
    "linear": LinearAttention,
    "delta": GatedDelta,
    "reflecting": partial(GatedDelta, beta=2.0),
}


@dataclass(frozen=True)
class Subject:
    """A row of the tables.

    Attributes:
        label: in the tables.
        mixer: of its blocks.
        backbone, memory, attention: what its configuration has in place of the given one's.
        whole: it sees its whole context, not the window.
    """

    label: str
    mixer: Mixer = "titans"
    backbone: tuple[tuple[str, Any], ...] = ()
    memory: tuple[tuple[str, Any], ...] = ()
    attention: tuple[tuple[str, Any], ...] = ()
    whole: bool = False


ALONE = (("persistent_tokens", 0),)
SUBJECTS = {
    "titans": Subject("Titans"),
    "titans-memory-off": Subject("Titans, memory off", "frozen"),
    "transformer": Subject("transformer", "attention", attention=ALONE, whole=True),
    "sliding-window": Subject("sliding-window transformer", "attention", attention=ALONE),
    "linear-attention": Subject("gated linear attention", "linear"),
    "gated-delta": Subject("gated delta rule", "delta"),
    "reflecting-delta": Subject("gated delta rule, β to 2", "reflecting"),
    **{name: Subject(f"Titans {name.upper()}", backbone=(("variant", name),)) for name in ("lmm", "mac", "mag", "mal")},
    "titans-linear-memory": Subject("Titans, linear memory", memory=(("depth", 1),)),
    "titans-no-convolution": Subject("Titans, no convolution", memory=(("convolution_width", 1),)),
    "titans-no-momentum": Subject("Titans, no momentum", memory=(("momentum", False),)),
    "titans-no-forgetting": Subject("Titans, no forgetting", memory=(("forgetting", "none"),)),
    "titans-to-first": Subject("Titans, forgetting towards W^0", memory=(("forgetting_towards", "first_state"),)),
    "titans-no-persistent-tokens": Subject("Titans, no persistent tokens", attention=ALONE),
}


def configure(name: str, base: TextConfig, parameters: int | None = None, context: int | None = None) -> BaselineConfig:
    """The configuration of one of `SUBJECTS`.

    Args:
        name: of the subject.
        base: vocabulary, width, layers; all else of ours; the baselines have the heads of its attention.
        parameters: that the model shall have, as near as can be by the width of its feed-forward layers; None for the base's width.
        context: tokens that the transformer sees.

    Raises:
        ValueError: there are more parameters without the feed-forward layers, or the transformer was given no context.
    """
    subject = SUBJECTS[name]
    if subject.whole and context is None:
        raise ValueError(f"{name} needs a context: the tokens that it sees")
    attention = dict(subject.attention) | ({"sliding_window": context} if subject.whole else {})
    titans = replace(
        base.titans,
        **dict(subject.backbone),
        memory=replace(base.titans.memory, **dict(subject.memory)),
        attention=replace(base.titans.attention, **attention),
    )
    given = {field.name: getattr(base, field.name) for field in fields(base)}
    config = BaselineConfig(**(given | {"titans": titans, "mixer": subject.mixer}))
    return config if parameters is None else matched(config, parameters)


def matched(config: BaselineConfig, parameters: int) -> BaselineConfig:
    """The same model with feed-forward layers of such a width that its parameters are nearest to a number; ValueError if none is."""
    narrow, wider = (with_hidden(config, width) for width in (1, 2))
    base = count(narrow)
    width = 1 + round((parameters - base) / (count(wider) - base))
    if width < 1:
        raise ValueError(f"{parameters:,} parameters are fewer than the {base:,} of the model with feed-forward layers of width 1")
    return with_hidden(config, width)


def with_hidden(config: BaselineConfig, width: int) -> BaselineConfig:
    return replace(config, titans=replace(config.titans, hidden_dim=width))


def count(config: BaselineConfig) -> int:
    """Parameters that are trained."""
    with torch.device("meta"):
        return sum(p.numel() for p in BaselineForCausalLM(config).parameters() if p.requires_grad)
