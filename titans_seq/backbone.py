"""`Titans`: the backbone that all domains share. It knows no tokens, no nucleotides, no series."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from titans_seq.blocks import Block
from titans_seq.checkpoint import Pretrained
from titans_seq.config import TitansConfig
from titans_seq.packing import LeftAligned, check_marks
from titans_seq.pieces import read_in_pieces
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

    def init_state(self, batch_size: int) -> TitansState:
        """The state before the first token of `batch_size` streams; a call without a state begins with it.

        Raises:
            ValueError: `batch_size` is negative.
        """
        if batch_size < 0:
            raise ValueError(f"batch_size must be at least 0, got {batch_size}")
        return TitansState(tuple(block.mixer.init_state(batch_size) for block in self.blocks))  # type: ignore[union-attr, operator]

    def forward(
        self, x: Tensor, state: TitansState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, TitansState]:
        """Read a piece of a stream.

        Args:
            x: (B, T, dim), T >= 1, of the parameters' dtype (or any under autocast).
            state: after the piece before, None at the stream's begin.
            mask: (B, T) bool, for rows of unequal length. A token that is False is padding, anywhere in its row: every output and state
                is as if it were absent, whatever stands there, and its own output is zero.
            reset: (B, T) bool, for documents packed into one row. Before a token that is True everything begins anew, as without a state:
                no token sees another document. See `cu_seqlens_to_reset` and `document_ids_to_reset`.

        Returns:
            (B, T, dim), causal: row t depends on rows up to t and on the state; and the state after row T. Rows of the state may stand at
            different positions. Without autograd a long x is read in pieces, so that memory does not grow with T but for x and the result.

        Raises:
            ValueError: x is not (B, T, dim), mask or reset not (B, T) bool, a row without a token begins a stream, or the state is of
                another model.
        """
        self._check(x, state, mask, reset)
        if mask is None:
            return self._read(x, state, None, reset)
        aligned = LeftAligned(mask, reset)
        y, after = self._read(aligned.take(x), state, aligned.mask, aligned.reset)
        return aligned.put(y), after

    def _read(self, x: Tensor, state: TitansState | None, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, TitansState]:
        """As `forward`, padding behind the tokens of each row; with a gradient at once, since sharded blocks are gathered at every call."""
        if torch.is_grad_enabled():
            return self._read_piece(x, state, mask, reset)
        return read_in_pieces(self._read_piece, x, state, mask, reset)

    def _read_piece(self, x: Tensor, state: TitansState | None, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, TitansState]:
        states = []
        for i, block in enumerate(self.blocks):
            x, block_state = block(x, None if state is None else state.blocks[i], mask, reset)
            states.append(block_state)
        return self.norm(x), TitansState(tuple(states))

    def _check(self, x: Tensor, state: TitansState | None, mask: Tensor | None, reset: Tensor | None) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor (B, T, dim={self.config.dim}), got {type(x).__name__}")
        if x.dim() != 3 or x.shape[2] != self.config.dim or 0 in x.shape:
            raise ValueError(f"x must be (B >= 1, T >= 1, dim={self.config.dim}), got {tuple(x.shape)}")
        if not torch.is_autocast_enabled(x.device.type) and x.dtype != self.norm.weight.dtype:
            raise ValueError(f"x must have the model's dtype {self.norm.weight.dtype}, got {x.dtype}; cast x or the model")
        check_marks(x, mask, reset)
        if state is not None:
            self._check_state(state, x.shape[0])
        elif mask is not None and not torch.compiler.is_compiling():  # looking costs a graph break
            empty = mask.logical_not().all(1).nonzero().flatten().tolist()
            if empty:
                raise ValueError(f"mask must have a token in each row that begins a stream, got none in rows {empty}; see init_state")

    def _check_state(self, state: TitansState, batch_size: int) -> None:
        if len(state.blocks) != len(self.blocks):
            raise ValueError(f"state is of a model with {len(state.blocks)} blocks, this one has {len(self.blocks)}")
        for block, block_state in zip(self.blocks, state.blocks, strict=True):
            expected: type[State] = block.mixer.state_class  # type: ignore[assignment, union-attr]
            if not isinstance(block_state, expected):
                raise ValueError(  # noqa: TRY004 - a value of another model
                    f"state is of another variant: it holds {type(block_state).__name__}, {self.config.variant!r} needs {expected.__name__}"
                )
        if state.batch_size != batch_size:
            raise ValueError(f"state is of a batch of {state.batch_size}, x has {batch_size} rows; see State.select")
