"""Other implementations, by the name under which they stand in the table. What is not installed is listed as such.

To add one: a function that imports the package and builds its memory layer at a width and number of heads (of 64), and an entry in PEERS.
They are given our sizes, depth 2 and expansion 4, where they can be; else `computes` says what they have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from benchmarks.speed.cells import DEPTH, WIDTH

EXPANSION = 4


@dataclass(frozen=True)
class Peer:
    """package: its name on PyPI. computes: what the setting makes it compute. needs_gpu: without one it is not measured."""

    package: str
    computes: str
    build: Callable[[int, int], nn.Module]
    expansion: int | None = EXPANSION
    needs_gpu: bool = False


def titans_pytorch(chunk_size: int, batch_size: int | None) -> Callable[[int, int], nn.Module]:
    """lucidrains' NeuralMemory; its defaults but for the sizes."""

    def build(dim: int, heads: int) -> nn.Module:
        from titans_pytorch import NeuralMemory

        return NeuralMemory(
            dim=dim,
            dim_head=WIDTH,
            heads=heads,
            chunk_size=chunk_size,
            batch_size=batch_size,
            default_model_kwargs={"depth": DEPTH, "expansion_factor": float(EXPANSION)},
        )

    return build


def titans_unofficial(dim: int, heads: int) -> nn.Module:
    """Its memory has one head of the whole width: at 4 heads of 64 and expansion 4 as many weights as ours."""
    from titans.utils.memory import NeuralMemoryModule

    return NeuralMemoryModule(dim, memory_depth=DEPTH)


def gated_deltanet(dim: int, heads: int) -> nn.Module:
    """flash-linear-attention's layer, in bfloat16 as its kernels want: linear memory, on a GPU."""
    import torch
    from fla.layers import GatedDeltaNet

    class InBfloat16(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = GatedDeltaNet(hidden_size=dim, head_dim=WIDTH, num_heads=heads, expand_v=1, mode="chunk")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                return self.layer(x)[0]

    return InBfloat16()


PEERS = {
    "titans-pytorch per token": Peer(
        "titans-pytorch",
        "chunk 1 in batches of 64: weights of every token, the paper's rule",
        titans_pytorch(1, 64),
    ),
    "titans-pytorch coarse": Peer(
        "titans-pytorch",
        "chunk 64 in batches of 64: one set of weights a chunk, reads see finished chunks only",
        titans_pytorch(64, 64),
    ),
    "titans-pytorch one point": Peer(
        "titans-pytorch",
        "chunk 64 without batches (its default): every gradient at the first state",
        titans_pytorch(64, None),
    ),
    "titans-unofficial": Peer(
        "titans-unofficial",
        "token by token: the paper's rule read before the write, clipped; one head of the whole width, biases, no norm",
        titans_unofficial,
        expansion=1,
    ),
    "fla GatedDeltaNet": Peer(
        "flash-linear-attention",
        "linear memory, gated delta rule, Triton kernels, bfloat16",
        gated_deltanet,
        expansion=None,
        needs_gpu=True,
    ),
}


def packages() -> list[str]:
    return sorted({peer.package for peer in PEERS.values()})


def chosen(names: Sequence[str]) -> list[str]:
    """The peers of these packages (or of these names); ValueError names what is not known."""
    known = [*packages(), *PEERS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown peers: {', '.join(unknown)}; known are {'; '.join(known)}")
    return [name for name, peer in PEERS.items() if name in names or peer.package in names]
