"""What the memory stands beside: causal attention and gated linear attention with the same projections, and a whole attention model.

Each takes x (B, T, dim) and a state or None and returns y (B, T, dim) and the state. `plain` is the same by its definition: what the
parity check compares with. Shapes: B batch, H heads, T tokens, D head width, N chunks, C tokens of a chunk.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_seq import Titans
from titans_seq.config import TitansConfig

CHUNK = 64


class Cache:
    """Keys and values (B, H, capacity, D), written in place; the first `length` of them are filled."""

    def __init__(self, batch: int, heads: int, capacity: int, width: int, dtype: torch.dtype, device: str) -> None:
        self.keys, self.values = (torch.empty(batch, heads, capacity, width, dtype=dtype, device=device) for _ in range(2))
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far."""
        stop = self.length + k.shape[2]
        self.keys[:, :, self.length : stop], self.values[:, :, self.length : stop] = k, v
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    @property
    def filled_bytes(self) -> int:
        batch, heads, _, width = self.keys.shape
        return 2 * batch * heads * self.length * width * self.keys.element_size()


class Projections(nn.Module):
    """Linear maps to q, k, v and back."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, dim) -> q, k, v (B, H, T, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def join(self, y: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, T, dim)."""
        return self.output(y.transpose(1, 2).flatten(2))


class AttentionLayer(Projections):
    """Causal attention by scaled_dot_product_attention; `rotary` rotates its queries and keys. The state is a list of one cache."""

    def __init__(self, dim: int, heads: int, *, rotary: bool = False) -> None:
        super().__init__(dim, heads)
        self.rotary = rotary

    def new_cache(self, batch: int, capacity: int, dtype: torch.dtype, device: str) -> list[Cache]:
        return [Cache(batch, self.heads, capacity, self.output.in_features // self.heads, dtype, device)]

    def forward(self, x: Tensor, state: Sequence[Cache] | None = None) -> tuple[Tensor, Sequence[Cache]]:
        q, k, v = self._rotated(x, state[0].length if state else 0)
        past = state[0].length if state else 0
        if state:
            k, v = state[0].append(k, v)
        if past and q.shape[2] > 1:
            visible = torch.arange(k.shape[2], device=x.device) <= past + torch.arange(q.shape[2], device=x.device).unsqueeze(1)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        return self.join(y), state or []

    def fill(self, x: Tensor, state: Sequence[Cache]) -> None:
        """Keep the keys and values of x without computing its outputs."""
        _, k, v = self._rotated(x, state[0].length)
        state[0].append(k, v)

    def plain(self, x: Tensor) -> tuple[Tensor, Sequence[Cache]]:
        q, k, v = self._rotated(x, 0)
        scores = (q @ k.mT) / q.shape[-1] ** 0.5
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return self.join(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v), []

    def _rotated(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.split(x)
        if self.rotary:
            positions = first + torch.arange(x.shape[1], device=x.device)
            q, k = rotate(q, positions), rotate(k, positions)
        return q, k, v


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary embedding: x (B, H, T, D), positions (T,)."""
    pairs = x.shape[-1] // 2
    angles = positions.to(torch.float64).unsqueeze(-1) * base ** (-torch.arange(pairs, dtype=torch.float64, device=x.device) / pairs)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class LinearAttentionLayer(Projections):
    """Gated linear attention: S_t = a_t S_{t-1} + k_t^T v_t, y_t = q_t S_t, a_t a sigmoid gate per head; in chunks. The state is S."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.gate = nn.Linear(dim, heads)
        nn.init.constant_(self.gate.bias, 4.0)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self.split(x)
        log_decay = F.logsigmoid(self.gate(x)).transpose(1, 2)  # (B, H, T)
        if state is None:
            state = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=x.dtype, device=x.device)
        if x.shape[1] == 1:
            state = log_decay.exp().unsqueeze(-1) * state + k.mT @ v
            return self.join(q @ state), state
        y, state = chunked_linear_attention(q, k, v, log_decay, state)
        return self.join(y), state

    def plain(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = [], None
        for token in x.split(1, dim=1):
            y, state = self.forward(token, state)
            outputs.append(y)
        assert state is not None
        return torch.cat(outputs, dim=1), state


def chunked_linear_attention(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """q, k, v (B, H, T, D), log_decay (B, H, T), state (B, H, D, D): only the states at chunk boundaries are sequential."""
    tokens, size = q.shape[2], min(CHUNK, q.shape[2])
    padding = -tokens % size
    q, k, v = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, size)) for x in (q, k, v))  # (B, H, N, C, D)
    total = F.pad(log_decay, (0, padding)).unflatten(2, (-1, size)).cumsum(-1)  # (B, H, N, C)
    future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    inside = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(future, -torch.inf).exp()
    last = total[..., -1:]
    writes = (k * (last - total).exp().unsqueeze(-1)).mT @ v  # (B, H, N, D, D)
    states = []
    for decay, write in zip(last.exp().unsqueeze(-1).unbind(2), writes.unbind(2), strict=True):
        states.append(state)
        state = torch.addcmul(write, decay, state)
    y = ((q @ k.mT) * inside) @ v + (q * total.exp().unsqueeze(-1)) @ torch.stack(states, dim=2)
    return y.flatten(2, 3)[:, :, :tokens], state


class AttentionModel(nn.Module):
    """A Titans model whose mixers are replaced by full causal attention with rotary positions. The state is one cache a layer."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        model = Titans(config)
        self.blocks, self.norm = model.blocks, model.norm
        for block in self.blocks:
            block.mixer = AttentionLayer(config.dim, config.memory.num_heads, rotary=True)

    def new_cache(self, batch: int, capacity: int, dtype: torch.dtype, device: str) -> list[Cache]:
        return [cache for block in self.blocks for cache in block.mixer.new_cache(batch, capacity, dtype, device)]

    def forward(self, x: Tensor, state: Sequence[Cache] | None = None) -> tuple[Tensor, Sequence[Cache]]:
        for i, block in enumerate(self.blocks):
            x = x + block.mixer(block.mixer_norm(x), [state[i]] if state else None)[0]
            x = x + block.feed_forward(block.feed_forward_norm(x))
        return self.norm(x), state or []

    def plain(self, x: Tensor) -> tuple[Tensor, Sequence[Cache]]:
        for block in self.blocks:
            x = x + block.mixer.plain(block.mixer_norm(x))[0]
            x = x + block.feed_forward(block.feed_forward_norm(x))
        return self.norm(x), []
