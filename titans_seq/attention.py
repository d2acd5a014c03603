"""Attention over a sliding window and over a segment, with persistent memory and rotary positions.

Never a T x T mask: a window of w is computed in blocks of w queries against 2 w - 1 keys, a segment by itself.

Rows of a batch may stand at different positions, hold padding and pack documents (`mask`, `reset` of titans_seq/packing.py). One rule says
what is seen: a token that stands at position p of its document sees no more than the p tokens before it.

Half of each head's channels are rotated (p-RoPE, arXiv 2410.06205: rotary positions without the lowest frequencies); persistent keys live
in the other half, so their logits do not depend on where in the stream the query stands.

Shape suffixes: B batch, H heads, T queries, K keys, D head width, P persistent tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_seq.config import AttentionConfig
from titans_seq.packing import last_rows, token_positions
from titans_seq.state import State


@dataclass(frozen=True)
class SlidingWindowState(State):
    """The last K = sliding_window - 1 rotated keys and values, (B, H, K, D), the newest last, zero before the document's begin; and the
    tokens of the document read so far, (B,) int64.
    """

    keys: Tensor
    values: Tensor
    position: Tensor


@dataclass(frozen=True)
class SegmentState(State):
    """Keys and values of the unfinished segment, (B, H, K, D) with a place for each that a whole segment has, zero where none was read
    yet; and the tokens of it read so far, (B,) int64.
    """

    keys: Tensor
    values: Tensor
    position: Tensor


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary embedding of the first half of the channels: x (B, H, T, D), positions (T,) or (B, 1, T) integers of any size.

    Angles are formed in float64, so a stream may be millions of tokens long.
    """
    rotated, plain = x.chunk(2, dim=-1)
    pairs = rotated.shape[-1] // 2
    frequencies = base ** (-torch.arange(pairs, dtype=torch.float64, device=x.device) / pairs)
    angles = positions.to(torch.float64).unsqueeze(-1) * frequencies  # (.., T, D / 4)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = rotated.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, plain], dim=-1)


class _Attention(nn.Module):
    """What both kinds share: projections, persistent keys and values, and the call of the attention kernel."""

    def __init__(self, dim: int, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_heads
        self.width = config.head_width(dim)
        inner = self.heads * self.width
        self.query = nn.Linear(dim, inner, bias=False)
        self.key_value = nn.Linear(dim, 2 * inner, bias=False)
        self.output = nn.Linear(inner, dim, bias=False)
        tokens = config.persistent_tokens
        self.persistent_keys = nn.Parameter(torch.randn(self.heads, tokens, self.width // 2))
        self.persistent_values = nn.Parameter(torch.randn(self.heads, tokens, self.width) * 0.02)

    def split_heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, T, parts H D) -> `parts` tensors (B, H, T, D)."""
        return x.unflatten(-1, (parts, self.heads, self.width)).permute(2, 0, 3, 1, 4).unbind(0)

    @property
    def cached(self) -> int:
        """K, the places for keys of the state."""
        raise NotImplementedError

    @property
    def places(self) -> int:
        """Positions that a state may stand at are below it."""
        raise NotImplementedError

    def empty_cache(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values (B, H, K, D) and positions (B,), all zero, in the parameters' dtype."""
        keys = self.query.weight.new_zeros(batch_size, self.heads, self.cached, self.width)
        return keys, torch.zeros_like(keys), keys.new_zeros(batch_size, dtype=torch.int64)

    def check_cache(self, state: "SlidingWindowState | SegmentState") -> None:
        """Raise ValueError if a state is of attention with other heads or another reach, or stands where this one cannot."""
        expected = (len(state.keys), self.heads, self.cached, self.width)
        for name, x in (("keys", state.keys), ("values", state.values)):
            if tuple(x.shape) != expected or not x.is_floating_point():
                given = f"{tuple(x.shape[1:])} {x.dtype}"
                raise ValueError(f"state holds {name} of (heads, places, width) = {given}, this attention needs {expected[1:]}, floating")
        position = state.position
        if tuple(position.shape) != expected[:1] or position.dtype != torch.int64:
            raise ValueError(f"state.position must be {expected[:1]} torch.int64, got {tuple(position.shape)} {position.dtype}")
        if torch.compiler.is_compiling() or position.device.type != "cpu":  # elsewhere looking would wait for the device
            return
        if bool(((position < 0) | (position >= self.places)).any()):
            raise ValueError(f"state.position must be in [0, {self.places}), got {position.tolist()}")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """Softmax attention with the persistent tokens in front: q (B, H, T, D), k, v (B, H, K, D), visible (T, K) or (B, 1, T, K).

        The paper puts tokens before the sequence (arXiv 2501.00663, equation 19); here they are learned keys and values (equation 20).
        """
        tokens = self.persistent_keys.shape[1]
        if tokens:
            batch = q.shape[0]
            persistent_keys = F.pad(self.persistent_keys, (self.width - self.persistent_keys.shape[-1], 0))
            k = torch.cat([persistent_keys.to(k.dtype).expand(batch, -1, -1, -1), k], dim=2)
            v = torch.cat([self.persistent_values.to(v.dtype).expand(batch, -1, -1, -1), v], dim=2)
            visible = F.pad(visible, (tokens, 0), value=True)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)

    def finish(self, y: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, T, dim)."""
        return self.output(y.transpose(1, 2).flatten(2))


class SlidingWindowAttention(_Attention):
    """Every token sees itself, the `sliding_window - 1` tokens before it, and the persistent tokens."""

    @property
    def cached(self) -> int:
        """Keys that the next token sees."""
        return self.config.sliding_window - 1

    @property
    def places(self) -> int:
        """As far as rotations tell positions apart."""
        return 2**53

    def init_state(self, batch_size: int) -> SlidingWindowState:
        """The state before the first token."""
        return SlidingWindowState(*self.empty_cache(batch_size))

    def forward(
        self, x: Tensor, state: SlidingWindowState | None = None, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, SlidingWindowState]:
        """x (B, T, dim) -> (B, T, dim) and the state after the last token.

        mask, reset: (B, T) bool, see titans_seq/packing.py; the padding of a row stands behind its tokens (`LeftAligned`).
        """
        length = x.shape[1]
        start = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device) if state is None else state.position
        positions, end = token_positions(start, length, mask, reset)
        q = rotate(self.split_heads(self.query(x), 1)[0], positions.unsqueeze(1), self.config.rope_base)
        k, v = self.split_heads(self.key_value(x), 2)
        k = rotate(k, positions.unsqueeze(1), self.config.rope_base)
        if state is not None:
            self.check_cache(state)
            k, v = torch.cat([state.keys.to(k.dtype), k], dim=2), torch.cat([state.values.to(v.dtype), v], dim=2)
        reach = positions.clamp(max=self.cached)  # (B, T): how many earlier tokens each sees
        fresh = state is None and reset is None  # then the first window's shape says what is seen
        y = self._attend_window(q, k, v, None if fresh else reach, None if reset is None else reach)
        held = None if mask is None and reset is None else end
        k, v = (last_rows(part, self.cached, length, mask, held) for part in (k, v))
        return self.finish(y), SlidingWindowState(k, v, end)

    def _attend_window(self, q: Tensor, k: Tensor, v: Tensor, head_reach: Tensor | None, rest_reach: Tensor | None) -> Tensor:
        """q (B, H, T, D) against k, v (B, H, K, D) with K - T earlier tokens in front: the first window's queries, then the others.

        head_reach, rest_reach: (B, T), how many earlier tokens each sees, in the two parts; None where it is all that the window allows.
        """
        window, length, past = self.config.sliding_window, q.shape[2], k.shape[2] - q.shape[2]
        head = min(window, length)
        reach: int | Tensor = window - 1 if head_reach is None else head_reach[:, None, :head]
        y = self.attend(q[:, :, :head], k[:, :, : past + head], v[:, :, : past + head], _band(head, past, reach, q.device))
        if length == head:
            return y
        # Blocks of `window` queries; block j sees the 2 window - 1 keys that end with its last query.
        blocks = -(-(length - head) // window)
        padding = blocks * window - (length - head)
        q = _fold(F.pad(q[:, :, head:], (0, 0, 0, padding)).unfold(2, window, window))
        k, v = (_fold(F.pad(x[:, :, past + 1 :], (0, 0, 0, padding)).unfold(2, 2 * window - 1, window)) for x in (k, v))
        reach = (
            window - 1 if rest_reach is None else F.pad(rest_reach[:, head:], (0, padding)).view(-1, 1, window)
        )  # (B * blocks, 1, window)
        rest = self.attend(q, k, v, _band(window, window - 1, reach, q.device))
        rest = rest.unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)  # (B, H, blocks * window, D)
        return torch.cat([y, rest[:, :, : length - head]], dim=2)


def _band(queries: int, past: int, reach: int | Tensor, device: torch.device) -> Tensor:
    """Query a stands at place past + a and sees itself and the `reach` keys before it.

    reach: one number, gives (queries, past + queries) bool; or (.., queries), gives (.., queries, past + queries).
    """
    distance = past + torch.arange(queries, device=device).unsqueeze(1) - torch.arange(past + queries, device=device)
    return (distance >= 0) & (distance <= (reach if isinstance(reach, int) else reach.unsqueeze(-1)))


def _fold(x: Tensor) -> Tensor:
    """(B, H, blocks, D, size) -> (B * blocks, H, size, D)."""
    return x.permute(0, 2, 1, 4, 3).flatten(0, 1)


class SegmentAttention(_Attention):
    """Causal attention inside one segment over [persistent | memory | segment] (MAC, arXiv 2501.00663, section 4.1).

    With memory_tokens = 0 the memory has one row per token, seen from its token on; else `memory_tokens` rows that all see.
    Each key of a segment has its place in the state, so rows that stand at different positions of their segment advance together.
    """

    @property
    def cached(self) -> int:
        """Keys of a whole segment."""
        return self.config.memory_tokens + self._rows * self.config.segment_length

    @property
    def places(self) -> int:
        """A state at a segment's end is that at the next one's begin."""
        return self.config.segment_length

    @property
    def _rows(self) -> int:
        """Rows of keys a token."""
        return 1 if self.config.memory_tokens else 2

    def init_state(self, batch_size: int) -> SegmentState:
        """The state at a segment's begin."""
        return SegmentState(*self.empty_cache(batch_size))

    def forward(
        self, x: Tensor, memory: Tensor | None, state: SegmentState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, SegmentState]:
        """A piece of one segment.

        Args:
            x: (B, T, dim), in no row beyond its segment's end.
            memory: what was read from the memory. memory_tokens = 0: (B, T, dim), a row a token of the piece; else
                (B, memory_tokens, dim), and None if `state` holds it in all rows.
            state: of the segment so far, None at its begin.
            mask: (B, T) bool, False at padding, which may stand anywhere.

        Returns:
            (B, T, dim) and the state after the piece.
        """
        state = state or self.init_state(x.shape[0])
        self.check_cache(state)
        return self.attend_projected(self.query(x), self.key_value(x), memory, state, mask)

    def attend_projected(
        self, query: Tensor, key_value: Tensor, memory: Tensor | None, state: SegmentState, mask: Tensor | None
    ) -> tuple[Tensor, SegmentState]:
        """`forward` of what `query` (B, T, H D) and `key_value` (B, T, 2 H D) make of x, from a state that was checked."""
        positions, end = token_positions(state.position, query.shape[1], mask, None)
        positions = positions.clamp(max=self.config.segment_length - 1)  # padding behind a segment's end
        q = rotate(self.split_heads(query, 1)[0], positions.unsqueeze(1), self.config.rope_base)
        k, v = self._segment_keys_values(key_value, memory, positions)
        if k.shape[2] < self.cached or mask is not None:
            place = self._places(positions, mask, k.shape[2])
            k, v = _put(state.keys, place, k), _put(state.values, place, v)
        token = (torch.arange(self.cached, device=q.device) - self.config.memory_tokens).div(self._rows, rounding_mode="floor")
        y = self.attend(q, k, v, token <= positions[:, None, :, None])
        return self.finish(y), SegmentState(k, v, end)

    def _segment_keys_values(self, key_value: Tensor, memory: Tensor | None, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a piece at positions (B, T): rows of learned queries first, or a row of the memory before each token's."""
        if self.config.memory_tokens == 0:
            assert memory is not None
            pairs = torch.stack([self.key_value(memory), key_value], dim=2).flatten(1, 2)  # (B, 2 T, 2 H D)
            k, v = self.split_heads(pairs, 2)
            return rotate(k, positions.repeat_interleave(2, dim=1).unsqueeze(1), self.config.rope_base), v
        k, v = self.split_heads(key_value, 2)
        k = rotate(k, positions.unsqueeze(1), self.config.rope_base)
        if memory is None:
            return k, v
        memory_k, memory_v = self.split_heads(self.key_value(memory), 2)
        memory_k = F.pad(memory_k[..., self.width // 2 :], (self.width // 2, 0))  # no position: the rotated half is zero
        return torch.cat([memory_k, k], dim=2), torch.cat([memory_v, v], dim=2)

    def _places(self, positions: Tensor, mask: Tensor | None, rows: int) -> Tensor:
        """(B, rows) int64: where the `rows` keys of a piece stand in the state; padding goes to a spare place behind all others."""
        first = self.config.memory_tokens
        place = first + (positions.unsqueeze(-1) * self._rows + torch.arange(self._rows, device=positions.device)).flatten(1)
        if mask is not None:
            place = torch.where(mask.repeat_interleave(self._rows, dim=1), place, self.cached)
        if rows == place.shape[1]:
            return place
        return torch.cat([torch.arange(first, device=place.device).expand(place.shape[0], -1), place], dim=1)


def _put(kept: Tensor, place: Tensor, rows: Tensor) -> Tensor:
    """kept (B, H, K, D) with rows (B, H, N, D) at place (B, N); K is a spare place, what is put there is dropped."""
    padded = F.pad(kept.to(rows.dtype), (0, 0, 0, 1))
    return padded.scatter(2, place[:, None, :, None].expand_as(rows), rows)[:, :, : kept.shape[2]]
