"""Hooks that watch every memory of a model, and what they saw as one frame.

Shapes: B rows of a batch, T tokens, H heads, L memory layers.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from titans_seq.backbone import Titans
from titans_seq.display import html_table
from titans_seq.memory import MemoryTrace, NeuralMemory, trace_memory
from titans_seq.state import State

QUANTITIES = ("surprise", "alpha", "eta", "theta", "weight_norm", "momentum_norm", "read", "learned")
"""Columns of numbers of a recording; `MemoryTrace` says what they are."""


@dataclass
class _Watched:
    """A memory: its dotted name in the model, and for each of the streams it read, the traces in order."""

    name: str
    streams: list[list[MemoryTrace]] = field(default_factory=list)


class Recording:
    """What the memories of a model did within `record`, token by token.

    A stream is what was read from one begin on: a call of the backbone without a state, with the initial one, or with another number of
    rows begins one, others go on.
    """

    def __init__(self, memories: list[_Watched]) -> None:
        self._memories = memories

    @property
    def memories(self) -> list[str]:
        """Dotted names of the memories in the model, in its order: their places are the frame's `block`."""
        return [memory.name for memory in self._memories]

    def frame(self) -> pl.DataFrame:
        """A row for each stream, row of its batch, block, head, layer of the memory and token.

        Returns:
            stream, row, token (counted from the stream's begin, without padding), block, memory (its name), head, layer, and the columns
            `QUANTITIES`, float32: of `read` and `learned` the layers of a memory have the same.

        Raises:
            ValueError: nothing was read.
        """
        frames = [
            _frame(trace, before).select(
                pl.lit(number, pl.Int64).alias("stream"),
                "row",
                "token",
                pl.lit(block, pl.Int64).alias("block"),
                pl.lit(memory.name).alias("memory"),
                pl.exclude("row", "token"),
            )
            for block, memory in enumerate(self._memories)
            for number, traces in enumerate(memory.streams)
            for trace, before in zip(traces, _tokens_before(traces), strict=True)
        ]
        if not frames:
            raise ValueError("nothing was recorded: call the model within `with record(model) as recording:`")
        return pl.concat(frames).sort("stream", "row", "block", "head", "layer", "token", maintain_order=True)

    def _repr_html_(self) -> str:
        """In a notebook: means of the quantities in each memory."""
        if not any(memory.streams for memory in self._memories):
            return html_table("Recording, of nothing yet", [])
        means = self.frame().group_by("block", "memory", maintain_order=True).agg(pl.col(QUANTITIES).mean())
        rows = [(*row[:2], *(f"{value:.4g}" for value in row[2:])) for row in means.iter_rows()]
        tokens = len(self.frame().select("stream", "row", "token").unique())
        return html_table(f"Recording of {tokens:,} tokens, means", rows, ("block", "memory", *QUANTITIES))

    def stacked(self, quantity: str) -> Tensor:
        """(rows, blocks, H, L, T), or without L of `read` and `learned`: of one stream of rows that are all of one length.

        Raises:
            ValueError: there are more streams or none, rows of unequal length, or memories of different size.
        """
        if {len(memory.streams) for memory in self._memories} != {1}:
            raise ValueError(f"one stream is expected, {len(self._memories[0].streams)} were read; frame() has them all")
        traces = [memory.streams[0] for memory in self._memories]
        if not all(bool(trace.active.all()) for calls in traces for trace in calls):
            raise ValueError("rows are of unequal length; frame() has them all")
        return torch.stack([torch.cat([getattr(trace, quantity) for trace in calls], -1) for calls in traces], 1)


def _tokens_before(traces: list[MemoryTrace]) -> list[Tensor]:
    """For each call of a stream, how many tokens of each row (B,) were read before it."""
    counts = torch.stack([trace.active.sum(1) for trace in traces])  # (calls, B)
    return list(counts.cumsum(0) - counts)


def _frame(trace: MemoryTrace, before: Tensor) -> pl.DataFrame:
    """Row, token, head, layer and numbers of one call; before: (B,) tokens of the stream that were read earlier."""
    heads, layers = trace.surprise.shape[1:3]
    rows, places = (part.cpu().numpy() for part in trace.active.nonzero(as_tuple=True))
    count, each = len(rows), heads * layers
    token = places + before.cpu().numpy()[rows]
    head, layer = (part.ravel() for part in np.meshgrid(np.arange(heads), np.arange(layers), indexing="ij"))
    columns: dict[str, Any] = {
        "row": np.repeat(rows, each),
        "token": np.repeat(token, each),
        "head": np.tile(head, count),
        "layer": np.tile(layer, count),
    }
    for name in QUANTITIES:
        values = getattr(trace, name)
        values = values if values.dim() == 4 else values.unsqueeze(2).expand(-1, -1, layers, -1)  # (B, H, L, T)
        picked = values.permute(0, 3, 1, 2)[trace.active]  # (count, H, L)
        columns[name] = picked.float().cpu().numpy().ravel()
    return pl.DataFrame(columns)


@contextmanager
def record(model: Any) -> Iterator[Recording]:
    """Within it, whatever `model` reads is traced in every memory: by a call, a forecast, a generation, a stream.

    The model does what it does without it; it takes about a millisecond a token and memory more, so read thousands of tokens, not millions.

    Args:
        model: any module with a `NeuralMemory` in it: a backbone, a model of any domain, or what has one as its `model`, as predictors do.

    Yields:
        a `Recording`, which fills while the model reads.

    Raises:
        ValueError: there is no memory in `model`.
    """
    model = model if isinstance(model, nn.Module) else model.model
    watched = {memory: _Watched(name) for name, memory in model.named_modules() if isinstance(memory, NeuralMemory)}
    if not watched:
        raise ValueError(f"{type(model).__name__} has no NeuralMemory in it; record looks at models of titans_seq")
    backbones = [module for module in model.modules() if isinstance(module, Titans)]
    owners = {memory: backbone for backbone in backbones for memory in backbone.modules() if isinstance(memory, NeuralMemory)}
    handles = [backbone.register_forward_pre_hook(_begin(watched, owners), with_kwargs=True) for backbone in backbones]
    handles += [memory.register_forward_hook(_trace(one, memory not in owners), with_kwargs=True) for memory, one in watched.items()]
    try:
        yield Recording(list(watched.values()))
    finally:
        for handle in handles:
            handle.remove()


def _begin(watched: dict[NeuralMemory, _Watched], owners: dict[NeuralMemory, Titans]) -> Any:
    """Hook of a backbone: a call that begins a stream does so in all its memories."""

    def hook(backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(backbone, Titans)
        given = _arguments(backbone, args, kwargs)
        state, rows = given.get("state"), len(given["x"])
        fresh = state is None or _same(state, backbone.init_state(rows))
        for memory, owner in owners.items():
            streams = watched[memory].streams
            if owner is backbone and (fresh or not streams or rows != len(streams[-1][-1].active)):
                streams.append([])

    return hook


def _same(state: State, other: State) -> bool:
    pairs = zip(state.tensors(), other.tensors(), strict=True)
    return all(one.shape == two.shape and torch.equal(one, two.to(one)) for one, two in pairs)


def _trace(watched: _Watched, alone: bool) -> Any:
    """Hook of a memory; alone: it is in no backbone, so that its own calls begin streams."""

    def hook(memory: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        assert isinstance(memory, NeuralMemory)
        given = _arguments(memory, args, kwargs)
        if alone and (given.get("state") is None or not watched.streams):
            watched.streams.append([])
        given.pop("impl", None)
        watched.streams[-1].append(trace_memory(memory, **given))

    return hook


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call of `forward` by name."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments
