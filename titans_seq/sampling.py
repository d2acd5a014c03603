"""Drawing the next token from logits: temperature, filters, seeds. Shapes: B rows, V tokens of the vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor

from titans_seq.config import SamplingConfig

COLDEST = 1e-30
"""Below it a temperature is 0: logits over it would be infinite."""


def chances(logits: Tensor, config: SamplingConfig) -> Tensor:
    """What each token is drawn with: logits (B, V) -> (B, V) float64, rows that sum to 1, 0 for what the filters leave out."""
    if config.temperature < COLDEST:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    found = (logits.double() / config.temperature).softmax(-1)
    if config.top_k is None and config.top_p is None and config.min_p is None:
        return found
    ranked, order = found.sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ranked, dtype=torch.bool)
    if config.top_k is not None:
        kept[:, config.top_k :] = False
    if config.top_p is not None:
        kept &= ranked.cumsum(-1) - ranked < config.top_p  # what is before a token does not reach the sum
    if config.min_p is not None:
        kept &= ranked >= config.min_p * ranked[:, :1]
    kept[:, 0] = True
    ranked = torch.where(kept, ranked, 0)
    return torch.zeros_like(found).scatter(-1, order, ranked / ranked.sum(-1, keepdim=True))


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) of tokens that were `seen` (B, V) bool divided by `penalty` if positive, else multiplied (CTRL, arXiv 1909.05858)."""
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def make_generators(seed: int, count: int) -> list[torch.Generator]:
    """A source of random numbers for each row, so that what one draws depends on no other: that of row i is made of seed and i."""
    mixed = torch.Generator().manual_seed(seed)
    return [torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=mixed))) for _ in range(count)]


def draw(chances: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """A token of each row of chances (B, V), on the CPU, each by its own generator: (B,) int64."""
    return torch.cat([torch.multinomial(row, 1, generator=own) for row, own in zip(chances, generators, strict=True)])
