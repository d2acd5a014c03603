"""The user's own texts as background: words and sentences of books."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from domains.text.data.sources import read_files
from titans_seq.errors import UserError

_END = re.compile(r"""[.!?][.!?"'”\u2019)\]]*\s+(?=["'“\u2018(\[]?[A-Z0-9À-ÖØ-ÞΑ-ΩА-Я])""")
"""Where a sentence ends and another begins. Simpler than nltk's, which the originals use: "Mr. Smith" is cut."""


class Books:
    """Texts that are hay: at least one, none empty."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(text for text in texts if text.strip())
        if not self.texts:
            raise UserError("the books hold no text. Name files or folders of texts that do.")

    @classmethod
    def read(cls, paths: Sequence[str | Path], field: str = "text") -> "Books":
        """The documents of files and folders, as `titans-seq text train` reads them, whole.

        Raises:
            UserError: as `read_files`, or they hold nothing but spaces.
        """
        texts, parts = list[str](), list[str]()
        for block in read_files(map(Path, paths), field):
            parts.append(block.text)
            if block.last:
                texts.append("".join(parts))
                parts.clear()
        return cls(texts)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Of all texts, in order."""
        return tuple(word for text in self.texts for word in text.split())


def sentences(text: str, start: int = 0) -> Iterator[str]:
    """Sentences of a text from a place on, one after the other, with single spaces between words."""
    for match in _END.finditer(text, start):
        yield " ".join(text[start : match.end()].split())
        start = match.end()
    rest = " ".join(text[start:].split())
    if rest:
        yield rest
