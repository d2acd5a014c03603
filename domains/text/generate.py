"""Going on with texts: sampling in batches, as a stream or whole. Shapes: B rows, V tokens of the vocabulary."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from domains.text.config import GenerationConfig
from domains.text.context import Context, begin, extend
from domains.text.model import TitansForCausalLM
from domains.text.output import Reason, RowOutput
from titans_seq.decoding import Decoder
from titans_seq.sampling import chances, draw, make_generators, penalise_repetition


class Generated(NamedTuple):
    """A text that was made. tokens: its, the end and what came after a stop string's begin included. context: to go on from after it."""

    text: str
    tokens: list[int]
    reason: Reason
    context: Context


class Piece(NamedTuple):
    """More text of a row of the batch; `ended`, with its last piece: all of it."""

    row: int
    text: str
    ended: Generated | None


def generate(
    model: TitansForCausalLM, prompts: Sequence[str], config: GenerationConfig | None = None, context: Context | None = None
) -> list[Generated]:
    """As `stream`, whole: a text for each prompt."""
    ended: dict[int, Generated] = {}
    for piece in stream(model, prompts, config, context):
        if piece.ended is not None:
            ended[piece.row] = piece.ended
    return [ended[row] for row in range(len(prompts))]


def stream(
    model: TitansForCausalLM, prompts: Sequence[str], config: GenerationConfig | None = None, context: Context | None = None
) -> Iterator[Piece]:
    """Go on with each prompt, and give the text as it comes: no character in part, nothing of a stop string, nothing taken back.

    Args:
        model: in evaluation mode.
        prompts: B texts of any lengths, empty ones among them.
        config: how; None for the defaults.
        context: what was read before the prompts: of B rows, or of one, which all of them go on from. None for the begin of a document.

    Raises:
        ValueError: context is of other rows.
        TypeError: `prompts` is one text.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts is a list of texts, got the text {prompts[:40]!r}; write [prompt].")
    config = config or GenerationConfig()
    if not prompts:
        return
    prompt_tokens = model.tokenizer.encode_batch(list(prompts))
    read = extend(model, fork(begin(model) if context is None else context, len(prompts)), prompt_tokens)
    rows = Rows(model, read, prompt_tokens, config)
    while not rows.ended:
        yield from rows.step()


class Rows:
    """Texts that are gone on with side by side, a token of each at a step.

    Args:
        model: in evaluation mode.
        context: of B rows, what was read before: prompts, too.
        prompts: tokens of each row's prompt, for the repetition penalty.
        config: how.
        decoder: of the model, where there is one already.

    Attributes:
        outputs: B. texts: B, what is certain of each. logits: (B, V) float32 on the CPU, those of the last step.
    """

    def __init__(
        self,
        model: TitansForCausalLM,
        context: Context,
        prompts: Sequence[np.ndarray],
        config: GenerationConfig,
        decoder: Decoder | None = None,
    ) -> None:
        self.outputs = [RowOutput(model.tokenizer, config.stop, config.max_tokens, after) for after in context.last.tolist()]
        self.texts = [""] * len(prompts)
        self.logits = torch.empty(0)
        self._now, self._config = context, config
        self._decoder = decoder or Decoder(model)
        self._generators = make_generators(config.seed, len(prompts))
        self._seen = torch.zeros(len(prompts), model.config.vocabulary, dtype=torch.bool)
        for row, ids in enumerate(prompts):
            self._seen[row, torch.from_numpy(ids.astype("int64"))] = True

    @property
    def ended(self) -> bool:
        """Whether all rows have."""
        return all(output.reason is not None for output in self.outputs)

    def step(self) -> list[Piece]:
        """A token more of each row that has not ended; the text that it makes certain."""
        now, pieces = self._now, []
        logits, state = self._decoder(now.last[:, None], now.state)
        self.logits = logits[:, -1].detach().float().cpu()
        tokens = next_tokens(self.logits, self._seen, self._config, self._generators)
        after = Context(state, tokens.to(now.last.device), now.length + 1)
        for row, (output, token) in enumerate(zip(self.outputs, tokens.tolist(), strict=True)):
            if output.reason is not None:
                continue
            text = output.add(token)
            self.texts[row] += text
            if output.reason is not None:  # the end itself is not read: what comes next goes on with the document
                context = select(now if output.reason == "end" else after, row)
                pieces.append(Piece(row, text, Generated(self.texts[row], output.tokens, output.reason, context)))
            elif text:
                pieces.append(Piece(row, text, None))
        self._now = after
        return pieces


def next_tokens(logits: Tensor, seen: Tensor, config: GenerationConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw a token for each row of logits (B, V) on the CPU, (B,) int64, and mark it in `seen` (B, V) bool."""
    penalised = penalise_repetition(logits, seen, config.repetition_penalty)
    tokens = draw(chances(penalised, config), generators)
    seen.scatter_(1, tokens[:, None], True)
    return tokens


def fork(context: Context, rows: int) -> Context:
    """One row as `rows` of them, which then go their own ways; `rows` rows stay.

    Raises:
        ValueError: it has another number of rows.
    """
    have = len(context.last)
    if have not in (1, rows):
        raise ValueError(f"context must have one row or {rows}, one for each prompt, got {have}")
    return context if have == rows else context.select(torch.zeros(rows, dtype=torch.int64, device=context.last.device))


def select(context: Context, row: int) -> Context:
    """One row of it."""
    return context.select(torch.tensor([row], device=context.last.device))
