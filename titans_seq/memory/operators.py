"""A form of the memory as two custom operators, one node each for `torch.compile`: forward, and the backward that autograd calls.

Not torch.library.custom_op: its first call imports the compiler, a second and a half for a process that does not need it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("titans_seq", "FRAGMENT")


def define_operators(
    impl: str,
    name: str,
    schema: str,
    *,
    forward: Callable[..., list[Tensor]],
    forward_shapes: Callable[..., list[Tensor]],
    backward: Callable[..., list[Tensor]],
    backward_shapes: Callable[..., list[Tensor]],
    save: Callable[..., None],
    differentiate: Callable[..., tuple[Any, ...]],
) -> tuple[Any, Any]:
    """titans_seq::NAME and titans_seq::NAME_backward.

    Args:
        impl: the form, as `neural_memory` names it.
        name: of the first operator.
        schema: arguments of both.
        forward: takes these and `keep`, whether a backward may follow.
        backward: takes these, what the forward kept, and the gradients by its results.
        forward_shapes, backward_shapes: make results of the right shapes, without values.
        save: keeps of the forward what `differentiate` needs (setup_context of torch.library.register_autograd).
        differentiate: gradients by the arguments of the forward, through the backward's operator.
    """
    _define(name, f"{schema}, bool keep", forward, forward_shapes)
    _define(f"{name}_backward", f"{schema}, Tensor[] kept, Tensor[] gradients", backward, backward_shapes)

    def differentiate_twice(ctx: Any, gradients: list[Tensor | None]) -> None:
        raise RuntimeError(f"impl={impl!r} has no second derivative; use impl='recurrent'")

    torch.library.register_autograd(f"titans_seq::{name}", differentiate, setup_context=save, lib=_library)
    torch.library.register_autograd(f"titans_seq::{name}_backward", differentiate_twice, lib=_library)
    return getattr(torch.ops.titans_seq, name).default, getattr(torch.ops.titans_seq, f"{name}_backward").default


def _define(name: str, schema: str, implementation: Callable[..., list[Tensor]], shapes: Callable[..., list[Tensor]]) -> None:
    _library.define(f"{name}({schema}) -> Tensor[]")
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"titans_seq::{name}", shapes, lib=_library)
