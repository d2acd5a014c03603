"""From tokens to text as it is shown: no character in part, nothing of a stop string, nothing taken back."""

from collections.abc import Iterable, Sequence
from typing import Literal

from domains.text.tokenizers import Tokenizer

Reason = Literal["stop", "end", "length"]
"""Why a text ended: a stop string came, the model ended the document, or it has as many tokens as were asked for."""


def text_of(tokenizer: Tokenizer, tokens: Iterable[int], after: int) -> str:
    """The text of tokens that stand behind the token `after`, whose own is left out."""
    decoder = tokenizer.decoder(after)
    return "".join(map(decoder.add, tokens)) + decoder.finish()


class StopStrings:
    """Lets text through up to the first stop string; the begin of what may become one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = [stop for stop in stops if stop], ""
        self.found = False

    def add(self, text: str) -> str:
        """What is certain now."""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            text, self._held = self._held[: min(places)], ""
            return text
        kept = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - kept
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _overlap(self, stop: str) -> int:
        """Characters at the end that begin the stop string."""
        return next((n for n in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)

    def finish(self) -> str:
        """What was held back, when nothing more comes."""
        text, self._held = self._held, ""
        return text


class RowOutput:
    """The text of one row. after: the token before it, as of `Tokenizer.decoder`.

    reason: why it ended; None while it goes on. tokens: those that it has, the end not among them. places: of each of them, the characters
    of the text before it, a stop string's among them.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], max_tokens: int, after: int | None = None) -> None:
        self.tokens: list[int] = []
        self.places: list[int] = []
        self.reason: Reason | None = None
        self._end, self._max = tokenizer.end, max_tokens
        self._decoder, self._stops, self._decoded = tokenizer.decoder(after), StopStrings(stops), 0

    def add(self, token: int) -> str:
        """The text that the next token makes certain."""
        if token == self._end:
            return self._finish("end")
        self.tokens.append(token)
        self.places.append(self._decoded)
        decoded = self._decoder.add(token)
        self._decoded += len(decoded)
        text = self._stops.add(decoded)
        if self._stops.found:
            self.reason = "stop"
        elif len(self.tokens) == self._max:
            return text + self._finish("length")
        return text

    def _finish(self, reason: Reason) -> str:
        text = self._stops.add(self._decoder.finish())
        if self._stops.found:
            self.reason = "stop"
            return text
        self.reason = reason
        return text + self._stops.finish()
