"""Text files as documents: which files, which bytes, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.text.data import END, TextDocuments, read_texts
from titans_seq import UserError


def whole(documents: TextDocuments, n: int) -> list[int]:
    return documents.read(n, 0, int(documents.lengths[n])).tolist()


def test_a_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Größe")
    documents = read_texts([tmp_path / "a.txt"])
    assert whole(documents, 0) == [END, *"Größe".encode(), END]
    assert documents.lengths.tolist() == [9]


@given(st.binary(min_size=1, max_size=20).filter(lambda text: text.isascii()), st.data())
def test_any_part_can_be_read(tmp_path_factory: pytest.TempPathFactory, text: bytes, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("part") / "a.txt"
    path.write_bytes(text)
    documents = read_texts([path])
    start = data.draw(st.integers(0, len(text) + 2))
    stop = data.draw(st.integers(start, len(text) + 2))
    read = documents.read(0, start, stop)
    assert read.dtype == np.int64
    assert read.tolist() == [END, *text, END][start:stop]


def test_a_folder_gives_its_text_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.TXT", "sub/c.md", "d.bin", "sub/e.text"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    documents = read_texts([tmp_path])
    assert [bytes(whole(documents, n)[1:-1]).decode() for n in range(4)] == ["a.TXT", "b.txt", "sub/c.md", "sub/e.text"]


@given(st.text(min_size=1, max_size=40), st.floats(0, 1))
def test_a_split_loses_nothing_and_cuts_no_character(tmp_path_factory: pytest.TempPathFactory, text: str, share: float) -> None:
    path = tmp_path_factory.mktemp("split") / "a.txt"
    path.write_bytes(text.encode("utf-8", errors="replace"))
    parts = [[bytes(whole(part, n)[1:-1]) for n in range(len(part.lengths))] for part in read_texts([path]).split(share)]
    assert b"".join(parts[0] + parts[1]) == path.read_bytes()
    for part in parts[0] + parts[1]:
        part.decode()
    assert sum(map(len, parts[1])) <= share * path.stat().st_size


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
def test_what_is_not_utf8_is_refused_with_its_place(content: bytes, place: int, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.txt: not UTF-8 at byte {place} "):
        read_texts([tmp_path])


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: no such file or folder"):
        read_texts([tmp_path / "none.txt"])
    with pytest.raises(UserError, match=r"no file in this folder ends in \.txt"):
        read_texts([tmp_path])
    with pytest.raises(UserError, match="no text: name at least one"):
        read_texts([])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"empty\.txt: is empty"):
        read_texts([tmp_path])


def test_a_file_that_shrinks_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some text")
    documents = read_texts([path])
    path.write_text("some")
    with pytest.raises(UserError, match=r"a\.txt: has become shorter"):
        whole(documents, 0)
