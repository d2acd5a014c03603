"""Text files from strangers: documents of exactly their bytes, or a UserError that names the file and the place."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.text import data
from domains.text.data import END, SUFFIXES, TextDocuments, read_texts
from tests.fuzz.strategies import mutated_bytes
from titans_seq import UserError

VALID = "Straße, 水, 🚢\r\n\0 and plain letters".encode()
CONTENT = st.one_of(
    st.binary(max_size=30),
    st.text(st.characters(categories=["L", "Cs", "Zs", "So"]), max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass")),
    mutated_bytes(VALID),
    st.sampled_from([b"", b"\xef\xbb\xbf", "é".encode("utf-16"), b"\xf4\x90\x80\x80", b"\xc0\x80", b"a" * 100]),
)


def whole(documents: TextDocuments) -> list[list[int]]:
    return [documents.read(n, 0, int(length)).tolist() for n, length in enumerate(documents.lengths)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.txt"


@given(content=CONTENT, block=st.integers(1, 9), cuts=st.tuples(st.integers(0, 40), st.integers(0, 40)), share=st.floats(0, 1))
def test_any_bytes(content: bytes, block: int, cuts: tuple[int, int], share: float, path: Path) -> None:
    """Read in blocks that cut characters anywhere."""
    path.write_bytes(content)
    before, data._BLOCK = data._BLOCK, block
    try:
        documents = read_texts([path])
    except UserError as error:
        assert str(path) in str(error)
        try:
            content.decode()
        except UnicodeDecodeError as wrong:
            assert f"not UTF-8 at byte {wrong.start} " in str(error)
        else:
            assert content == b""
        return
    finally:
        data._BLOCK = before
    content.decode()
    tokens = [END, *content, END]
    assert whole(documents) == [tokens]
    start, stop = sorted(min(cut, len(tokens)) for cut in cuts)
    part = documents.read(0, start, stop)
    assert part.dtype == np.int64
    assert part.tolist() == tokens[start:stop]
    parts = [bytes(document[1:-1]) for side in documents.split(share) for document in whole(side)]
    assert b"".join(parts) == content
    assert all(part.decode() for part in parts)


NAMES = ["a.txt", "b.md", "c.TXT", "d.text", "e", ".txt", "f.csv", "g.txt.gz", "sub/a.txt", "sub/deep/b.md", "h.txt/i.txt", "ü\udc80.txt"]


@given(
    files=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([b"", b"x", b"text", b"\xff"]), max_size=4),
    links=st.dictionaries(st.sampled_from(["l.txt", "sub/l.md", "loop.txt"]), st.sampled_from(["a.txt", "..", ".", "none"]), max_size=2),
    named=st.lists(st.sampled_from([".", "a.txt", "sub", "none", "\0", "x" * 300, "", "l.txt", "e", "h.txt"]), max_size=3),
    data=st.data(),
)
def test_folders(
    files: dict[str, bytes], links: dict[str, str], named: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of files, folders and links of any names: every text once where its folder is named, or a UserError."""
    folder = tmp_path_factory.mktemp("texts")
    for name, content in files.items():
        place = folder / name
        if not place.exists() and not any(parent.is_file() for parent in place.parents):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    for name, target in links.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(target)
    try:
        documents = read_texts([folder / name for name in named])
    except UserError as error:
        str(error)
        return
    assert named
    assert len(documents.spans) == len(documents.lengths) >= len(named)
    for span, tokens in zip(documents.spans, whole(documents), strict=True):
        assert bytes(tokens[1:-1]) == span.path.read_bytes() != b""
        assert span.path.suffix.lower() in SUFFIXES or span.path in [folder / name for name in named]
