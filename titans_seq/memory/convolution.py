"""The causal depthwise convolution of q, k and v, as (B, T, channels) lie in memory: conv1d would transpose there and back.

Shapes: B batch, T time, C channels, N taps.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_convolution(x: Tensor, weight: Tensor, positions: Tensor | None = None) -> Tensor:
    """Each channel's weighted sum of a token and the N - 1 before it (arXiv 2501.00663, section 4.4).

    Args:
        x: (B, N - 1 + T, C), the tokens before the first one at the front.
        weight: (C, N), a token's own tap last.
        positions: (B, T) int64, tokens of its document before each: taps that reach before the document see zero. None: none does.

    Returns:
        (B, T, C), of the dtype that products of x and weight have.
    """
    # The compiler makes a backward of its own, and takes no function that has a forward-mode derivative; reading needs none.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _sum(_seen(x, weight, positions), weight)
    y: Tensor = _CausalConvolution.apply(x, weight, positions)
    return y


class _CausalConvolution(torch.autograd.Function):
    """A sum of N shifted products. Autograd by itself would fill an array as large as x for the gradient of each, and add them up."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, positions: Tensor | None) -> Tensor:
        return _sum(_seen(x, weight, positions), weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, positions = ctx.saved_tensors
        reach, of_x, of_weight = weight.shape[1] - 1, None, None
        if ctx.needs_input_grad[0]:  # the token m later sees it through tap reach - m: hence the flip
            ahead = F.pad(gradient, (0, 0, reach, reach))
            parts = _shifted(ahead, reach + 1)
            if positions is not None:
                places = _shifted(F.pad(positions, (reach, reach)), reach + 1)
                parts = [_unless_before(part, place, back) for back, (part, place) in enumerate(zip(parts, places, strict=True))]
            of_x = _sum(parts, weight.flip(1)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            taps = [(gradient * part).sum((0, 1)) for part in _seen(x, weight, positions)]
            of_weight = torch.stack(taps, dim=1).to(weight.dtype)
        return of_x, of_weight, None

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor, of_weight: Tensor, _: None) -> Tensor:
        x, weight, positions = ctx.saved_tensors
        return _sum(_seen(of_x, weight, positions), weight) + _sum(_seen(x, weight, positions), of_weight)


def _sum(parts: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Of N parts (B, T, C), each times its column of weight (C, N)."""
    taps = weight.t().contiguous()
    y = parts[0] * taps[0]
    for part, tap in zip(parts[1:], taps[1:], strict=True):
        y.addcmul_(part, tap)  # in place: half the time; torch.func.vmap does it row by row, and says so
    return y


def _seen(x: Tensor, weight: Tensor, positions: Tensor | None) -> list[Tensor]:
    """What each tap sees of x (B, N - 1 + T, C): N times (B, T, C)."""
    taps = weight.shape[1]
    parts = _shifted(x, taps)
    return parts if positions is None else [_unless_before(part, positions, taps - 1 - n) for n, part in enumerate(parts)]


def _shifted(x: Tensor, taps: int) -> list[Tensor]:
    """Of x (B, N - 1 + T, ..) N times (B, T, ..), each a token later than the last."""
    length = x.shape[1] - taps + 1
    return [x[:, n : n + length] for n in range(taps)]


def _unless_before(part: Tensor, positions: Tensor, back: int) -> Tensor:
    """part (B, T, C), zero where a token so far back would be before the document."""
    return torch.where((positions >= back).unsqueeze(-1), part, 0)
