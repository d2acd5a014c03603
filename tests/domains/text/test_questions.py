"""Multiple choice and last words: files as they are published, and what is counted."""

import json
import math
from pathlib import Path

import pytest

from domains.text.likelihood import Likelihood
from domains.text.model import TitansForCausalLM
from domains.text.questions import (
    Question,
    ask,
    last_words,
    multiple_choice,
    read_arc,
    read_lambada,
    read_openbookqa,
    read_piqa,
)
from tests.domains.text.test_likelihood import by_hand
from titans_seq import UserError

ARC = {"question": {"stem": "Why?", "choices": [{"text": "one", "label": "1"}, {"text": "two", "label": "2"}]}, "answerKey": "2"}
OPEN = "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n7-1\tIt is\t(A) red (B) a (D) is (C) blue (D) dry (D) wet\tIt is ..\tD\n"


def test_files_are_read_as_they_are_published(tmp_path: Path) -> None:
    (tmp_path / "lambada.jsonl").write_text('{"text": "the\\nlast word\\u2028is this"}\n\n{"text": "an other"}\n')
    assert read_lambada(tmp_path / "lambada.jsonl") == [
        Question("the\nlast word\u2028is", ("this",), 0),
        Question("an", ("other",), 0),
    ]
    (tmp_path / "piqa.jsonl").write_text('{"goal": "open", "sol1": "push ", "sol2": "pull"}\n')
    (tmp_path / "piqa.lst").write_text("1\n")
    assert read_piqa(tmp_path / "piqa.jsonl", tmp_path / "piqa.lst") == [Question("Question: open\nAnswer:", ("push ", "pull"), 1)]
    (tmp_path / "arc.jsonl").write_text(json.dumps(ARC))
    assert read_arc(tmp_path / "arc.jsonl") == [Question("Question: Why?\nAnswer:", ("one", "two"), 1)]
    (tmp_path / "open.tsv").write_text(OPEN)
    assert read_openbookqa(tmp_path / "open.tsv") == [Question("It is", ("red", "a (D) is", "blue", "dry (D) wet"), 3)]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_lambada, '{"text": "a b"}\n{"text": "word"}', "line 2: the text has no last word behind a space"),
        (read_lambada, '{"text": "a b"', "line 1: is no JSON"),
        (read_lambada, '["text"]', "line 1: lacks text"),
        (read_arc, json.dumps(ARC | {"answerKey": "B"}), "line 1: is no question of ARC"),
        (read_arc, '{"question": "Why?", "answerKey": "A"}', "line 1: is no question of ARC"),
        (read_openbookqa, OPEN.replace("(C)", "(c)"), "line 2: is no question of OpenBookQA"),
        (read_openbookqa, OPEN.replace("\tD\n", "\tE\n"), "line 2: is no question of OpenBookQA"),
    ],
)
def test_what_is_of_another_form_is_named(read: object, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "file")  # type: ignore[operator]


def test_labels_that_do_not_fit_and_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text('{"goal": "open", "sol1": "push", "sol2": "pull"}\n')
    for labels in ("0 1", "2", ""):
        (tmp_path / "piqa.lst").write_text(labels)
        with pytest.raises(UserError, match="expected 1 lines of 0 or 1"):
            read_piqa(tmp_path / "piqa.jsonl", tmp_path / "piqa.lst")
    with pytest.raises(UserError, match=r"none: cannot be read \(No such file"):
        read_arc(tmp_path / "none")


def test_scores_by_hand() -> None:
    """A short choice that is likeliest, a long one that is by its characters, and one that is by its bytes."""
    questions = [Question("", ("aa", "bbbb", "ßßß"), answer) for answer in (0, 1, 2)]
    asked = [[Likelihood(1.0, True), Likelihood(1.6, False), Likelihood(1.5, False)]] * 3
    assert multiple_choice(questions[:1], asked[:1]) == (1.0, 0.0, 0.0)
    assert multiple_choice(questions[1:2], asked[1:2]) == (0.0, 1.0, 0.0)
    assert multiple_choice(questions[2:], asked[2:]) == (0.0, 0.0, 1.0)
    assert multiple_choice(questions, asked) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    for nothing in (lambda: last_words([]), lambda: multiple_choice([], [])):
        with pytest.raises(ValueError, match="at least one question"):
            nothing()
    words = last_words([[Likelihood(1.0, True)], [Likelihood(2.0, False)]])
    assert words == pytest.approx((0.5, math.exp(1.5)))


def test_choices_stand_behind_a_space(model: TitansForCausalLM) -> None:
    questions = [Question("It was the", ("best", "worst"), 0), Question("It", ("was",), 0)]
    asked = ask(model, questions)
    for question, found in zip(questions, asked, strict=True):
        for choice, one in zip(question.choices, found, strict=True):
            pair = model.tokenizer.encode_batch([question.context, f" {choice}"])
            assert one.nats == pytest.approx(by_hand(model, pair[0], pair[1]).nats, rel=1e-5)


def test_the_published_files(data_folder: Path) -> None:
    texts = data_folder / "text"
    assert len(read_lambada(texts / "lambada" / "lambada_test.jsonl")) == 5153
    piqa = read_piqa(texts / "piqa" / "valid.jsonl", texts / "piqa" / "valid-labels.lst")
    assert (len(piqa), sum(one.answer for one in piqa)) == (1838, 928)
    assert len(read_arc(texts / "arc" / "ARC-Challenge-Test.jsonl")) == 1150
    for name, count in (("train", 4957), ("dev", 500), ("test", 500)):
        found = read_openbookqa(texts / "openbookqa" / f"{name}.tsv")
        assert (len(found), {len(one.choices) for one in found}) == (count, {4})
