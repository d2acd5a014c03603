"""Cross entropy of long inputs and large vocabularies: logits exist for a few rows at a time, in the backward too.

Shapes: N tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LARGEST_LOGITS = 1 << 22
"""Logits that exist at once."""
IGNORED = -100
"""The target of a token that does not count."""


def total_nats(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """Cross entropy of `hidden @ weight.T`, summed over the targets, differentiable.

    With more than `LARGEST_LOGITS` of them, logits are made for some tokens at a time and, in the backward, again: never (N, V) at once.

    Args:
        hidden: (N, dim), what the model made of each token.
        weight: (V, dim) of the head.
        targets: (N,) int64, the next tokens; `IGNORED` does not count.
        z_loss: weight of log^2 of the softmax's denominator (PaLM, arXiv 2204.02311, section 5), summed alike. It has its part in the
            gradient alone: the value that is returned stays the cross entropy.

    Returns:
        () float32, or float64 for such inputs.
    """

    def part(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = _logits(hidden, weight)
        nats = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        if z_loss and torch.is_grad_enabled():
            penalty = z_loss * torch.where(targets == IGNORED, 0, logits.logsumexp(-1).square()).sum()
            nats = nats + (penalty - penalty.detach())
        return nats

    rows = _rows(weight)
    if len(hidden) <= rows:
        return part(hidden, targets)
    pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.stack([part(*piece) for piece in pieces]).sum()
    return torch.stack([checkpoint(part, *piece, use_reentrant=False) for piece in pieces]).sum()


@torch.no_grad()
def token_nats(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As `total_nats`, but for each token by itself: (N,), 0 where it does not count; without gradient."""
    pieces = zip(hidden.split(_rows(weight)), targets.split(_rows(weight)), strict=True)
    found = [F.cross_entropy(_logits(h, weight), t, ignore_index=IGNORED, reduction="none") for h, t in pieces]
    return torch.cat(found)


@torch.no_grad()
def likeliest(hidden: Tensor, weight: Tensor) -> Tensor:
    """The target of the largest logit, the first of equal ones, for each of hidden (N, dim): (N,) int64."""
    return torch.cat([F.linear(h, weight).argmax(-1) for h in hidden.split(_rows(weight))])


def _rows(weight: Tensor) -> int:
    """Tokens whose logits exist at once."""
    return max(1, LARGEST_LOGITS // len(weight))


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = F.linear(hidden, weight)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
