"""f(rc(x)) = rc(f(x)): the encoder of both strands, its head and its pooling turn with the sequence, for any sequence and padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.dna.data import alphabet
from domains.dna.strands import BothStrands, StrandHead, StrandReader, pooled, reverse_complement, turned
from titans_seq import presets
from titans_seq.config import VARIANTS, Variant

LETTERS = st.text("ACGTNacgtn", min_size=1, max_size=40)


def codes_of(*texts: str) -> torch.Tensor:
    return torch.stack([torch.from_numpy(alphabet.encode(text).copy()).long() for text in texts])


def make(variant: Variant, stem_width: int = 3) -> tuple[BothStrands, StrandHead]:
    torch.manual_seed(0)
    reader = StrandReader(presets.debug(variant), stem_width).double().eval()
    return BothStrands(reader), StrandHead(16, 3).double()


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
        for how in ("mean", "max"):
            torch.testing.assert_close(pooled(other, None if marks is None else marks.flip(1), how), pooled(features, marks, how))


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
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stem_width", [0, 2, 5])
@settings(max_examples=3, deadline=None)
@given(cuts=st.lists(st.integers(1, 7), min_size=1, max_size=4))
@torch.no_grad()
def test_pieces_give_what_one_pass_does(variant: Variant, stem_width: int, cuts: list[int]) -> None:
    reader = make(variant, stem_width)[0].reader
    codes = codes_of("ACGTTGNCATTGACcagtaCCATGACCA"[: sum(cuts)])
    whole, state, parts = reader(codes), None, []
    for piece in codes.split(cuts, dim=1):
        part, state = reader.read(piece, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def test_the_stem_is_a_causal_convolution() -> None:
    reader = make("lmm", 4)[0].reader
    codes, changed = codes_of("ACGTTGCA", "TCGTTGCA").unsqueeze(1)
    assert not torch.allclose(reader(codes)[:, 1:], reader(changed)[:, 1:])
    x = reader.embedding(torch.cat([torch.tensor([[5]]), codes], dim=1))
    stemmed, _ = reader._stemmed(x, reader._no_tail(x))
    last = sum(reader.stem.weight[:, :, tap] @ x[0, 5 + tap] for tap in range(4)) + reader.stem.bias
    torch.testing.assert_close(stemmed[0, 8], x[0, 8] + torch.nn.functional.gelu(last))
    other, _ = reader._stemmed(reader.embedding(torch.cat([torch.tensor([[5]]), changed], dim=1)), reader._no_tail(x))
    torch.testing.assert_close(stemmed[0, 5:], other[0, 5:])  # the first base is out of its sight


@torch.no_grad()
def test_parts_of_the_head_add_up_to_it() -> None:
    encoder, head = make("mal")
    features = encoder(codes_of("ACGTTGNCATT"))
    given, other = (head.parts(features[:, :, strand]) for strand in (0, 1))  # (B, T, 2, V) each
    torch.testing.assert_close(
        torch.stack([given[..., 0, :] + other[..., 1, :], other[..., 0, :] + given[..., 1, :]], dim=2), head(features)
    )
    alone = StrandHead(16, 3, strands=1).double()
    torch.testing.assert_close(alone.parts(features[:, :, 0]), alone(features[:, :, :1]))


def test_padding_is_left_out_of_the_pool() -> None:
    encoder, _ = make("lmm")
    short, padded = codes_of("ACGTTG"), codes_of("ACGTTGNNN")
    mask = torch.arange(9)[None] < 6
    for how in ("mean", "max"):
        torch.testing.assert_close(pooled(encoder(padded, mask), mask, how), pooled(encoder(short), None, how))
        assert torch.equal(pooled(encoder(padded), torch.zeros(1, 9, dtype=torch.bool), how), torch.zeros(1, 16, dtype=torch.float64))
