"""The chunked cross entropy: as the plain one, gradients too, and never all logits at once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from titans_seq import losses
from titans_seq.losses import IGNORED, token_nats, total_nats

N, DIM, V = 203, 8, 50


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.randn(N, DIM, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, DIM, dtype=dtype, requires_grad=True)
    targets = torch.randint(V, (N,))
    targets[::7] = IGNORED
    return hidden, weight, targets


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, z_loss: float) -> torch.Tensor:
    logits = hidden @ weight.T
    counted = targets != IGNORED
    nats = (logits.logsumexp(-1) - logits.gather(1, targets.clamp(min=0)[:, None])[:, 0])[counted].sum()
    return nats + z_loss * logits.logsumexp(-1).square()[counted].sum()


@pytest.mark.parametrize("largest", [V, 7 * V, N * V, 1 << 22], ids=["one-row", "seven-rows", "all", "default"])
@pytest.mark.parametrize("z_loss", [0.0, 0.03])
def test_value_and_gradients_are_those_of_the_plain_loss(largest: int, z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LARGEST_LOGITS", largest)
    hidden, weight, targets = inputs()
    total = total_nats(hidden, weight, targets, z_loss)
    torch.testing.assert_close(total, plain(hidden, weight, targets, 0.0), rtol=1e-12, atol=0)
    found = torch.autograd.grad(total * 0.7, [hidden, weight])
    expected = torch.autograd.grad(plain(hidden, weight, targets, z_loss) * 0.7, [hidden, weight])
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(total_nats(hidden, weight, targets, z_loss), total.detach(), rtol=1e-12, atol=0)
        nats = token_nats(hidden, weight, targets)
        torch.testing.assert_close(nats.sum(), total.detach(), rtol=1e-12, atol=0)
        assert (nats[::7] == 0).all()


def test_one_chunk_is_torch_to_the_bit() -> None:
    hidden, weight, targets = inputs(torch.float32)
    assert torch.equal(total_nats(hidden, weight, targets), F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum"))


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation made, and how many products of logits there were."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return result


@pytest.mark.parametrize("work", ["training", "validation", "tokens"])
def test_all_logits_never_exist_at_once(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LARGEST_LOGITS", 10 * V)
    hidden, weight, targets = inputs(torch.float32)
    with Largest() as seen:
        if work == "training":
            total_nats(hidden, weight, targets, 1e-3).backward()
        elif work == "tokens":
            token_nats(hidden, weight, targets)
        else:
            with torch.no_grad():
                total_nats(hidden, weight, targets)
    assert 10 * V <= seen.largest <= max(N * DIM, 10 * V) < N * V
