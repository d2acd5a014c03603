"""Log-probabilities in OpenAI's form, of the tokens whose text is certain. Shapes: T tokens, V of the vocabulary."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from domains.text.output import text_of
from domains.text.tokenizers import Tokenizer


def name_of(tokenizer: Tokenizer, token: int, after: int) -> str:
    """The text of a token behind another; `<|end|>` for the end of a document, `token_id:N` for what is no whole character by itself."""
    if token == tokenizer.end:
        return "<|end|>"
    text = text_of(tokenizer, [token], after)
    return text if text and "\ufffd" not in text else f"token_id:{token}"


class RowLogprobs:
    """Of one text: collects tokens as they are read or made, gives them out with the text they are of.

    Args:
        tokenizer: of the model.
        top: how many of the likeliest tokens are named beside each.
        after: the token before the text.
    """

    def __init__(self, tokenizer: Tokenizer, top: int, after: int) -> None:
        self._tokenizer, self._top, self._after = tokenizer, top, after
        self._held: list[tuple[int, str, float, dict[str, float] | None]] = []

    def add(self, tokens: Sequence[int], logits: Tensor, places: Sequence[int]) -> None:
        """Tokens, (T, V) what the model gave for each, before temperature and filters, and the characters of the text before each."""
        nats = logits.double().log_softmax(-1)
        values, ranked = nats.topk(min(self._top, nats.shape[-1]), dim=-1)
        for row, (token, place) in enumerate(zip(tokens, places, strict=True)):
            name, own = name_of(self._tokenizer, token, self._after), float(nats[row, token])
            top: dict[str, float] = {}
            for other, value in zip(ranked[row].tolist(), values[row].tolist(), strict=True):
                top.setdefault(name_of(self._tokenizer, other, self._after), value)
            self._held.append((place, name, own, top | {name: own} if self._top else None))
            self._after = token

    def take(self, before: int | None = None) -> dict[str, Any]:
        """Those that were not given yet, whose text begins before so many characters; None for all."""
        count = len(self._held) if before is None else sum(place < before for place, *_ in self._held)
        taken, self._held = self._held[:count], self._held[count:]
        return {
            "text_offset": [place for place, *_ in taken],
            "tokens": [name for _, name, *_ in taken],
            "token_logprobs": [nats for *_, nats, _ in taken],
            "top_logprobs": [top for *_, top in taken] if self._top else None,
        }
