"""Files as documents: every kind, packed or not, in blocks; and what is refused."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from domains.text.data import sources
from domains.text.data.sources import find_files, read_blocks, seam
from titans_seq import UserError

TEXTS = ["Größe\r\n and more", "", "水 🚢\n", "x"]


def documents(path: Path, field: str = "text") -> list[str]:
    found, parts = [], []
    for block in read_blocks(path, field):
        parts.append(block.text)
        if block.last:
            found.append("".join(parts))
            parts = []
    assert not parts
    return found


def write(path: Path, content: bytes) -> Path:
    packing = path.suffix
    if packing == ".gz":
        content = gzip.compress(content[:5]) + gzip.compress(content[5:])
    elif packing == ".zst":
        compress = zstandard.ZstdCompressor().compress
        content = compress(content[:5]) + compress(b"") + compress(content[5:])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_every_kind_gives_its_documents(packing: str, tmp_path: Path) -> None:
    text = write(tmp_path / f"a.txt{packing}", TEXTS[0].encode())
    assert documents(text) == [TEXTS[0]]
    lines = "\n\n".join(json.dumps({"id": 1, "text": one}) for one in TEXTS) + "\n \n"
    assert documents(write(tmp_path / f"a.jsonl{packing}", lines.encode())) == TEXTS


def test_a_column_of_a_parquet(tmp_path: Path) -> None:
    table = pl.DataFrame({"body": [*TEXTS, None], "n": [1, 2, 3, 4, 5]})
    table.write_parquet(tmp_path / "a.parquet", row_group_size=2)
    assert documents(tmp_path / "a.parquet", "body") == [*TEXTS, ""]
    for field, message in (("text", "is not there; columns: body, n"), ("n", "is of type Int64")):
        with pytest.raises(UserError, match=f"a column of text called '{field}' {message}.*--field"):
            documents(tmp_path / "a.parquet", field)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read as Parquet"):
        documents(tmp_path / "b.parquet")


@given(text=st.text("ab \n水\r", max_size=60), block=st.integers(1, 12), read=st.integers(1, 7))
def test_blocks_are_short_and_lose_nothing(text: str, block: int, read: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("blocks") / "a.txt"
    path.write_bytes(text.encode())
    before = sources.BLOCK, sources._READ
    sources.BLOCK, sources._READ = block, read
    try:
        blocks = list(read_blocks(path))
    finally:
        sources.BLOCK, sources._READ = before
    assert "".join(one.text for one in blocks) == text
    assert all(0 < len(one.text) <= block for one in blocks if text)
    assert [one.last for one in blocks] == [False] * (len(blocks) - 1) + [True]


def test_a_seam_is_behind_a_line_where_no_space_is() -> None:
    assert seam("one\ntwo\nthree", 10) == 8
    assert seam("one\ntwo\n three", 10) == 10  # what follows is space; the line before is in the first half
    assert seam("abcdefghijkl", 10) == 10


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"abc\xff", 3),
        (b"\xc3", 0),
        (b"a" * ((1 << 20) - 1) + b"\xc3" + b"b", (1 << 20) - 1),
        (b"a" * (1 << 20) + b"xy\xfe", (1 << 20) + 2),
    ],
    ids=["byte", "cut-off", "across-blocks", "second-block"],
)
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_what_is_not_utf8_is_refused_with_its_place(content: bytes, place: int, packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad.txt{packing}"
    path.write_bytes(gzip.compress(content) if packing else content)
    with pytest.raises(UserError, match=rf"bad\.txt{packing}: not UTF-8 at byte {place} "):
        documents(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2 is not JSON"),
        (b'{"text": null}', r"line 2 holds no text in field 'text' \(its keys: text\)\. Make it a string, or leave the line out\."),
        (b'["text"]', r"line 2 holds no text in field 'text' \(a list\)"),
        (b'{"body": "x", "n": 1}', r"line 2 holds no text in field 'text' \(its keys: body, n\). Name the field, where there is --field"),
        (b'{"text": 3}', "line 2 holds no text"),
        (b'{"text": "\\ud800"}', "line 2 is not UTF-8, or holds half a character"),
        (b'{"text": "\xff"}', "line 2 is not UTF-8"),
        (b"[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line)
    with pytest.raises(UserError, match=rf"a\.jsonl: {message}"):
        documents(tmp_path / "a.jsonl")


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flip", "plain"])
def test_a_damaged_file_is_refused(packing: str, damage: str, tmp_path: Path) -> None:
    """Also one that is cut off, of which the begin could be read."""
    content = "".join(chr(33 + i * i % 89) for i in range(20_000)).encode()
    path = tmp_path / f"a.txt{packing}"
    compressed = gzip.compress(content) if packing == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(content)
    middle = len(compressed) // 2
    flipped = bytearray(compressed)
    flipped[middle] ^= 1
    path.write_bytes({"cut": compressed[:middle], "flip": bytes(flipped), "plain": b"plain text"}[damage])
    with pytest.raises(UserError, match=rf"a\.txt{packing}: damaged or no {packing} file"):
        documents(path)


@pytest.mark.parametrize("other", ["part1.parquet", "part2.parquet"])
def test_a_name_is_no_pattern(other: str, tmp_path: Path) -> None:
    folder = tmp_path / "a [x] *?"
    folder.mkdir()
    pl.DataFrame({"text": ["the file that was named"]}).write_parquet(folder / "part[1].parquet")
    pl.DataFrame({"text": ["another", "file"]}).write_parquet(folder / other)
    assert [block.text for block in read_blocks(folder / "part[1].parquet")] == ["the file that was named"]


def test_a_folder_gives_its_texts_in_order(tmp_path: Path) -> None:
    kept = ["a.TXT", "b.txt", "c.jsonl.zst", "d.parquet", "sub/c.md", "sub/e.text.gz"]
    for name in (*kept, "d.bin", "e.gz", "f.parquet.gz", ".titans_seq/g.txt", "sub/.titans_seq/h.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert find_files(tmp_path) == [tmp_path / name for name in kept]
    assert find_files(tmp_path / "d.bin") == [tmp_path / "d.bin"]
    assert documents(tmp_path / "d.bin") == ["d.bin"]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("none.txt", "a\0b", "x" * 300):
        with pytest.raises(UserError, match=r"no such file or folder|is no usable path"):
            find_files(tmp_path / name)
    with pytest.raises(UserError, match=r"no file in this folder ends in \.txt"):
        find_files(tmp_path)
    (tmp_path / "secret.txt").write_text("x")
    (tmp_path / "secret.txt").unlink()
    with pytest.raises(UserError, match=r"secret\.txt: cannot be read \(No such file"):
        documents(tmp_path / "secret.txt")
