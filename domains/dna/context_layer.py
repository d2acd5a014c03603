"""`ContextLayer`: the context memory in a network, which sees what the memory tells and weighs it.

Shapes: B rows, T bases, E contexts, D width of the backbone.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from domains.dna.context_memory import ContextMemoryConfig, ContextMemoryState, read_and_write
from titans_seq.memory.layer import Learner
from titans_seq.packing import LeftAligned

FIRST_WEIGHT = 0.15
_SCALE, _LARGEST = 0.5, 3.0


class ContextLayer(Learner):
    """Between a context memory and a backbone: what is told goes in with the embedding, and into the logits as the backbone weighs it.

    Of counts n_a, f_a = log (n_a + s) less its mean over the four bases, s the smoothing of the context; the logits of the next base get
    the sum over contexts of w f, with w = w0 + a linear map of what the backbone gives (logistic mixing, PAQ).
    """

    smoothing: Tensor

    def __init__(self, dim: int, config: ContextMemoryConfig) -> None:
        super().__init__()
        self.config = config
        contexts = len(config.lengths)
        self.embedding = nn.Linear(5 * contexts, dim, bias=False)
        self.weights = nn.Linear(dim, contexts)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.weights.weight)
        nn.init.constant_(self.weights.bias, FIRST_WEIGHT)
        self.register_buffer("smoothing", torch.tensor(config.smoothing)[:, None], persistent=False)

    def initial_state(self, batch_size: int) -> ContextMemoryState:
        """Of a memory that was told nothing."""
        return ContextMemoryState.initial(self.config, batch_size, self.smoothing.device)

    def ask(
        self, bases: Tensor, state: ContextMemoryState, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor, ContextMemoryState]:
        """Learn from bases, and ask what follows each.

        Args:
            bases: (B, T) codes, or tokens that are none.
            state: changes in place.
            mask, reset: (B, T) bool, as `Titans.forward`.

        Returns:
            f (B, T, E, 4) of each context; what goes into the backbone (B, T, D); the state after.
        """
        aligned = None if mask is None else LeftAligned(mask, reset)
        if aligned is not None:
            bases, mask, reset = bases.gather(1, aligned.order), aligned.mask, aligned.reset
        cuts = [] if reset is None else reset.any(0).nonzero().flatten().tolist()
        told = []
        for start, stop in pairwise(sorted({0, *cuts, bases.shape[1]})):
            if reset is not None:
                state.begin_anew(reset[:, start])
            part = slice(start, stop)
            counts, state = read_and_write(bases[:, part], state, self.config, None if mask is None else mask[:, part], not self.frozen)
            told.append(counts)
        counts = torch.cat(told, dim=1).to(self.smoothing.dtype)  # (B, T, E, 4)
        if aligned is not None:
            counts = aligned.put(counts.flatten(2)).unflatten(2, (-1, 4))
        f = (counts + self.smoothing).log()
        f = f - f.mean(-1, keepdim=True)
        seen = counts.sum(-1, keepdim=True).log1p()
        inputs = torch.cat([(f * _SCALE).clamp(-_LARGEST, _LARGEST), seen * _SCALE], dim=-1).flatten(2)
        return f, self.embedding(inputs), state

    def logits(self, f: Tensor, y: Tensor) -> Tensor:
        """What is added to the logits, (B, T, 4): f (B, T, E, 4) by the weights that the backbone's y (B, T, D) sets."""
        return torch.einsum("bte,btea->bta", self.weights(y), f.to(y.dtype))
