"""How much work something is, without a clock."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Work(TorchDispatchMode):
    """Counts the numbers that all operations give."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.elements += sum(x.numel() for x in tree_iter(result) if isinstance(x, Tensor))
        return result
