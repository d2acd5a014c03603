"""`TitansForDNA`: the next base of a sequence.

Shapes: B rows, T bases. Tokens are codes of `domains.dna.data.alphabet` (A C G T N, and the bit of the soft mask), and BEGIN.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.dna.config import DNAConfig
from domains.dna.context_layer import ContextLayer, ContextLayerState
from domains.dna.data.alphabet import BASE_BITS, CODES, SOFT, N
from domains.dna.metrics import BITS_PER_BASE
from titans_seq import TitansState
from titans_seq.language_model import LanguageModel, check_rows
from titans_seq.state import State
from titans_seq.training.trainable import LossOutput

BEGIN = 5
"""The token that stands before a sequence."""
VOCABULARY = 6


@dataclass(frozen=True)
class DNAState(State):
    """What `TitansForDNA` carries: the backbone's state, and its context memory if it has one."""

    titans: TitansState
    contexts: ContextLayerState | None


class TitansForDNA(LanguageModel):
    """Embedding of bases, Titans backbone, logits of the next base: A, C, G or T. N is read, and never predicted.

    >>> model = TitansForDNA(DNAConfig())
    >>> logits, state = model(torch.from_numpy(encode("ACGTTGCA")).long()[None])  # (B, T, 4), of A C G T
    """

    model_type = "titans_dna"
    config_class = DNAConfig
    metric = BITS_PER_BASE

    def __init__(self, config: DNAConfig) -> None:
        super().__init__(config, VOCABULARY, N, bias=True)
        self.contexts = None if config.contexts is None else ContextLayer(config.titans.dim, config.contexts)

    def init_state(self, batch_size: int) -> DNAState:  # type: ignore[override]
        """The state before the first base of `batch_size` sequences."""
        contexts = None if self.contexts is None else self.contexts.init_state(batch_size)
        return DNAState(self.titans.init_state(batch_size), contexts)

    def rows_of(self, tokens: Tensor) -> Tensor:
        """Codes (B, T) without their soft mask, which changes nothing that is read.

        Raises:
            ValueError: they are no codes of bases, nor `BEGIN`; not looked for in training and while compiling.
        """
        check_tokens(tokens, look=isinstance(tokens, Tensor) and self.looks(tokens))
        return tokens & BASE_BITS

    def forward(  # type: ignore[override]
        self, tokens: Tensor, state: DNAState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, DNAState]:
        """As `LanguageModel.forward`: (B, T, 4), logits of A C G T.

        The tables of a context memory change in place: the state that was given is used up (`state.clone()` keeps it).
        """
        _, logits, after = self.read(tokens, state, mask=mask, reset=reset)
        return logits, after

    def hidden(  # type: ignore[override]
        self, tokens: Tensor, state: DNAState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, DNAState]:
        """As `forward`, but what the backbone makes of each token, (B, T, dim)."""
        y, _, after = self.read(tokens, state, mask=mask, reset=reset)
        return y, after

    def read(
        self, tokens: Tensor, state: DNAState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor, DNAState]:
        """As `forward`, with what the backbone makes of each token, (B, T, dim), before the logits."""
        bases = self.rows_of(tokens)
        x = self.embedding(bases)
        if self.contexts is None:
            y, titans = self.titans(x, None if state is None else state.titans, mask=mask, reset=reset)
            return y, self.logits_of(y), DNAState(titans, None)
        state = self.init_state(len(tokens)) if state is None else state
        if state.contexts is None:
            raise ValueError("state is of a model without a context memory, this one has one (DNAConfig.contexts)")
        f, record, told, contexts = self.contexts.ask(bases, state.contexts, mask, reset)
        y, titans = self.titans(x + told, state.titans, mask=mask, reset=reset)
        return y, self.logits_of(y) + self.contexts.logits(f, record, y), DNAState(titans, contexts)

    def loss(self, batch: dict[str, Any], state: DNAState | None = None) -> LossOutput:
        """Cross entropy in nats a base, of a batch of `DocumentStream`; the units are the weights of the targets (`base_weights`)."""
        logits, state = self(batch["tokens"], state, mask=batch["mask"], reset=batch["reset"])
        weights = base_weights(batch["targets"], self.config.soft_mask_weight)
        if batch["mask"] is not None:
            weights = weights * batch["mask"]
        units = weights.sum()
        return LossOutput((base_nats(logits, batch["targets"]) * weights).sum() / units.clamp(min=1e-6), units, state)


def check_tokens(tokens: Tensor, look: bool) -> None:
    """Raise TypeError or ValueError unless tokens are (B, T) int64 and, if `look` says to look at them, codes of bases or `BEGIN`."""
    check_rows(tokens, "`domains.dna.data.alphabet.encode` makes codes of text: torch.tensor(encode('ACGT')[None], dtype=torch.int64)")
    if look and tokens.numel():  # looking costs a wait for the device
        lowest, highest, base = (int(bound) for bound in (*tokens.aminmax(), (tokens & BASE_BITS).max()))
        if lowest < 0 or highest >= CODES or base >= VOCABULARY:
            raise ValueError(f"tokens must be codes of bases, or BEGIN={BEGIN}; got {lowest} to {highest}")


def base_weights(codes: Tensor, soft_mask_weight: float = 1.0) -> Tensor:
    """What each base counts, float32 of the shape of `codes`: 1, a soft-masked one `soft_mask_weight`, and 0 what is no base (N)."""
    weights = torch.where((codes & SOFT) > 0, soft_mask_weight, 1.0)
    return torch.where((codes & BASE_BITS) < N, weights, 0.0)


def base_nats(logits: Tensor, codes: Tensor) -> Tensor:
    """What each of the bases `codes` (B, T) costs under logits (B, T, 4): -log of its chance, (B, T) float32; 0 for N."""
    bases = codes & BASE_BITS
    return F.cross_entropy(logits.float().transpose(1, 2), torch.where(bases < N, bases, -100), ignore_index=-100, reduction="none")
