"""Mixing: its steps are gradient descent, it predicts before it learns, and it finds out whom to trust."""

import numpy as np
import torch

from domains.dna.data.alphabet import N
from domains.dna.experts import bits
from domains.dna.mixing import PAST, Mixer, MixerConfig, mix


def some_experts(length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bases, and the logarithms of what three experts told: one that is mostly right, one that guesses, one that errs."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 4, length).astype(np.uint8)
    right = np.full((4, length), 0.1)
    right[np.where(random.random(length) < 0.8, codes, (codes + 1) % 4), np.arange(length)] = 0.7
    guess = random.dirichlet([1.0] * 4, length).T
    wrong = np.full((4, length), 0.3)
    wrong[codes, np.arange(length)] = 0.1
    return codes, np.log(np.stack([right, guess, wrong]))


def test_a_step_is_gradient_descent_as_autograd_has_it() -> None:
    random = np.random.default_rng(0)
    config = MixerConfig(hidden=5, weight_rate=0.3, network_rate=0.2)
    mixer = Mixer(3, config)
    mixer.second = random.normal(size=(5, 4)).astype(np.float32)
    f, inputs = random.normal(size=(6, 3, 4)).astype(np.float32), random.normal(size=(6, 4 * (3 + PAST) + 1)).astype(np.float32)
    symbols = np.array([0, 1, 2, 3, 0, 0])
    parameters = [torch.tensor(x, requires_grad=True) for x in (mixer.weights, mixer.first, mixer.second)]
    weights, first, second = parameters
    logits = torch.einsum("e,bea->ba", weights, torch.from_numpy(f)) + (torch.from_numpy(inputs) @ first).relu() @ second
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(symbols), reduction="sum")
    loss.backward()
    chances, hidden = mixer.predict(f, inputs)
    np.testing.assert_allclose(chances, logits.softmax(-1).detach().numpy(), rtol=1e-4)
    error = chances.copy()
    error[np.arange(6), symbols] -= 1
    mixer.step(f, inputs, error, hidden)
    for now, before, rate in zip((mixer.weights, mixer.first, mixer.second), parameters, (0.3, 0.2, 0.2), strict=True):
        assert before.grad is not None
        np.testing.assert_allclose(now, (before - rate * before.grad).detach().numpy(), rtol=1e-3, atol=1e-5)


def test_it_predicts_before_it_learns() -> None:
    """A base changes nothing before the end of its batch, and all that comes later."""
    codes, told = some_experts(64)
    config = MixerConfig(batch=8)
    before = mix(codes, told, config)
    changed = codes.copy()
    changed[19] = (codes[19] + 1) % 4
    after = mix(changed, told, config)
    assert np.array_equal(before[:, :20], after[:, :20])
    assert (before[:, 24:] != after[:, 24:]).any(axis=0).all()


def test_it_learns_whom_to_trust() -> None:
    """Better than the best expert: the one that errs tells what does not come."""
    codes, told = some_experts(20_000)
    best = min(bits(codes, np.exp(expert))[10_000:].mean() for expert in told)
    for hidden in (0, 8):
        mixed = bits(codes, mix(codes, told, MixerConfig(hidden=hidden)))[10_000:].mean()
        assert mixed < best - 0.05


def test_n_is_neither_predicted_nor_learned_from() -> None:
    codes, told = some_experts(200)
    holes = codes.copy()
    holes[50:60] = N
    mixed = mix(holes, told)
    assert (mixed[:, 50:60] == 0.25).all()
    assert np.isfinite(mixed).all()
    np.testing.assert_allclose(mixed.sum(axis=0), 1, rtol=1e-5)
