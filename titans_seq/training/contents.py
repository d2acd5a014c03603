"""How a run that is resumed knows its data again: by their sizes, and by a checksum of what is in them."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from titans_seq.errors import UserError
from titans_seq.training.documents import Documents

PLACES, TOKENS = 1024, 64
"""Where documents are compared: all over them, so many tokens at each."""
ITEMS = 64
"""Of a sequence of items, all over it."""


def checksum(value: Any, before: int = 0) -> int:
    """CRC-32 of tensors, arrays, texts, numbers, and of dictionaries, lists and tuples of them, after `before`; of others their type."""
    if isinstance(value, Mapping):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple):
        for part in value:
            before = checksum(part, before)
        return before
    if isinstance(value, torch.Tensor):  # through bytes, as NumPy has no bfloat16
        value = torch.atleast_1d(value.detach().cpu()).contiguous().view(torch.uint8).numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return zlib.crc32(value.tobytes(), before)
    told = isinstance(value, str | bytes | bool | int | float | np.generic | None)
    return zlib.crc32((repr(value) if told else type(value).__name__).encode(), before)


def of_documents(documents: Documents, dtype: type) -> int:
    """Checksum of the lengths of documents, and of what is read in `PLACES`, as numbers of `dtype`."""
    ends = np.cumsum(documents.lengths)
    found = checksum(ends)
    for place in _all_over(int(ends[-1]), PLACES):
        document = int(np.searchsorted(ends, place, side="right"))
        length = int(documents.lengths[document])
        start = place - int(ends[document]) + length
        found = checksum(documents.read(document, start, min(start + TOKENS, length)).astype(dtype), found)
    return found


def of_items(items: Sequence[Any], collate: Callable[[list[Any]], Any]) -> int:
    """Checksum of the batches that at most `ITEMS` of the items make alone."""
    return checksum([collate([items[place]]) for place in _all_over(len(items), ITEMS)])


def _all_over(size: int, most: int) -> list[int]:
    """Places among `size`, at most so many."""
    places: list[int] = np.unique(np.linspace(0, size - 1, most).astype(np.int64)).tolist()
    return places


def check_same_data(state: Mapping[str, Any], sizes: Mapping[str, int], contents: int) -> None:
    """Raise UserError if the state of a source, with its sizes as "made_of" and its checksum as "contents", is not of these data."""
    given = state.get("made_of")
    if not isinstance(given, dict) or not all(type(size) is int for size in given.values()):
        raise UserError(f"the position in the data is damaged: it does not say what the data were ({given!r:.80}).")
    if given != sizes:
        if "pieces" in sizes and {**given, "pieces": sizes["pieces"]} == sizes:
            then, now = given.get("pieces", 0), sizes["pieces"]
            raise UserError(
                f"the run was started by a version that cut documents otherwise: {then:,} pieces then and {now:,} now. "
                "Go on with that version, or start anew in another folder."
            )
        pairs = ((name, given.get(name, 0), sizes.get(name, 0)) for name in {**sizes, **given})
        changed = ", ".join(f"{then:,} {name} then and {now:,} now" for name, then, now in pairs if then != now)
        raise UserError(f"the run was started on other data or other batches: {changed}. Resume it with those it had.")
    if state.get("contents", contents) != contents:  # runs of earlier versions do not say
        raise UserError(
            "the run was started on other data: of the same sizes, but not the same ones (or they are not the same "
            "each time they are read). Resume it with those it had."
        )
