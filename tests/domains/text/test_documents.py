"""Documents as training reads them: what a part holds, joined ones, splits."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.text.data import END, TextDocuments, read_texts
from titans_seq import UserError


def whole(documents: TextDocuments, n: int) -> list[int]:
    return documents.read(n, 0, int(documents.lengths[n])).tolist()


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_a_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Größe")
    documents = read_texts([tmp_path / "a.txt"])
    assert whole(documents, 0) == [END, *"Größe".encode(), END]
    assert documents.lengths.tolist() == [9]
    assert documents.bytes_of(0) == 7
    assert documents.file(0) == tmp_path / "a.txt"


@settings(max_examples=30)
@given(text=st.text("abc", min_size=1, max_size=20), data=st.data())
def test_any_part_can_be_read(text: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("part") / "a.txt"
    path.write_text(text)
    documents = read_texts([path])
    start = data.draw(st.integers(0, len(text) + 2))
    stop = data.draw(st.integers(start, len(text) + 2))
    assert documents.read(0, start, stop).tolist() == [END, *text.encode(), END][start:stop]


def test_documents_of_a_file_can_be_one(tmp_path: Path) -> None:
    first, second = lines(tmp_path / "a.jsonl", ["one", "two"]), lines(tmp_path / "b.jsonl", ["three"])
    apart = read_texts([first, second])
    assert [bytes(whole(apart, n)[1:-1]) for n in range(3)] == [b"one", b"two", b"three"]
    joined = read_texts([first, second], joined=True)
    assert whole(joined, 0) == [END, *b"one", END, *b"two", END]
    assert whole(joined, 1) == [END, *b"three", END]
    assert (joined.sizes.tolist(), joined.bytes_of(0)) == ([6, 5], 6)
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, path in (("a.jsonl", first), ("b.jsonl", second)):
        path.rename(folder / name)
    both = read_texts([folder], joined=True)
    assert [whole(both, n) for n in range(2)] == [whole(joined, n) for n in range(2)]


@settings(max_examples=30)
@given(texts=st.lists(st.text("ab", min_size=1, max_size=12), min_size=1, max_size=8), share=st.floats(0, 1))
def test_ends_are_predicted_once_on_one_side(texts: list[str], share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    documents = read_texts([lines(tmp_path_factory.mktemp("ends") / "a.jsonl", texts)])
    sides = documents.split(share, "ends")
    predicted = [[token for n in range(len(side)) for token in whole(side, n)[1:]] for side in sides]
    assert sorted(predicted[0] + predicted[1]) == sorted(token for n in range(len(texts)) for token in whole(documents, n)[1:])
    held = sum(int(len(text) * share) for text in texts)
    assert sides[1].sizes.sum() == held
    assert sides[0].sizes.sum() == sum(map(len, texts)) - held


@settings(max_examples=30)
@given(texts=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=30), share=st.floats(0, 1))
def test_whole_documents_are_on_one_side_and_equal_ones_together(
    texts: list[str], share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("whole")
    sides = read_texts([lines(folder / "a.jsonl", texts)]).split(share, "documents")
    found = [[bytes(whole(side, n)[1:-1]).decode() for n in range(len(side))] for side in sides]
    assert sorted(found[0] + found[1]) == sorted(texts)
    assert not set(found[0]) & set(found[1])
    assert found[0]  # something is left to train on
    again = read_texts([lines(folder / "b.jsonl", texts[::-1])]).split(share, "documents")[1]
    assert sorted(bytes(whole(again, n)[1:-1]).decode() for n in range(len(again))) == sorted(found[1])


def test_the_share_that_is_held_out_is_about_what_was_asked(tmp_path: Path) -> None:
    texts = [f"text number {n} with some words" for n in range(400)]
    training, held = read_texts([lines(tmp_path / "a.jsonl", texts)]).split(0.05)
    assert len(training) + len(held) == 400
    assert 0.05 <= held.sizes.sum() / (held.sizes.sum() + training.sizes.sum()) < 0.06


def test_what_is_empty_is_left_out_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"a\.txt: is empty\."):
        read_texts([tmp_path / "a.txt"])
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(UserError, match=r"a\.txt: is empty, and so are 1 others"):
        read_texts([tmp_path])
    (tmp_path / "b.txt").write_text("b")
    assert len(read_texts([tmp_path])) == 1
    with pytest.raises(UserError, match="no text: name at least one"):
        read_texts([])


def test_a_description_names_files_and_sizes(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ["one", "two"])
    assert read_texts([path]).describe() == "2 documents, 6 bytes: `a.jsonl` (6)."
    (tmp_path / "b.txt").write_text("x")
    described = read_texts([path, tmp_path / "b.txt"]).describe(named=1)
    assert described == "3 documents, 7 bytes: `a.jsonl` (6), and 1 other files."
    assert read_texts([path]).read(0, 0, 0).dtype == np.uint16
