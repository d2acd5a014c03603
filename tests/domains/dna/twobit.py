"""A writer of .2bit, from UCSC's description of the format."""

import struct
from collections.abc import Iterable
from itertools import groupby


def blocks(marks: Iterable[bool]) -> list[tuple[int, int]]:
    """(start, size) of every run of True."""
    found, at = [], 0
    for mark, run in groupby(marks):
        size = len(list(run))
        if mark:
            found.append((at, size))
        at += size
    return found


def twobit(records: dict[str, str], order: str = "<") -> bytes:
    """A .2bit of records of A C G T N in either case; order ">" for a big-endian machine's."""
    index_size = sum(5 + len(name) for name in records)
    index, bodies, at = b"", b"", 16 + index_size
    for name, letters in records.items():
        body = _record(letters, order)
        index += bytes([len(name)]) + name.encode() + struct.pack(order + "I", at)
        bodies += body
        at += len(body)
    return struct.pack(order + "4I", 0x1A412743, 0, len(records), 0) + index + bodies


def _record(letters: str, order: str) -> bytes:
    body = struct.pack(order + "I", len(letters))
    for marks in (blocks(x in "nN" for x in letters), blocks(x.islower() for x in letters)):
        body += struct.pack(f"{order}{1 + 2 * len(marks)}I", len(marks), *(a for a, _ in marks), *(n for _, n in marks))
    body += struct.pack(order + "I", 0)
    digits = ["TCAG".index(x) if x in "TCAG" else 0 for x in letters.upper()] + [0] * (-len(letters) % 4)
    return body + bytes(a << 6 | b << 4 | c << 2 | d for a, b, c, d in zip(*[iter(digits)] * 4, strict=True))
