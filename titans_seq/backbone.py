"""`Titans`: the backbone that all domains share. It knows no tokens, no nucleotides, no series."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from titans_seq.blocks import MIXERS, Block
from titans_seq.checkpoint import Pretrained
from titans_seq.config import TitansConfig
from titans_seq.state import State


@dataclass(frozen=True)
class TitansState(State):
    """What the backbone carries from one call to the next: one state a block. Its size does not grow with the stream."""

    blocks: tuple[State, ...]


class Titans(Pretrained):
    """Stack of Titans blocks (arXiv 2501.00663) over vectors of width `config.dim`.

    >>> model = Titans(TitansConfig(dim=64, num_layers=2, variant="mag"))
    >>> y, state = model(torch.randn(1, 100, 64))
    >>> y_next, state = model(torch.randn(1, 1, 64), state)  # goes on where the first call ended
    """

    model_type = "titans"
    config_class = TitansConfig

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        """Normal(0, 0.02) linear maps; those that end a layer smaller, by the root of their number (GPT-2).

        Gate biases and first memory states keep the values that their layer gave them.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and name.endswith("weight"):
                ends_branch = name.endswith("output.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.num_layers) if ends_branch else 0.02)

    def forward(self, x: Tensor, state: TitansState | None = None) -> tuple[Tensor, TitansState]:
        """Read a piece of a stream.

        Args:
            x: (B, T, dim), T >= 1, of the parameters' dtype (or any under autocast).
            state: after the piece before, None at the stream's begin.

        Returns:
            (B, T, dim), causal: row t depends on rows up to t and on the state; and the state after row T.

        Raises:
            ValueError: x is not (B, T, dim), or the state is of another model.
        """
        if x.dim() != 3 or x.shape[2] != self.config.dim or x.shape[1] == 0:
            raise ValueError(f"x must be (B, T >= 1, dim={self.config.dim}), got {tuple(x.shape)}")
        if not torch.is_autocast_enabled(x.device.type) and x.dtype != self.norm.weight.dtype:
            raise ValueError(f"x must have the model's dtype {self.norm.weight.dtype}, got {x.dtype}; cast x or the model")
        if state is not None:
            self._check_state(state, x.shape[0])
        states = []
        for i, block in enumerate(self.blocks):
            x, block_state = block(x, None if state is None else state.blocks[i])
            states.append(block_state)
        return self.norm(x), TitansState(tuple(states))

    def _check_state(self, state: TitansState, batch_size: int) -> None:
        if len(state.blocks) != len(self.blocks):
            raise ValueError(f"state is of a model with {len(state.blocks)} blocks, this one has {len(self.blocks)}")
        expected = MIXERS[self.config.variant].state_class  # type: ignore[attr-defined]
        for block_state in state.blocks:
            if not isinstance(block_state, expected):
                raise ValueError(  # noqa: TRY004 - a value of another model
                    f"state is of another variant: it holds {type(block_state).__name__}, {self.config.variant!r} needs {expected.__name__}"
                )
        if state.batch_size != batch_size:
            raise ValueError(f"state is of a batch of {state.batch_size}, x has {batch_size} rows; see State.index_select")
