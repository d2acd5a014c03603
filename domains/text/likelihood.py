"""How likely texts are after others: what multiple choice and last words are scored by. Shapes: B rows.

A context that several texts follow is read once; nothing has a maximum length.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from domains.text.context import Context, begin, extend, read_segment, segments
from domains.text.model import TitansForCausalLM
from domains.text.tokenizers import Tokenizer
from titans_seq.losses import IGNORED, likeliest, token_nats

I = TypeVar("I")


class Likelihood(NamedTuple):
    """Of a text after another. nats: -log of its chance. greedy: whether each of its tokens is the likeliest one."""

    nats: float
    greedy: bool


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of two texts that stand side by side, the split being that of lm-evaluation-harness.

    White space at the end of the context goes to the continuation, and its tokens are those of both texts together that lie behind as many
    as the context has by itself. Where there are none, as it became one token with the end of the context, they are its own: what is not
    asked would count as certain.
    """
    bare = context.rstrip()
    whole, alone = tokenizer.encode_batch([context + continuation, bare])
    if len(whole) > len(alone):
        return alone, whole[len(alone) :]
    return alone, tokenizer.encode_batch([context[len(bare) :] + continuation])[0]


def follow(model: TitansForCausalLM, context: Context, tokens: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """The likelihood of tokens, (T,) integers for each row of a context, none among them: nats (B,) float64 and greedy (B,) bool."""
    weight, rows = model.output_weight, len(tokens)
    nats, greedy = torch.zeros(rows, dtype=torch.float64), torch.ones(rows, dtype=torch.bool)
    for part in segments(tokens):
        y, following, context = read_segment(model, context, part)
        flat = y.flatten(0, 1)
        nats += token_nats(flat, weight, following.flatten()).view_as(following).double().sum(1).cpu()
        greedy &= ((likeliest(flat, weight).view_as(following) == following) | (following == IGNORED)).all(1).cpu()
    return nats, greedy


def likelihoods(
    model: TitansForCausalLM,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    batch_size: int = 16,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[Likelihood]:
    """The likelihood of each continuation after its context, which stands at the begin of a document; both are tokens, (T,) integers.

    batch_size: rows at a time: speed and memory, not the result. on_done: called with the pairs that are done.
    """
    found: dict[int, Likelihood] = {}
    following: dict[tuple[int, ...], list[int]] = {}  # the pairs of each context
    for number, (context, _) in enumerate(pairs):
        following.setdefault(tuple(context.tolist()), []).append(number)
    for some in batched(sorted(following, key=len), batch_size):  # of like lengths, for little padding
        read = extend(model, begin(model, len(some)), [np.array(context, dtype=np.int64) for context in some])
        rows = [(row, number) for row, context in enumerate(some) for number in following[context]]
        for part in batched(rows, batch_size):
            index = torch.tensor([row for row, _ in part], device=read.last.device)
            nats, greedy = follow(model, read.select(index), [pairs[number][1] for _, number in part])
            for (_, number), *one in zip(part, nats.tolist(), greedy.tolist(), strict=True):
                found[number] = Likelihood(*one)
            on_done(len(part))
    return [found[number] for number in range(len(pairs))]


def batched(items: Sequence[I], size: int) -> Iterator[Sequence[I]]:
    """Parts of `size` items, the last may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))
