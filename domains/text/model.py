"""`TitansForCausalLM`: the next byte of a text.

Shapes: B rows, T tokens, V = 257 tokens of the vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.text.config import TextConfig
from domains.text.data import END, VOCABULARY
from domains.text.metrics import BITS_PER_BYTE
from titans_seq import Titans, TitansState
from titans_seq.checkpoint import Pretrained
from titans_seq.training.trainable import LossOutput


class TitansForCausalLM(Pretrained):
    """Embedding of bytes, Titans backbone, logits of the next token: a byte, or the document's end.

    >>> model = TitansForCausalLM(TextConfig())
    >>> logits, state = model(torch.tensor([[END, *b"It was"]]))
    """

    model_type = "titans_text"
    config_class = TextConfig
    metric = BITS_PER_BYTE

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY, config.titans.dim)
        self.titans = Titans(config.titans)
        self.head = None if config.tie_embeddings else nn.Linear(config.titans.dim, VOCABULARY, bias=False)
        for table in (self.embedding, self.head):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def initial_state(self, batch_size: int) -> TitansState:
        """The state before the first token of `batch_size` texts."""
        return self.titans.initial_state(batch_size)

    def forward(
        self, tokens: Tensor, state: TitansState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, TitansState]:
        """Logits of the token after each.

        Args:
            tokens: (B, T) int64, bytes and `END`, which begins every document.
            state, mask, reset: as `Titans.forward`.

        Returns:
            (B, T, V) and the state after the last token.

        Raises:
            ValueError: tokens is not (B, T) int64 in [0, V), or as `Titans.forward`.
        """
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be (B, T) torch.int64, got {tuple(tokens.shape)} {tokens.dtype}")
        if not self.training and tokens.numel():  # looking costs a wait for the device
            lowest, highest = (int(bound) for bound in tokens.aminmax())
            if lowest < 0 or highest >= VOCABULARY:
                raise ValueError(f"tokens must be in [0, {VOCABULARY}), got {lowest} to {highest}")
        y, state = self.titans(self.embedding(tokens), state, mask=mask, reset=reset)
        return F.linear(y, self.embedding.weight if self.head is None else self.head.weight), state

    def loss(self, batch: dict[str, Any], state: TitansState | None = None) -> LossOutput:
        """Cross entropy in nats a byte, of a batch of `DocumentStream`; the units are the bytes among its targets."""
        logits, state = self(batch["tokens"], state, mask=batch["mask"], reset=batch["reset"])
        targets, mask = batch["targets"], batch["mask"]
        counted = targets if mask is None else torch.where(mask, targets, -100)
        total = F.cross_entropy(logits.flatten(0, 1).float(), counted.flatten(), ignore_index=-100, reduction="sum")
        units = ((counted >= 0) & (counted != END)).sum()
        return LossOutput(total / units.clamp(min=1), units, state)
