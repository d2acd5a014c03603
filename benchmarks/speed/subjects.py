"""What is measured: our operator, layer and models, and the call or stream that any subject becomes.

Only the public interface of titans_seq is used (`neural_memory`, `NeuralMemory`, `Titans` and their configurations), so that earlier
revisions can be measured with the same code.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import titans_seq.memory.layer as memory_layer
from benchmarks.speed.baselines import AttentionLayer, AttentionModel, LinearAttentionLayer
from benchmarks.speed.cells import BATCH, DECODE_WINDOW, DEPTH, FORWARD, TIMED_RUNS, WIDTH, Cell
from benchmarks.speed.peers import PEERS
from titans_seq import Decoder, Titans
from titans_seq.config import AttentionConfig, MemoryConfig, TitansConfig
from titans_seq.memory import Gates, MemoryWeights, NeuralMemory, neural_memory

LAYERS = ("memory layer", "attention layer", "linear attention layer")
VARIANTS = ("lmm", "mac", "mag", "mal")
MODELS = (*(f"model {variant}" for variant in VARIANTS), "model attention")
PIECE = 4096  # tokens of a prompt that are read at once


@dataclass(frozen=True)
class Call:
    """Something that can be run: returns its output first, then its state. `leaves` are what it can be differentiated by."""

    function: Callable[[], list[Tensor]]
    leaves: list[Tensor]


def make_call(cell: Cell, dtype: torch.dtype = torch.float32, device: str = "cpu", *, oracle: bool = False) -> Call:
    """The call of a cell; with `oracle` the same call computed the slow and plain way."""
    if cell.subject in LAYERS or cell.subject in MODELS:
        return module_call(cell, dtype, device, oracle=oracle)
    if cell.subject in PEERS:
        return peer_call(cell, dtype, device)
    return operator_call(cell, dtype, device, oracle=oracle)


def operator_call(cell: Cell, dtype: torch.dtype, device: str, *, oracle: bool) -> Call:
    """The operator on random unit q and k, normal v, and gates about the layer's initial ones."""
    assert cell.expansion is not None
    assert cell.chunk_size is not None
    torch.manual_seed(0)
    impl, heads, differentiable = "reference" if oracle else cell.subject, cell.heads, cell.mode != FORWARD

    def leaf(x: Tensor) -> Tensor:
        return x.to(device, dtype).requires_grad_(differentiable)

    def uniform(low: float, high: float) -> Tensor:
        return leaf(torch.empty(BATCH, heads, cell.tokens, dtype=torch.float64).uniform_(low, high))

    q, k, v = (torch.randn(BATCH, heads, cell.tokens, WIDTH, dtype=torch.float64) for _ in range(3))
    q, k, v = leaf(F.normalize(q, dim=-1)), leaf(F.normalize(k, dim=-1)), leaf(v)
    hidden = WIDTH * cell.expansion
    layers = [leaf(torch.randn(heads, a, b, dtype=torch.float64) / a**0.5) for a, b in ((WIDTH, hidden), (hidden, WIDTH))]
    norms = [leaf(torch.ones(heads, WIDTH)), leaf(torch.zeros(heads, WIDTH))]
    weights = MemoryWeights(layers=layers, norm_scale=norms[0], norm_shift=norms[1])
    gates = [Gates(uniform(0.002, 0.02), uniform(0.7, 0.9), uniform(0.001, 0.004)) for _ in range(DEPTH)]

    def function() -> list[Tensor]:
        y, state = neural_memory(q, k, v, gates, weights, chunk_size=cell.chunk_size, impl=impl)
        return [y, *tensors_of(state)]

    return Call(function, [q, k, v, *layers, *norms, *(gate for layer in gates for gate in layer)])


def make_module(cell: Cell, dtype: torch.dtype, device: str) -> nn.Module:
    """A layer or a model: x (B, T, dim) and a state or None -> y (B, T, dim) and a state."""
    torch.manual_seed(0)
    if cell.subject == "attention layer":
        module: nn.Module = AttentionLayer(cell.dim, cell.heads)
    elif cell.subject == "linear attention layer":
        module = LinearAttentionLayer(cell.dim, cell.heads)
    elif cell.subject == "memory layer":
        module = NeuralMemory(cell.dim, memory_config(cell))
    elif cell.subject == "model attention":
        module = AttentionModel(model_config(cell, "lmm"))
    else:
        module = Titans(model_config(cell, cell.subject.removeprefix("model ")))
    return module.to(device, dtype)


def memory_config(cell: Cell) -> MemoryConfig:
    given = {"expansion": cell.expansion, "chunk_size": cell.chunk_size}
    return MemoryConfig(num_heads=cell.heads, head_dim=WIDTH, depth=DEPTH, **{name: x for name, x in given.items() if x is not None})


def model_config(cell: Cell, variant: str) -> TitansConfig:
    """The library's defaults (window and segment of 64) at this width."""
    assert cell.layers is not None
    attention = AttentionConfig(num_heads=cell.heads, head_dim=WIDTH)
    return TitansConfig(dim=cell.dim, num_layers=cell.layers, variant=variant, memory=memory_config(cell), attention=attention)


def random_input(cell: Cell, tokens: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(BATCH, tokens, cell.dim, dtype=torch.float64).to(device, dtype)


def module_call(cell: Cell, dtype: torch.dtype, device: str, *, oracle: bool) -> Call:
    """One pass over a sequence. The oracle: memories by `reference`, baselines by their own plain form."""
    module = make_module(cell, dtype, device).requires_grad_(cell.mode != FORWARD)
    x = random_input(cell, cell.tokens, dtype, device).requires_grad_(cell.mode != FORWARD)

    def function() -> list[Tensor]:
        if not oracle:
            y, state = module(x)
        elif isinstance(module, LinearAttentionLayer | AttentionLayer | AttentionModel):
            y, state = module.plain(x)
        else:
            with reference_memories():
                y, state = module(x)
        return [y, *tensors_of(state)]

    return Call(function, [x, *module.parameters()])


def peer_call(cell: Cell, dtype: torch.dtype, device: str) -> Call:
    """A peer's memory layer; what it returns besides the output is kept alive as its user would."""
    torch.manual_seed(0)
    module = PEERS[cell.subject].build(cell.dim, cell.heads).to(device, dtype).requires_grad_(cell.mode != FORWARD)
    x = random_input(cell, cell.tokens, dtype, device).requires_grad_(cell.mode != FORWARD)

    def function() -> list[Tensor]:
        found = module(x)
        return tensors_of(found)

    return Call(function, [x, *module.parameters()])


@contextmanager
def reference_memories() -> Iterator[None]:
    """Inside, every memory layer computes by `reference`, whichever form it asks for."""
    right = memory_layer.neural_memory

    def oracle(*args: Any, **options: Any) -> Any:
        names = ("q", "k", "v", "gates", "weights", "state", "chunk_size", "impl")
        given = {**dict(zip(names, args, strict=False)), **options, "impl": "reference"}
        return right(**given)

    memory_layer.neural_memory = oracle
    try:
        yield
    finally:
        memory_layer.neural_memory = right


def tensors_of(found: Any) -> list[Tensor]:
    """Every floating tensor in nested dataclasses, tuples, lists and dictionaries, in their order."""
    if isinstance(found, Tensor):
        return [found] if found.is_floating_point() else []
    if is_dataclass(found) and not isinstance(found, type):
        return [x for field in fields(found) for x in tensors_of(getattr(found, field.name))]
    if hasattr(found, "values") and callable(found.values):
        return [x for value in found.values() for x in tensors_of(value)]
    if isinstance(found, tuple | list):
        return [x for value in found for x in tensors_of(value)]
    return []


class Stream:
    """A layer or a model read piece by piece; it holds the state. Use it under `torch.inference_mode()`."""

    def __init__(self, cell: Cell, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.cell, self.dtype, self.device = cell, dtype, device
        self.module = make_module(cell, dtype, device).eval()
        self.state: Any = None
        ours = isinstance(self.module, Titans | NeuralMemory)
        self.decoder = Decoder(self.module) if ours and device != "cpu" else None
        if isinstance(self.module, AttentionLayer | AttentionModel):
            capacity = cell.tokens + (TIMED_RUNS + 1) * DECODE_WINDOW
            self.state = self.module.new_cache(BATCH, capacity, dtype, device)

    def feed(self, x: Tensor) -> Tensor:
        """x (B, T, dim) -> y (B, T, dim)."""
        one = self.decoder is not None and self.state is not None and x.shape[1] == 1
        y, self.state = (self.decoder if one else self.module)(x, self.state)
        return y

    def prefill(self) -> None:
        """Read `cell.tokens` random tokens, in pieces; whole where attention over all of it has to be computed."""
        piece = self.cell.tokens if isinstance(self.module, AttentionModel) else PIECE
        for start in range(0, self.cell.tokens, piece):
            x = random_input(self.cell, min(piece, self.cell.tokens - start), self.dtype, self.device)
            if isinstance(self.module, AttentionLayer):
                self.module.fill(x, self.state)  # one layer: its outputs for the prompt change nothing
            else:
                self.feed(x)

        for _ in range(3 if self.decoder is not None else 0):  # it compiles, records and replays
            self.feed(random_input(self.cell, 1, self.dtype, self.device))

    def state_bytes(self) -> int:
        """All that is carried from token to token; of a cache the part that is filled."""
        if isinstance(self.module, AttentionLayer | AttentionModel):
            return sum(cache.filled_bytes for cache in self.state)
        return sum(x.numel() * x.element_size() for x in tensors_of(self.state))


def stream_in_pieces(cell: Cell, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The outputs of a stream that is read in pieces of these sizes."""
    with torch.inference_mode():
        stream = Stream(cell, x.dtype, x.device.type)
        return torch.cat([stream.feed(piece) for piece in x.split(list(sizes), dim=1)], dim=1)
