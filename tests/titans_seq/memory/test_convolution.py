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
        expected = F.conv1d(x.transpose(1, 2), weight[:, None], groups=3).transpose(1, 2) if length else x.new_zeros(2, 0, 3)
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
@pytest.mark.parametrize("lengths", [None, [2, 5]], ids=str)
def test_under_vmap(lengths: list[int] | None) -> None:
    """The gradient of each row by itself."""
    x, weight = (z.detach() for z in inputs(4, batch=3))
    positions = None if lengths is None else positions_of(lengths)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return causal_convolution(x[None], weight, positions).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    torch.testing.assert_close(each, torch.stack([torch.func.grad(loss)(weight, row) for row in x]))


def test_rows_go_on_at_positions_of_their_own() -> None:
    """With all gradients as autograd has them of the products: the first row goes on with a document of before, the second begins one."""
    x, weight = inputs(4)
    positions = torch.tensor([[5, 6, 7, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1]])
    shifted = [torch.where((positions >= 3 - n).unsqueeze(-1), x[:, n : n + 7], 0) * weight[:, n] for n in range(4)]
    expected = torch.stack(shifted).sum(0)
    y = causal_convolution(x, weight, positions)
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, (x, weight), direction), torch.autograd.grad(expected, (x, weight), direction))


@pytest.mark.parametrize("lengths", [None, [2, 5]], ids=str)
def test_compiled_and_without_gradients_it_is_the_same(lengths: list[int] | None) -> None:
    x, weight = inputs(4, batch=1)
    positions = None if lengths is None else positions_of(lengths)
    y = causal_convolution(x, weight, positions)
    with torch.no_grad():
        assert torch.equal(causal_convolution(x, weight, positions), y)
    compiled: Any = torch.compile(causal_convolution, backend="aot_eager", fullgraph=True)
    found, direction = compiled(x, weight, positions), torch.randn_like(y)
    torch.testing.assert_close(found, y)
    torch.testing.assert_close(torch.autograd.grad(found, (x, weight), direction), torch.autograd.grad(y, (x, weight), direction))


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float32")], ids=str)
def test_gradients_are_of_their_inputs_precision(dtypes: tuple[str, str]) -> None:
    """The sum is of the precision of products, here float32."""
    x, weight = (z.detach().to(getattr(torch, name)).requires_grad_() for z, name in zip(inputs(4), dtypes, strict=True))
    y = causal_convolution(x, weight)
    assert y.dtype == torch.float32
    wide = [z.detach().float().requires_grad_() for z in (x, weight)]
    expected = causal_convolution(*wide)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for z, w in zip((x, weight), wide, strict=True):
        assert z.grad is not None
        assert w.grad is not None
        assert z.grad.dtype == z.dtype
        torch.testing.assert_close(z.grad, w.grad.to(z.dtype), rtol=0.02, atol=0.02)
