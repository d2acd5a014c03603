"""One token at a time: on a GPU a step of the model is compiled once and replayed as a CUDA graph."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from titans_seq.state import State

S = TypeVar("S", bound=State)


class Decoder:
    """Steps a model (`Titans`, or any module called as `module(x, state)`) through a stream, token by token, without gradients.

    A token's hundreds of small kernels would wait for Python on a GPU. There the step is compiled by `torch.compile` with CUDA graphs (mode
    "reduce-overhead"), once for a batch size: all that depends on where a stream stands is in tensors. On a CPU the model itself is called,
    and where torch has compiled too many steps (`torch._dynamo.config.recompile_limit`).

    >>> decoder, state = Decoder(model), model.init_state(1)
    >>> for x in prompt.split(1, dim=1):
    ...     y, state = decoder(x, state)

    Args:
        model: in evaluation mode; what it is called with stays on its device.
        backend: of torch.compile, to compile in another way, also on a CPU; None as above.
    """

    def __init__(self, model: nn.Module, backend: str | Callable[..., Any] | None = None) -> None:
        self.model = model
        on_gpu = next(model.parameters()).device.type == "cuda"
        self._step: Callable[..., Any] = model
        compiled = on_gpu or backend is not None
        self._graphs = on_gpu and compiled
        if compiled:
            how: dict[str, Any] = {"mode": "reduce-overhead"} if backend is None else {"backend": backend}
            self._step = torch.compile(model, dynamic=False, **how)

    def __call__(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        """The next token.

        Args:
            x: (B, 1, ..), what the model reads.
            state: before it, as of `init_state(B)` or of the call before.

        Returns:
            What the model gives, and the state after the token; both stay as they are when further tokens are read.

        Raises:
            ValueError: x holds more than one token.
        """
        if x.shape[1] != 1:
            raise ValueError(f"x must hold one token, (B, 1, ..), got {tuple(x.shape)}; read more at once with the model itself")
        with torch.no_grad():
            state = state.detach()  # a first state hangs on the parameters
            if not self._graphs:
                return self._step(x, state)
            torch.compiler.cudagraph_mark_step_begin()
            y, state = self._step(x, state)
            return y.clone(), state.clone()  # a graph's results are overwritten when it is replayed
