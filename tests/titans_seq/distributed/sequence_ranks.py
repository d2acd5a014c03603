"""Run by each rank: sequence parallelism against one process, case by case. Writes the largest differences as JSON into a folder."""

import json
import os
import sys
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.limits import HANG
from titans_seq import AttentionConfig, LocalMemoryConfig, MemoryConfig, Titans, TitansConfig
from titans_seq.distributed.sequence_parallel import SequenceParallelGroup, sequence_parallel_forward_backward
from titans_seq.state import State

TOKENS, DIM, BATCH = 7, 16, 2
VARIANTS = ("lmm", "mac", "mag", "mal", "mac-3-tokens", "lmm-two-levels")
# Lengths of the shards and number of micro-batches: cut inside chunks and segments, a shard of one token, cut at their ends.
CASES = {2: (([9, 4], 1), ([1, 8], 3), ([12, 12], 2)), 3: (([5, 1, 4], 2), ([12, 12, 4], 4))}


class Tokens(NamedTuple):
    """ids, labels (B, T) int64; mask, reset (B, T) bool or None."""

    ids: Tensor
    labels: Tensor
    mask: Tensor | None = None
    reset: Tensor | None = None

    def part(self, start: int, stop: int) -> "Tokens":
        return Tokens(*(None if x is None else x[:, start:stop] for x in self))  # type: ignore[arg-type]


class Language(nn.Module):
    """Parameters before and after the backbone, and one that nothing uses."""

    def __init__(self, name: str) -> None:
        super().__init__()
        variant, _, rest = name.partition("-")
        local = LocalMemoryConfig(chunk_sizes=(2,), shard_length=8) if rest == "two-levels" else None
        memory = MemoryConfig(num_heads=2, expansion=2, chunk_size=4, max_step=0.05, local=local)
        tokens = 3 if rest == "3-tokens" else 0
        attention = AttentionConfig(num_heads=2, sliding_window=6, segment_length=6, persistent_tokens=2, memory_tokens=tokens)
        self.embedding = nn.Embedding(TOKENS, DIM)
        self.backbone = Titans(TitansConfig(dim=DIM, num_layers=2, variant=variant, memory=memory, attention=attention))
        self.head = nn.Linear(DIM, TOKENS)
        self.unused = nn.Parameter(torch.zeros(3))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
        self.double()


def loss_of(model: Language, tokens: Tokens, state: State | None) -> tuple[Tensor, State]:
    """Sum over tokens, padding left out, over a fixed number."""
    y, state = model.backbone(model.embedding(tokens.ids), state, mask=tokens.mask, reset=tokens.reset)
    loss = F.cross_entropy(model.head(y).flatten(0, 1), tokens.labels.flatten(), reduction="none")
    return (loss if tokens.mask is None else loss * tokens.mask.flatten()).sum() / 100, state


def make_batches(count: int, length: int, marks: bool) -> list[Tokens]:
    """Each rank makes all of them, from one seed."""
    batches = []
    for _ in range(count):
        ids = torch.randint(TOKENS, (BATCH, length + 1))
        mask, reset = torch.rand(BATCH, length) > 0.2, torch.rand(BATCH, length) > 0.9
        mask[:, 0] = True
        batches.append(Tokens(ids[:, :-1], ids[:, 1:], mask if marks else None, reset if marks else None))
    return batches


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def largest_difference(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> float:
    """Infinite where one has a gradient and the other none; an all-zero expectation is no test."""
    assert all(x is None or x.abs().max() > 1e-9 for x in expected.values()), [
        k for k, x in expected.items() if x is not None and not x.any()
    ]
    assert sum(x is None for x in expected.values()) <= 1
    differences = []
    for name, x in expected.items():
        y = actual[name]
        differences.append(float("inf") if (x is None) != (y is None) else 0.0 if x is None else float((y - x).abs().max()))  # type: ignore[operator]
    return max(differences)


def one_window(name: str, lengths: list[int], count: int, group: SequenceParallelGroup, marks: bool = False) -> dict[str, float]:
    torch.manual_seed(1)
    alone, model = Language(name), Language(name)
    model.load_state_dict(alone.state_dict())
    batches = make_batches(count, sum(lengths), marks)
    expected = torch.stack([loss_of(alone, batch, None)[0] for batch in batches])
    expected.sum().backward()
    stop = list(accumulate(lengths))[group.rank]
    mine = [batch.part(stop - lengths[group.rank], stop) for batch in batches]
    outputs: list[Tensor] = []
    model.backbone.register_forward_hook(lambda module, given, result: outputs.append(result[0].detach()))
    result = sequence_parallel_forward_backward(model, mine, loss_of, group)
    with torch.no_grad():
        whole = torch.cat([alone.backbone(alone.embedding(b.ids), mask=b.mask, reset=b.reset)[0] for b in batches])
    return {
        "outputs": float((torch.cat(outputs) - whole[:, stop - lengths[group.rank] : stop]).abs().max()),
        "losses": float((result.losses - expected.detach()).abs().max()),
        "gradients": largest_difference(gradients(model), gradients(alone)),
    }


def several_calls(name: str, lengths: list[int], count: int, group: SequenceParallelGroup) -> dict[str, float]:
    """Without gradients the same losses, and nothing else changes; gradients of two calls add up, as those of backward() do."""
    torch.manual_seed(4)
    model = Language(name)
    stop = list(accumulate(lengths))[group.rank]
    mine = [batch.part(stop - lengths[group.rank], stop) for batch in make_batches(count, sum(lengths), False)]
    first = sequence_parallel_forward_backward(model, mine, loss_of, group)
    once = {k: None if x is None else x.clone() for k, x in gradients(model).items()}
    with torch.no_grad():
        again = sequence_parallel_forward_backward(model, mine, loss_of, group)
    unchanged = largest_difference(gradients(model), once)
    sequence_parallel_forward_backward(model, mine, loss_of, group)
    return {
        "losses": float((again.losses - first.losses).abs().max()),
        "unchanged": unchanged,
        "twice": largest_difference(gradients(model), {k: None if x is None else 2 * x for k, x in once.items()}),
    }


def two_windows(name: str, lengths: list[int], count: int, group: SequenceParallelGroup) -> dict[str, float]:
    """The second call goes on from the states of the first: truncated back-propagation over streams longer than all ranks hold."""
    torch.manual_seed(2)
    alone, model = Language(name), Language(name)
    model.load_state_dict(alone.state_dict())
    length = sum(lengths)
    batches = make_batches(count, 2 * length, False)
    stop = list(accumulate(lengths))[group.rank]
    expected, losses, states = [], [], ()
    for begin in (0, length):
        end = begin + stop
        mine = [batch.part(end - lengths[group.rank], end) for batch in batches]
        result = sequence_parallel_forward_backward(model, mine, loss_of, group, states or None, carry=True)
        states = result.states
        assert len(states) == (count if group.rank == 0 else 0)
        losses.append(result.losses)
    for batch in batches:
        first, state = loss_of(alone, batch.part(0, length), None)
        second, _ = loss_of(alone, batch.part(length, 2 * length), state.detach())
        (first + second).backward()
        expected.append(torch.stack([first, second]).detach())
    return {
        "losses": float((torch.stack(losses) - torch.stack(expected, dim=1)).abs().max()),
        "gradients": largest_difference(gradients(model), gradients(alone)),
    }


def data_parallel(name: str, group: SequenceParallelGroup) -> dict[str, float]:
    """Groups of one rank: each has sequences of its own, gradients are summed over all ranks."""
    torch.manual_seed(3)
    alone, model = Language(name), Language(name)
    model.load_state_dict(alone.state_dict())
    batches = make_batches(2 * dist.get_world_size(), 11, False)
    torch.stack([loss_of(alone, batch, None)[0] for batch in batches]).sum().backward()
    sequence_parallel_forward_backward(model, batches[2 * dist.get_rank() :][:2], loss_of, group)
    return {"gradients": largest_difference(gradients(model), gradients(alone))}


def refused(group: SequenceParallelGroup) -> str:
    """Another number of micro-batches on each rank: every rank says so, none waits."""
    model, batches = Language("lmm"), make_batches(group.rank + 1, 8, False)
    try:
        sequence_parallel_forward_backward(model, batches, loss_of, group)
    except ValueError as error:
        return str(error)
    return "accepted"


def main() -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", os.environ["INIT_METHOD"], timedelta(seconds=HANG), rank=rank, world_size=ranks)
    group = SequenceParallelGroup.create(timeout=timedelta(seconds=HANG))
    report: dict[str, object] = {}
    for name in VARIANTS if ranks == 2 else ("mac", "mag"):
        for lengths, count in CASES[ranks] if name in ("lmm", "mac", "mag", "mal") else CASES[ranks][:1]:
            report[f"{name} {lengths} {count}"] = one_window(name, lengths, count, group)
        if "levels" not in name:
            report[f"{name} padding and documents"] = one_window(name, *CASES[ranks][0], group, marks=True)
    report["mac two windows"] = two_windows("mac", *CASES[ranks][0], group)
    report["mag two windows"] = two_windows("mag", *CASES[ranks][1], group)
    report["mal several calls"] = several_calls("mal", *CASES[ranks][0], group)
    report["groups of one"] = data_parallel("mag", SequenceParallelGroup.create(1))
    report["refused"] = refused(group)
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
