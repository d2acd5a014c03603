"""Which parameters decay, and how the learning rate runs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from domains.text.model import TextConfig, TitansForCausalLM
from titans_seq import LocalMemoryConfig, presets
from titans_seq.config import VARIANTS, TitansConfig
from titans_seq.training import TrainingConfig
from titans_seq.training.optimizer import learning_rate_factor, make_optimizer, parameter_groups

DECAYING = {
    *("qkv.weight", "convolution.weight", "memory.gate.weight", "mixer.gate.weight", "output.weight", "query.weight", "key_value.weight"),
    *("input.weight", "head.weight"),
}
NOT_DECAYING = {
    *("norm.weight", "norm_y.weight", "norm_m.weight", "output_norm.weight", "mixer_norm.weight", "feed_forward_norm.weight"),
    *("norm_scale", "norm_shift", "first_state.0", "first_state.1", "momentum_and_step.weight", "momentum_and_step.bias"),
    *("forgetting.weight", "forgetting.bias", "forgetting.0.weight", "forgetting.1.weight", "forgetting.1.bias"),
    *("persistent_keys", "persistent_values", "memory_queries", "embedding.weight"),
}


def every_kind(variant: str) -> TitansConfig:
    """A backbone with every kind of parameter that the variant can have."""
    config = presets.debug(variant)
    local = None if variant == "mac" else LocalMemoryConfig(chunk_sizes=(2,), shard_length=8)
    memory = replace(config.memory, forgetting="channel" if variant in ("mag", "mac") else "head", local=local)
    return replace(config, memory=memory, attention=replace(config.attention, memory_tokens=2 if variant == "mac" else 0))


def known_as(name: str, kinds: set[str]) -> bool:
    return any(name == kind or name.endswith(f".{kind}") for kind in kinds)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_in_one_group_and_in_which(variant: str, tie: bool) -> None:
    model = TitansForCausalLM(TextConfig(titans=every_kind(variant), tie_embeddings=tie))
    decay, no_decay = parameter_groups(model, 0.1)
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in (decay, no_decay)]
    assert sorted(groups[0] + groups[1]) == sorted(names.values())
    for name in groups[0]:
        assert known_as(name, DECAYING), name
        assert not known_as(name, NOT_DECAYING), name
    for name in groups[1]:
        assert known_as(name, NOT_DECAYING), name


def test_a_matrix_that_is_also_an_embedding_does_not_decay() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    decay, no_decay = parameter_groups(model, 0.1)
    assert (len(decay["params"]), len(no_decay["params"])) == (0, 1)


def test_decay_shrinks_what_it_should_and_nothing_else() -> None:
    """Steps with zero gradients move exactly the decaying group."""
    model = TitansForCausalLM(TextConfig(titans=presets.debug("mag")))
    optimizer, _ = make_optimizer(model, TrainingConfig(weight_decay=0.5, learning_rate=0.1, warmup_steps=0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    decaying = {id(p) for p in optimizer.param_groups[0]["params"]}
    for name, p in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if id(p) in decaying else before[name]
        torch.testing.assert_close(p.detach(), expected)


COSINE = TrainingConfig(max_steps=100, warmup_steps=10, minimum_share=0.1)
WSD = replace(COSINE, schedule="wsd", decay_share=0.2)


@pytest.mark.parametrize(
    ("config", "step", "factor"),
    [
        (COSINE, 0, 0.1),
        (COSINE, 9, 1.0),
        (COSINE, 10, 1.0),
        (COSINE, 55, 0.55),  # half-way
        (COSINE, 100, 0.1),
        (COSINE, 1000, 0.1),
        (WSD, 0, 0.1),
        (WSD, 10, 1.0),
        (WSD, 79, 1.0),
        (WSD, 80, 1.0),
        (WSD, 85, 0.1 + 0.9 * 0.5),  # sqrt(1/4)
        (WSD, 100, 0.1),
        (replace(WSD, decay_share=1.0), 10, 1.0),  # falls from the end of the warm-up
        (replace(COSINE, warmup_steps=0), 0, 1.0),
        (replace(COSINE, warmup_steps=100), 99, 1.0),
        (replace(COSINE, minimum_share=0.0), 100, 0.0),
    ],
)
def test_corners_of_the_schedules(config: TrainingConfig, step: int, factor: float) -> None:
    assert learning_rate_factor(step, config) == pytest.approx(factor)


@given(
    st.sampled_from(["cosine", "wsd"]),
    st.integers(1, 200),
    st.integers(0, 200),
    st.floats(0, 0.99),
    st.floats(0.01, 1),
    st.integers(0, 400),
)
def test_the_learning_rate_rises_then_never_rises_again(
    schedule: str, max_steps: int, warmup: int, minimum: float, decay: float, step: int
) -> None:
    config = TrainingConfig(
        schedule=schedule, max_steps=max_steps, warmup_steps=min(warmup, max_steps), minimum_share=minimum, decay_share=decay
    )
    now, after = learning_rate_factor(step, config), learning_rate_factor(step + 1, config)
    if step < max_steps:
        assert 0 < now <= 1
    assert after <= now + 1e-12 if step + 1 >= config.warmup_steps else after > now
    assert learning_rate_factor(max_steps + step, config) >= min(minimum, 1) - 1e-12
