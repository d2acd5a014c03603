"""RULER's needles: the texts, where needles lie, how long a prompt is, and the score."""

import re
from typing import Any

import numpy as np
import pytest

from domains.text.tasks import load_task
from domains.text.tasks.books import Books, sentences
from domains.text.tasks.needles import NOISE, PRESETS, Needles
from domains.text.tasks.task import examples, generator
from domains.text.tasks.words import ADJECTIVES, NOUNS
from domains.text.tokenizers import JsonTokenizer, Tokenizer, train_tokenizer
from titans_seq.errors import UserError
from titans_seq.losses import IGNORED

BOOK = " ".join(f"Call me number {i}, for so I was called at sea. It was so." for i in range(300))
FOUND = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")
KINDS = {
    "words": r"[a-z]+-[a-z]+",
    "numbers": r"[1-9]\d{6}",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}


def made(name: str, tokenizer: Tokenizer | None = None, **settings: Any) -> Needles:
    task = load_task(name, tokenizer, Books([BOOK]), **settings)
    assert isinstance(task, Needles)
    return task


def test_the_text_of_one_needle_is_that_of_ruler() -> None:
    task = made("niah_single_1", length=800)
    question = task.question(generator(0, "test", 0))
    needle = FOUND.search(question.prompt)
    assert needle is not None
    key, value = needle[2], needle[3]
    hay = question.prompt.split("\n")[1:-1]
    assert sorted({line for line in hay if line != NOISE}) == [f"One of the special magic numbers for {key} is: {value}."]
    assert question.prompt == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
        + "\n".join(hay)
        + f"\nWhat is the special magic number for {key} mentioned in the provided text?"
        f" The special magic number for {key} mentioned in the provided text is"
    )
    assert question.answers == (value,)
    assert question.prompt.endswith(question.question + question.prefix)
    assert question.depth == hay.index(needle[0]) / (len(hay) - 2)


def test_the_text_of_several_values_keeps_the_plural() -> None:
    question = made("niah_multiquery", length=2000).question(generator(0, "test", 0))
    keys = [key for _, key, _ in FOUND.findall(question.prompt)]
    begin, _, rest = question.prompt.partition("\n")
    assert begin == (
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the numbers afterwards."
    )
    asked = re.fullmatch(r"What are all the special magic numbers for (.+), and (\S+) mentioned in the provided text\?", question.question)
    assert asked is not None
    order = [*asked[1].split(", "), asked[2]]
    assert sorted(order) == sorted(keys)
    values = {key: value for _, key, value in FOUND.findall(rest)}
    assert question.answers == tuple(values[key] for key in order)
    assert question.prefix == f" The special magic numbers for {asked[1]}, and {asked[2]} mentioned in the provided text are"
    assert question.depth is None


@pytest.mark.parametrize("name", PRESETS)
def test_needles_are_of_their_kinds_and_none_misleads(name: str) -> None:
    task = made(name, length=3000)
    config = task.config
    for i in range(5):
        question = task.question(generator(0, "test", i))
        found = FOUND.findall(question.prompt)
        assert all(kind == config.value_kind and re.fullmatch(KINDS[config.key_kind], key) for kind, key, _ in found)
        assert all(re.fullmatch(KINDS[config.value_kind], value) for *_, value in found)
        asked = [key for key in dict.fromkeys(key for _, key, _ in found) if f" {key}" in question.question.replace(",", " ")]
        assert len(asked) == config.queries
        in_text = [value for key in _order(question.question, asked) for _, owner, value in found if owner == key]
        assert tuple(in_text) == question.answers  # queries in their order, values in the order of the text
        assert len(question.answers) == config.queries * config.values
        assert config.haystack == "needle" or len(found) == config.keys * config.values
        assert task.tokens(question.prompt) + 128 <= 3000


def _order(question: str, keys: list[str]) -> list[str]:
    return sorted(keys, key=question.index)


def test_a_prompt_is_as_long_as_fits(request: pytest.FixtureRequest) -> None:
    """One unit of hay more would be too long, for bytes and for a tokeniser."""
    bpe: JsonTokenizer = train_tokenizer(iter([BOOK + NOISE]), 500)
    for name, tokenizer, length in (("niah_single_1", None, 1500), ("niah_single_2", None, 1500), ("niah_multikey_2", bpe, 900)):
        task = made(name, tokenizer, length=length)
        task.question(generator(0, "test", 0))
        units = task._units
        assert task.tokens(task._write(0, units).prompt) + 128 <= length < task.tokens(task._write(0, units + 1).prompt) + 128
        sizes = [task.tokens(task.question(generator(0, "test", i)).prompt) + 128 for i in range(20)]
        assert max(sizes) <= length
        assert min(sizes) > length - 200


def test_depths_are_uniform_over_the_haystack() -> None:
    for name in ("niah_single_1", "niah_single_2"):
        task = made(name, length=2500)
        depths = [task.question(generator(0, "test", i)).depth for i in range(200)]
        assert np.histogram(np.array(depths, float), bins=4, range=(0, 1))[0].min() > 30


def test_an_essay_begins_with_the_first_word_or_anywhere() -> None:
    task = made("niah_single_2", length=1500)
    begins = {task.question(generator(0, "test", i)).prompt.split("\n")[1][:20] for i in range(10)}
    assert {text for text in begins if not text.startswith("One of")} == {"Call me number 0, fo"}
    anywhere = made("niah_single_2", length=1500, anywhere=True)
    assert len({anywhere.question(generator(0, "test", i)).prompt.split("\n")[1][:20] for i in range(10)}) > 5


def test_scores_are_shares_of_answers_in_the_output() -> None:
    task = made("niah_multivalue", length=2000)
    question = task.question(generator(0, "test", 0))
    assert task.score(question, " and ".join(question.answers)) == 1
    assert task.score(question, f"{question.answers[2]}0 {question.answers[0]}") == 0.5
    assert task.score(question, "none") == 0
    words = made("niah_w_words", length=2000)
    asked = words.question(generator(0, "test", 0))
    assert words.score(asked, f"\x07It is {asked.answers[0].upper()}") == 1


def test_answers_are_asked_and_what_is_between_is_not() -> None:
    task = made("niah_multivalue", length=2000)
    question = task.question(generator(0, "test", 0))
    inputs, targets = task.example(generator(0, "test", 0))
    assert bytes(inputs[1:].tolist()).decode() == f"{question.prompt} {', '.join(question.answers)}."
    parts = "".join(chr(x) if x != IGNORED else "_" for x in targets[len(question.prompt) :].tolist())
    assert parts == "_".join(f" {one}" for one in question.answers) + "__"  # commas, the point and the end


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"niah_single_1: length=400 is \d+ tokens too short"):
        examples(made("niah_single_1", length=400), 0, 1)
    with pytest.raises(ValueError, match="queries must be at most keys=1"):
        load_task("niah_single_1", queries=2)
    with pytest.raises(ValueError, match="keys times values is at most 40"):
        load_task("niah_single_2", keys=41)
    with pytest.raises(UserError, match="Did you mean 'niah_single_1'"):
        load_task("niah_singel_1")
    with pytest.raises(ValueError, match="unknown key 'lenght'; did you mean 'length'"):
        load_task("niah_single_1", lenght=3)


def test_words_are_different_and_sentences_whole() -> None:
    assert len(set(ADJECTIVES)) == len(ADJECTIVES)
    assert len(set(NOUNS)) == len(NOUNS)
    assert list(sentences('He went. "Did he?" she said! And so on')) == ["He went.", '"Did he?" she said!', "And so on"]


def test_answers_without_room_are_an_error() -> None:
    """Four UUIDs are more than RULER keeps free, in bytes: the example would be longer than it says."""
    settings: dict[str, Any] = {"length": 4096, "value_kind": "uuids"}
    with pytest.raises(
        UserError, match=r"niah_multivalue: the answers take 151 tokens, and reserve=128 .*length=4096\. Set reserve to 151"
    ):
        made("niah_multivalue", **settings).example(generator(0, "test", 0))
    for training in (False, True):
        example = made("niah_multivalue", reserve=151, **settings).example(generator(0, "test", 0), training)
        assert len(example.inputs) <= 4096 + 2  # the end before the prompt, and the point after the answer
