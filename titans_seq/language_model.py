"""What models of the next token share: embedding, backbone, head, state. A domain says what its tokens are and what its loss counts.

Shapes: B rows, T tokens, V outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_seq.backbone import Titans, TitansState
from titans_seq.checkpoint import Pretrained
from titans_seq.packing import lengths_to_mask


def check_rows(tokens: object, way: str) -> None:
    """Raise TypeError unless tokens are a tensor, with the `way` to make one, and ValueError unless they are (B, T) int64."""
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens must be a torch.Tensor (B, T) of int64, got {type(tokens).__name__}; {way}")
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ValueError(f"tokens must be (B, T) torch.int64, got {tuple(tokens.shape)} {tokens.dtype}")


class LanguageModel(Pretrained):
    """Embedding of tokens, Titans backbone, logits of the next token.

    Args:
        config: with the backbone's as `titans`.
        inputs: tokens that there are to read.
        outputs: V, those that there are to predict; None for the same ones, with the weights of the embedding.
        bias: whether the head has one.
    """

    def __init__(self, config: Any, inputs: int, outputs: int | None, bias: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(inputs, config.titans.dim)
        self.titans = Titans(config.titans)
        self.head = None if outputs is None else nn.Linear(config.titans.dim, outputs, bias=bias)
        for table in (self.embedding, self.head):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        if self.head is not None and bias:
            nn.init.zeros_(self.head.bias)

    def init_state(self, batch_size: int) -> TitansState:
        """The state before the first token of `batch_size` rows."""
        return self.titans.init_state(batch_size)

    @property
    def output_weight(self) -> Tensor:
        """(V, dim): the head's, or the embedding's."""
        return self.embedding.weight if self.head is None else self.head.weight

    def rows_of(self, tokens: Tensor) -> Tensor:
        """The rows of the embedding that tokens (B, T) int64 stand for.

        Raises:
            ValueError: there are tokens that the model does not know; not looked for in training and while compiling.
        """
        if self.looks(tokens):
            lowest, highest = (int(bound) for bound in tokens.aminmax())
            if lowest < 0 or highest >= self.embedding.num_embeddings:
                raise ValueError(f"tokens must be in [0, {self.embedding.num_embeddings}), got {lowest} to {highest}")
        return tokens

    def looks(self, tokens: Tensor) -> bool:
        """Whether the values of tokens are looked at: that costs a wait for the device, and a graph break."""
        return not self.training and tokens.numel() > 0 and not torch.compiler.is_compiling()

    def hidden(
        self,
        tokens: Tensor,
        state: TitansState | None = None,
        lengths: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, TitansState]:
        """As `forward`, but what the logits are made of: (B, T, dim). It is all that reading takes."""
        check_rows(tokens, "a tokeniser makes them of text")
        if lengths is not None:
            if mask is not None:
                raise ValueError("lengths and mask say the same, where tokens are; give one of them")
            mask = lengths_to_mask(lengths, *tokens.shape)
            state = self.init_state(len(tokens)) if state is None else state  # a row may be empty
        y, state = self.titans(self.embedding(self.rows_of(tokens)), state, mask=mask, reset=reset)
        return y, state

    def forward(
        self,
        tokens: Tensor,
        state: TitansState | None = None,
        lengths: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, TitansState]:
        """Logits of the token after each.

        Args:
            tokens: (B, T) int64, of those that the model knows.
            lengths: (B,) int64, in place of `mask` where padding is on the right: only the first `lengths[b]` tokens of row b are there,
                which may be none.
            state, mask, reset: as `Titans.forward`.

        Returns:
            (B, T, V) and the state after the last token.

        Raises:
            ValueError: tokens is not (B, T) int64 of the model's, lengths is not (B,) int64 from 0 to T, or as `Titans.forward`.
        """
        y, state = self.hidden(tokens, state, lengths, mask=mask, reset=reset)
        return self.logits_of(y), state

    def logits_of(self, y: Tensor) -> Tensor:
        """(.., V) of what `hidden` gives, (.., dim)."""
        return F.linear(y, self.output_weight, None if self.head is None else self.head.bias)
