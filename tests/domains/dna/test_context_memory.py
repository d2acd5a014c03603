"""The context memory against a loop with a dictionary, in every cut, with padding and documents; and what it gives a network."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domains.dna.bits import OnlineTrainer, Reader
from domains.dna.config import DNAConfig
from domains.dna.context_config import ContextMemoryConfig
from domains.dna.context_layer import DECAY, ContextLayer
from domains.dna.context_memory import ContextMemoryState, _slot_and_tag, read_and_write
from domains.dna.model import BEGIN, DNAState, TitansForDNA
from titans_seq import presets
from titans_seq.config import ConfigError
from titans_seq.memory import frozen_memory

CONFIG = ContextMemoryConfig(lengths=(1, 2, 3, 4, 6), skips=(0, 1, 0, 2, 0), table_bits=6)


class Table:
    """One kind of context, one base at a time: the definition."""

    def __init__(self, n: int, config: ContextMemoryConfig) -> None:
        self.n, self.config, self.slots = n, config, {}
        self.size, self.skip = config.contexts[n]

    def _place(self, context: list[int]) -> tuple[int, int]:
        number = torch.tensor([int("".join(map(str, context)), 4)])
        slot, tag = _slot_and_tag(number, self.n, self.config)
        return int(slot), int(tag)

    def learn(self, context: list[int], base: int) -> None:
        slot, tag = self._place(context)
        if self.slots.get(slot, (None,))[0] != tag:
            self.slots[slot] = (tag, [0] * 4)
        self.slots[slot][1][base] += 1

    def read(self, bases: list[int]) -> np.ndarray:
        """Counts (T, 4)."""
        told = np.zeros((len(bases), 4), np.int64)
        for t in range(len(bases)):
            window = bases[max(0, t - self.size - self.skip) : t + 1]
            if len(window) == self.size + self.skip + 1 and max(window) < 4:
                self.learn(window[: self.size], window[-1])
                if self.config.inverted:
                    self.learn([3 - base for base in window[::-1][: self.size]], 3 - window[0])
            window = bases[max(0, t + 1 - self.size - self.skip) : t + 1]
            if len(window) == self.size + self.skip and max(window) < 4:
                slot, tag = self._place(window[: self.size])
                held = self.slots.get(slot)
                told[t] = held[1] if held and held[0] == tag else 0
        return told


def expected(bases: list[int], config: ContextMemoryConfig) -> np.ndarray:
    """(T, E, 4)."""
    return np.stack([Table(n, config).read([min(base, 4) for base in bases]) for n in range(len(config.lengths))], axis=1)


BASES = st.lists(st.sampled_from([0, 0, 1, 2, 3, 0, 1, 2, 3, 4, BEGIN]), min_size=1, max_size=80)


@given(bases=BASES, cuts=st.lists(st.integers(0, 80), max_size=4), bits=st.sampled_from([2, 5, 8, 12]), inverted=st.booleans())
def test_equals_a_loop_in_every_cut(bases: list[int], cuts: list[int], bits: int, inverted: bool) -> None:
    config = ContextMemoryConfig(lengths=CONFIG.lengths, skips=CONFIG.skips, table_bits=bits, inverted=inverted)
    x, state = torch.tensor([bases]), ContextMemoryState.initial(config, 1)
    told = []
    for start, stop in pairwise(sorted({0, *(cut for cut in cuts if cut < len(bases)), len(bases)})):
        part, state = read_and_write(x[:, start:stop], state, config)
        told.append(part)
    assert (torch.cat(told, dim=1)[0].numpy() == expected(bases, config)).all()


@given(rows=st.lists(BASES, min_size=2, max_size=3))
def test_rows_of_unequal_length_and_documents_do_not_touch_one_another(rows: list[list[int]]) -> None:
    layer, longest = ContextLayer(8, CONFIG), max(map(len, rows))
    x = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, reset = torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(x, dtype=torch.bool)
    for i, row in enumerate(rows):  # padding on the left of odd rows
        place = slice(longest - len(row), None) if i % 2 else slice(len(row))
        x[i, place], mask[i, place] = torch.tensor(row), True
        reset[i, place] = torch.arange(len(row)) == len(row) // 2
    f, record, _, state = layer.ask(x, layer.init_state(len(rows)), mask, reset)
    for i, row in enumerate(rows):
        alone = layer.init_state(1)
        parts, records = [], []
        for part in (row[: len(row) // 2], row[len(row) // 2 :]):
            if part:
                alone = layer.init_state(1)
                told, its_record, _, alone = layer.ask(torch.tensor([part]), alone)
                parts.append(told)
                records.append(its_record)
        assert torch.equal(f[i][mask[i]], torch.cat(parts, dim=1)[0])
        torch.testing.assert_close(record[i][mask[i]], torch.cat(records, dim=1)[0])
        for found, wanted in zip(state.tensors(), alone.tensors(), strict=True):
            torch.testing.assert_close(found[i], wanted[0])


def test_the_other_strand_is_learned() -> None:
    config = ContextMemoryConfig(lengths=(12,), skips=(0,))
    bases = torch.from_numpy(np.random.default_rng(0).integers(0, 4, 200))
    _, state = read_and_write(bases[None], ContextMemoryState.initial(config, 1), config)
    told, _ = read_and_write((3 - bases.flip(0))[None], state, config)
    assert (told[0, 11:-1, 0].argmax(-1) == (3 - bases.flip(0))[12:]).all()


def test_frozen_it_answers_and_learns_nothing() -> None:
    layer, bases = ContextLayer(8, CONFIG), torch.tensor([[0, 1, 2, 3] * 8])
    *_, state = layer.ask(bases, layer.init_state(1))
    before = state.clone()
    with frozen_memory(layer):
        f, _, _, after = layer.ask(bases, state)
    assert f.abs().sum() > 0
    assert torch.equal(after.memory.counts, before.memory.counts)
    assert torch.equal(after.memory.tags, before.memory.tags)


@given(bases=BASES, cut=st.integers(0, 80))
def test_the_record_is_a_mean_of_what_each_context_told(bases: list[int], cut: int) -> None:
    layer, x = ContextLayer(8, CONFIG), torch.tensor([bases])
    parts, state = [], layer.init_state(1)
    for part in (x[:, :cut], x[:, cut:]):
        if part.shape[1]:
            f, record, _, state = layer.ask(part, state)
            parts.append((f[0], record[0]))
    f, record = (torch.cat(part) for part in zip(*parts, strict=True))
    wanted, told = torch.zeros(len(CONFIG.lengths)), torch.zeros(len(CONFIG.lengths), 4)
    for t, base in enumerate(bases):
        if base < 4:
            wanted = DECAY * wanted + (1 - DECAY) * (4 * told.softmax(-1)[:, base]).log()
        torch.testing.assert_close(record[t], wanted)
        told = f[t]


def test_a_repeat_is_predicted_without_training_and_better_with() -> None:
    torch.manual_seed(0)
    model = TitansForDNA(DNAConfig(titans=presets.debug("lmm"), contexts=ContextMemoryConfig()))
    repeat = torch.from_numpy(np.random.default_rng(1).integers(0, 4, 2000))
    tokens = torch.cat([torch.tensor([BEGIN]), repeat, repeat])[None]

    def second_half(reader: Reader) -> float:
        told = torch.cat([reader.read(tokens[:, a : a + 200], tokens[:, a + 1 : a + 201]) for a in range(0, 4000, 200)], dim=1)
        return -told[0, 2000:].gather(1, tokens[0, 2001:, None]).mean().item() / np.log(2)

    assert second_half(Reader(model)) < 0.5
    assert second_half(Reader(model, memory=False)) > 1.9
    assert second_half(OnlineTrainer(model)) < 0.1


@pytest.mark.parametrize(("lengths", "skips"), [((), ()), ((32,), (0,)), ((3, 4), (0,)), ((3,), (-1,))])
def test_contexts_that_do_not_fit_are_refused(lengths: tuple[int, ...], skips: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        ContextMemoryConfig(lengths=lengths, skips=skips)


def test_a_state_is_saved_and_goes_on_elsewhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TitansForDNA(DNAConfig(titans=presets.debug("lmm"), contexts=CONFIG)).eval()
    tokens = torch.randint(4, (2, 60))
    with torch.no_grad():
        _, state = model(tokens[:, :40])
        state.save(tmp_path / "state.safetensors")
        expected, _ = model(tokens[:, 40:], state)
        found, _ = model(tokens[:, 40:], DNAState.load(tmp_path / "state.safetensors"))
    assert torch.equal(found, expected)
