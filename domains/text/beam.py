"""Beam search: the states of the best texts so far are selected as rows of a batch. Shapes: B beams, V tokens of the vocabulary."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from domains.text.context import Context, begin, extend
from domains.text.generate import fork
from domains.text.model import TitansForCausalLM
from domains.text.output import StopStrings, text_of
from titans_seq.decoding import Decoder


class Beam(NamedTuple):
    """A text that was found. nats: -log of its chance. ended: whether the model ended the document, which is in `nats` then."""

    text: str
    tokens: list[int]
    nats: float
    ended: bool

    def cost(self, length_penalty: float) -> float:
        """Nats for each token to the power of the length penalty, by which beams are ranked."""
        return self.nats / max(1, len(self.tokens) + self.ended) ** length_penalty


def beam_search(
    model: TitansForCausalLM,
    prompt: str,
    beams: int = 4,
    max_tokens: int = 256,
    length_penalty: float = 1.0,
    context: Context | None = None,
    stop: Sequence[str] = (),
) -> list[Beam]:
    """The `beams` best texts that go on with a prompt, of those that the search meets, the best first.

    A step takes the `beams` likeliest texts that are one token longer; those that end, or hold a stop string, are kept aside, and the
    search ends when there are as many of them, or after `max_tokens`, when what is unfinished counts too. With all V ** T texts as beams it
    is exact.

    Args:
        model: in evaluation mode.
        prompt: may be empty.
        beams: B.
        max_tokens: of a text.
        length_penalty: texts are ranked by their nats over their tokens to this power: 0 for the chance of the whole.
        context: what was read before, of one row; None for the begin of a document.
        stop: texts that end a text, and are left out of it, but not out of its tokens.

    Raises:
        ValueError: beams or max_tokens is below 1.
    """
    if beams < 1 or max_tokens < 1:
        raise ValueError(f"beams and max_tokens must be at least 1, got {beams} and {max_tokens}")
    stop = [one for one in stop if one]
    now = extend(model, fork(begin(model) if context is None else context, 1), model.tokenizer.encode_batch([prompt]))
    decoder, end = Decoder(model), model.config.end
    text = partial(text_of, model.tokenizer, after=int(now.last))
    tokens: list[list[int]] = [[]]
    costs = torch.zeros(1, dtype=torch.float64)
    done: list[Beam] = []
    for _ in range(max_tokens):
        logits, state = decoder(now.last[:, None], now.state)
        nats = costs[:, None] - logits[:, -1].double().cpu().log_softmax(-1)  # (B, V)
        going: list[tuple[int, int, float]] = []
        for rank, (parent, token, cost) in enumerate(_likeliest(nats, 2 * beams)):  # one in V ends each: so many do but for stops
            row = tokens[parent] if token == end else [*tokens[parent], token]
            if token != end and not _holds(text, row, stop):
                going.append((parent, token, cost))
            elif rank < beams:
                done.append(_beam(text(row), row, cost, token == end, stop))
            if len(going) == beams:
                break
        if len(done) >= beams or not going:
            break
        tokens = [[*tokens[parent], token] for parent, token, _ in going]
        costs = torch.tensor([cost for *_, cost in going], dtype=torch.float64)
        rows = torch.tensor([parent for parent, *_ in going], device=now.last.device)
        last = torch.tensor([token for _, token, _ in going], device=now.last.device)
        now = Context(state.select(rows), last, now.length.index_select(0, rows) + 1)
    else:
        done += [_beam(text(row), row, cost, False, stop) for row, cost in zip(tokens, costs.tolist(), strict=True)]
    return sorted(done, key=lambda beam: beam.cost(length_penalty))[:beams]


def _likeliest(nats: Tensor, at_once: int) -> Iterator[tuple[int, int, float]]:
    """Beam, token and nats of nats (B, V), the fewest nats first; so many are looked up at a time."""
    vocabulary = nats.shape[1]
    for places in nats.flatten().argsort(stable=True).split(at_once):
        for place, cost in zip(places.tolist(), nats.flatten()[places].tolist(), strict=True):
            yield place // vocabulary, place % vocabulary, cost


def _holds(text: Callable[[list[int]], str], tokens: list[int], stop: Sequence[str]) -> bool:
    """Whether the text of the tokens holds a stop string; it is not made where there is none."""
    made = text(tokens) if stop else ""
    return any(one in made for one in stop)


def _beam(text: str, tokens: list[int], nats: float, ended: bool, stop: Sequence[str]) -> Beam:
    stops = StopStrings(stop)
    return Beam(stops.add(text) + stops.finish(), tokens, nats, ended)
