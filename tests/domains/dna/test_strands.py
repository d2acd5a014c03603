"""f(rc(x)) = rc(f(x)): the encoder of both strands, its head and its pooling turn with the sequence, for any sequence and padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.dna.data import alphabet
from domains.dna.model import TitansForDNA
from domains.dna.presets import debug
from domains.dna.strands import BothStrands, StrandHead, pooled, reverse_complement, turned
from titans_seq.config import VARIANTS, Variant

LETTERS = st.text("ACGTNacgtn", min_size=1, max_size=40)


def codes_of(*texts: str) -> torch.Tensor:
    return torch.stack([torch.from_numpy(alphabet.encode(text).copy()).long() for text in texts])


def make(variant: Variant) -> tuple[BothStrands, StrandHead]:
    torch.manual_seed(0)
    model = TitansForDNA(debug(variant)).double().eval()
    return BothStrands(model), StrandHead(16, 3).double()


@given(text=LETTERS)
def test_the_reverse_complement_is_that_of_the_alphabet(text: str) -> None:
    codes = codes_of(text)
    assert np.array_equal(reverse_complement(codes)[0].numpy(), alphabet.reverse_complement(alphabet.encode(text)))
    assert torch.equal(reverse_complement(reverse_complement(codes)), codes)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
@torch.no_grad()
def test_everything_turns_with_the_sequence(variant: Variant, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 15))
    codes = codes_of(*data.draw(st.lists(st.text("ACGTNacgt", min_size=length, max_size=length), min_size=1, max_size=2)))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))[None].expand(len(codes), -1)
    encoder, head = make(variant)
    for marks in (None, mask):
        features = encoder(codes, marks)
        other = encoder(reverse_complement(codes), None if marks is None else marks.flip(1))
        torch.testing.assert_close(other, turned(features))
        torch.testing.assert_close(head(other), turned(head(features)))
        torch.testing.assert_close(pooled(other, None if marks is None else marks.flip(1)), pooled(features, marks))


@torch.no_grad()
def test_a_base_is_known_from_both_sides() -> None:
    """What lies after a base changes what is read along the other strand, and nothing that is read along this one."""
    encoder, head = make("mag")
    codes, changed = codes_of("ACGTTGCATTGACC", "ACGTTGCATTGACT").unsqueeze(1)
    first, second = encoder(codes), encoder(changed)
    torch.testing.assert_close(first[:, :13, 0], second[:, :13, 0])
    assert ((first[:, :13, 1] - second[:, :13, 1]).abs().amax(-1) > 0).all()
    assert not torch.allclose(head(first)[:, 5], head(second)[:, 5])
    assert not torch.allclose(head(first)[:, :, 0], head(first)[:, :, 1])


@torch.no_grad()
def test_padding_is_left_out_of_the_pool() -> None:
    encoder, _ = make("lmm")
    short, padded = codes_of("ACGTTG"), codes_of("ACGTTGNNN")
    mask = torch.arange(9)[None] < 6
    torch.testing.assert_close(pooled(encoder(padded, mask), mask), pooled(encoder(short)))
