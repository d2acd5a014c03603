"""Codes of bases, beside Biopython's own."""

import numpy as np
import pytest
from Bio.Data.IUPACData import ambiguous_dna_letters
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from domains.dna.data.alphabet import BASE_BITS, COMPLEMENT, FROM_LETTER, ILLEGAL, SOFT, decode, encode, reverse_complement
from titans_seq import UserError

LETTERS = st.text("ACGTNacgtn", max_size=50)


@given(LETTERS)
def test_letters_come_back(text: str) -> None:
    codes = encode(text)
    assert codes.dtype == np.uint8
    assert decode(codes) == text


@given(LETTERS)
def test_the_reverse_complement_is_biopythons_and_its_own_inverse(text: str) -> None:
    codes = encode(text)
    assert decode(reverse_complement(codes)) == str(Seq(text).reverse_complement())
    assert reverse_complement(reverse_complement(codes)).tolist() == codes.tolist()


def test_the_bits() -> None:
    assert (encode("ACGTN") & BASE_BITS).tolist() == [0, 1, 2, 3, 4]
    assert encode("acgtn").tolist() == (encode("ACGTN") | SOFT).tolist()
    assert COMPLEMENT[encode("ACGTNacgtn")].tolist() == encode("TGCANtgcan").tolist()


def test_u_is_t_and_ambiguous_letters_are_n() -> None:
    assert decode(encode("UuT")) == "TtT"
    ambiguous = "".join(set(ambiguous_dna_letters) - set("ACGT"))
    assert decode(encode(ambiguous)) == "N" * len(ambiguous)
    assert decode(encode(ambiguous.lower())) == "n" * len(ambiguous)


def test_an_error_lists_every_letter_that_is_taken() -> None:
    with pytest.raises(UserError) as error:
        encode("E")
    listed = str(error.value).partition("Bases are")[2].partition("(")[0].replace("IUPAC", "").replace("and", "")
    taken = {chr(letter) for letter, code in enumerate(FROM_LETTER) if code != ILLEGAL}
    assert {letter for letter in listed if letter.isupper()} == {letter.upper() for letter in taken}


def test_a_batch_is_reversed_along_its_last_axis() -> None:
    batch = np.stack([encode("AACG"), encode("TTTN")])
    assert [decode(row) for row in reverse_complement(batch)] == ["CGTT", "NAAA"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AC-T", "position 3: '-' is a gap"),
        ("E", "position 1: 'E' is no base"),
        ("Aé", "'é'"),
        ("ACX", "position 3: 'X' is no base: it masks .* Write masked bases as N"),
        ("xxx", "position 1: 'x' is no base"),
    ],
)
def test_what_is_no_base_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode(text)


def test_what_is_no_code_is_refused() -> None:
    with pytest.raises(ValueError, match="5 at position 1 is no code"):
        decode(np.array([0, 5], np.uint8))
