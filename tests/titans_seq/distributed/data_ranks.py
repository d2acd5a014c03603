"""Run by each rank: a short training by DDP and by FSDP2 against one process, and checkpoints. Writes what it found as JSON."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.limits import HANG
from titans_seq import AttentionConfig, MemoryConfig, Titans, TitansConfig
from titans_seq.distributed.checkpoint import load_sharded, save_sharded
from titans_seq.distributed.fully_sharded import shard_model, use_every_parameter

DIM, TOKENS = 16, 7
LENGTHS = (5, 9, 4)  # segments of a stream: inside MAC's segments and the memory's chunks
ROWS = 5  # of a global batch: on two ranks uneven


class Language(nn.Module):
    """Parameters before and after the backbone; one of a single row, which two ranks cannot share evenly."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, DIM)
        memory = MemoryConfig(num_heads=1, expansion=2, chunk_size=4, max_step=0.05)
        attention = AttentionConfig(num_heads=2, sliding_window=6, segment_length=8, persistent_tokens=2)
        self.backbone = Titans(TitansConfig(dim=DIM, num_layers=2, variant=variant, memory=memory, attention=attention))
        self.head = nn.Linear(DIM, TOKENS)

    def forward(self, ids: Tensor, labels: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Sum of the losses over tokens."""
        y, state = self.backbone(self.embedding(ids), state)
        return F.cross_entropy(self.head(y).flatten(0, 1), labels.flatten(), reduction="sum"), state


class Run(NamedTuple):
    model: nn.Module
    optimizer: torch.optim.Optimizer


def make(variant: str, wrap: str, seed: int = 0) -> Run:
    torch.manual_seed(seed)
    model: nn.Module = Language(variant).double()
    use_every_parameter(model)
    if wrap == "fsdp":
        shard_model(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    elif wrap == "ddp":
        model = DistributedDataParallel(model)
    return Run(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1))


def train(run: Run, steps: range, rank: int, ranks: int) -> list[float]:
    """A stream of three segments a step, its state carried; each rank some rows of each batch, its loss weighted by all of the tokens."""
    losses = []
    for step in steps:
        ids = torch.randint(TOKENS, (ROWS, sum(LENGTHS) + 1), generator=torch.Generator().manual_seed(step))
        rows = ids.tensor_split(ranks)[rank]
        state, start = None, 0
        for length in LENGTHS:
            part = rows[:, start : start + length + 1]
            loss, state = run.model(part[:, :-1], part[:, 1:], state)
            state, start = state.detach(), start + length
            loss = loss / (ROWS * length)  # of the whole batch
            run.optimizer.zero_grad()
            (loss * ranks).backward()  # the wrappers average over ranks
            run.optimizer.step()
            total = loss.detach().clone()
            if ranks > 1:
                dist.all_reduce(total)
            losses.append(float(total))
    return losses


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x.detach()


def difference(run: Run, other: Run) -> float:
    pairs = zip(run.model.parameters(), other.model.parameters(), strict=True)
    return max(float((whole(p) - whole(q)).abs().max().detach()) for p, q in pairs)


def compare(variant: str, rank: int, ranks: int) -> dict[str, Any]:
    """DDP and FSDP2 against one process: largest differences."""
    start, alone = make(variant, "none"), make(variant, "none")
    expected = train(alone, range(2), 0, 1)
    found: dict[str, Any] = {"moved": difference(alone, start)}
    for wrap in ("ddp", "fsdp"):
        run = make(variant, wrap)
        losses = train(run, range(2), rank, ranks)
        found[f"{wrap} losses"] = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        found[f"{wrap} parameters"] = difference(run, alone)
    found["held"] = sum(p.to_local().numel() for p in run.model.parameters()) / sum(p.numel() for p in run.model.parameters())  # type: ignore[attr-defined]
    with torch.no_grad():
        first = [x.backbone.init_state(3).tensors() for x in (run.model, alone.model)]  # type: ignore[union-attr, operator]
    found["initial state"] = max(float((a - b).abs().max().detach()) for a, b in zip(*first, strict=True) if a.numel())
    try:
        run.model.backbone.init_state(3)  # type: ignore[union-attr, operator]
    except ValueError as error:
        found["refused"] = str(error)
    return found


def checkpoints(folder: Path, rank: int, ranks: int) -> dict[str, Any]:
    """Two steps, a checkpoint, two more; and two more from the checkpoint that one process wrote."""
    run, other = make("mac", "fsdp"), make("mac", "fsdp", seed=1)
    train(run, range(2), rank, ranks)
    for _ in range(2):  # again in its own place
        save_sharded(folder / "of-ranks", run.model, run.optimizer, {"step": 2})
    after = train(run, range(2, 4), rank, ranks)
    return {
        "not stopped": after,
        "values": load_sharded(folder / "of-one", other.model, other.optimizer),
        "from one": train(other, range(2, 4), rank, ranks),
    }


def main() -> None:
    folder, rank, ranks = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", os.environ["INIT_METHOD"], timedelta(seconds=HANG), rank=rank, world_size=ranks)
    found = {variant: compare(variant, rank, ranks) for variant in ("lmm", "mac", "mag", "mal")}
    found["checkpoints"] = checkpoints(folder, rank, ranks)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
