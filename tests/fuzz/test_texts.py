"""Text files from strangers: documents of exactly their bytes, or a UserError that names the file and the place."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from domains.text.data import END, TextDocuments, read_texts, sources
from domains.text.data.sources import _is_text
from domains.text.tokenizers import load_tokenizer, train_tokenizer
from tests.fuzz.strategies import FEWER, mutated_bytes, mutated_text
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


@FEWER
@given(content=CONTENT, block=st.integers(1, 9), cuts=st.tuples(st.integers(0, 40), st.integers(0, 40)), share=st.floats(0, 1))
def test_any_bytes(content: bytes, block: int, cuts: tuple[int, int], share: float, path: Path) -> None:
    """Read in blocks that cut characters anywhere."""
    path.write_bytes(content)
    before = sources._READ, sources.BLOCK
    sources._READ, sources.BLOCK = block, block + 3
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
        sources._READ, sources.BLOCK = before
    content.decode()
    tokens = [END, *content, END]
    assert whole(documents) == [tokens]
    start, stop = sorted(min(cut, len(tokens)) for cut in cuts)
    part = documents.read(0, start, stop)
    assert part.dtype == np.uint16
    assert part.tolist() == tokens[start:stop]
    sides = documents.split(share, "ends")
    assert [token for side in sides for document in whole(side) for token in document[1:]] == tokens[1:]


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
    assert len(documents) == len(documents.lengths) > 0
    for n, tokens in enumerate(whole(documents)):
        assert bytes(tokens[1:-1]) == documents.file(n).read_bytes() != b""
        assert _is_text(documents.file(n)) or documents.file(n) in [folder / name for name in named]


LINES = b'{"text": "one \\u00e9 \\ud83d\\udea2", "n": [1, {}]}\n\n{"text": "two"}\r\n{"n": 1, "text": ""}\n'


@FEWER
@given(content=mutated_bytes(LINES) | st.binary(max_size=30), packing=st.sampled_from(["", ".gz", ".zst"]))
def test_lines(content: bytes, packing: str, tmp_path: Path) -> None:
    """JSON lines of which any byte is another one: as Python reads them, or a UserError that names the file."""
    path = tmp_path / f"t.jsonl{packing}"
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packing]
    path.write_bytes(pack(content))
    try:
        expected = [json.loads(line)["text"].encode() for line in content.split(b"\n") if line.strip()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        expected = None
    try:
        documents = read_texts([path])
    except UserError as error:
        assert str(path) in str(error)
        assert expected is None or not any(expected)
        return
    assert [bytes(tokens[1:-1]) for tokens in whole(documents)] == [text for text in expected or [] if text]


@FEWER
@given(content=mutated_bytes(LINES) | st.binary(max_size=30), packing=st.sampled_from([".gz", ".zst"]), damage=st.data())
def test_packed_files(content: bytes, packing: str, damage: st.DataObject, tmp_path: Path) -> None:
    """Damaged ones: refused, or read as their library reads them; never a part of them as if it were the whole."""
    path = tmp_path / f"t.txt{packing}"
    packed = gzip.compress(content) if packing == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(content)
    path.write_bytes(damage.draw(mutated_bytes(packed)))
    try:
        documents = read_texts([path])
    except UserError as error:
        assert str(path) in str(error)
        return
    assert bytes(whole(documents)[0][1:-1]).decode()


TOKENIZER = train_tokenizer(iter(["the ship and the sea"]), 262).text


@FEWER
@given(text=mutated_text(TOKENIZER))
def test_tokenizers(text: str, tmp_path: Path) -> None:
    """A JSON of which any part is another one: a tokeniser whose tokens are in its vocabulary, or a UserError that names the file."""
    path = tmp_path / "t.json"
    path.write_text(text, errors="surrogatepass")
    try:
        tokenizer = load_tokenizer(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    (tokens,) = tokenizer.encode_batch(["the ship, Größe <|end|>"])
    assert all(0 <= token < tokenizer.vocabulary and token != tokenizer.end for token in tokens)
    tokenizer.decode(tokens.tolist())
    assert 0 <= tokenizer.end < tokenizer.vocabulary
