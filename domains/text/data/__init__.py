"""Text files as documents of tokens."""

from domains.text.config import END, Split
from domains.text.data.documents import TextDocuments, read_texts
from domains.text.data.sources import FIELD, SUFFIXES, Block, read_blocks

__all__ = ["END", "FIELD", "SUFFIXES", "Block", "Split", "TextDocuments", "read_blocks", "read_texts"]
