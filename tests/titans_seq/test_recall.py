"""The memory is used: a small model learns to recall pairs that it reads once, and cannot when its memory must not be written."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_seq import MemoryConfig, Titans, TitansConfig

PAIRS, SYMBOLS, WIDTH = 8, 16, 48


def recall_batch(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """k1 v1 .. k8 v8, then the keys again in another order, each followed by its value; targets (B, T), -100 where none is asked."""
    order = torch.stack([torch.randperm(SYMBOLS, generator=generator)[:PAIRS] for _ in range(batch)])
    values = torch.randint(SYMBOLS, (batch, PAIRS), generator=generator) + SYMBOLS
    asked = torch.stack([torch.randperm(PAIRS, generator=generator) for _ in range(batch)])
    asked_keys, answers = order.gather(1, asked), values.gather(1, asked)
    tokens = torch.cat([torch.stack([order, values], -1).flatten(1), torch.stack([asked_keys, answers], -1).flatten(1)], dim=1)
    targets = torch.full_like(tokens, -100)
    targets[:, 2 * PAIRS :: 2] = answers
    return tokens, targets


def recall_accuracy(max_step: float, steps: int = 500) -> float:
    """Train an LMM of two layers; accuracy on 20 fresh batches."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    memory = MemoryConfig(num_heads=2, expansion=2, max_step=max_step)
    backbone = Titans(TitansConfig(dim=WIDTH, num_layers=2, variant="lmm", memory=memory))
    model = nn.ModuleList([nn.Embedding(2 * SYMBOLS, WIDTH), backbone, nn.Linear(WIDTH, 2 * SYMBOLS)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    correct = []
    for step in range(steps + 20):
        tokens, targets = recall_batch(32, generator)
        embed, titans, head = model
        logits = head(titans(embed(tokens))[0])
        if step >= steps:
            correct.append((logits.argmax(-1) == targets)[targets >= 0].float().mean().item())
            continue
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return sum(correct) / len(correct)


@pytest.mark.slow
def test_a_memory_that_is_written_recalls_and_one_that_is_not_cannot() -> None:
    assert recall_accuracy(MemoryConfig().max_step) > 0.95
    assert recall_accuracy(1e-6) < 0.5
