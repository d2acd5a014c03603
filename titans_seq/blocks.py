"""The four ways to join long-term memory and attention (arXiv 2501.00663, section 4), made causal, and the block around them.

Each mixer maps x (B, T, dim) and a state to (B, T, dim) and a state; streaming any prefix and going on gives what one pass gives.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_seq.attention import SegmentAttention, SegmentState, SlidingWindowAttention, SlidingWindowState
from titans_seq.config import TitansConfig
from titans_seq.memory import MemoryLayerState, NeuralMemory
from titans_seq.state import State


@dataclass(frozen=True)
class WindowMixerState(State):
    """State of MAG and MAL."""

    memory: MemoryLayerState
    attention: SlidingWindowState


@dataclass(frozen=True)
class ContextMixerState(State):
    """State of MAC: the memory now and, inside a segment, the memory before it (`snapshot`) and what attention keeps of it."""

    memory: MemoryLayerState
    before_segment: tuple[Tensor, ...] | None
    segment: SegmentState | None


class Gate(nn.Module):
    """norm(y) gated by sigmoid(norm(m)), each norm with its own learned scale (arXiv 2501.00663, equation 28)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.norm_y = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.norm_m = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def forward(self, y: Tensor, m: Tensor) -> Tensor:
        """y, m (B, T, dim) -> (B, T, dim)."""
        return self.norm_y(y) * torch.sigmoid(self.norm_m(m))


class MemoryMixer(NeuralMemory):
    """LMM: the memory is the mixer (section 4.4)."""

    state_class = MemoryLayerState

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config.dim, config.memory)


class MemoryAsContext(nn.Module):
    """MAC (section 4.1, equations 21 to 25): attention inside a segment sees what the memory says; the memory is written with its output.

    h = M(q), as the memory stood before the segment; y = Attn([persistent | h | segment]); the memory is written with y; o = y gated by
    M(y), the memory as of each token. As printed the paper's form leaks the future twice; here h has one row per token under the causal
    mask (or `memory_tokens` learned queries), and M(y) is read token by token. Segments are sequential: h of the next segment needs the
    memory written with this one's output; inside a segment all tokens run at once.
    """

    state_class = ContextMixerState

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.segment_length = config.attention.segment_length
        self.memory = NeuralMemory(config.dim, config.memory)
        self.attention = SegmentAttention(config.dim, config.attention)
        self.gate = Gate(config)
        tokens = config.attention.memory_tokens
        self.memory_queries = nn.Parameter(torch.randn(tokens, config.dim)) if tokens else None

    def forward(self, x: Tensor, state: ContextMixerState | None = None) -> tuple[Tensor, ContextMixerState]:
        """x (B, T, dim) -> (B, T, dim) and the state after the last token; rows of a batch advance together."""
        if state is not None and state.segment is not None and state.segment.position >= self.segment_length:
            raise ValueError(f"state is {state.segment.position} tokens into a segment; segments have {self.segment_length} here")
        outputs, start = [], 0
        while start < x.shape[1]:
            done = state.segment.position if state is not None and state.segment is not None else 0
            stop = min(x.shape[1], start + self.segment_length - done)
            y, state = self._piece(x[:, start:stop], state)
            outputs.append(y)
            start = stop
        assert state is not None
        return torch.cat(outputs, dim=1), state

    def _piece(self, x: Tensor, state: ContextMixerState | None) -> tuple[Tensor, ContextMixerState]:
        """Tokens of one segment."""
        memory, segment = (None, None) if state is None else (state.memory, state.segment)
        before = (state and state.before_segment) or self.memory.snapshot(memory, x.shape[0])
        y, segment = self.attention(x, self._context(x, before, begins=segment is None), segment)
        m, memory = self.memory(y, memory)
        if segment.position == self.segment_length:
            return self.gate(y, m), ContextMixerState(memory, None, None)
        return self.gate(y, m), ContextMixerState(memory, before, segment)

    def _context(self, x: Tensor, before: tuple[Tensor, ...], begins: bool) -> Tensor | None:
        """What the memory as it stood `before` the segment says: a row a token, or a row a learned query where the segment begins."""
        if self.memory_queries is None:
            return self.memory.read(x, before)
        if not begins:
            return None
        return self.memory.read(self.memory_queries.to(x.dtype).expand(x.shape[0], -1, -1), before)


class MemoryAsGate(nn.Module):
    """MAG (section 4.2, equations 26 to 28): sliding-window attention and memory side by side, one gated by the other."""

    state_class = WindowMixerState

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.memory = NeuralMemory(config.dim, config.memory)
        self.attention = SlidingWindowAttention(config.dim, config.attention)
        self.gate = Gate(config)

    def forward(self, x: Tensor, state: WindowMixerState | None = None) -> tuple[Tensor, WindowMixerState]:
        """x (B, T, dim) -> (B, T, dim) and the state after the last token."""
        y, attention = self.attention(x, None if state is None else state.attention)
        m, memory = self.memory(x, None if state is None else state.memory)
        return self.gate(y, m), WindowMixerState(memory, attention)


class MemoryAsLayer(nn.Module):
    """MAL (section 4.3, equations 29 to 31): the memory first, then sliding-window attention, each on a residual branch of its own."""

    state_class = WindowMixerState

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.memory = NeuralMemory(config.dim, config.memory)
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = SlidingWindowAttention(config.dim, config.attention)

    def forward(self, x: Tensor, state: WindowMixerState | None = None) -> tuple[Tensor, WindowMixerState]:
        """x (B, T, dim) -> (B, T, dim) and the state after the last token."""
        m, memory = self.memory(x, None if state is None else state.memory)
        y, attention = self.attention(self.norm(x + m), None if state is None else state.attention)
        return m + y, WindowMixerState(memory, attention)


MIXERS: dict[str, type[nn.Module]] = {
    "lmm": MemoryMixer,
    "mac": MemoryAsContext,
    "mag": MemoryAsGate,
    "mal": MemoryAsLayer,
}


class SwiGLU(nn.Module):
    """Feed-forward layer of Llama: (silu(x W_1) * x W_2) W_3."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        hidden = config.hidden_dim or -(-config.dim * 8 // 24) * 8
        self.input = nn.Linear(config.dim, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        a, b = self.input(x).chunk(2, dim=-1)
        return self.output(F.silu(a) * b)


class Block(nn.Module):
    """Pre-norm residual block: x + mixer(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.mixer = MIXERS[config.variant](config)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x (B, T, dim) -> (B, T, dim) and the mixer's state."""
        y, state = self.mixer(self.mixer_norm(x), state)
        x = x + self.dropout(y)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), state
