"""Random arguments of the memory operator."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from titans_seq.memory import Gates, MemoryState, MemoryWeights, native, neural_memory


@dataclass(frozen=True)
class Case:
    """What a call of `neural_memory` needs, and its differentiable leaves by name."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: list[Gates]
    weights: MemoryWeights
    options: dict[str, Any] = field(default_factory=dict)
    state: MemoryState | None = None

    def run(self, impl: str, **changes: Any) -> tuple[Tensor, MemoryState]:
        options = {**self.options, **changes}
        return neural_memory(self.q, self.k, self.v, self.gates, self.weights, impl=impl, **{"state": self.state, **options})

    def piece(self, start: int, stop: int) -> "Case":
        """Tokens start to stop."""

        def cut(x: Tensor) -> Tensor:
            return x[:, :, start:stop]

        options = dict(self.options)
        for name in ("mask", "reset"):
            if options.get(name) is not None:
                options[name] = options[name][:, start:stop]
        gates = [Gates(*map(cut, layer)) for layer in self.gates]
        return Case(cut(self.q), cut(self.k), cut(self.v), gates, self.weights, options, self.state)

    def leaves(self) -> dict[str, Tensor]:
        named = {"q": self.q, "k": self.k, "v": self.v}
        for l, layer in enumerate(self.gates):
            named |= {f"{name}_{l}": gate for name, gate in layer._asdict().items()}
            named[f"W_{l}"] = self.weights.layers[l]
        if self.weights.norm_scale is not None:
            named |= {"norm_scale": self.weights.norm_scale, "norm_shift": self.weights.norm_shift}
        if self.state is not None:
            for part in ("weights", "momentum", "anchor"):
                named |= {f"state_{part}_{l}": W for l, W in enumerate(getattr(self.state, part))}
        return named


def make_case(
    *,
    batch: int = 2,
    heads: int = 2,
    length: int = 13,
    width: int = 4,
    depth: int = 2,
    expansion: int = 2,
    norm: bool = True,
    residual: bool = True,
    activation: str = "gelu",
    channelwise: bool = False,
    forgetting: bool = True,
    forgetting_towards: str = "zero",
    momentum: bool = True,
    with_state: bool = False,
    ragged: bool = False,
    boundaries: bool = False,
    dtype: torch.dtype = torch.float64,
    requires_grad: bool = False,
    **options: Any,
) -> Case:
    """Random normal q, v, unit k, gates well inside (0, 1), small steps; `with_state` starts in the middle of a stream."""

    def leaf(x: Tensor) -> Tensor:
        return x.to(dtype).requires_grad_(requires_grad)

    dims = [width, *[width * expansion] * (depth - 1), width]
    layers = [leaf(torch.randn(heads, a, b, dtype=torch.float64) / a**0.5) for a, b in pairwise(dims)]
    q, k, v = (torch.randn(batch, heads, length, width, dtype=torch.float64) for _ in range(3))
    k = k / k.norm(dim=-1, keepdim=True)

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return leaf(low + (high - low) * torch.rand(*shape, dtype=torch.float64))

    gates = []
    for d_in in dims[:-1]:
        channels = (d_in,) if channelwise else ()
        gates.append(
            Gates(
                uniform(batch, heads, length, *channels, low=0.05 * forgetting, high=0.5 * forgetting),
                uniform(batch, heads, length, low=0.1 * momentum, high=0.95 * momentum),
                uniform(batch, heads, length, low=0.01, high=0.05),
            )
        )
    norms = [leaf(torch.randn(heads, width, dtype=torch.float64)) if norm else None for _ in range(2)]
    network = {"activation": activation, "residual": residual, "forgetting_towards": forgetting_towards}
    weights = MemoryWeights(layers=layers, norm_scale=norms[0], norm_shift=norms[1], **network)  # type: ignore[arg-type]
    state = None
    if with_state:
        chunk_size = options.get("chunk_size", 16)
        position = torch.arange(batch) * 2 % chunk_size if ragged else torch.full((batch,), min(2, chunk_size - 1))
        parts = [tuple(leaf(torch.randn(batch, *W.shape, dtype=torch.float64) * 0.3) for W in layers) for _ in range(3)]
        state = MemoryState(*parts, position, chunk_size, forgetting_towards == "first_state")
    if ragged:
        options["mask"] = torch.rand(batch, length) > 0.3
    if boundaries:
        options["reset"] = torch.rand(batch, length) > 0.75
    return Case(leaf(q), leaf(k), leaf(v), gates, weights, options, state)


@pytest.fixture(name="make_case", scope="session")
def _make_case() -> Any:
    return make_case


@pytest.fixture(autouse=True)
def _skip_without_compiler(request: pytest.FixtureRequest) -> None:
    """The fused form on CPU is compiled on this machine."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is not None and "fused" in parameters.params.values():
        problem = native.unavailable(torch.empty(0))
        if problem is not None:
            pytest.skip(f"the native kernels: {problem}")
