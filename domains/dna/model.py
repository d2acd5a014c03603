"""`TitansForDNA`: the next base of a sequence.

Shapes: B rows, T bases. Tokens are codes of `domains.dna.data.alphabet` (A C G T N, and the bit of the soft mask), and BEGIN.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.dna.config import DNAConfig
from domains.dna.data.alphabet import BASE_BITS, CODES, SOFT, N
from domains.dna.metrics import BITS_PER_BASE
from titans_seq import TitansState
from titans_seq.language_model import LanguageModel
from titans_seq.training.trainable import LossOutput

BEGIN = 5
"""The token that stands before a sequence."""
VOCABULARY = 6


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

    def rows_of(self, tokens: Tensor) -> Tensor:
        """Codes (B, T) without their soft mask, which changes nothing that is read.

        Raises:
            ValueError: they are no codes of bases, nor `BEGIN`; not looked for in training and while compiling.
        """
        bases = tokens & BASE_BITS
        if self.looks(tokens):
            lowest, highest, base = (int(bound) for bound in (*tokens.aminmax(), bases.max()))
            if lowest < 0 or highest >= CODES or base >= VOCABULARY:
                raise ValueError(f"tokens must be codes of bases, or BEGIN={BEGIN}; got {lowest} to {highest}")
        return bases

    def loss(self, batch: dict[str, Any], state: TitansState | None = None) -> LossOutput:
        """Cross entropy in nats a base, of a batch of `DocumentStream`; the units are the weights of the targets (`base_weights`)."""
        logits, state = self(batch["tokens"], state, mask=batch["mask"], reset=batch["reset"])
        weights = base_weights(batch["targets"], self.config.soft_mask_weight)
        if batch["mask"] is not None:
            weights = weights * batch["mask"]
        units = weights.sum()
        return LossOutput((base_nats(logits, batch["targets"]) * weights).sum() / units.clamp(min=1e-6), units, state)


def base_weights(codes: Tensor, soft_mask_weight: float = 1.0) -> Tensor:
    """What each base counts, float32 of the shape of `codes`: 1, a soft-masked one `soft_mask_weight`, and 0 what is no base (N)."""
    weights = torch.where((codes & SOFT) > 0, soft_mask_weight, 1.0)
    return torch.where((codes & BASE_BITS) < N, weights, 0.0)


def base_nats(logits: Tensor, codes: Tensor) -> Tensor:
    """What each of the bases `codes` (B, T) costs under logits (B, T, 4): -log of its chance, (B, T) float32; 0 for N."""
    bases = codes & BASE_BITS
    return F.cross_entropy(logits.float().transpose(1, 2), torch.where(bases < N, bases, -100), ignore_index=-100, reduction="none")
