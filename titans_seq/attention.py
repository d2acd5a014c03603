"""Attention over a sliding window and over a segment, with persistent memory and rotary positions.

Never a T x T mask: a window of w is computed in blocks of w queries against 2 w - 1 keys, a segment by itself.

Half of each head's channels are rotated (p-RoPE, arXiv 2410.06205: rotary positions without the lowest frequencies); persistent keys live
in the other half, so their logits do not depend on where in the stream the query stands.

Shape suffixes: B batch, H heads, T queries, K keys, D head width, P persistent tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_seq.config import AttentionConfig
from titans_seq.state import State


@dataclass(frozen=True)
class SlidingWindowState(State):
    """The last (at most sliding_window - 1) rotated keys and values, (B, H, K, D), and the tokens read so far."""

    keys: Tensor
    values: Tensor
    position: int


@dataclass(frozen=True)
class SegmentState(State):
    """Keys and values of the unfinished segment, (B, H, K, D), and the tokens of it read so far."""

    keys: Tensor
    values: Tensor
    position: int


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary embedding of the first half of the channels: x (B, H, T, D), positions (T,) integers of any size.

    Angles are formed in float64, so a stream may be millions of tokens long.
    """
    rotated, plain = x.chunk(2, dim=-1)
    pairs = rotated.shape[-1] // 2
    frequencies = base ** (-torch.arange(pairs, dtype=torch.float64, device=x.device) / pairs)
    angles = positions.to(torch.float64).unsqueeze(-1) * frequencies  # (T, D / 4)
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

    def project_queries(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, H, T, D)."""
        return self.query(x).unflatten(-1, (self.heads, self.width)).transpose(1, 2)

    def project_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, dim) -> keys and values (B, H, T, D)."""
        keys, values = self.key_value(x).unflatten(-1, (2, self.heads, self.width)).permute(2, 0, 3, 1, 4).unbind(0)
        return keys, values

    def check_cache(self, keys: Tensor) -> None:
        """Raise ValueError if cached keys (B, H, K, D) are of attention with other heads."""
        if keys.shape[1] != self.heads or keys.shape[3] != self.width:
            raise ValueError(f"state is of attention with {keys.shape[1]} heads of {keys.shape[3]}, here are {self.heads} of {self.width}")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """Softmax attention with the persistent tokens in front: q (B, H, T, D), k, v (B, H, K, D), visible (T, K) bool."""
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

    def forward(self, x: Tensor, state: SlidingWindowState | None = None) -> tuple[Tensor, SlidingWindowState]:
        """x (B, T, dim) -> (B, T, dim) and the state after the last token; rows of a batch advance together."""
        position = 0 if state is None else state.position
        positions = position + torch.arange(x.shape[1], device=x.device)
        q = rotate(self.project_queries(x), positions, self.config.rope_base)
        k, v = self.project_keys_values(x)
        k = rotate(k, positions, self.config.rope_base)
        if state is not None:
            self.check_cache(state.keys)
            k, v = torch.cat([state.keys.to(k.dtype), k], dim=2), torch.cat([state.values.to(v.dtype), v], dim=2)
        y = self._attend_window(q, k, v)
        kept = min(self.config.sliding_window - 1, k.shape[2])
        first = k.shape[2] - kept
        return self.finish(y), SlidingWindowState(k[:, :, first:].clone(), v[:, :, first:].clone(), position + x.shape[1])

    def _attend_window(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, H, T, D) against k, v (B, H, K, D) with K - T earlier tokens in front: the first window's queries, then the others."""
        window, length, past = self.config.sliding_window, q.shape[2], k.shape[2] - q.shape[2]
        head = min(window, length)
        y = self.attend(q[:, :, :head], k[:, :, : past + head], v[:, :, : past + head], _band(head, past, window, q.device))
        if length == head:
            return y
        # Blocks of `window` queries; block j sees the 2 window - 1 keys that end with its last query.
        blocks = -(-(length - head) // window)
        padding = blocks * window - (length - head)
        q = _fold(F.pad(q[:, :, head:], (0, 0, 0, padding)).unfold(2, window, window))
        k, v = (_fold(F.pad(x[:, :, past + 1 :], (0, 0, 0, padding)).unfold(2, 2 * window - 1, window)) for x in (k, v))
        rest = self.attend(q, k, v, _band(window, window - 1, window, q.device))
        rest = rest.unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)  # (B, H, blocks * window, D)
        return torch.cat([y, rest[:, :, : length - head]], dim=2)


def _band(queries: int, past: int, window: int, device: torch.device) -> Tensor:
    """(queries, past + queries) bool: query a stands at past + a and sees the `window` keys that end there."""
    distance = past + torch.arange(queries, device=device).unsqueeze(1) - torch.arange(past + queries, device=device)
    return (distance >= 0) & (distance < window)


def _fold(x: Tensor) -> Tensor:
    """Blocks into the batch: (B, H, blocks, D, size) -> (B * blocks, H, size, D)."""
    return x.permute(0, 2, 1, 4, 3).flatten(0, 1)


class SegmentAttention(_Attention):
    """Causal attention inside one segment over [persistent | memory | segment] (MAC, arXiv 2501.00663, section 4.1).

    With memory_tokens = 0 the memory has one row per token, seen from its token on; else `memory_tokens` rows that all see.
    """

    def forward(self, x: Tensor, memory: Tensor | None, state: SegmentState | None = None) -> tuple[Tensor, SegmentState]:
        """A piece of one segment.

        Args:
            x: (B, T, dim), not beyond the segment's end.
            memory: what was read from the memory. memory_tokens = 0: (B, T, dim), a row a token of the piece; else
                (B, memory_tokens, dim) at the segment's begin and None after it.
            state: of the segment so far, None at its begin.

        Returns:
            (B, T, dim) and the state after the piece.
        """
        position = 0 if state is None else state.position
        positions = position + torch.arange(x.shape[1], device=x.device)
        q = rotate(self.project_queries(x), positions, self.config.rope_base)
        k, v = self._segment_keys_values(x, memory, positions)
        if state is not None:
            self.check_cache(state.keys)
            k, v = torch.cat([state.keys.to(k.dtype), k], dim=2), torch.cat([state.values.to(v.dtype), v], dim=2)
        first, rows = self.config.memory_tokens, 1 if self.config.memory_tokens else 2  # rows of keys a token
        token = (torch.arange(k.shape[2], device=x.device) - first).div(rows, rounding_mode="floor")
        y = self.attend(q, k, v, token <= positions.unsqueeze(1))
        return self.finish(y), SegmentState(k, v, position + x.shape[1])

    def _segment_keys_values(self, x: Tensor, memory: Tensor | None, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.memory_tokens == 0:
            assert memory is not None
            pairs = torch.stack([memory, x], dim=2).flatten(1, 2)  # (B, 2 T, dim): the memory's row before its token
            k, v = self.project_keys_values(pairs)
            return rotate(k, positions.repeat_interleave(2), self.config.rope_base), v
        k, v = self.project_keys_values(x)
        k = rotate(k, positions, self.config.rope_base)
        if memory is None:
            return k, v
        memory_k, memory_v = self.project_keys_values(memory)
        memory_k = F.pad(memory_k[..., self.width // 2 :], (self.width // 2, 0))  # no position: the rotated half is zero
        return torch.cat([memory_k, k], dim=2), torch.cat([memory_v, v], dim=2)
