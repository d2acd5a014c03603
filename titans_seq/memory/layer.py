"""`NeuralMemory`: the layer around the operator, from (B, T, dim) to (B, T, dim).

Shapes: B batch, T time, H heads, D head width.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_seq.config import MemoryConfig
from titans_seq.memory.convolution import causal_convolution
from titans_seq.memory.functional import neural_memory, read_memory
from titans_seq.memory.state import Gates, LocalMemory, MemoryState, MemoryWeights, TwoLevelState
from titans_seq.memory.two_level import read_two_level, two_level_memory
from titans_seq.packing import LeftAligned, check_marks, last_rows, token_positions
from titans_seq.pieces import read_in_pieces
from titans_seq.state import State

L2_EPS = 1e-6


@dataclass(frozen=True)
class MemoryLayerState(State):
    """What `NeuralMemory` carries: its memory or both its levels, and the convolution's last inputs (B, convolution_width - 1, 3 H D)."""

    memory: MemoryState | TwoLevelState
    convolution: Tensor


class Learner(nn.Module):
    """A module that learns while it reads.

    Attributes:
        frozen: it neither learns nor forgets, see `frozen_memory`.
    """

    frozen = False


class MemoryNetwork(Learner):
    """The outer parameters of one memory: its learned first state and norm, and the maps that make its gates."""

    def _make_network(self, dim: int, config: MemoryConfig) -> None:
        self.config = config
        heads, width = config.num_heads, config.head_width(dim)
        self.heads, self.width = heads, width
        self.dims = [width, *[width * config.expansion] * (config.depth - 1), width]
        self.first_state = nn.ParameterList(self._initial_layer(l, a, b) for l, (a, b) in enumerate(pairwise(self.dims)))
        self.norm_scale = nn.Parameter(torch.ones(heads, width)) if config.norm else None
        self.norm_shift = nn.Parameter(torch.zeros(heads, width)) if config.norm else None

        self.momentum_and_step = nn.Linear(dim, config.depth * 2 * heads)
        self.forgetting = self._forgetting(dim)
        self._initialise_gates()

    def _initial_layer(self, l: int, d_in: int, d_out: int) -> Tensor:
        """Layer l of W^0, (H, d_in, d_out).

        Variance 1 / d_in, but for layer 0 of a deep memory with norm: keys have unit length, so that variance 1 there gives what enters
        the activation variance 1. With less the activation is all but linear, and what a token writes through layer 0 is larger than
        layer 0 itself. Without the norm nothing would bound the steps that larger activations make.
        """
        enters_activation = l == 0 and self.config.depth > 1 and self.config.norm
        return torch.randn(self.heads, d_in, d_out) / (1 if enters_activation else math.sqrt(d_in))

    def _forgetting(self, dim: int) -> nn.Module | None:
        """Logits of alpha: (.., depth * heads), or one for each input channel of each memory layer through a low rank."""
        if self.config.forgetting == "none":
            return None
        if self.config.forgetting == "head":
            return nn.Linear(dim, self.config.depth * self.heads)
        down = nn.Linear(dim, self.config.gate_rank, bias=False)
        return nn.Sequential(down, nn.Linear(self.config.gate_rank, self.heads * sum(self.dims[:-1])))

    def _initialise_gates(self) -> None:
        """Start close to a plain model: a long memory and small steps (the logits' weights are small, the biases decide)."""
        config = self.config
        nn.init.normal_(self.momentum_and_step.weight, std=0.02)
        bias = self.momentum_and_step.bias.data.view(config.depth, 2, self.heads)
        bias[:, 0] = _logit(config.initial_momentum)
        bias[:, 1] = _logit(0.1)
        if self._forgetting_map is not None:
            nn.init.normal_(self._forgetting_map.weight, std=0.02)
            nn.init.constant_(self._forgetting_map.bias, _logit(config.initial_forgetting))

    @property
    def _forgetting_map(self) -> nn.Linear | None:
        """The map whose outputs are the logits of alpha; None of a memory that never forgets."""
        last = self.forgetting[-1] if isinstance(self.forgetting, nn.Sequential) else self.forgetting
        return cast(nn.Linear | None, last)

    def scale_forgetting(self, factor: float) -> bool:
        """Multiply the odds of every alpha by a positive factor; False of a memory that never forgets."""
        if self._forgetting_map is None:
            return False
        self._forgetting_map.bias.data += math.log(factor)
        return True

    @property
    def weights(self) -> MemoryWeights:
        """The memory network's outer parameters, as the operator takes them."""
        return MemoryWeights(
            layers=list(self.first_state),
            norm_scale=self.norm_scale,
            norm_shift=self.norm_shift,
            activation=self.config.activation,
            residual=self.config.residual,
            forgetting_towards=self.config.forgetting_towards,
        )

    def gates(self, x: Tensor) -> list[Gates]:
        """The gates of every memory layer for x (B, T, dim): alpha, eta, theta (B, H, T), alpha also (B, H, T, d_in)."""
        config = self.config
        logits = self.momentum_and_step(x).unflatten(-1, (config.depth, 2, self.heads))  # (B, T, L, 2, H)
        eta, theta = _sigmoid(logits.permute(3, 2, 0, 4, 1)).unbind(0)  # (L, B, H, T) each
        theta = config.max_step * theta
        if self.frozen:
            nothing = torch.zeros_like(eta).unbind(0)
            return [Gates(zero, zero, zero) for zero in nothing]
        if not config.momentum:
            eta = torch.zeros_like(eta)
        alphas, thetas = self._alphas(x, eta), list(theta.unbind(0))
        if config.gradient == "token":
            thetas = [_no_further_than_over(theta, alpha) for theta, alpha in zip(thetas, alphas, strict=True)]
        return [Gates(*layer) for layer in zip(alphas, eta.unbind(0), thetas, strict=True)]

    def _alphas(self, x: Tensor, eta: Tensor) -> list[Tensor]:
        if self.forgetting is None:
            return [torch.zeros_like(layer) for layer in eta.unbind(0)]
        alpha = _sigmoid(self.forgetting(x))
        if self.config.forgetting == "head":
            return list(alpha.unflatten(-1, (self.config.depth, self.heads)).permute(2, 0, 3, 1).unbind(0))
        parts = alpha.split([self.heads * d_in for d_in in self.dims[:-1]], dim=-1)
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]  # (B, H, T, d_in)


class LocalMemoryNetwork(MemoryNetwork):
    """One local memory of two levels: a network and gates like the global memory's, with parameters of its own."""

    def __init__(self, dim: int, config: MemoryConfig) -> None:
        super().__init__()
        self._make_network(dim, config)


class NeuralMemory(MemoryNetwork):
    """Neural long-term memory as a layer (arXiv 2501.00663, sections 3.1 and 4.4).

    q, k, v: linear, causal depthwise convolution, SiLU; q and k l2-normalised. Gates per head and memory layer from a linear map of x:
    alpha = sigmoid(.), eta = sigmoid(.), theta = max_step sigmoid(.). Output: RMS norm per head, times a linear gate of x, projection.
    The memory's first state W^0 is learned. It goes on learning in evaluation and under `torch.inference_mode()`.

    With `config.local` it is the global memory of two levels (arXiv 2511.07343): local memories with first states and gates of their own
    share its q, k and v, and their reads are added to its read.
    """

    def __init__(self, dim: int, config: MemoryConfig) -> None:
        super().__init__()
        width = config.head_width(dim)
        inner = config.num_heads * width

        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        taps = config.convolution_width
        self.convolution = nn.Conv1d(3 * inner, 3 * inner, taps, groups=3 * inner, bias=False) if taps > 1 else None
        self.gate = nn.Linear(dim, inner, bias=False)
        self.output_norm = nn.RMSNorm(width, eps=torch.finfo(torch.float32).eps)
        self.output = nn.Linear(inner, dim, bias=False)

        self._make_network(dim, config)
        self.local = nn.ModuleList(LocalMemoryNetwork(dim, config) for _ in config.local.chunk_sizes) if config.local else None

    def init_state(self, batch_size: int) -> MemoryLayerState:
        """The state before the first token."""
        tail = self.qkv.weight.new_zeros(batch_size, self.config.convolution_width - 1, self.qkv.out_features)
        config = self.config
        if config.local is None:
            return MemoryLayerState(MemoryState.initial(self.weights, batch_size, config.chunk_size), tail)
        sizes, shard, projected = config.local.chunk_sizes, config.local.shard_length, config.local.query_projection
        weights = [memory.weights for memory in self._locals()]
        memory = TwoLevelState.initial(self.weights, weights, batch_size, config.chunk_size, sizes, shard, projected)
        return MemoryLayerState(memory, tail)

    def forward(
        self,
        x: Tensor,
        state: MemoryLayerState | None = None,
        impl: str = "auto",
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, MemoryLayerState]:
        """Read and write the memory along x.

        Args:
            x: (B, T, dim), floating point.
            state: of the stream so far, None at its begin.
            impl: form of the operator, see `neural_memory`.
            mask: (B, T) bool; a token that is False is padding: nothing is written or read there, and its output is zero.
            reset: (B, T) bool; before a token that is True memory and convolution begin anew (a document begins).

        Returns:
            (B, T, dim) and the state after the last token. A long x is read in pieces (`pieces.read_in_pieces`).

        Raises:
            ValueError: mask or reset is not (B, T) bool, or the state is of another layer.
        """
        check_marks(x, mask, reset)
        read = partial(self._read_and_write, impl)
        if mask is None:
            return read_in_pieces(read, x, state, None, reset)
        aligned = LeftAligned(mask, reset)
        y, after = read_in_pieces(read, aligned.take(x), state, aligned.mask, aligned.reset)
        return aligned.put(y), after

    def _read_and_write(
        self, impl: str, x: Tensor, state: MemoryLayerState | None, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, MemoryLayerState]:
        """As `forward`, padding behind the tokens of each row."""
        q, k, v, tail = self._project(x, None if state is None else state.convolution, mask, reset)
        y, memory = self._memory(q, k, v, x, None if state is None else state.memory, impl, mask, reset)
        return self._finish(y, self.gate(x)), MemoryLayerState(memory, tail)

    def _project(
        self, x: Tensor, tail: Tensor | None, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v (B, H, T, D) of x (B, T, dim), and the convolution's next tail (arXiv 2501.00663, equation 11 and section 4.4)."""
        mixed, tail = self._convolve(self.qkv(x), tail, mask, reset)
        q, k, v = F.silu(mixed).unflatten(-1, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4).unbind(0)
        return _l2_norm(q), _l2_norm(k), v, tail

    def _memory(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        state: MemoryState | TwoLevelState | None,
        impl: str,
        mask: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, MemoryState | TwoLevelState]:
        """The operator of one level or of two, with gates made from x (B, T, dim)."""
        config = self.config
        clip = config.surprise_clip if config.gradient == "chunk" else None
        if config.local is None:
            if isinstance(state, TwoLevelState):
                raise ValueError("state is of a memory with local memories, this one has none (MemoryConfig.local)")
            options: dict[str, Any] = {"gradient": config.gradient, "surprise_clip": clip, "mask": mask, "reset": reset}
            return neural_memory(q, k, v, self.gates(x), self.weights, state, config.chunk_size, impl, **options)
        if isinstance(state, MemoryState):
            raise ValueError("state is of a memory without local memories, this one has them (MemoryConfig.local)")  # noqa: TRY004 - of another model
        return two_level_memory(
            q,
            k,
            v,
            self.gates(x),
            self.weights,
            [LocalMemory(m.gates(x), m.weights, size) for m, size in zip(self._locals(), config.local.chunk_sizes, strict=True)],
            state,
            config.chunk_size,
            config.local.shard_length,
            impl,
            query_projection=config.local.query_projection,
            gradient=config.gradient,
            surprise_clip=clip,
            mask=mask,
            reset=reset,
        )

    def snapshot(self, state: MemoryLayerState) -> tuple[Tensor, ...]:
        """What `read` needs of the memory as it stands in `state`."""
        return state.memory.weights if isinstance(state.memory, MemoryState) else state.memory.parts

    def _locals(self) -> list[LocalMemoryNetwork]:
        return cast(list[LocalMemoryNetwork], list(self.local or ()))

    def read(self, x: Tensor, layers: Sequence[Tensor] | None) -> Tensor:
        """Read without writing: x (B, T, dim) -> (B, T, dim), from the memory as `snapshot` gives it or, if None, from the first state.

        The queries are those of `forward` without the convolution, so that a read depends on one token alone.
        """
        return self.read_projected(*self.project_read(x), layers)

    def project_read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a read of x (B, T, dim) needs whatever the memory holds: queries (B, T, H D), and the gate of the output (B, T, H D)."""
        return F.silu(F.linear(x, self.qkv.weight[: self.heads * self.width])), self.gate(x)

    def read_projected(self, q: Tensor, gate: Tensor, layers: Sequence[Tensor] | None) -> Tensor:
        """`read` of what `project_read` gave, (B, T, H D) each -> (B, T, dim)."""
        q = _l2_norm(q.unflatten(-1, (self.heads, self.width)).transpose(1, 2))
        return self._finish(self.answer(q, layers), gate)

    def answer(self, q: Tensor, layers: Sequence[Tensor] | None) -> Tensor:
        """M(q) of queries (B, H, T, D), same shape, from the memory as `snapshot` gives it or, if None, from the first state."""
        if self.local is None:
            return read_memory(q, self.weights, layers)
        layers = self.snapshot(self.init_state(q.shape[0])) if layers is None else layers
        return read_two_level(q, self.weights, [memory.weights for memory in self._locals()], layers)

    def _convolve(self, x: Tensor, tail: Tensor | None, mask: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Causal depthwise convolution over time of x (B, T, channels), going on from the inputs `tail` (B, width - 1, channels)."""
        reach, length = self.config.convolution_width - 1, x.shape[1]
        if tail is None:
            tail = x.new_zeros(x.shape[0], reach, x.shape[2])
        elif tail.shape[1:] != (reach, x.shape[2]):
            raise ValueError(f"state holds a convolution tail of {tuple(tail.shape[1:])}, this layer needs {(reach, x.shape[2])}")
        x = torch.cat([tail.to(x.dtype), x], dim=1)
        if self.convolution is None:
            return x, last_rows(x, reach, length, mask, None)
        positions = held = None
        if reset is not None:
            positions, held = token_positions(x.new_full((x.shape[0],), reach, dtype=torch.int64), length, mask, reset)
        return causal_convolution(x, self.convolution.weight[:, 0], positions).to(x.dtype), last_rows(x, reach, length, mask, held)

    def _finish(self, y: Tensor, gate: Tensor) -> Tensor:
        """y (B, H, T, D): norm, times the gate (B, T, H D), then projection to (B, T, dim)."""
        return self.output(self.output_norm(y.to(self.output_norm.weight.dtype)).transpose(1, 2).flatten(2) * gate)


@contextmanager
def frozen_memory(model: nn.Module) -> Iterator[None]:
    """Within it the memories of `model` neither learn nor forget: all their gates are 0.

    A stream that begins within it reads the learned first states W^0 alone: what a model does without what it has read, beyond its
    attention's window. One that goes on reads its memories as they stand.
    """
    memories = [module for module in model.modules() if isinstance(module, Learner)]
    before = [memory.frozen for memory in memories]
    try:
        for memory in memories:
            memory.frozen = True
        yield
    finally:
        for memory, frozen in zip(memories, before, strict=True):
            memory.frozen = frozen


def scale_forgetting(model: nn.Module, factor: float) -> None:
    """Have all memories of `model` forget `factor` times as much from now on, in place: to read texts far longer than those of training.

    What is written lasts some 1 / alpha tokens. Training has no reason to keep anything for longer than its own texts, and may end with an
    alpha that costs nothing there and everything beyond: a hundredth of it reads on where that is so (docs/text_benchmark.md). A model
    that was trained on a stream has learned what a stream needs, and is worse with another.

    It is the odds alpha / (1 - alpha) of every token that are multiplied, which for a small alpha is the same. The factor is in the
    model's weights then, and is saved with them: a state in memory can be gone on from, a saved one is another model's
    (`Pretrained.identity`).

    Args:
        model: with at least one memory that forgets.
        factor: positive; below 1 memories keep for longer.

    Raises:
        ValueError: factor is not a positive number, or no memory of the model forgets.
    """
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(f"factor must be a positive number, got {factor}")
    scaled = [memory.scale_forgetting(factor) for memory in model.modules() if isinstance(memory, MemoryNetwork)]
    if not any(scaled):
        raise ValueError("no memory of the model forgets")


def _l2_norm(x: Tensor) -> Tensor:
    """Unit length over the last dimension; zero stays zero, and its gradient stays bounded."""
    square = x.to(torch.promote_types(x.dtype, torch.float32)).square()
    return x * torch.rsqrt(square.sum(-1, keepdim=True) + L2_EPS).to(x.dtype)


def _sigmoid(logits: Tensor) -> Tensor:
    """In at least float32: near 0 and 1 a bfloat16 gate has a handful of values."""
    return torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def _no_further_than_over(theta: Tensor, alpha: Tensor) -> Tensor:
    """Steps that turn over what is stored at a unit key, at most: 1 - alpha - 2 theta of it stays, and beyond -1 it would grow without end.

    theta: (B, H, T). alpha: (B, H, T), or (B, H, T, d_in) by channel.
    """
    most = alpha if alpha.dim() == theta.dim() else alpha.amax(-1)
    return torch.minimum(theta, 1 - most / 2)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
