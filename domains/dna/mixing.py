"""Experts on the next base mixed into one, online: predicted, scored, and only then learned from.

    logits of base a = sum over experts of w[expert] f[expert, a] + (what a small network makes of all f and the bases before)[a]

f are the logarithms of an expert's chances, less their mean over the four bases. The first sum is logistic mixing (PAQ); the network, with
one hidden layer, is in the manner of GeCo3 (Silva et al. 2020, doi:10.1093/gigascience/giaa119). A step of plain gradient descent is taken
on every `batch` bases, by formulas: `Mixer.step`.

Shapes: E experts, T bases, B bases of a batch, D inputs and H hidden units of the network.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from domains.dna.data.alphabet import BASE_BITS, N
from titans_seq.config import Config

PAST = 8
"""Bases before that the network sees."""
_BLOCK = 1 << 14
_SCALE, _LARGEST = 0.5, 3.0
"""Of the network's inputs: f times the scale, within bounds."""


@dataclass(frozen=True, kw_only=True)
class MixerConfig(Config):
    """How experts are mixed.

    Attributes:
        hidden: units of the network; 0 for logistic mixing alone.
        batch: bases that are predicted before a step is taken on them.
        weight_rate: step size of the weights of the experts.
        network_rate: step size of the network.
        first_weight: of every expert.
        seed: of the network's first weights.
    """

    hidden: int = 32
    batch: int = 32
    weight_rate: float = 0.002
    network_rate: float = 0.01
    first_weight: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("hidden", self.hidden >= 0, "at least 0")
        self._require("batch", self.batch >= 1, "at least 1")
        for name in ("weight_rate", "network_rate", "first_weight"):
            self._require(name, getattr(self, name) > 0, "positive")


class Mixer:
    """The mixture of E = `num_experts` experts as it stands."""

    def __init__(self, num_experts: int, config: MixerConfig) -> None:
        self.config = config
        random, inputs = np.random.default_rng(config.seed), 4 * (num_experts + PAST) + 1
        self.weights = np.full(num_experts, config.first_weight, dtype=np.float32)
        self.first = (random.normal(size=(inputs, config.hidden)) / np.sqrt(inputs)).astype(np.float32)
        self.second = np.zeros((config.hidden, 4), dtype=np.float32)

    def predict(self, f_BE4: np.ndarray, inputs_BD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chances (B, 4) of the next base, and the hidden units (B, H) that go with them."""
        hidden_BH = np.maximum(inputs_BD @ self.first, 0)
        logits = np.matmul(self.weights, f_BE4) + hidden_BH @ self.second
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        return chances / chances.sum(axis=1, keepdims=True), hidden_BH

    def step(self, f_BE4: np.ndarray, inputs_BD: np.ndarray, error_B4: np.ndarray, hidden_BH: np.ndarray) -> None:
        """Gradient descent on the sum of -log chances; error: the gradient by the logits, chances less one for the base that came."""
        by_hidden = (error_B4 @ self.second.T) * (hidden_BH > 0)
        self.weights -= self.config.weight_rate * np.tensordot(error_B4, f_BE4, axes=((0, 1), (0, 2)))
        self.second -= self.config.network_rate * (hidden_BH.T @ error_B4)
        self.first -= self.config.network_rate * (inputs_BD.T @ by_hidden)


def mix(codes: np.ndarray, told: np.ndarray, config: MixerConfig | None = None) -> np.ndarray:
    """Chances (4, T) float32 of each base, mixed from what experts told of it and learned from the bases before its batch.

    Args:
        codes: (T,) uint8.
        told: (E, 4, T), logarithms of the experts' chances.
        config: of the mixture.
    """
    config = config or MixerConfig()
    bases = codes & BASE_BITS
    mixer, mixed = Mixer(len(told), config), np.full((4, len(codes)), 0.25, dtype=np.float32)
    for where, f, inputs in _blocks(bases, told):
        for start in range(0, len(where), config.batch):
            part = slice(start, start + config.batch)
            place = where[part]
            chances, hidden = mixer.predict(f[part], inputs[part])
            mixed[:, place] = chances.T
            chances[np.arange(len(place)), bases[place]] -= 1
            mixer.step(f[part], inputs[part], chances, hidden)
    return mixed


def _blocks(bases: np.ndarray, told: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Places that are no N, block by block, with f (B, E, 4) and the network's inputs (B, D) there."""
    one_hot = np.eye(5, 4, dtype=np.float32)  # N is none of them
    for start in range(0, len(bases), _BLOCK):
        where = start + np.flatnonzero(bases[start : start + _BLOCK] < N)
        f = told[:, :, start : start + _BLOCK][:, :, where - start].astype(np.float32).transpose(2, 0, 1)
        f = f - f.mean(axis=2, keepdims=True)
        before = where[:, None] - np.arange(1, PAST + 1)
        past = one_hot[np.where(before >= 0, bases[before], N)]  # (B, PAST, 4)
        scaled = np.clip(f * np.float32(_SCALE), -_LARGEST, _LARGEST)
        ones = np.ones((len(where), 1), dtype=np.float32)
        yield where, f, np.concatenate([scaled.reshape(len(where), -1), past.reshape(len(where), -1), ones], axis=1)
