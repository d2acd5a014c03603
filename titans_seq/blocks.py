"""The four ways to join long-term memory and attention (arXiv 2501.00663, section 4), made causal, and the block around them.

Each mixer maps x (B, T, dim) and a state to (B, T, dim) and a state; streaming any prefix and going on gives what one pass gives.
All take `mask` and `reset` (B, T) bool (titans_seq/packing.py), with the padding of a row behind its tokens: `Titans` sees to that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_seq.attention import SegmentAttention, SegmentState, SlidingWindowAttention, SlidingWindowState
from titans_seq.config import TitansConfig
from titans_seq.memory import MemoryLayerState, NeuralMemory
from titans_seq.memory.layout import ragged_layout
from titans_seq.state import State


@dataclass(frozen=True)
class WindowMixerState(State):
    """State of MAG and MAL."""

    memory: MemoryLayerState
    attention: SlidingWindowState


@dataclass(frozen=True)
class ContextMixerState(State):
    """State of MAC: the memory now, what it was before the unfinished segment (`snapshot`), and what attention keeps of that.

    A row between two segments has position 0, no keys and values, and its memory now as that before the segment.
    """

    memory: MemoryLayerState
    before_segment: tuple[Tensor, ...]
    segment: SegmentState


class Piece(NamedTuple):
    """Tokens of one segment a row.

    inputs: what was projected from the tokens, (B, T, width) each; mask (B, T) bool or None; restart (B,) bool, rows that begin a document
    here, or None; begins: whether a row may be at its segment's begin; ends: whether all rows reach their segment's end, None where rows
    differ.
    """

    inputs: tuple[Tensor, ...]
    mask: Tensor | None
    restart: Tensor | None
    begins: bool
    ends: bool | None


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

    h = M(q), as the memory stood before the segment; y = Attn([persistent | h | segment]); the memory is written with norm(y), an RMS norm
    with a learned scale; o = y gated by M(norm(y)), the memory as of each token. As printed the paper's form leaks the future twice; here h
    has one row per token under the causal mask (or `memory_tokens` learned queries), and M is read token by token. Without the norm, which
    the paper does not print, what is written is small and unbounded from segment to segment, and gradients explode on their way back
    through the segments (docs/variants.md).

    What depends on x alone runs at once for all segments: queries, keys and values of the tokens, queries and gate of the read; and so does
    the gate at the end. Sequential, a segment after the other, is what hangs on the memory: h of a segment needs the memory written with
    the output of the one before, so reading h, its keys and values, attention, and writing and reading M(y). Inside a segment all tokens
    run at once.
    """

    state_class = ContextMixerState

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.segment_length = config.attention.segment_length
        self.memory = NeuralMemory(config.dim, config.memory)
        self.attention = SegmentAttention(config.dim, config.attention)
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.gate = Gate(config)
        tokens = config.attention.memory_tokens
        self.memory_queries = nn.Parameter(torch.randn(tokens, config.dim)) if tokens else None

    def init_state(self, batch_size: int) -> ContextMixerState:
        """The state before the first token."""
        memory = self.memory.init_state(batch_size)
        return ContextMixerState(memory, self.memory.snapshot(memory), self.attention.init_state(batch_size))

    def forward(
        self, x: Tensor, state: ContextMixerState | None = None, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, ContextMixerState]:
        """x (B, T, dim) -> (B, T, dim) and the state after the last token."""
        fresh = state is None
        state = self.init_state(x.shape[0]) if state is None else state
        self.attention.check_cache(state.segment)
        read = () if self.memory_queries is not None else self.memory.project_read(x)
        inputs = (self.attention.query(x), self.attention.key_value(x), *read)
        pieces, collect, last_restart = self._cut(inputs, 0 if fresh else _common(state.segment.position), state, mask, reset)
        outputs = []
        for piece in pieces:
            y, m, state = self._piece(piece, state)
            outputs.append((y, m))
        if last_restart is not None:
            state = self.init_state(x.shape[0]).where(last_restart, state)
        y, m = (collect(list(parts)) for parts in zip(*outputs, strict=True))
        return self.gate(y, m), state  # equation 25

    def _cut(
        self, inputs: tuple[Tensor, ...], offset: int | None, state: ContextMixerState, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[list[Piece], Callable[[list[Tensor]], Tensor], Tensor | None]:
        """The pieces of a call, how their outputs (B, T, dim) are joined, and the rows in which a document begins after the last.

        offset: where in their segment all rows stand, None if they differ.
        """
        length, size = inputs[0].shape[1], self.segment_length
        if offset is not None and reset is None:
            first = min(length, size - offset)
            sizes = [first, *[size] * ((length - first) // size)]
            sizes += [length - sum(sizes)] if length > sum(sizes) else []
            masks = [None] * len(sizes) if mask is None else mask.split(sizes, dim=1)
            begins = [offset == 0, *[True] * (len(sizes) - 1)]
            ends = [None if mask is not None else (offset + n if i == 0 else n) == size for i, n in enumerate(sizes)]
            cut = zip(*(x.split(sizes, dim=1) for x in inputs), strict=True)
            rows = zip(cut, masks, [None] * len(sizes), begins, ends, strict=True)
            return [Piece(*row) for row in rows], lambda outputs: torch.cat(outputs, dim=1), None
        if length == 1:  # one token is in one segment, wherever the rows stand
            return [Piece(inputs, mask, None if reset is None else reset[:, 0], True, None)], lambda outputs: outputs[0], None
        layout = ragged_layout(length, size, state.segment.position, mask, reset, inputs[0])
        assert layout.active is not None
        cells = list(zip(*(layout.place(x.unsqueeze(1), 0.0).squeeze(1).unbind(1) for x in inputs), strict=True))  # (B, size, width) each
        active = layout.active.squeeze(1).unbind(1)
        restart = [None] * (len(cells) + 1) if layout.restart is None else layout.restart.unbind(1)
        pieces = [Piece(*row, True, None) for row in zip(cells, active, restart[:-1], strict=True)]
        return pieces, lambda outputs: layout.collect(torch.stack(outputs, dim=1).unsqueeze(1)).squeeze(1), restart[-1]

    def _piece(self, piece: Piece, state: ContextMixerState) -> tuple[Tensor, Tensor, ContextMixerState]:
        """Tokens of one segment in each row: y and M(y), (B, T, dim) each, and the state after them."""
        query, key_value, *read = piece.inputs
        if piece.restart is not None:
            state = self.init_state(query.shape[0]).where(piece.restart, state)
        context = self._context(query.shape[0], read, state.before_segment, piece.begins)
        y, segment = self.attention.attend_projected(query, key_value, context, state.segment, piece.mask)  # equation 22, equation 23
        m, memory = self.memory(self.norm(y), state.memory, mask=piece.mask)  # equation 24
        return y, m, self._after(piece, ContextMixerState(memory, state.before_segment, segment))

    def _after(self, piece: Piece, state: ContextMixerState) -> ContextMixerState:
        """Rows that have reached their segment's end stand before the next one."""
        if piece.ends is False:
            return state
        now, empty = self.memory.snapshot(state.memory), self.attention.init_state(len(state.segment.position))
        if piece.ends:
            return ContextMixerState(state.memory, now, empty)
        between = state.segment.position % self.segment_length == 0  # rows that end theirs, and rows without a token yet
        before = tuple(torch.where(between[:, None, None, None], W, B) for W, B in zip(now, state.before_segment, strict=True))
        return ContextMixerState(state.memory, before, empty.where(between, state.segment))

    def _context(self, batch_size: int, read: list[Tensor], before: tuple[Tensor, ...], begins: bool) -> Tensor | None:
        """What the memory as it stood `before` the segment says: a row a token, or a row a learned query where the segment begins.

        h of equation 21.
        """
        if self.memory_queries is None:
            q, gate = read
            return self.memory.read_projected(q, gate, before)
        if not begins:
            return None
        return self.memory.read(self.memory_queries.expand(batch_size, -1, -1), before)


def _common(position: Tensor) -> int | None:
    """Where all rows stand, position (B,), if at one place. Looking costs a graph break, so not while compiling."""
    if torch.compiler.is_compiling():
        return None
    lowest, highest = position.aminmax()
    return int(lowest) if lowest == highest else None


class _WindowMixer(nn.Module):
    """What MAG and MAL share: a memory, a sliding-window attention, their state."""

    state_class = WindowMixerState

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.memory = NeuralMemory(config.dim, config.memory)
        self.attention = SlidingWindowAttention(config.dim, config.attention)

    def init_state(self, batch_size: int) -> WindowMixerState:
        """The state before the first token."""
        return WindowMixerState(self.memory.init_state(batch_size), self.attention.init_state(batch_size))


class MemoryAsGate(_WindowMixer):
    """MAG (section 4.2, equations 26 to 28): sliding-window attention and memory side by side, one gated by the other."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.gate = Gate(config)

    def forward(
        self, x: Tensor, state: WindowMixerState | None = None, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, WindowMixerState]:
        """x (B, T, dim) -> (B, T, dim) and the state after the last token."""
        y, attention = self.attention(x, None if state is None else state.attention, mask, reset)  # equation 26, equation 27
        m, memory = self.memory(x, None if state is None else state.memory, mask=mask, reset=reset)
        return self.gate(y, m), WindowMixerState(memory, attention)  # equation 28


class MemoryAsLayer(_WindowMixer):
    """MAL (section 4.3, equations 29 to 31): the memory first, then sliding-window attention, each on a residual branch of its own."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def forward(
        self, x: Tensor, state: WindowMixerState | None = None, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, WindowMixerState]:
        """x (B, T, dim) -> (B, T, dim) and the state after the last token."""
        m, memory = self.memory(x, None if state is None else state.memory, mask=mask, reset=reset)  # equation 30
        y, attention = self.attention(self.norm(x + m), None if state is None else state.attention, mask, reset)  # equation 29, equation 31
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

    def forward(
        self, x: Tensor, state: State | None = None, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """x (B, T, dim) -> (B, T, dim) and the mixer's state; mask, reset (B, T) bool, the padding of a row behind its tokens."""
        y, state = self.mixer(self.mixer_norm(x), state, mask=mask, reset=reset)
        x = x + self.dropout(y)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), state
