"""How well a language model predicts files: bits per byte, read in a stream."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from domains.text.data import TextDocuments
from domains.text.metrics import BITS_PER_BYTE
from domains.text.model import TitansForCausalLM


@dataclass(frozen=True)
class Score:
    """Of one file. `bits_per_byte` counts what its end needs as well."""

    path: Path
    bytes: int
    bits_per_byte: float


def score(
    model: TitansForCausalLM, documents: TextDocuments, segment_length: int = 1024, on_read: Callable[[int], None] = lambda tokens: None
) -> Iterator[Score]:
    """The score of each document, which is read from a fresh state in segments: memory does not grow with its length.

    segment_length: tokens at a time; changes nothing but memory and speed. on_read: called with the tokens that were read.
    """
    device = next(model.parameters()).device
    for n, span in enumerate(documents.spans):
        last, nats, state = int(documents.lengths[n]) - 1, 0.0, None
        for start in range(0, last, segment_length):
            read = torch.from_numpy(documents.read(n, start, min(start + segment_length, last) + 1)).to(device)[None]
            with torch.inference_mode():
                logits, state = model(read[:, :-1], state)
                nats += torch.nn.functional.cross_entropy(logits[0].float(), read[0, 1:], reduction="sum").item()
            on_read(read.shape[1] - 1)
        size = span.stop - span.start
        yield Score(span.path, size, nats * BITS_PER_BYTE.factor / size)
