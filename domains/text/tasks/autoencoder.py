"""Models for MAD's compression: all logits from the hidden vector of the last token. Shapes: B rows, T tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from domains.text.model import TitansForCausalLM


class LastTokenDecoder:
    """Mixed into a language model, before it, this makes it MAD's auto-encoder (arXiv 2403.17844).

    Of the last token's hidden vector and sinusoidal positions, twice norm, linear map as wide as the model, GELU; then the logits. An input
    must be read at once, rows of one length; what was read before counts for nothing but the state.
    """

    def __init__(self, config: Any, *rest: Any) -> None:
        super().__init__(config, *rest)  # type: ignore[call-arg]  # of the language model
        dim = config.titans.dim
        layers = [(nn.RMSNorm(dim), nn.Linear(dim, dim), nn.GELU()) for _ in range(2)]
        self.decoder = nn.Sequential(*(module for layer in layers for module in layer), nn.RMSNorm(dim))

    def hidden(self, tokens: Tensor, *rest: Any, **marks: Any) -> tuple[Tensor, Any]:
        """As of `LanguageModel`, (B, T, dim)."""
        y, state = super().hidden(tokens, *rest, **marks)  # type: ignore[misc]  # of the language model
        return self.decoder(y[:, -1:] + _positions(tokens.shape[1], y)), state


class TitansAutoencoder(LastTokenDecoder, TitansForCausalLM):
    """Titans as MAD's auto-encoder."""

    model_type = "titans_autoencoder"


def _positions(length: int, like: Tensor) -> Tensor:
    """(T, dim): sines, then cosines, of positions times falling frequencies."""
    half = -(-like.shape[-1] // 2)
    frequencies = 10_000.0 ** (-torch.arange(half, device=like.device) / max(1, half - 1))
    angles = torch.arange(length, device=like.device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, : like.shape[-1]].to(like.dtype)
