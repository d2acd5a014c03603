"""`ContextLayer`: the context memory in a network, which sees what the memory tells and weighs it.

Shapes: B rows, T bases, E contexts, D width of the backbone.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from domains.dna.context_config import ContextMemoryConfig
from domains.dna.context_memory import ContextMemoryState, read_and_write
from domains.dna.data.alphabet import N
from titans_seq.memory.layer import Learner
from titans_seq.packing import LeftAligned
from titans_seq.state import State

FIRST_WEIGHT, FIRST_GAIN = 0.05, 0.8
DECAY = 15 / 16
"""Of the record of each context, a base."""
BLOCK = 256
"""Bases over which the record is summed at once."""
_SCALE, _LARGEST = 0.5, 3.0


@dataclass(frozen=True)
class ContextLayerState(State):
    """What `ContextLayer` carries.

    memory: whose tables change in place. f: (B, E, 4), what was told of the next base. record: (B, E), how well each context told lately.
    """

    memory: ContextMemoryState
    f: Tensor
    record: Tensor


class ContextLayer(Learner):
    """Between a context memory and a backbone: what is told goes in with the embedding, and into the logits as it is weighed.

    Of counts n_a, f_a = log (n_a + s) less its mean over the four bases, s the smoothing of the context. The record of a context is a mean,
    over the last bases, of log 4 p with p the chance that it gave the base that came: above 0 where it has told more than nothing. The
    logits of the next base get the sum over contexts of w f, with w = w0 + gain * record + a linear map of what the backbone gives
    (logistic mixing as in PAQ; the record as in the tolerant models of GeCo).
    """

    smoothing: Tensor

    def __init__(self, dim: int, config: ContextMemoryConfig) -> None:
        super().__init__()
        self.config = config
        contexts = len(config.lengths)
        self.embedding = nn.Linear(6 * contexts, dim, bias=False)
        self.weights = nn.Linear(dim, contexts)
        self.gain = nn.Parameter(torch.full((contexts,), FIRST_GAIN))
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.weights.weight)
        nn.init.constant_(self.weights.bias, FIRST_WEIGHT)
        self.register_buffer("smoothing", torch.tensor(config.smoothing)[:, None], persistent=False)

    def init_state(self, batch_size: int) -> ContextLayerState:
        """Of a memory that was told nothing."""
        f = self.smoothing.new_zeros(batch_size, len(self.config.lengths), 4, dtype=torch.float32)
        return ContextLayerState(ContextMemoryState.initial(self.config, batch_size, f.device), f, f[..., 0].clone())

    def ask(
        self, bases: Tensor, state: ContextLayerState, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, ContextLayerState]:
        """Learn from bases, and ask what follows each.

        Args:
            bases: (B, T) codes, or tokens that are none.
            state: its tables change in place.
            mask, reset: (B, T) bool, as `Titans.forward`.

        Returns:
            f (B, T, E, 4); record (B, T, E); what goes into the backbone (B, T, D); the state after.
        """
        aligned = None if mask is None else LeftAligned(mask, reset)
        if aligned is not None:
            bases, mask, reset = bases.gather(1, aligned.order), aligned.mask, aligned.reset
        cuts = [] if reset is None else reset.any(0).nonzero().flatten().tolist()
        told, records, seen = [], [], []
        for start, stop in pairwise(sorted({*range(0, bases.shape[1], BLOCK), *cuts, bases.shape[1]})):
            if reset is not None:
                state = _begin_anew(state, reset[:, start])
            part = slice(start, stop)
            counts, f, record, state = self._ask(bases[:, part], state, None if mask is None else mask[:, part])
            told.append(f)
            records.append(record)
            seen.append(counts.sum(-1))
        f, record, n = (torch.cat(parts, dim=1) for parts in (told, records, seen))
        if aligned is not None:
            f, record, n = aligned.put(f.flatten(2)).unflatten(2, (-1, 4)), aligned.put(record), aligned.put(n)
        inputs = torch.cat([(f * _SCALE).clamp(-_LARGEST, _LARGEST).flatten(2), n.log1p() * _SCALE, record], dim=-1)
        return f, record, self.embedding(inputs.to(self.embedding.weight.dtype)), state

    def _ask(self, bases: Tensor, state: ContextLayerState, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, ContextLayerState]:
        """Of a block: counts and f (B, T, E, 4), record (B, T, E), the state after."""
        counts, memory = read_and_write(bases, state.memory, self.config, mask, not self.frozen)
        f = (counts + self.smoothing.float()).log()  # float32 whatever the model's dtype, as all that is carried
        f = f - f.mean(-1, keepdim=True)
        before = torch.cat([state.f[:, None], f[:, :-1]], dim=1)
        counted = bases < N if mask is None else mask & (bases < N)
        base = bases.clamp(max=N - 1)[:, :, None, None].expand(-1, -1, f.shape[2], 1)
        gained = (before.log_softmax(-1).gather(-1, base)[..., 0] + torch.log(torch.tensor(4.0))) * counted[..., None]
        passed = counted.cumsum(1)  # (B, T), bases up to each
        distance = (passed[:, :, None] - passed[:, None, :]).tril()
        decay = torch.where(counted[:, None, :], DECAY**distance, 0).tril()
        record = (1 - DECAY) * decay @ gained + DECAY ** passed[..., None] * state.record[:, None]
        last = -1 if mask is None else mask.sum(1) - 1
        after_f, after_record = (_at(x, last, old) for x, old in ((f, state.f), (record, state.record)))
        return counts, f, record, ContextLayerState(memory, after_f, after_record)

    def logits(self, f: Tensor, record: Tensor, y: Tensor) -> Tensor:
        """What is added to the logits, (B, T, 4), of what `ask` gave and what the backbone made of it, y (B, T, D)."""
        weights = self.weights(y) + self.gain * record.to(y.dtype)
        return torch.einsum("bte,btea->bta", weights, f.to(y.dtype))


def _at(x: Tensor, last: Tensor | int, old: Tensor) -> Tensor:
    """x (B, T, ..) at one place of each row; -1 of a tensor: `old`."""
    if isinstance(last, int):
        return x[:, last].clone()
    rows = torch.arange(len(x), device=x.device)
    return torch.where((last >= 0).view(-1, *[1] * (old.dim() - 1)), x[rows, last.clamp(min=0)], old)


def _begin_anew(state: ContextLayerState, rows: Tensor) -> ContextLayerState:
    """The state with everything forgotten in rows (B,) bool; tables in place."""
    state.memory.begin_anew(rows)
    return ContextLayerState(state.memory, state.f.masked_fill(rows[:, None, None], 0), state.record.masked_fill(rows[:, None], 0))
