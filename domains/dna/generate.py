"""DNA sampled from the model, base by base through the state: memory does not grow with the length but for a byte a base of the result.

Shapes: B sequences, T bases.
"""

from collections.abc import Callable

import numpy as np
import torch

from domains.dna.data.alphabet import N
from domains.dna.model import BEGIN, TitansForDNA
from domains.dna.reading import read_on
from domains.dna.settings import SamplingConfig
from titans_seq.decoding import Decoder

_SEGMENT = 1024


def chances(logits: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """Chances (B, 4) float64 of A C G T to be drawn, from their logits (B, 4)."""
    order = np.argsort(-logits, axis=1, kind="stable")
    if config.temperature == 0:
        return np.eye(N)[order[:, 0]]
    scaled = logits.astype(np.float64) / config.temperature
    raw = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    ranked = np.take_along_axis(raw / raw.sum(axis=1, keepdims=True), order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    ranked[:, config.top_k :] = 0
    ranked[before >= config.top_p] = 0
    kept = np.empty_like(ranked)
    np.put_along_axis(kept, order, ranked, axis=1)
    return kept / kept.sum(axis=1, keepdims=True)


def generate(
    model: TitansForDNA,
    length: int,
    prompt: np.ndarray | None = None,
    num_sequences: int = 1,
    config: SamplingConfig | None = None,
    stream: int = 0,
    advance: Callable[[int], object] = lambda bases: None,
) -> np.ndarray:
    """Draw sequences that go on where a prompt ends; the memory learns the prompt, and what is drawn.

    Args:
        model: the model, on whose device is computed.
        length: T, at least 1.
        prompt: codes (P,) uint8 that are read first; None for none.
        num_sequences: B. Each has draws of its own, so the first of many are what fewer would be.
        config: of sampling.
        stream: different streams have different draws from one seed, such as one for each prompt.
        advance: is told of each base of all sequences that it was drawn.

    Returns:
        (B, T) uint8 codes, without the prompt.

    Raises:
        ValueError: length or num_sequences is below 1.
    """
    if min(length, num_sequences) < 1:
        raise ValueError(f"length and num_sequences must be at least 1, got {length} and {num_sequences}")
    config, decoder = config or SamplingConfig(), Decoder(model.eval())
    device = model.output_weight.device
    tokens = np.concatenate([np.array([BEGIN], np.uint8), np.zeros(0, np.uint8) if prompt is None else prompt])
    with torch.no_grad():
        state = read_on(model, tokens[None, :-1], None, _SEGMENT)
        if state is None:
            state = model.initial_state(1)
        state = state.index_select(torch.zeros(num_sequences, dtype=torch.int64, device=device))
    draws = [np.random.default_rng([config.seed, stream, number]) for number in range(num_sequences)]
    made = np.empty((num_sequences, length), np.uint8)
    last = np.full(num_sequences, tokens[-1], np.uint8)
    for t in range(length):
        logits, state = decoder(torch.from_numpy(last).to(device).long()[:, None], state)
        below = chances(logits[:, 0].float().cpu().numpy(), config).cumsum(axis=1)
        drawn = np.array([draw.random() for draw in draws])
        last = (below[:, :-1] <= drawn[:, None] * below[:, -1:]).sum(axis=1).astype(np.uint8)
        made[:, t] = last
        advance(num_sequences)
    return made
