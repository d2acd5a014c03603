"""MQAR, associative recall and induction heads, by what their papers say of an example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.text.tasks.recall import AssociativeRecall, InductionHeads, MultiQueryRecall
from domains.text.tasks.task import generator
from titans_seq.losses import IGNORED


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 20), st.integers(14, 60), st.booleans())
def test_every_key_is_asked_once_and_has_its_value(seed: int, pairs: int, room: int, symbols: int, filler: bool) -> None:
    task = MultiQueryRecall(symbols=symbols, length=4 * pairs + 2 * room, pairs=pairs, random_filler=filler)
    inputs, targets = task.example(generator(seed, "test", 0))
    context = dict(zip(inputs[0 : 2 * pairs : 2].tolist(), inputs[1 : 2 * pairs : 2].tolist(), strict=True))
    assert len(context) == pairs  # no key twice
    assert all(1 <= key < symbols // 2 <= value < symbols for key, value in context.items())
    assert len(set(context.values())) == pairs
    places = np.flatnonzero(targets != IGNORED)
    assert len(places) == pairs
    assert ((places >= 2 * pairs) & (places % 2 == 0)).all()
    assert {int(inputs[t]): int(targets[t]) for t in places} == context
    others = np.delete(inputs, [*range(2 * pairs), *places])
    assert filler or not others.any()
    assert ((others >= 0) & (others < symbols)).all()


def test_gaps_follow_the_law_of_zoology() -> None:
    """p(g) is proportional to (g + 1)^(power - 1): the first place of a single pair, within four standard errors."""
    task, count = MultiQueryRecall(symbols=8, length=18, pairs=1, power=0.5), 4000
    gaps = [int(np.flatnonzero(task.example(generator(0, "test", i)).targets != IGNORED)[0]) // 2 - 1 for i in range(count)]
    expected = np.arange(1, 9) ** -0.5
    expected /= expected.sum()
    error = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(np.bincount(gaps, minlength=8) / count - expected) < 4 * error).all()


@given(st.integers(0, 2**32 - 1), st.integers(3, 20), st.integers(1, 30))
def test_associative_recall_asks_for_a_key_that_came(seed: int, symbols: int, pairs: int) -> None:
    task = AssociativeRecall(symbols=symbols, length=2 * pairs)
    inputs, targets = task.example(generator(seed, "test", 0))
    assert len(inputs) == 2 * pairs + 2
    known = dict(zip(inputs[0 : 2 * pairs : 2].tolist(), inputs[1 : 2 * pairs : 2].tolist(), strict=True))
    assert all(known[k] == v for k, v in zip(inputs[0 : 2 * pairs : 2].tolist(), inputs[1 : 2 * pairs : 2].tolist(), strict=True))
    assert all(key < (symbols - 1) // 2 <= value < symbols - 1 for key, value in known.items())
    assert inputs[-2] == symbols - 1
    assert known[int(inputs[-1])] == targets[-1]
    assert (targets[:-1] == IGNORED).all()


@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(1, 5))
def test_induction_asks_for_what_followed_every_arrow(seed: int, length: int, triggers: int) -> None:
    task = InductionHeads(length=length, triggers=triggers)
    inputs, targets = task.example(generator(seed, "test", 0))
    arrows = np.flatnonzero(inputs == 18)
    assert len(inputs) == length + 1
    assert arrows[-1] == length
    assert 1 <= len(arrows) - 1 <= triggers
    assert set(inputs[arrows[:-1] + 1].tolist()) == {targets[-1]}
    assert (targets[:-1] == IGNORED).all()


@pytest.mark.parametrize("task", [AssociativeRecall(), InductionHeads()])
def test_in_training_every_next_token_is_asked(task: AssociativeRecall | InductionHeads) -> None:
    inputs, targets = task.example(generator(0, "training", 0), training=True)
    assert (targets[:-1] == inputs[1:]).all()
    assert targets[-1] == task.example(generator(0, "training", 0)).targets[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 30, "pairs": 8}, "length must be even, and at least 4 pairs=32"),
        ({"symbols": 16, "pairs": 8}, "pairs must be between 1 and symbols / 2 - 1 = 7"),
        ({"length": 33, "pairs": 2}, "length must be even"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiQueryRecall(**settings)  # type: ignore[arg-type]
