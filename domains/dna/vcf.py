"""Scores written into the VCF that the variants are from: bytes stay as they were, but for what is added to INFO and the header."""

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
from Bio import bgzf

from domains.dna.alleles import REASONS
from domains.dna.data.regions import fail

_GZIP = b"\x1f\x8b"
_KEYS = {"llr": "TITANS_LLR", "forward": "TITANS_LLR_FORWARD", "reverse": "TITANS_LLR_REVERSE"}
_REASON = "TITANS_REASON"
_IDS = (*_KEYS.values(), _REASON)
_FIELDS = 8


def is_packed(path: Path) -> bool:
    """Whether a file is gzip or bgzf."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def check_fields(source: Path) -> None:
    """See before anything slow that every line has an INFO to write scores into.

    Raises:
        UserError: a line has fewer than the eight fields of a VCF.
    """
    with _reader(source) as lines:
        for number, line in enumerate(lines, 1):
            fields = line.count(b"\t") + 1
            if fields < _FIELDS and line.strip() and not line.startswith(b"#"):
                mend = "INFO, the eighth, takes the scores; write '.' where there is none"
                fail(source, number, f"has {fields} fields, a VCF has at least {_FIELDS}. {mend}.")


def write_scores(source: Path, scores: pl.DataFrame, path: Path, how: str) -> None:
    """A copy of the VCF `source` with scores in INFO: packed by bgzf if the source is packed.

    What an earlier run wrote under the same keys is replaced.

    Args:
        source: the file.
        scores: of `score_variants`, from this file.
        path: the file to write.
        how: what the header says of model and window.
    """
    rows = groupby(scores.select("line", "reason", *_KEYS).iter_rows(named=True), key=lambda row: row["line"])
    next_line, alleles = next(rows, (None, None))
    open_header = True
    with _reader(source) as lines, _writer(path, is_packed(source)) as file:
        for number, line in enumerate(lines, 1):
            if line.startswith(b"##"):
                if not _is_ours(line):
                    file.write(line)
                continue
            if open_header:
                open_header = False
                file.write(_header(how, line[len(line.rstrip(b"\r\n")) :] or b"\n"))
            if number == next_line and alleles is not None:
                line = _with_info(line, list(alleles))
                next_line, alleles = next(rows, (None, None))
            file.write(line)


@contextmanager
def _reader(path: Path) -> Iterator[Iterable[bytes]]:
    with gzip.open(path) if is_packed(path) else path.open("rb") as file:
        yield file


@contextmanager
def _writer(path: Path, packed: bool) -> Iterator[Any]:
    with bgzf.BgzfWriter(str(path), "wb") if packed else path.open("wb") as file:
        yield file


def _is_ours(line: bytes) -> bool:
    return any(line.startswith(f"##INFO=<ID={name},".encode()) for name in _IDS)


def _header(how: str, ending: bytes) -> bytes:
    """Lines that declare what is added; a value for each alternative, "." where there is none."""
    how = how.replace("\\", "\\\\").replace('"', '\\"')
    strands = {"llr": "mean of the strands that were read", "forward": "along the forward strand", "reverse": "along the reverse strand"}
    texts = [
        f'##INFO=<ID={_KEYS[name]},Number=A,Type=Float,Description="log p(ALT) - log p(REF) in nats, {what}; {how}">'
        for name, what in strands.items()
    ]
    known = "; ".join(f"{reason}: {what}" for reason, what in REASONS.items())
    texts.append(f'##INFO=<ID={_REASON},Number=.,Type=String,Description="Of each ALT, why it has no score. {known}">')
    return b"".join(text.encode() + ending for text in texts)


def _with_info(line: bytes, alleles: list[dict[str, Any]]) -> bytes:
    text = line.rstrip(b"\r\n")
    fields = text.split(b"\t")
    added = [f"{key}={','.join(_number(allele[name]) for allele in alleles)}" for name, key in _KEYS.items() if _any(alleles, name)]
    if _any(alleles, "reason"):
        added.append(f"{_REASON}={','.join(allele['reason'] or '.' for allele in alleles)}")
    kept = [entry for entry in fields[7].split(b";") if entry.split(b"=")[0].decode("latin-1") not in _IDS]
    fields[7] = b";".join([*(kept if kept not in ([b"."], [b""]) else []), *(entry.encode() for entry in added)])
    return b"\t".join(fields) + line[len(text) :]


def _any(alleles: list[dict[str, Any]], name: str) -> bool:
    return any(allele[name] is not None for allele in alleles)


def _number(value: float | None) -> str:
    return "." if value is None else f"{value:.6g}"
