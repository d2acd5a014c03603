"""The cache of tokens: what is in it, when it is made anew, and that a kill costs nothing but time."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from domains.text.data import packed, sources
from domains.text.data.packed import Packed, open_packed
from domains.text.tokenizers import END, ByteTokenizer, JsonTokenizer
from titans_seq import UserError
from titans_seq.cache import FOLDER
from titans_seq.progress import make_bar


class Counting(ByteTokenizer):
    """Knows how many texts it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        self.texts += texts
        return super().encode_batch(texts)


def opened(path: Path, tokenizer: ByteTokenizer | JsonTokenizer | None = None, cache: Path | None = None) -> Packed:
    return open_packed(path, tokenizer or ByteTokenizer(), "text", cache, progress=False)


def texts(found: Packed) -> list[bytes]:
    """The bytes of the documents, which stand between ENDs."""
    if len(found.tokens):
        assert (found.tokens[found.starts] == END).all()
    return [bytes(found.tokens[a + 1 : b].tolist()) for a, b in zip(found.starts[:-1], found.starts[1:], strict=True)]


def write_lines(path: Path, documents: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
    return path


@settings(max_examples=30)
@given(documents=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=9), block=st.integers(1, 40))
def test_the_cache_holds_the_documents(documents: list[str], block: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also where documents, blocks and what is written at a time end anywhere; empty ones are left out."""
    path = write_lines(tmp_path_factory.mktemp("packed") / "a.jsonl", documents)
    before, packed.BLOCK = packed.BLOCK, block
    try:
        found = opened(path)
    finally:
        packed.BLOCK = before
    kept = [one.encode() for one in documents if one]
    assert texts(found) == kept
    assert found.sizes.tolist() == list(map(len, kept))
    assert len(found.tokens) == (sum(map(len, kept)) + len(kept) + 1 if kept else 0)
    assert texts(opened(path)) == kept


def test_a_folder_is_one_cache_that_knows_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    (folder / "b.txt").write_text("")
    write_lines(folder / "c.jsonl", ["two", "three"])
    found = opened(folder)
    assert texts(found) == [b"one", b"two", b"three"]
    assert [found.files[n].name for n in found.file] == ["a.txt", "c.jsonl", "c.jsonl"]
    assert {path.suffix for path in (tmp_path / FOLDER).iterdir()} == {".json", ".tokens", ".documents", ".lock"}
    (folder / "d.txt").write_text("four")
    assert texts(opened(folder)) == [b"one", b"two", b"three", b"four"]
    assert len(list((tmp_path / FOLDER).glob("*.tokens"))) == 1  # that of the folder as it was is gone


def test_it_is_made_once_and_again_when_the_source_changes(tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "a.txt", Counting()
    path.write_text("some text")
    for _ in range(2):
        assert texts(opened(path, tokenizer)) == [b"some text"]
    assert tokenizer.texts == ["some text"]
    os.utime(path, (1, 1))  # touched, not changed
    opened(path, tokenizer)
    assert tokenizer.texts == ["some text"]
    path.write_text("some more")
    assert texts(opened(path, tokenizer)) == [b"some more"]
    path.write_text("some more text")
    assert texts(opened(path, tokenizer)) == [b"some more text"]
    assert len(tokenizer.texts) == 3


def test_a_change_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some text")
    opened(path)
    time_ns = path.stat().st_mtime_ns
    path.write_text("some more")
    os.utime(path, ns=(time_ns, time_ns))
    (index,) = (tmp_path / FOLDER).glob("*.json")
    os.utime(index, ns=(time_ns + 10**6, time_ns + 10**6))
    assert texts(opened(path)) == [b"some more"]


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    """As archives leave files."""
    path = tmp_path / "a.txt"
    for text in ("some text", "else text"):
        path.write_text(text)
        os.utime(path, (315532800, 315532800))
        assert texts(opened(path)) == [text.encode()]


def test_tokenizers_and_named_folders_have_caches_of_their_own(tmp_path: Path, bpe: JsonTokenizer) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the ship, the sea")
    assert texts(opened(path)) == [b"the ship, the sea"]
    other = opened(path, bpe)
    assert other.tokens[[0, -1]].tolist() == [bpe.end] * 2
    assert bpe.decode(other.tokens.tolist()) == "the ship, the sea"
    assert other.sizes.tolist() == [17]
    assert texts(opened(path)) == [b"the ship, the sea"]
    opened(path, cache=tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").glob("*.tokens"))) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "documents", "index"])
def test_a_damaged_cache_is_made_anew(damage: str, tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "a.txt", Counting()
    path.write_text("some text")
    opened(path, tokenizer)
    (file,) = (tmp_path / FOLDER).glob({"documents": "*.documents", "index": "*.json"}.get(damage, "*.tokens"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content[:-2]) if damage == "cut" else bytes(content))
    assert texts(opened(path, tokenizer)) == [b"some text"]
    assert len(tokenizer.texts) <= 2


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some text")

    class Appending(ByteTokenizer):
        def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
            with path.open("a") as file:
                file.write(" and more")
            return super().encode_batch(texts)

    with pytest.raises(UserError, match=r"a\.txt: has changed while it was read\. Read it when it is written, or a copy of it\."):
        opened(path, Appending())
    assert texts(opened(path)) == [b"some text and more"]


@pytest.mark.parametrize("asked", [True, False])
def test_a_bar_shows_how_far_large_files_are(asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, of files from a size on, unless it is not asked for."""
    path, screen = tmp_path / "a.txt", StringIO()
    path.write_text("the ship went over the sea\n" * 100)
    monkeypatch.setattr(packed, "make_bar", partial(make_bar, console=Console(file=screen, force_terminal=True, width=100)))
    open_packed(path, ByteTokenizer(), "text", tmp_path / "small", progress=asked)
    assert screen.getvalue() == ""
    monkeypatch.setattr(packed, "_SHOWN_FROM", 2000)
    found = open_packed(path, ByteTokenizer(), "text", tmp_path / "large", progress=asked)
    assert found.sizes.tolist() == [2700]
    assert ("Tokenising" in screen.getvalue()) == asked
    assert ("2.7/2.7 kB" in screen.getvalue()) == asked


def test_what_was_opened_stays_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some text")
    found = opened(path)
    path.write_text("other")
    assert texts(found) == [b"some text"]


KILLED = """
import sys, time
from pathlib import Path
from domains.text.data import packed, sources
from domains.text.tokenizers import ByteTokenizer

class Slow(ByteTokenizer):
    def encode_batch(self, texts):
        time.sleep(0.02)
        return super().encode_batch(texts)

packed.BLOCK = sources.BLOCK = 1000
packed.open_packed(Path(sys.argv[1]), Slow(), "text", None, progress=False)
"""


@pytest.mark.parametrize("kind", ["one-document", "many-packed"])
def test_after_a_kill_it_goes_on_where_it_was(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same bytes as without, and what was done is not done again; also from an unfinished document."""
    monkeypatch.setattr(packed, "BLOCK", 1000)
    monkeypatch.setattr(sources, "BLOCK", 1000)
    words = [f"word {n * n} and the rest of a line\n" for n in range(3_000)]
    if kind == "one-document":
        path = tmp_path / "a.txt"
        path.write_text("".join(words))
    else:
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress("".join(json.dumps({"text": word * 3}) + "\n" for word in words[:1000]).encode()))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stderr=subprocess.PIPE, text=True)
    folder, deadline = tmp_path / FOLDER, time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        progress = next(iter(folder.glob(".*.partial/progress.json")), None) if folder.is_dir() else None
        if progress is not None and json.loads(progress.read_text())["blocks"] > 0:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, errors
    assert not list(folder.glob("*.tokens"))
    (progress,) = folder.glob(".*.partial/progress.json")
    done = json.loads(progress.read_text())
    assert (done["open"] is not None) == (kind == "one-document")
    with (progress.parent / "tokens").open("ab") as file:
        file.write(b"torn")  # behind what can be trusted
    rest, whole = Counting(), Counting()
    found = opened(path, rest)
    fresh = opened(path, whole, cache=tmp_path / "fresh")
    assert len(rest.texts) == len(whole.texts) - done["blocks"] < len(whole.texts)
    assert rest.texts == whole.texts[done["blocks"] :]
    for name in ("tokens", "starts", "sizes", "file"):
        assert np.array_equal(getattr(found, name), getattr(fresh, name))
    kept = [sorted(path.read_bytes() for path in place.glob("*.tokens")) for place in (folder, tmp_path / "fresh")]
    assert kept[0] == kept[1]
    assert not list(folder.glob(".*.partial"))


def test_what_is_left_of_other_files_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BLOCK", 10)
    path = write_lines(tmp_path / "a.jsonl", ["first", "second", "bad"])
    with path.open("a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match="line 4 is not JSON"):
        opened(path)
    assert list((tmp_path / FOLDER).glob(".*.partial/progress.json"))
    write_lines(path, ["other", "second", "good"])
    assert texts(opened(path)) == [b"other", b"second", b"good"]


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no cache can be written to"):
        opened(tmp_path / "a.txt", cache=tmp_path / "file")
