"""MAD's tasks: what is asked is found again from the inputs alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.text.tasks.mad import Compression, FuzzyRecall, InContextRecall, Memorisation, SelectiveCopy, fixed_map
from domains.text.tasks.task import generator
from titans_seq.losses import IGNORED

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(2, 40), st.booleans())
def test_recall_asks_for_the_value_of_a_key_that_comes_again(seed: int, pairs: int, noisy: bool) -> None:
    noise = {"symbols": 32, "noise_symbols": 16, "noise": 0.6} if noisy else {}
    task = InContextRecall(length=2 * pairs, **noise)  # type: ignore[arg-type]
    inputs, targets = task.example(generator(seed, "test", 0))
    known: dict[int, int] = {}
    sequence = [*inputs.tolist(), int(targets[-1])]
    expected = []
    for first, second in zip(sequence[0::2], sequence[1::2], strict=True):
        if first >= 16:
            assert noisy
            assert second >= 16
            expected += [IGNORED, IGNORED]
            continue
        assert first < 8 <= second < 16
        expected += [known.get(first, IGNORED), IGNORED]
        assert known.setdefault(first, second) == second
    assert targets.tolist() == expected[: len(targets)]
    assert targets[-1] != IGNORED  # the last key came before
    assert len(inputs) == 2 * pairs - 1


def test_the_share_of_noise() -> None:
    task = InContextRecall(symbols=32, noise_symbols=16, noise=0.2)
    keys = np.concatenate([task.example(generator(0, "test", i)).inputs[0:126:2] for i in range(100)])
    assert abs((keys >= 16).mean() - 0.2 * 62 / 63) < 4 * np.sqrt(0.16 / len(keys))


@given(SEEDS, st.integers(20, 128), st.booleans())
def test_fuzzy_recall_is_a_map_of_motifs(seed: int, length: int, training: bool) -> None:
    task = FuzzyRecall(length=length)
    inputs, targets = task.example(generator(seed, "test", 0), training)
    assert len(inputs) == length
    sequence = [*inputs.tolist(), int(targets[-1])]
    symbols = sequence[next(i for i, x in enumerate(sequence) if x != 15) :]
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    begin = 0
    for i in range(1, len(symbols) + 1):  # a key begins where a value ends
        if i == len(symbols) or (symbols[i] < 7 <= symbols[i - 1]):
            pair = symbols[begin:i]
            size = next(n for n, x in enumerate(pair) if x >= 7)
            pairs.append((tuple(pair[:size]), tuple(pair[size:])))
            begin = i
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    asked: list[int] = []
    for key, value in pairs:
        assert len(set(key)) == len(key)
        assert len(key) == 3 or (training and len(key) < 3)
        assert 1 <= len(set(value)) == len(value) <= 3
        asked += [IGNORED] * len(key) + (list(value) if key in known else [IGNORED] * len(value))
        assert known.setdefault(key, value) == value
    if training:
        assert targets.tolist() == sequence[1:]
    else:
        assert targets.tolist() == ([IGNORED] * (len(sequence) - len(asked)) + asked)[1:]
    assert pairs[-1][0] in [key for key, _ in pairs[:-1]]


def test_memorisation_has_the_map_of_the_original() -> None:
    """Of a map that numpy shuffles with seed 12345, keys first; the first pairs were printed by the original's code."""
    keys, values = fixed_map(255, 12345)
    assert sorted(keys) == list(range(127))
    assert len(set(values.tolist())) == 127
    assert min(values) >= 127
    assert list(zip(keys[:4].tolist(), values[:4].tolist(), strict=True)) == [(120, 175), (0, 239), (101, 249), (119, 185)]
    truth = dict(zip(keys.tolist(), values.tolist(), strict=True))
    inputs, targets = Memorisation().example(generator(3, "test", 0))
    assert (inputs[1::2] == 255).all()
    assert [truth[k] for k in inputs[0::2].tolist()] == targets[1::2].tolist()
    assert (targets[0::2] == IGNORED).all()


def test_compression_asks_for_all_of_it() -> None:
    inputs, targets = Compression().example(generator(0, "test", 0))
    assert inputs[-1] == 15
    assert (inputs[:-1] < 15).all()
    assert (inputs == targets).all()


@given(SEEDS, st.integers(1, 20), st.integers(0, 50), st.sampled_from(["gaps", "places"]))
def test_selective_copying_asks_for_the_symbols_in_order(seed: int, copied: int, room: int, spread: str) -> None:
    task = SelectiveCopy(length=2 * copied + 1 + room, copied=copied, spread=spread)  # type: ignore[arg-type]
    inputs, targets = task.example(generator(seed, "test", 0))
    first = int(np.flatnonzero(inputs == 15)[0])
    assert inputs[inputs < 14].tolist() == targets[first + 1 :].tolist()
    assert len(inputs) - first - 1 == copied
    assert (inputs[first + 1 :] == 14).all()
    assert (targets[: first + 1] == IGNORED).all()
    assert spread == "places" or inputs[first - 1] < 14  # MAD has no blank after the last symbol


def test_where_symbols_to_copy_lie() -> None:
    """The mean place of the first of two among 99: 97 / 2 blanks before it with gaps; the least of two of 99 places with places."""
    for spread, mean in (("gaps", 48.5), ("places", (99 - 2) / 3)):
        task = SelectiveCopy(length=102, copied=2, spread=spread)  # type: ignore[arg-type]
        first = [int(np.flatnonzero(task.example(generator(0, "test", i)).inputs < 14)[0]) for i in range(1000)]
        assert abs(np.mean(first) - mean) < 4 * np.std(first) / np.sqrt(1000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InContextRecall(noise=0.5), "noise must be in"),
        (lambda: FuzzyRecall(length=18), "length must be more than 6 motif=18"),
        (lambda: SelectiveCopy(length=32), "length must be more than 2 copied=32"),
        (lambda: Memorisation(length=31), "length must be even"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
