"""The convolution of q, k and v against torch's conv1d, with all its derivatives, and documents each by itself."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from titans_seq.memory.convolution import causal_convolution


def inputs(taps: int, batch: int = 2, length: int = 7, channels: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, taps - 1 + length, channels, dtype=torch.float64, requires_grad=True)
    return x, torch.randn(channels, taps, dtype=torch.float64, requires_grad=True)


def positions_of(lengths: list[int]) -> Tensor:
    """Of a row that packs documents of these lengths."""
    return torch.cat([torch.arange(length) for length in lengths])[None]


@pytest.mark.parametrize("taps", [2, 4, 8])
def test_it_is_conv1d_over_time(taps: int) -> None:
    """As are both gradients; also where there are fewer tokens than taps, and none."""
    for length in (7, 1, 0):
        x, weight = inputs(taps, length=length)
        y = causal_convolution(x, weight)
        expected = F.conv1d(x.transpose(1, 2), weight[:, None], groups=3).transpose(1, 2) if length else y.detach()
        torch.testing.assert_close(y, expected)
        if length:
            direction = torch.randn_like(y)
            for found, right in zip(*(torch.autograd.grad(z, (x, weight), direction) for z in (y, expected)), strict=True):
                torch.testing.assert_close(found, right)


@pytest.mark.parametrize("taps", [2, 4])
def test_documents_do_not_see_each_other(taps: int) -> None:
    """Each as a row by itself, bit for bit, with its gradient; the tokens before the first one are of no document here."""
    lengths = [1, 3, 5, 2]
    x, weight = inputs(taps, batch=1, length=sum(lengths))
    y = causal_convolution(x, weight, positions_of(lengths))
    direction = torch.randn_like(y)
    (of_x,) = torch.autograd.grad(y, x, direction)
    assert not of_x[:, : taps - 1].any()
    begin = 0
    for length in lengths:
        here = slice(begin, begin + length)
        alone = F.pad(x.detach()[:, taps - 1 :][:, here], (0, 0, taps - 1, 0)).requires_grad_()
        expected = causal_convolution(alone, weight)
        assert torch.equal(y[:, here], expected)
        (of_alone,) = torch.autograd.grad(expected, alone, direction[:, here])
        torch.testing.assert_close(of_x[:, taps - 1 :][:, here], of_alone[:, taps - 1 :])
        begin += length


@pytest.mark.parametrize("lengths", [None, [2, 5]], ids=str)
def test_derivatives(lengths: list[int] | None) -> None:
    """Against differences: first ones in both modes, and second ones."""
    x, weight = inputs(4, batch=1)
    marks: tuple[Any, ...] = () if lengths is None else (positions_of(lengths),)
    assert torch.autograd.gradcheck(causal_convolution, (x, weight, *marks), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(causal_convolution, (x, weight, *marks))


@pytest.mark.filterwarnings("ignore:There is a performance drop.*addcmul_:UserWarning")
def test_under_vmap() -> None:
    """The gradient of each row by itself."""
    x, weight = (z.detach() for z in inputs(4, batch=3))

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return causal_convolution(x[None], weight).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    torch.testing.assert_close(each, torch.stack([torch.func.grad(loss)(weight, row) for row in x]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_inputs_take_their_gradient_in_it(dtype: torch.dtype) -> None:
    """With weights in float32 the sum is in float32, as products are."""
    x, weight = (z.detach().float() for z in inputs(4))
    half = x.to(dtype).requires_grad_()
    y = causal_convolution(half, weight)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, causal_convolution(half.float(), weight))
    y.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype
