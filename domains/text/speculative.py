"""Speculative decoding (arXiv 2211.17192): a small model proposes tokens, the large one judges them in one pass, and where it says no the
states are those before it. What comes out is drawn as from the large model alone; of greedy decoding it is the same text.

Shapes: K proposals, V tokens of the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from domains.text.config import GenerationConfig
from domains.text.context import Context, begin, extend
from domains.text.generate import Generated, Piece
from domains.text.model import TitansForCausalLM
from domains.text.output import RowOutput
from titans_seq.backbone import TitansState
from titans_seq.decoding import Decoder
from titans_seq.errors import UserError
from titans_seq.sampling import chances, draw, make_generators, penalise_repetition


@dataclass
class Tally:
    """How proposing went: passes of the large model that judged, and of the proposed tokens those that it took."""

    passes: int = 0
    proposed: int = 0
    accepted: int = 0


class _Proposals(NamedTuple):
    """tokens: K. chances: (K, V), what each was drawn with. states: K + 1 of the small model, before it and after each token."""

    tokens: list[int]
    chances: Tensor
    states: list[TitansState]


def speculate(
    model: TitansForCausalLM,
    draft: TitansForCausalLM,
    prompt: str,
    config: GenerationConfig | None = None,
    proposals: int = 4,
    context: Context | None = None,
    draft_context: Context | None = None,
    tally: Tally | None = None,
) -> Iterator[Piece]:
    """Go on with one prompt as `domains.text.generate.stream` does, with a smaller model that proposes.

    Args:
        model: whose text it is.
        draft: proposes; of the same tokeniser.
        prompt: may be empty.
        config: how; None for the defaults.
        proposals: K, tokens that are proposed at a time.
        context, draft_context: what `model` and `draft` have read before, of one row each; None, both, for the begin of a document.
        tally: counts.

    Raises:
        UserError: the models have other tokens.
        ValueError: proposals is below 1, or one context is given without the other.
    """
    if draft.config.tokenizer != model.config.tokenizer or draft.config.vocabulary != model.config.vocabulary:
        raise UserError("the draft model has another tokeniser than the model. Both must be trained with the same one (--tokenizer).")
    if proposals < 1:
        raise ValueError(f"proposals must be at least 1, got {proposals}")
    if (context is None) != (draft_context is None):
        raise ValueError("context and draft_context must both be given: the two models have read the same")
    config, tally = config or GenerationConfig(), tally or Tally()
    ids = model.tokenizer.encode_batch([prompt])
    now = extend(model, begin(model) if context is None else context, ids)
    behind = extend(draft, begin(draft) if draft_context is None else draft_context, ids)
    run = _Run(model, draft, config, proposals, _seen(model, ids[0].tolist()))
    state, draft_state, last, length = now.state, behind.state, int(now.last), int(now.length)
    output, text = RowOutput(model.tokenizer, config.stop, config.max_tokens, last), ""
    while output.reason is None:
        before, before_last, before_length = state, last, length
        taken, state, draft_state = run.step(state, draft_state, last, tally)
        for number, token in enumerate(taken):
            new = output.add(token)
            text += new
            last, length = token, length + 1
            if output.reason is not None:
                read = [before_last, *taken[: number if output.reason == "end" else number + 1]]
                yield Piece(0, new, Generated(text, output.tokens, output.reason, _after(model, before, read, before_length)))
                break
            if new:
                yield Piece(0, new, None)


def _seen(model: TitansForCausalLM, tokens: list[int]) -> Tensor:
    seen = torch.zeros(1, model.config.vocabulary, dtype=torch.bool)
    seen[0, tokens] = True
    return seen


def _after(model: TitansForCausalLM, state: TitansState, tokens: list[int], length: int) -> Context:
    """The context when tokens (the first was counted in `length`) stand behind a state."""
    device = model.output_weight.device
    if len(tokens) > 1:
        with torch.no_grad():
            _, state = model.hidden(torch.tensor([tokens[:-1]], device=device), state)
    return Context(state, torch.tensor(tokens[-1:], device=device), torch.tensor([length + len(tokens) - 1], device=device))


class _Run:
    """The steps of one text. seen: (1, V) bool, tokens of prompt and text so far, for the repetition penalty."""

    def __init__(self, model: TitansForCausalLM, draft: TitansForCausalLM, config: GenerationConfig, proposals: int, seen: Tensor) -> None:
        self._model, self._config, self._count, self._seen = model, config, proposals, seen
        self._draft = Decoder(draft)
        (self._generator,) = make_generators(config.seed, 1)

    def step(self, state: TitansState, draft_state: TitansState, last: int, tally: Tally) -> tuple[list[int], TitansState, TitansState]:
        """A round after the token `last`, which neither state has read: 1 to K + 1 more tokens, and the states before the last of them."""
        proposed = self._propose(draft_state, last)
        device = self._model.output_weight.device
        ids = torch.tensor([[last, *proposed.tokens]], device=device)
        with torch.no_grad():
            logits, after = self._model(ids, state)
        wanted = self._chances(logits[0], proposed.tokens)  # (K + 1, V)
        tokens, accepted = self._judge(proposed, wanted)
        tally.passes, tally.proposed, tally.accepted = tally.passes + 1, tally.proposed + self._count, tally.accepted + accepted
        self._seen[0, tokens] = True
        if accepted == self._count:
            _, draft_after = self._draft(ids[:, -1:].to(device), proposed.states[-1])
            return tokens, after, draft_after
        with torch.no_grad():  # the state before the round, and what was taken read again
            _, after = self._model.hidden(ids[:, : accepted + 1], state)
        return tokens, after, proposed.states[accepted + 1]

    def _propose(self, state: TitansState, last: int) -> _Proposals:
        tokens, found, states, seen = [last], [], [state], self._seen.clone()
        for _ in range(self._count):
            logits, state = self._draft(torch.tensor([tokens[-1:]], device=self._model.output_weight.device), state)
            drawn_with = chances(penalise_repetition(logits[:, -1].float().cpu(), seen, self._config.repetition_penalty), self._config)
            token = int(draw(drawn_with, [self._generator]))
            seen[0, token] = True
            tokens.append(token)
            found.append(drawn_with[0])
            states.append(state)
        return _Proposals(tokens[1:], torch.stack(found), states)

    def _chances(self, logits: Tensor, proposed: list[int]) -> Tensor:
        """Of the large model, of each proposal and the token after them: logits (K + 1, V) -> (K + 1, V) float64."""
        seen = self._seen.repeat(len(logits), 1)
        for number, token in enumerate(proposed):
            seen[number + 1 :, token] = True
        return chances(penalise_repetition(logits.float().cpu(), seen, self._config.repetition_penalty), self._config)

    def _judge(self, proposed: _Proposals, wanted: Tensor) -> tuple[list[int], int]:
        """The proposals up to the first that is refused, and one token of the large model; and how many were taken."""
        for number, token in enumerate(proposed.tokens):
            ratio = float(wanted[number, token] / proposed.chances[number, token])
            if float(torch.rand((), dtype=torch.float64, generator=self._generator)) < ratio:
                continue
            rest = (wanted[number] - proposed.chances[number]).clamp(min=0)
            rest = rest if rest.sum() > 0 else wanted[number]  # equal but for rounding
            return [*proposed.tokens[:number], int(draw(rest[None], [self._generator]))], number
        return [*proposed.tokens, int(draw(wanted[-1:], [self._generator]))], len(proposed.tokens)
