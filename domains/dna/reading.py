"""Reading with a trained model, piece by piece through the state: what it makes of bases, and how likely it finds them.

Shapes: B rows, T bases, D width of the backbone.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from domains.dna.data.alphabet import BASE_BITS
from domains.dna.model import DNAState, TitansForDNA, base_nats
from titans_seq.memory import frozen_memory

BOTH = (1, -1)
"""The strands: as the file has it, and the reverse complement."""
TABLE_BYTES = 1 << 30
"""That the tables of context memories may take together: fewer rows are read at a time where they are large."""


@contextmanager
def reading(model: TitansForDNA, learn: bool = True) -> Iterator[None]:
    """Within it `model` is in evaluation mode and keeps no graph, and its memories learn or are frozen."""
    model.eval()
    with torch.inference_mode(), nullcontext() if learn else frozen_memory(model):
        yield


def rows_at_once(model: TitansForDNA, wanted: int, states: int = 1) -> int:
    """`wanted` stretches, or as many as have room for the tables of a context memory in `TABLE_BYTES`. states: held for each of them."""
    contexts = model.config.contexts
    return wanted if contexts is None else max(1, min(wanted, TABLE_BYTES // (states * contexts.table_bytes)))


def read(model: TitansForDNA, tokens: np.ndarray, state: DNAState | None) -> tuple[Tensor, Tensor, DNAState]:
    """`TitansForDNA.read` of tokens (B, T) uint8, on the model's device."""
    return model.read(torch.from_numpy(tokens & BASE_BITS).to(model.output_weight.device).long(), state)


def read_on(model: TitansForDNA, tokens: np.ndarray, state: DNAState | None, segment_length: int) -> DNAState | None:
    """The state after tokens (B, T) uint8, T >= 0."""
    for start in range(0, tokens.shape[1], segment_length):
        _, _, state = read(model, tokens[:, start : start + segment_length], state)
    return state


def log_likelihoods(
    model: TitansForDNA, tokens: np.ndarray, targets: np.ndarray, state: DNAState | None, segment_length: int
) -> np.ndarray:
    """Logarithm of the chance of each of the bases `targets`, which follow `tokens`, (B, T) uint8 each: (B, T) float64; 0 for N."""
    found = np.empty(targets.shape)
    for start in range(0, tokens.shape[1], segment_length):
        part = slice(start, start + segment_length)
        _, logits, state = read(model, tokens[:, part], state)
        codes = torch.from_numpy(targets[:, part]).to(logits.device).long()
        found[:, part] = -base_nats(logits, codes).double().cpu().numpy()
    return found
