"""Filters against a plain loop, seeds, the penalty."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titans_seq.config import SamplingConfig
from titans_seq.sampling import chances, draw, make_generators, penalise_repetition

LOGITS = st.lists(st.one_of(st.floats(-8, 8), st.sampled_from([0.0, 1.0, 1.0])), min_size=1, max_size=9)
CONFIGS = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.sampled_from([1e-9, 0.2, 0.5, 0.9, 1.0]),
    min_p=st.none() | st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


def plain(logits: list[float], config: SamplingConfig) -> list[float]:
    """Token by token, from the definitions."""
    size = len(logits)
    if config.temperature == 0:
        best = logits.index(max(logits))
        return [float(token == best) for token in range(size)]
    powers = [math.exp((x - max(logits)) / config.temperature) for x in logits]
    found = [power / sum(powers) for power in powers]
    ranked = sorted(range(size), key=lambda token: (-found[token], token))
    kept = set(ranked)
    if config.top_k is not None:
        kept &= set(ranked[: config.top_k])
    if config.top_p is not None:
        nucleus: list[int] = []
        for token in ranked:
            if math.fsum(found[one] for one in nucleus) >= config.top_p:
                break
            nucleus.append(token)
        kept &= set(nucleus)
    if config.min_p is not None:
        kept &= {token for token in ranked if found[token] >= config.min_p * found[ranked[0]]}
    total = math.fsum(found[token] for token in kept)
    return [found[token] / total if token in kept else 0.0 for token in range(size)]


@given(logits=LOGITS, config=CONFIGS)
def test_filters_are_their_definitions(logits: list[float], config: SamplingConfig) -> None:
    exact = torch.tensor([logits], dtype=torch.float64)
    expected = torch.tensor(plain(logits, config), dtype=torch.float64)
    torch.testing.assert_close(chances(exact, config)[0], expected, rtol=1e-9, atol=1e-12)


@given(logits=LOGITS, config=CONFIGS)
def test_rows_are_by_themselves(logits: list[float], config: SamplingConfig) -> None:
    row = torch.tensor([logits])
    both = chances(torch.cat([row, row.flip(1)]), config)
    assert torch.equal(both[:1], chances(row, config))
    assert both.sum(1).tolist() == pytest.approx([1, 1])


def test_drawn_as_often_as_the_chances_say() -> None:
    wanted = torch.tensor([[0.5, 0.0, 0.3, 0.2]], dtype=torch.float64)
    (generator,) = make_generators(3, 1)
    counts = torch.bincount(torch.cat([draw(wanted, [generator]) for _ in range(4000)]), minlength=4)
    assert counts[1] == 0
    expected = 4000 * wanted[0]
    chi_square = ((counts - expected).square() / expected)[[0, 2, 3]].sum()
    assert chi_square < 13.8  # one in a thousand of right ones is above


def test_what_a_row_draws_depends_on_seed_and_number_alone() -> None:
    flat = torch.full((1, 1000), 1e-3, dtype=torch.float64)
    few, many = make_generators(7, 2), make_generators(7, 5)
    assert [int(draw(flat, [g])) for g in few] == [int(draw(flat, [g])) for g in many[:2]]
    drawn = {int(draw(flat, [g])) for g in [*make_generators(7, 5), *make_generators(8, 5)]}
    assert len(drawn) == 10


def test_the_penalty_makes_what_was_seen_less_likely() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]
    assert penalise_repetition(logits, seen, 1.0) is logits


@pytest.mark.parametrize("setting", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        SamplingConfig(**setting)  # type: ignore[arg-type]
