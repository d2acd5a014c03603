"""Bases as uint8 codes: bits 0 to 2 are A C G T N (0 to 4), bit 3 marks a soft-masked (lower-case) base.

U counts as T. The other letters of IUPAC's alphabet (R, Y, ..), which stand for several bases, become N. Gaps and everything else are no
bases: an error, also X, which is any amino acid as well as a masked base.
"""

import numpy as np
from Bio.Data.IUPACData import ambiguous_dna_letters

from titans_seq.errors import UserError

BASES = "ACGTN"
N = 4
BASE_BITS = 7
SOFT = 8
"""The bit of a soft-masked base."""
CODES = 16
"""Codes are below this, so a table of so many entries can be looked up by them."""
ILLEGAL = 255


def _letters() -> bytes:
    """The code of every byte, ILLEGAL for those that are no base: for `bytes.translate`."""
    code = dict.fromkeys(ambiguous_dna_letters, N) | {base: i for i, base in enumerate(BASES)} | {"U": 3}
    table = bytearray([ILLEGAL] * 256)
    for letter, value in code.items():
        table[ord(letter)] = value
        table[ord(letter.lower())] = value | SOFT
    return bytes(table)


FROM_LETTER = _letters()
COMPLEMENT = np.array([code if code & BASE_BITS >= N else code ^ 3 for code in range(CODES)], dtype=np.uint8)
"""(16,) uint8: A and T, C and G change places, N stays, and so does the bit of the soft mask."""
_TO_LETTER = bytes(b"ACGTN\0\0\0acgtn".ljust(256, b"\0"))


def encode(text: str, what: str = "the sequence") -> np.ndarray:
    """Codes (len(text),) uint8 of letters.

    Raises:
        UserError: a letter is no base; `what`, its position (from 1) and the letter are named.
    """
    codes = text.encode("ascii", "replace").translate(FROM_LETTER)
    bad = codes.find(ILLEGAL)
    if bad >= 0:
        raise UserError(f"{what}, position {bad + 1}: {illegal(text[bad])}")
    return np.frombuffer(codes, dtype=np.uint8)


def count_ambiguous(letters: bytes, codes: bytes) -> int:
    """How many letters were read as N and are not N, such as R and Y; codes: of the letters."""
    return codes.count(N) + codes.count(N | SOFT) - letters.count(b"N") - letters.count(b"n")


def illegal(letter: str) -> str:
    """Why a letter is refused, and what mends it."""
    if letter in "Xx":
        return f"{letter!r} is no base: it masks a base in some files, and is any amino acid in others. Write masked bases as N."
    if letter in "-.*":
        return f"{letter!r} is a gap or a stop, not a base. Take it out; unknown bases are written N."
    return f"{letter!r} is no base. Bases are A C G T U, N and IUPAC's R Y S W K M B D H V (read as N); proteins cannot be read."


def decode(codes: np.ndarray) -> str:
    """Letters of codes (T,), lower case where soft-masked: the inverse of `encode` but for the letters that became N or T.

    Raises:
        ValueError: a number is no code.
    """
    letters = np.ascontiguousarray(codes, dtype=np.uint8).tobytes().translate(_TO_LETTER)
    if 0 in letters:
        raise ValueError(f"{codes[letters.index(0)]} at position {letters.index(0)} is no code of a base")
    return letters.decode()


def reverse_complement(codes: np.ndarray) -> np.ndarray:
    """The other strand of codes (.., T), read in its own direction: (.., T) uint8."""
    return COMPLEMENT[codes[..., ::-1]]
