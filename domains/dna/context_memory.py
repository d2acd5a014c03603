"""A linear memory whose keys are the bases before: what followed the same context earlier in the stream, on both strands.

The rule is that of the package (arXiv 2501.00663, Eq. 9 to 14) for a linear memory W, with the loss ``1/2 |W k - v|^2``, v the base that
came (one-hot, less 1/4) and k the context, one-hot over all contexts. So one column of W learns at a base, and with neither momentum nor
forgetting and the step 1 / (n + 1), n the times that this context came before, it is the mean of what followed; it is kept as counts.
On the other strand the same bases are another event, which is learned as well (inverted repeats).

Contexts that are too long for a slot each share slots, by a hash: a slot holds one context at a time, known by its tag, and a new one takes
the place of the old. That is all that it forgets.

Shapes: B rows, T bases, E contexts, S slots of all tables together, M items: at each base and context two events and then a question.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from domains.dna.context_config import LONGEST, ContextMemoryConfig
from domains.dna.data.alphabet import BASE_BITS, N
from titans_seq.packing import last_rows
from titans_seq.state import State

_MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)
_TAG_BITS = 30
_UNSEEN = 4
"""The symbol of a question, which is none."""


@dataclass(frozen=True)
class ContextMemoryState(State):
    """What the memory holds. A call changes `counts` and `tags` in place, they may be large: `clone` it to keep what it was.

    counts: (B, S, 4) int32, what followed the context of each slot. tags: (B, S) int32, which context that is; 0 for none, and where each
    context has its slot. recent: (B, reach) int64, the last bases, the latest last.
    """

    counts: Tensor
    tags: Tensor
    recent: Tensor

    @classmethod
    def initial(cls, config: ContextMemoryConfig, batch_size: int, device: torch.device | None = None) -> "ContextMemoryState":
        """Nothing was read."""
        slots = config.first_slots[-1]
        return cls(
            torch.zeros(batch_size, slots, 4, dtype=torch.int32, device=device),
            torch.zeros(batch_size, slots, dtype=torch.int32, device=device),
            torch.full((batch_size, config.reach), N, dtype=torch.int64, device=device),
        )

    def begin_anew(self, rows: Tensor) -> None:
        """Forget all, in rows (B,) bool, in place."""
        self.counts[rows], self.tags[rows], self.recent[rows] = 0, 0, N


class Items(NamedTuple):
    """Questions and events. slot, tag, symbol (`_UNSEEN` of a question): int64. known: bool, False where there is no such context."""

    slot: Tensor
    tag: Tensor
    symbol: Tensor
    known: Tensor


@torch.no_grad()
def read_and_write(
    bases: Tensor, state: ContextMemoryState, config: ContextMemoryConfig, mask: Tensor | None = None, learn: bool = True
) -> tuple[Tensor, ContextMemoryState]:
    """What the memory knows of the base after each of `bases`, each of which it learns from first.

    Args:
        bases: (B, T) codes; what is no base (N, or the token that begins a record) ends all contexts.
        state: of the stream before; its tables change in place.
        config: as that of `ContextMemoryState.initial`.
        mask: (B, T) bool, False where there is padding, which stands behind the bases of a row.
        learn: else it only answers.

    Returns:
        (B, T, E, 4) int32, how often each base followed the context that ends at each of `bases`; and the state after. Any cut of a stream
        gives the same.
    """
    batch, length = bases.shape
    bases = (bases & BASE_BITS).clamp(max=N)
    row = torch.cat([state.recent, bases if mask is None else torch.where(mask, bases, N)], dim=1)  # (B, reach + T)
    words = Words.of(row)
    parts = [_items(words, length, n, config, learn) for n in range(len(config.contexts))]
    items = Items(*(torch.stack(part, dim=2) for part in zip(*parts, strict=True)))  # each (B, T, E, 3)
    rows = torch.arange(batch, device=bases.device)[:, None, None, None] * state.tags.shape[1]
    known = items.known.permute(0, 2, 1, 3)  # of a slot, in the order of time
    asked = Items(items.slot + rows, *items[1:])
    flat = Items(*(part.permute(0, 2, 1, 3)[known] for part in asked))
    counts = torch.zeros(*known.shape, 4, dtype=torch.int32, device=bases.device)
    counts[known] = _answer(flat, state.counts.view(-1, 4), state.tags.view(-1))
    recent = last_rows(row.unsqueeze(-1), config.reach, length, mask, None).squeeze(-1)
    return counts[:, :, :, 2].transpose(1, 2), ContextMemoryState(state.counts, state.tags, recent)


class Words(NamedTuple):
    """The last `LONGEST` bases at each base of a row, as numbers; each (B, reach + T) int64.

    base: itself. forward: read as they stand, the latest in the lowest bits. inverted: read on the other strand, the latest in the highest.
    run: bases in a row, up to it, that are no N.
    """

    base: Tensor
    forward: Tensor
    inverted: Tensor
    run: Tensor

    @classmethod
    def of(cls, row: Tensor) -> "Words":
        """row: (B, reach + T), A C G T N."""
        padded = torch.nn.functional.pad(row & 3, (LONGEST - 1, 0))
        forward = inverted = torch.zeros_like(row)
        for i in range(LONGEST):
            base = padded[:, i : i + row.shape[1]]
            forward = (forward << 2) | base
            inverted = inverted | ((3 - base) << (2 * i))
        place = torch.arange(row.shape[1], device=row.device).expand_as(row)
        run = place - torch.where(row == N, place, -1).cummax(1).values
        return cls(row, forward, inverted, run)


def _items(words: Words, length: int, n: int, config: ContextMemoryConfig, learn: bool) -> Items:
    """Of context n, each (B, T, 3): the event at a base, that on the other strand, and the question after it."""
    size, skip = config.contexts[n]
    at = lambda x, back=0: x[:, x.shape[1] - length - back : x.shape[1] - back]  # noqa: E731 - (B, T), so many bases before each
    low = (1 << 2 * size) - 1
    inverted = at(words.inverted) >> 2 * (LONGEST - size)
    key = torch.stack([at(words.forward, skip + 1) & low, inverted, at(words.forward, skip) & low], dim=-1)
    here = at(words.base)
    symbol = torch.stack([here, 3 - at(words.base, size + skip), torch.full_like(here, _UNSEEN)], dim=-1)
    event = (at(words.run) > size + skip) & learn
    known = torch.stack([event, event & config.inverted, at(words.run) >= size + skip], dim=-1)
    return Items(*_slot_and_tag(key, n, config), symbol, known)


def _slot_and_tag(key: Tensor, n: int, config: ContextMemoryConfig) -> tuple[Tensor, Tensor]:
    """Where contexts of kind n with these numbers are kept, and what they are known by there."""
    first = config.first_slots[n]
    if config.has_own_slots(config.contexts[n][0]):
        return first + key, torch.zeros_like(key)
    mixed = (key + 1) * _MULTIPLIER
    mixed = (mixed ^ (mixed >> 29)) * _MULTIPLIER
    slot = (mixed >> (64 - config.table_bits)) & ((1 << config.table_bits) - 1)
    return first + slot, 1 + (mixed & ((1 << _TAG_BITS) - 1))


def _answer(items: Items, counts: Tensor, tags: Tensor) -> Tensor:
    """Counts (M, 4) that each item finds, events counted; `counts` (S, 4) and `tags` (S,) become those after all of them.

    No loop goes over time: items are sorted by slot, stably. Within a slot a run begins with an event of another context than the one
    before it; what an item finds is what the table held, if its first run has not ended, and the events of its run up to it.
    """
    if not len(items.slot):
        return counts.new_zeros(0, 4)
    slot, order = items.slot.sort(stable=True)
    tag, symbol = items.tag[order], items.symbol[order]
    place = torch.arange(len(slot), device=slot.device)
    event = symbol < _UNSEEN
    first = torch.where(torch.cat([slot.new_ones(1, dtype=torch.bool), slot[1:] != slot[:-1]]), place, 0).cummax(0).values
    last_event = torch.where(event, place, -1).cummax(0).values  # up to the item
    event_before = torch.cat([last_event.new_full((1,), -1), last_event[:-1]])
    stored = tags[slot].long()
    tag_before = torch.where(event_before >= first, tag[event_before.clamp(min=0)], stored)
    tag_now = torch.where(last_event >= first, tag[last_event.clamp(min=0)], stored)

    changed = torch.where(event & (tag != tag_before), place, -1).cummax(0).values
    replaced = changed >= first
    start = torch.where(replaced, changed, first)
    added = torch.nn.functional.one_hot(symbol, 5)[:, :4].int()
    total = added.cumsum(0, dtype=torch.int32)
    found = total - (total - added)[start] + torch.where(replaced[:, None], 0, counts[slot])

    last = torch.cat([slot[1:] != slot[:-1], slot.new_ones(1, dtype=torch.bool)])
    counts[slot[last]], tags[slot[last]] = found[last], tag_now[last].int()
    answer = torch.empty_like(found)
    answer[order] = torch.where((tag == tag_now)[:, None], found, 0)
    return answer
