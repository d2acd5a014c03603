"""DNA sampled from the model, base by base through the state: memory does not grow with the length but for a byte a base of the result.

Shapes: B sequences, T bases.
"""

from collections.abc import Callable

import numpy as np
import torch

from domains.dna.model import BEGIN, TitansForDNA
from domains.dna.reading import read_on
from titans_seq.config import SamplingConfig
from titans_seq.decoding import Decoder
from titans_seq.sampling import chances, draw, make_generators

_SEGMENT = 1024


def generate(
    model: TitansForDNA,
    length: int,
    prompt: np.ndarray | None = None,
    num_sequences: int = 1,
    config: SamplingConfig | None = None,
    seed: int = 0,
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
        seed: of the draws, at least 0: the same one draws the same sequences.
        stream: different streams have different draws from one seed, such as one for each prompt.
        advance: is told of each base of all sequences that it was drawn.

    Returns:
        (B, T) uint8 codes, without the prompt.

    Raises:
        ValueError: length or num_sequences is below 1, or seed below 0.
    """
    if min(length, num_sequences) < 1 or seed < 0:
        raise ValueError(f"length and num_sequences must be at least 1 and seed 0, got {length}, {num_sequences} and {seed}")
    config, decoder = config or SamplingConfig(), Decoder(model.eval())
    device = model.output_weight.device
    tokens = np.concatenate([np.array([BEGIN], np.uint8), np.zeros(0, np.uint8) if prompt is None else prompt])
    with torch.no_grad():
        state = read_on(model, tokens[None, :-1], None, _SEGMENT)
        if state is None:
            state = model.init_state(1)
        state = state.select(torch.zeros(num_sequences, dtype=torch.int64, device=device))
    generators = _generators(seed, stream, num_sequences)
    made = np.empty((num_sequences, length), np.uint8)
    last = np.full(num_sequences, tokens[-1], np.uint8)
    for t in range(length):
        logits, state = decoder(torch.from_numpy(last).to(device).long()[:, None], state)
        last = draw(chances(logits[:, 0].float().cpu(), config), generators).numpy().astype(np.uint8)
        made[:, t] = last
        advance(num_sequences)
    return made


def _generators(seed: int, stream: int, count: int) -> list[torch.Generator]:
    """One for each sequence of a stream, which no other sequence or stream changes."""
    of_stream = make_generators(seed, stream + 1)[stream]
    return make_generators(int(torch.randint(2**62, (), generator=of_stream)), count)
