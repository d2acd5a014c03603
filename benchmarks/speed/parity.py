"""No form is timed before it computes what it should: outputs, final state and every gradient in float64.

The memory's forms, its layer and its models are compared with `reference` (autograd, token by token), attention and linear attention with
their definition, peers with nothing: they are labelled with what they compute. What can be streamed must also give, read in pieces and
token by token, what it gives in one pass.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.cells import BACKWARD, WIDTH, Cell
from benchmarks.speed.peers import PEERS
from benchmarks.speed.subjects import LAYERS, MODELS, Call, make_call, random_input, stream_in_pieces

TOKENS, TOLERANCE = 100, 1e-9  # the sequence ends inside a chunk
GPU_PRECISION = {"fused": (torch.float32, 1e-4)}  # kernels that have no float64; the oracle they are compared with has
MODEL_LAYERS = 2


@dataclass(frozen=True)
class Parity:
    """Largest difference from the oracle, in units of max(1, largest value of the tensor); None if it is not finite."""

    subject: str
    expansion: int | None
    chunk_size: int | None
    tensors: int
    largest_error: float | None
    device: str = "cpu"

    @property
    def passed(self) -> bool:
        return self.largest_error is not None and self.largest_error <= self.tolerance

    @property
    def tolerance(self) -> float:
        return precision(self.subject, self.device)[1]

    def covers(self, cell: Cell) -> bool:
        return (self.subject, self.expansion, self.chunk_size) == (cell.subject, cell.expansion, cell.chunk_size)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tolerance": self.tolerance, "passed": self.passed}


def precision(subject: str, device: str) -> tuple[torch.dtype, float]:
    """What a form is checked in, and the error it may have."""
    exact = (torch.float64, TOLERANCE)
    return exact if device == "cpu" else GPU_PRECISION.get(subject, exact)


def needs_check(cell: Cell) -> bool:
    """`reference` is the measure itself."""
    return cell.subject != "reference" and cell.subject not in PEERS


def forms_to_check(cells: Iterable[Cell]) -> list[Cell]:
    """One small cell for each form, expansion and chunk size: two heads, for models two layers."""
    small = {
        Cell(c.subject, BACKWARD, TOKENS, 2 * WIDTH, c.expansion, c.chunk_size, MODEL_LAYERS if c.layers else None)
        for c in cells
        if needs_check(c)
    }
    return sorted(small, key=lambda c: (c.subject, c.expansion or 0, c.chunk_size or 0))


def outputs_and_gradients(call: Call) -> list[Tensor]:
    """Output, final state, and the gradients of a random functional of all of them with respect to every leaf."""
    found = call.function()
    torch.manual_seed(1)
    factors = [torch.randn(x.shape, dtype=torch.float64).to(x) for x in found]
    total = torch.stack([(x * factor).sum() for x, factor in zip(found, factors, strict=True)]).sum()
    gradients = torch.autograd.grad(total, call.leaves, allow_unused=True, materialize_grads=True)
    return [x.detach().double() for x in (*found, *gradients)]


def streamed_and_whole(cell: Cell, device: str) -> tuple[Tensor, Tensor]:
    """Outputs of a stream that is cut inside chunks and ends token by token, and those of one pass."""
    torch.manual_seed(2)
    x = random_input(cell, cell.tokens, torch.float64, device)
    first = max(1, cell.tokens // 3 + 1)
    last = min(4, cell.tokens - first)
    sizes = [first, cell.tokens - first - last, *[1] * last]
    return stream_in_pieces(cell, x, [size for size in sizes if size]), stream_in_pieces(cell, x, [cell.tokens])


def check_parity(cell: Cell, device: str = "cpu") -> Parity:
    """Compare one of `forms_to_check`, in float64 where it has it."""
    dtype, _ = precision(cell.subject, device)
    pairs = list(
        zip(
            outputs_and_gradients(make_call(cell, dtype, device)),
            outputs_and_gradients(make_call(cell, torch.float64, device, oracle=True)),
            strict=True,
        )
    )
    if cell.subject in LAYERS or cell.subject in MODELS:
        pairs.append(streamed_and_whole(cell, device))
    errors = torch.stack([(a - b).abs().max() / b.abs().max().clamp(min=1) for a, b in pairs])
    largest = errors.max().item() if errors.isfinite().all() else None
    return Parity(cell.subject, cell.expansion, cell.chunk_size, len(pairs), largest, device)
