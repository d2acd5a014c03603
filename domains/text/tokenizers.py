"""Tokenisers: bytes, and whatever the `tokenizers` library reads from JSON. Both know one token more, the end of a document."""

import hashlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from domains.text.config import BYTE_VOCABULARY, BYTES, END, TextConfig
from titans_seq.errors import UserError
from titans_seq.hub import TOKENIZER_NAME

END_TOKENS = ("<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Names that the end of a document goes by, the first being ours."""


_SAMPLE = "The 20 ﬁne ships,\r\n\tof “Größe”  and cafe\u0301, 水 🚢.\n"


class TextDecoder(Protocol):
    """Turns tokens into text as they come; what it gave is never taken back, and no character is given in part."""

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        ...

    def finish(self) -> str:
        """What was held back: an unfinished character is U+FFFD."""
        ...


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def identity(self) -> str:
        """Says which tokeniser it is: two with the same one do the same."""
        ...

    @property
    def vocabulary(self) -> int:
        """V: tokens are in [0, V)."""
        ...

    @property
    def end(self) -> int:
        """The token that begins and ends a document; no text gives it."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of each text, (T,) integers."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; `end` is left out, and what is no character is U+FFFD."""
        ...

    def decoder(self, after: int | None = None) -> TextDecoder:
        """For tokens one after the other: what it gives, joined, is `decode` of all of them, or what they add to `after`.

        after: the token before them, if there is one, whose own text is not given: whether theirs begins with a space may depend on it.
            What is left of a character that it began is not given either.
        """
        ...


class ByteTokenizer:
    """UTF-8, a token a byte. Any text goes through unchanged."""

    identity = BYTES
    vocabulary = BYTE_VOCABULARY
    end = END

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As of `Tokenizer`, uint8."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        """As of `Tokenizer`."""
        return bytes(token for token in tokens if token != END).decode(errors="replace")

    def decoder(self, after: int | None = None) -> TextDecoder:
        """As of `Tokenizer`."""
        return _ByteDecoder()


class _ByteDecoder:
    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(b"" if token == END else bytes([token]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class JsonTokenizer:
    """A tokeniser of the `tokenizers` library.

    Args:
        text: its JSON.
        end: name of the token that begins and ends documents; None for the first of `END_TOKENS` that it has, or else `<|end|>`, which is
            added to it.

    Raises:
        UserError: it is no such JSON, or has no token of that name.
    """

    def __init__(self, text: str, end: str | None = None) -> None:
        self._inner = _parse(text)
        known: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        if end is not None and end not in known:
            raise UserError(f"the tokeniser has no token {end!r}. Name one that it has: --end-token.")
        name = end or next((name for name in END_TOKENS if name in known), END_TOKENS[0])
        if name not in known or not any(token.content == name and token.special for token in self._added().values()):
            from tokenizers import AddedToken

            self._inner.add_special_tokens([AddedToken(name, special=True, normalized=False)])
            text = self._inner.to_str()
            known = self._inner.get_vocab(with_added_tokens=True)
        self._inner.encode_special_tokens = True  # the name of a special token, in a text, is text
        self._inner.no_padding()
        self._inner.no_truncation()
        self.text = text
        """The JSON."""
        self.end = known[name]
        self.vocabulary = max(known.values()) + 1

    @cached_property
    def _spelled(self) -> list[int]:
        """Tokens of the characters of the end's name, where texts are made of it too (Unigram, WordLevel); none if it has none."""
        name, known = self._inner.id_to_token(self.end), self._inner.get_vocab(with_added_tokens=True)
        try:
            spelled = [token for letter in name for token in ([known[letter]] if letter in known else self._encode([letter])[0])]
        except UserError:  # it has no tokens for them
            return []
        return [] if self.end in spelled else spelled

    @classmethod
    def restore(cls, text: str, end: int) -> "JsonTokenizer":
        """One that was saved, its `text`, with the end that it had.

        Raises:
            UserError: it is no such JSON, or has no token of that number.
        """
        return cls(text, _parse(text).id_to_token(end) or f"number {end}")

    def _added(self) -> dict[int, Any]:
        added: dict[int, Any] = self._inner.get_added_tokens_decoder()
        return added

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the JSON, and which token is the end."""
        return f"{hashlib.sha256(self.text.encode()).hexdigest()[:32]}-{self.end}"

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As of `Tokenizer`, uint32.

        Raises:
            UserError: it has no token for a word or a character, nor one for unknown ones; or the end is the token of one.
        """
        return [np.array(self._without_end(tokens), dtype=np.uint32) for tokens in self._encode(texts)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        with _said("the tokeniser has no tokens for a text ({}). Take one that has a token for what it does not know."):
            return [one.ids for one in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _without_end(self, tokens: list[int]) -> list[int]:
        """The end's name, in a text, is text."""
        if self.end not in tokens:
            return tokens
        if not self._spelled:
            name = self._inner.id_to_token(self.end)
            raise UserError(f"the token {name!r} is one that texts are made of. Name one for the end of documents alone: --end-token.")
        return [part for token in tokens for part in (self._spelled if token == self.end else [token])]

    def decode(self, tokens: Iterable[int]) -> str:
        """As of `Tokenizer`."""
        return str(self._inner.decode([token for token in tokens if token != self.end], skip_special_tokens=False))

    def decoder(self, after: int | None = None) -> TextDecoder:
        """As of `Tokenizer`."""
        return _PrefixDecoder(self, after)


def keeps_texts(tokenizer: Tokenizer) -> bool:
    """Whether texts come back from its tokens as they were: whether a short one does, with capitals, spaces, lines and rare characters.

    Of a tokeniser that loses something the bits of tokens are not those of the text.
    """
    try:
        (tokens,) = tokenizer.encode_batch([_SAMPLE])
    except UserError:  # it has no tokens for some of it
        return False
    return tokenizer.decode(tokens.tolist()).removeprefix(" ") == _SAMPLE  # a space before the text is not lost, but more


class _PrefixDecoder:
    """Decodes the tokens since the last certain text again with each new one: what tokens mean may depend on those before them."""

    def __init__(self, tokenizer: JsonTokenizer, after: int | None) -> None:
        self._decode = tokenizer.decode
        self._tokens = [] if after is None else [after]
        self._start, self._certain = 0, len(self._tokens)  # of the tokens that are decoded again; of those whose text was given

    def add(self, token: int) -> str:
        self._tokens.append(token)
        text = self._rest()
        if not text or text.endswith("\ufffd"):  # perhaps the begin of a character
            return ""
        self._start, self._certain = self._certain, len(self._tokens)
        return text

    def finish(self) -> str:
        text = self._rest()
        self._certain = len(self._tokens)
        return text

    def _rest(self) -> str:
        before = self._decode(self._tokens[self._start : self._certain])
        return self._decode(self._tokens[self._start :])[len(before) :]


def _parse(text: str) -> Any:
    import tokenizers

    with _said("no tokeniser of the `tokenizers` library ({})."):
        return tokenizers.Tokenizer.from_str(text)


@contextmanager
def _said(message: str) -> Iterator[None]:
    """What the `tokenizers` library refuses, as a UserError with its words at the braces."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # the library raises nothing more special
            raise
        raise UserError(message.format(f"{error!s:.200}")) from error


def load_tokenizer(path: str | Path, end: str | None = None) -> JsonTokenizer:
    """A tokeniser from its JSON on disk, or from a folder that holds it as tokenizer.json; end: as `JsonTokenizer`.

    Raises:
        UserError: there is no such file, or as `JsonTokenizer`.
    """
    path = Path(path)
    if path.is_dir():
        path = path / TOKENIZER_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{path}: cannot be read as a tokeniser ({getattr(error, 'strerror', None) or error}). Give a tokenizer.json, or a folder with "
            "one: `titans-seq text tokenizer` makes it, and Hugging Face's models have it."
        ) from error
    try:
        return JsonTokenizer(text, end)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def saved_tokenizer(folder: Path, config: TextConfig) -> Tokenizer | None:
    """The tokeniser of a saved model; None where its folder does not hold it.

    Raises:
        UserError: what the folder holds is damaged, or another one.
    """
    path = folder / TOKENIZER_NAME
    if config.tokenizer == BYTES:
        return ByteTokenizer()
    if not path.is_file():
        return None
    try:
        found = JsonTokenizer.restore(path.read_text(encoding="utf-8"), config.end)
    except (UserError, UnicodeError, OSError) as error:
        raise UserError(f"{path}: {error}") from error
    if config.with_tokenizer(found) != config:
        raise UserError(f"{path}: is not the tokeniser that the model was trained with. Take the one that was saved with it.")
    return found


def train_tokenizer(texts: Iterator[str], vocabulary: int, progress: bool = False) -> JsonTokenizer:
    """Byte-level BPE (as of GPT-2) learned from texts: any text goes through unchanged.

    Args:
        texts: in parts of any size.
        vocabulary: tokens in all, the 256 bytes and the end of a document among them; fewer come out where the texts give no more.
        progress: show it.

    Raises:
        ValueError: vocabulary is smaller than 257.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocabulary < 257:
        raise ValueError(f"vocabulary must be at least 257, the bytes and the end of a document, got {vocabulary}")
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END_TOKENS[0]], initial_alphabet=alphabet, show_progress=progress)
    inner.train_from_iterator(texts, trainer)
    return JsonTokenizer(inner.to_str(), END_TOKENS[0])
