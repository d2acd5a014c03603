"""Text to tokens and back, whole and as it comes."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from domains.text.config import END
from domains.text.tokenizers import ByteTokenizer, JsonTokenizer, Tokenizer, load_tokenizer, train_tokenizer
from tests.domains.text.conftest import word_level
from titans_seq import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text("the ship\n\r\t 水🚢é<|end|>", max_size=60)
WORDS = "the ship went over the sea, and the wind — Größe, 水, 🚢 — was from the land. "


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe: JsonTokenizer) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else bpe


def streamed(tokenizer: Tokenizer, tokens: list[int], after: int | None = None) -> list[str]:
    decoder = tokenizer.decoder(after)
    return [*(decoder.add(token) for token in tokens), decoder.finish()]


@given(text=TEXT)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    (tokens,) = tokenizer.encode_batch([text])
    assert tokenizer.end not in tokens
    assert tokenizer.decode(tokens.tolist()) == text
    pieces = streamed(tokenizer, tokens.tolist())
    assert "".join(pieces) == text
    assert text.startswith("".join(pieces[:-1]))


@given(tokens=st.lists(st.integers(0, 256), max_size=24))
def test_any_tokens_stream_as_they_decode(tokenizer: Tokenizer, tokens: list[int]) -> None:
    """Bytes that are no UTF-8 among them: no character comes in part, and none is lost."""
    pieces = streamed(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)


@given(texts=st.lists(TEXT, max_size=4))
def test_a_batch_is_its_texts(tokenizer: Tokenizer, texts: list[str]) -> None:
    alone = [tokenizer.encode_batch([text])[0].tolist() for text in texts]
    assert [tokens.tolist() for tokens in tokenizer.encode_batch(texts)] == alone


def test_characters_of_several_bytes_come_whole() -> None:
    assert streamed(ByteTokenizer(), [*"é🚢".encode(), 0xE6, END]) == ["", "é", "", "", "", "🚢", "", "", "\ufffd"]


def test_bpe_needs_fewer_tokens_than_bytes(bpe: JsonTokenizer) -> None:
    (tokens,) = bpe.encode_batch([WORDS])
    assert len(tokens) < 0.6 * len(WORDS.encode())
    assert bpe.vocabulary <= 300
    assert bpe.decode([bpe.end]) == ""


def test_a_tokenizer_comes_back_from_its_file(bpe: JsonTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(bpe.text)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert (loaded.identity, loaded.vocabulary, loaded.end) == (bpe.identity, bpe.vocabulary, bpe.end)
    assert JsonTokenizer.restore(bpe.text, bpe.end).identity == bpe.identity


def test_the_end_is_a_usual_token_a_named_one_or_a_new_one() -> None:
    assert JsonTokenizer(word_level("[UNK]", "ship", "</s>")).end == 2
    assert JsonTokenizer(word_level("[UNK]", "ship", "stop"), "stop").end == 2
    new = JsonTokenizer(word_level("[UNK]", "ship"))
    assert (new.end, new.vocabulary) == (2, 3)
    again = JsonTokenizer.restore(new.text, new.end)
    assert (again.identity, again.end, again.vocabulary) == (new.identity, 2, 3)
    assert new.encode_batch(["ship"])[0].tolist() == [1]
    with pytest.raises(UserError, match=r"has no token 'none'.*--end-token"):
        JsonTokenizer(word_level("[UNK]", "ship"), "none")


@pytest.mark.parametrize("kind", ["unigram", "word-level"])
def test_a_text_that_names_the_end_does_not_end(kind: str) -> None:
    """Also of models whose pieces the name is one of."""
    if kind == "unigram":
        inner = tokenizers.Tokenizer(models.Unigram())
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False)
        inner.train_from_iterator(["the tag </s> ends it, as a text <b> of tags does"] * 20, trainer)
    else:
        inner = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "tag": 3, "ends": 4}, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = JsonTokenizer(inner.to_str())
    assert tokenizer.end == 1
    first, second = tokenizer.encode_batch(["the tag </s> ends </s>", "the tag"])
    assert 1 not in first.tolist()
    assert len(first) > 4
    assert first.tolist()[: len(second)] == second.tolist()
    if kind == "unigram":
        assert tokenizer.decode(first.tolist()) == "the tag </s> ends </s>"


def test_a_letter_is_no_end(bpe: JsonTokenizer) -> None:
    tokenizer = JsonTokenizer(bpe.text, "e")
    assert len(tokenizer.encode_batch(["xyz"])[0])
    with pytest.raises(UserError, match="the token 'e' is one that texts are made of"):
        tokenizer.encode_batch(["e x"])


def test_a_tokeniser_that_cannot_spell_its_end_reads_what_has_it_not() -> None:
    tokenizer = JsonTokenizer(tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "the": 1, "tag": 2})).to_str())
    assert tokenizer.encode_batch(["the", "tag"])[1].tolist() == [2]
    with pytest.raises(UserError, match="the token '</s>' is one that texts are made of"):
        tokenizer.encode_batch(["</s>"])


def test_decoders_that_look_back_stream_too() -> None:
    tokenizer = JsonTokenizer(word_level("[UNK]", "ship", "##s", "sail"))
    assert streamed(tokenizer, [1, 2, 3, 1]) == ["ship", "s", " sail", " ship", ""]
    assert streamed(tokenizer, [3, 1], after=2) == [" sail", " ship", ""]
    assert streamed(tokenizer, [2, 1], after=1) == ["s", " ship", ""]
    assert streamed(tokenizer, [3, 1], after=tokenizer.end) == ["sail", " ship", ""]


@pytest.mark.parametrize("content", ["", "{}", "[1]", json.dumps({"model": {"type": "BPE"}}), "\0"])
def test_what_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"t\.json: no tokeniser"):
        load_tokenizer(path)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: cannot be read as a tokeniser \(No such file"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"bad\.json: cannot be read as a tokeniser"):
        load_tokenizer(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="vocabulary must be at least 257"):
        train_tokenizer(iter(["a"]), 256)
