"""Records out of FASTA, .2bit and GenBank files, by Biopython: names and codes, or an error that names the place.

What a file is, is seen from its first bytes; gzip and bgzf are unpacked on the way.
"""

import gzip
import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from Bio import BiopythonParserWarning, SeqIO
from Bio.Seq import UndefinedSequenceError
from Bio.SeqIO.FastaIO import SimpleFastaParser
from Bio.SeqRecord import SeqRecord

from domains.dna.data.alphabet import FROM_LETTER, ILLEGAL, count_ambiguous, illegal
from titans_seq.errors import UserError

BLOCK = 1 << 22
"""Bases that are turned into codes at once."""
_GZIP = b"\x1f\x8b"
_TWOBIT = (b"\x43\x27\x41\x1a", b"\x1a\x41\x27\x43")
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_CUT_OFF = (EOFError, zlib.error, gzip.BadGzipFile)
_WHOLE = "Copy or download the file again."
Wrap = Callable[[BinaryIO], BinaryIO]
Letters = Iterator[str] | Iterator[bytes]
Parse = Callable[[Path, Wrap], Iterator[tuple[str, Letters]]]


class Block(NamedTuple):
    """A part of a sequence: its codes, and how many letters of it stand for several bases and were read as N."""

    codes: bytes
    ambiguous: int


class Record(NamedTuple):
    """One sequence of a file: its name, and its codes block by block."""

    name: str
    blocks: Iterator[Block]


def read_records(path: Path, wrap: Wrap = lambda file: file) -> Iterator[Record]:
    """The records of a file in its order; each one's blocks are to be used up before the next is asked for.

    Args:
        path: FASTA, GenBank (both also as gzip or bgzf) or .2bit.
        wrap: what the opened file is read through, such as a progress bar.

    Raises:
        UserError: the file cannot be read, is cut off, or holds what is no nucleotide sequence; it holds no record, two of one name, or
            one without a base.
    """
    kind = find_kind(path)
    seen: dict[str, int] = {}
    parsers: dict[str, Parse] = {"fasta": _fasta, "twobit": _twobit, "genbank": _genbank}
    for name, blocks in parsers[kind](path, wrap):
        number = len(seen) + 1
        if not name:
            raise UserError(f"{_where(path, kind, number)}: record {number} has no name. Write one after the '>'.")
        if name in seen:
            where, first = _where(path, kind, number), _where(path, kind, seen[name])
            raise UserError(f"{where}: record {number} is called '{name[:60]}', as record {seen[name]} is ({first}). Rename one of them.")
        seen[name] = number
        yield Record(name, _checked(path, kind, number, name, blocks))
    if not seen:
        raise UserError(f"{path}: holds no record.")


def find_kind(path: Path) -> str:
    """ "fasta", "genbank" or "twobit", from the first bytes.

    Raises:
        UserError: there is no such file, or it is none of these.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head in _TWOBIT:
            return "twobit"
        packed = head.startswith(_GZIP)
        with gzip.open(path) if packed else path.open("rb") as file:
            start = file.read(1 << 12)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Check the path; it is looked up from {Path.cwd()}.") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder. Name one file in it.") from None
    except _CUT_OFF as error:
        raise UserError(f"{path}: its gzip is cut off or damaged near its begin ({error}). {_WHOLE}") from error
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise UserError(f"{path}: cannot be read ({error}).") from error
    if packed and start[:4] in _TWOBIT:
        raise UserError(f"{path}: is a .2bit inside gzip, which cannot be read in parts. Unpack it: gunzip '{path}'.")
    return _kind_of_text(path, start)


def _kind_of_text(path: Path, start: bytes) -> str:
    line = next((line for line in start.splitlines() if line.strip() and not line.startswith(b";")), None)
    if line is None:
        raise UserError(f"{path}: {'is empty' if not start else 'holds no record'}. A FASTA has a line '>NAME' and lines of bases.")
    if line.startswith(b">"):
        return "fasta"
    if re.search(rb"^LOCUS\s", start, re.MULTILINE):
        return "genbank"
    number = start[: start.index(line)].count(b"\n") + 1
    if line.startswith(b"@"):
        raise UserError(f"{path}, line {number}: looks like FASTQ. Convert it: seqtk seq -A FILE > NEW.fa")
    shown = line[:30].decode(errors="backslashreplace")
    raise UserError(
        f"{path}, line {number}: '{shown}' begins neither FASTA ('>NAME'), GenBank ('LOCUS') nor .2bit. If these are bases, write a line "
        "such as '>chr1' before them."
    )


def _checked(path: Path, kind: str, number: int, name: str, blocks: Letters) -> Iterator[Block]:
    """The codes of letters."""
    position = 0
    for letters in blocks:
        raw = letters.encode("ascii", "replace") if isinstance(letters, str) else letters
        codes = raw.translate(FROM_LETTER)
        bad = codes.find(ILLEGAL)
        if bad >= 0:
            letter = letters[bad] if isinstance(letters, str) else chr(letters[bad])
            where = _where(path, kind, number, position + bad)
            raise UserError(f"{where}: record '{name[:60]}', position {position + bad + 1}: {illegal(letter)}")
        position += len(codes)
        yield Block(codes, count_ambiguous(raw, codes))
    if not position:
        raise UserError(f"{_where(path, kind, number)}: record '{name[:60]}' holds no base. Take it out of the file.")


def _fasta(path: Path, wrap: Wrap) -> Iterator[tuple[str, Iterator[str]]]:
    try:
        with _open_text(path, wrap) as text:
            for title, sequence in SimpleFastaParser(text):
                name, *_ = title.split(maxsplit=1) or [""]
                yield name, (sequence[i : i + BLOCK] for i in range(0, len(sequence), BLOCK))
    except _CUT_OFF as error:
        raise _damaged(path, error) from error


def _genbank(path: Path, wrap: Wrap) -> Iterator[tuple[str, Iterator[bytes]]]:
    for record in read_genbank(path, wrap):
        try:
            sequence = bytes(record.seq)
        except UndefinedSequenceError:
            raise UserError(f"{path}: record '{record.id}' holds no sequence, only its length. Get it with its sequence.") from None
        yield record.id, iter([sequence] if sequence else [])


def read_genbank(path: Path, wrap: Wrap = lambda file: file) -> Iterator[SeqRecord]:
    """Biopython's records of a GenBank file.

    Raises:
        UserError: the file is cut off or no GenBank file; a record's length is not what its LOCUS line says.
    """
    number = 0
    try:
        with _open_text(path, wrap) as text, warnings.catch_warnings():
            warnings.filterwarnings("error", "Premature end|Expected sequence length", BiopythonParserWarning)
            for record in SeqIO.parse(text, "genbank"):
                number += 1
                yield record
    except _CUT_OFF as error:
        raise _damaged(path, error) from error
    except UserError:
        raise
    except Exception as error:  # whatever Biopython's parser meets in a damaged file
        raise UserError(f"{path}: record {number + 1} is no whole GenBank record ({error}). {_WHOLE}") from error


def _twobit(path: Path, wrap: Wrap) -> Iterator[tuple[str, Iterator[bytes]]]:
    size = path.stat().st_size
    found = 0
    with path.open("rb") as file, _explain_damage(path):
        head = np.fromfile(file, dtype="<u4", count=4)
        swapped = head[:1].tobytes() == _TWOBIT[1]
        count = int((head.byteswap() if swapped else head)[2]) if len(head) == 4 else 0
        if 16 + 6 * count > size or size < 16:  # an entry of the index has at least 6 bytes
            raise UserError(f"{path}: is cut off: {size} bytes for {count} records. {_WHOLE}")
        file.seek(0)
        for record in SeqIO.parse(file, "twobit"):
            found += 1
            _check_blocks(path, record)
            yield record.id, _twobit_blocks(path, record)
    if found != count:
        raise UserError(f"{path}: two of its {count} records have one name. Rename one of them.")


def _twobit_blocks(path: Path, record: SeqRecord) -> Iterator[bytes]:
    with _explain_damage(path):
        for i in range(0, len(record.seq), BLOCK):
            yield bytes(record.seq[i : i + BLOCK])


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    """What Biopython raises on a damaged .2bit as a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, RuntimeError, IndexError, OverflowError, MemoryError, OSError) as error:
        raise UserError(f"{path}: is cut off, damaged, or of a version of .2bit that Biopython cannot read ({error}). {_WHOLE}") from error


def _check_blocks(path: Path, record: SeqRecord) -> None:
    """Blocks of N and of the soft mask lie inside the record: Biopython's C code writes wherever they say."""
    data = record.seq._data
    for blocks in (data.nBlocks, data.maskBlocks):
        wrong = (blocks[:, 0] > blocks[:, 1]) | (blocks[:, 1] > len(data))
        if wrong.any():
            raise UserError(f"{path}: record '{record.id}' of {len(data)} bases has a block {blocks[wrong][0].tolist()}. {_WHOLE}")


@contextmanager
def _open_text(path: Path, wrap: Wrap = lambda file: file) -> Iterator[io.TextIOWrapper]:
    """The file as text, unpacked; bytes that are no UTF-8 become letters that are no bases."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
        if packed:
            check_bgzf(path)
        file.seek(0)
        source = wrap(file)
        with io.TextIOWrapper(gzip.GzipFile(fileobj=source) if packed else source, encoding="utf-8", errors="surrogateescape") as text:
            yield text


def check_bgzf(path: Path) -> None:
    """A bgzf that is cut off between two of its blocks is good gzip, but lacks the block that ends it."""
    with path.open("rb") as file:
        is_bgzf = file.read(16)[12:14] == b"BC"
        file.seek(max(0, path.stat().st_size - len(_BGZF_END)))
        if is_bgzf and file.read() != _BGZF_END:
            raise UserError(
                f"{path}: is a bgzf without the block that ends one: it is cut off. {_WHOLE} If it is whole: zcat FILE | bgzip > NEW"
            )


def _damaged(path: Path, error: Exception) -> UserError:
    lines = 0
    try:
        with _open_text(path) as text:
            for _ in text:
                lines += 1
    except _CUT_OFF:
        return UserError(f"{path}, line {lines + 1}: its gzip is cut off or damaged there ({error}). {_WHOLE}")
    return UserError(f"{path}: has changed while it was read ({error}). Read it again.")


def _where(path: Path, kind: str, number: int, position: int | None = None) -> str:
    """The file, and of a FASTA the line where record `number` begins or its base at `position` stands: looked for when it must be said."""
    if kind != "fasta":
        return str(path)
    record = seen = 0
    with _open_text(path) as text:
        for line_number, line in enumerate(text, 1):
            if line.startswith(">"):
                record += 1
            elif record == number:
                seen += len(line.rstrip().replace(" ", "").replace("\r", ""))
            if record == number and (position is None or seen > position):
                return f"{path}, line {line_number}"
    return str(path)
