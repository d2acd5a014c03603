"""Facts inside book text: what the original's code promises of a sample."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from domains.text.tasks import load_task
from domains.text.tasks.babilong import BabiLong
from domains.text.tasks.books import Books, sentences
from domains.text.tasks.report import example_rows
from domains.text.tasks.task import examples, generator
from domains.text.tokenizers import ByteTokenizer, JsonTokenizer, train_tokenizer
from tests.domains.text.tasks.solver import answer
from titans_seq.errors import UserError
from titans_seq.losses import IGNORED

FACT = re.compile(r"(?:Mary|John|Sandra|Daniel) [^.]*\.")
ASKED = re.compile(r"\n\nQuestion: ([^?]*\?)\nAnswer: [^.]*\.")
BOOK = " ".join(f"It was number {i}, and the whale went by in the long evening. Short." for i in range(400))


def made(**settings: object) -> BabiLong:
    task = load_task("babilong_qa2", books=Books([BOOK, BOOK.replace("whale", "ship")]), **settings)
    assert isinstance(task, BabiLong)
    return task


@pytest.fixture(scope="module")
def bpe() -> JsonTokenizer:
    return train_tokenizer(iter([BOOK]), 400)


@pytest.mark.parametrize("length", [1000, 3000])
def test_facts_lie_in_order_between_sentences_of_a_book(length: int) -> None:
    task = made(length=length)
    for i in range(20):
        draw = generator(0, "test", i)
        question = task.question(draw)
        context = question.prompt.partition("<context>\n")[2].partition("\n</context>")[0]
        facts = tuple(FACT.findall(context))
        hay = [part for part in sentences(FACT.sub("", context)) if part.startswith("It was number")]
        assert answer(facts, question.question) == question.answers[0]  # in order: else another answer would follow
        assert "Short." not in context
        assert length - 300 - 30 <= task.tokens(context) <= length - 300 + len(facts)
        numbers = [int(part.split()[3].rstrip(",")) for part in hay[:-1]]  # the last one is cut
        assert sum(b != a + 1 for a, b in pairwise(numbers)) <= 3  # a book goes on


def test_places_of_facts_are_uniform() -> None:
    """The mean place of all facts is the middle of the background."""
    task, places = made(length=2000), list[float]()
    for i in range(60):
        parts = list(sentences(task.question(generator(1, "test", i)).prompt))
        hay = np.cumsum([part.startswith("It was") for part in parts])
        places += [hay[j] / hay[-1] for j, part in enumerate(parts) if part.split()[0] in ("Mary", "John", "Sandra", "Daniel")]
    assert abs(np.mean(places) - 0.5) < 0.05


def test_tests_read_the_test_file_and_training_does_not(tmp_path: Path) -> None:
    (tmp_path / "qa2_two-supporting-facts_train.txt").write_text("1 Wrong.\n2 Wrong?\twrong\t1\n")
    (tmp_path / "qa2_two-supporting-facts_test.txt").write_text(
        "1 Mary got the milk.\n2 Mary went to the office.\n3 Where is the milk?\toffice\t1 2\n"
    )
    task = made(length=0, babi=str(tmp_path))
    question = task.question(generator(0, "test", 0))
    assert question.prompt == (
        "<context>\nMary got the milk. Mary went to the office.\n</context>\n\nQuestion: Where is the milk?\nAnswer:"
    )
    asked = {task.question(generator(0, "training", i), training=True).prompt for i in range(5)}
    assert len(asked) == 5
    assert question.prompt not in asked


def test_too_many_facts_for_the_length_are_left_out(tmp_path: Path) -> None:
    lines = [f"{i} Mary went to the office." for i in range(1, 200)]
    (tmp_path / "qa2_x_test.txt").write_text("\n".join([*lines, "200 Where is Mary?\toffice\t1"]))
    with pytest.raises(UserError, match="no story is short enough for length=1000"):
        examples(made(length=1000, babi=str(tmp_path)), 0, 1)
    assert len(examples(made(length=20_000, babi=str(tmp_path)), 0, 1)[0].inputs) > 18_000


def test_a_room_of_a_few_tokens_is_filled_as_well(bpe: JsonTokenizer) -> None:
    """The facts of short examples leave all sizes of room, down to less than a sentence."""
    task = load_task("babilong_qa1", bpe, Books([BOOK]), length=300, reserve=140)
    for example in examples(task, 0, 100):
        assert len(example.inputs) <= 300


def test_the_room_for_the_question_is_counted_once(bpe: JsonTokenizer) -> None:
    """What is written for other tools says how long prompt and answer are: no more than `length`, where `reserve` holds the question."""
    task = load_task("babilong_qa1", bpe, Books([BOOK]), length=1000, reserve=140)
    for row in example_rows(task, 0, 10):
        question = row["input"] + row["answer_prefix"]
        assert row["length"] == len(bpe.encode_batch([f"{question} {row['outputs'][0]}"])[0]) <= 1000


def test_the_answer_alone_is_asked(bpe: JsonTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        task = load_task("babilong_qa2", tokenizer, Books([BOOK]), length=2000)
        assert isinstance(task, BabiLong)
        question = task.question(generator(0, "test", 0))
        inputs, targets = task.example(generator(0, "test", 0))
        asked = targets[targets != IGNORED]
        assert tokenizer.decode(asked) == f" {question.answers[0]}"
        assert tokenizer.decode(inputs[1:]).startswith(question.prompt)
        assert inputs[0] == tokenizer.end
        _, training = task.example(generator(0, "test", 0), training=True)
        assert training[-1] == tokenizer.end
        assert tokenizer.decode(training[training != IGNORED])[-1] == "."


def test_training_asks_several_questions_of_a_text_and_a_test_one() -> None:
    tokenizer = ByteTokenizer()
    settings = {"length": 2000, "earlier_questions": False}
    one, four = (load_task("babilong_qa1", tokenizer, Books([BOOK]), questions=n, **settings) for n in (1, 4))
    several = 0
    for i in range(20):
        inputs, targets = four.example(generator(0, "training", i), training=True)
        context, *questions = tokenizer.decode(inputs[1:]).split("\n\nQuestion: ")
        said = [question.split("\nAnswer: ") for question in questions]
        assert all(f"{answer(tuple(FACT.findall(context)), asked)}." == right for asked, right in said)
        assert tokenizer.decode(targets[targets != IGNORED][:-1]) == "".join(f" {right}" for _, right in said)
        several += len(said) > 1
    assert several > 15
    for ours, theirs in zip(examples(four, 0, 5), examples(one, 0, 5), strict=True):
        assert np.array_equal(ours.inputs, theirs.inputs)
        assert np.array_equal(ours.targets, theirs.targets)


@pytest.mark.parametrize("name", ["babilong_qa1", "babilong_qa2", "babilong_qa9"])
@pytest.mark.parametrize("length", [0, 3000])
def test_training_asks_in_the_story_what_babi_asks_earlier(name: str, length: int) -> None:
    """Each question follows from the facts before it; without the earlier ones the text is what a test's is."""
    tokenizer, earlier = ByteTokenizer(), 0
    with_them, without = (load_task(name, tokenizer, Books([BOOK]), length=length, earlier_questions=on) for on in (True, False))
    for i in range(20):
        inputs, targets = with_them.example(generator(0, "training", i), training=True)
        text = tokenizer.decode(inputs[1:])
        told = [(FACT.findall(ASKED.sub("", text[: match.start()])), match[1]) for match in ASKED.finditer(text)]
        right = [f" {answer(tuple(facts), asked)}." for facts, asked in told]
        assert tokenizer.decode(targets[targets != IGNORED][:-1]) == "".join(right)
        plain = without.example(generator(0, "training", i), training=True)
        context, _, end = text.partition("\n</context>")
        assert f"{ASKED.sub('', context).replace(chr(10) * 2, ' ')}\n</context>{end}" == tokenizer.decode(plain.inputs[1:])
        earlier += len(ASKED.findall(context))
    assert earlier > 20
    for ours, theirs in zip(examples(with_them, 0, 5), examples(without, 0, 5), strict=True):
        assert np.array_equal(ours.inputs, theirs.inputs)


def test_a_file_of_babi_gives_its_earlier_questions_to_training(tmp_path: Path) -> None:
    told = "1 Mary went north.\n2 Who went?\tMary\t1\n3 John went south.\n4 Who went south?\tJohn\t3\n"
    (tmp_path / "qa4_x_train.txt").write_text(told)
    task = load_task("babilong_qa4", ByteTokenizer(), length=0, babi=str(tmp_path))
    texts = {ByteTokenizer().decode(task.example(generator(0, "training", i), training=True).inputs[1:]) for i in range(10)}
    first = "<context>\nMary went north."
    asked = "\n\nQuestion: Who went?\nAnswer: Mary."
    assert texts == {
        f"{first}\n</context>{asked}",
        f"{first}{asked}\n\nJohn went south.\n</context>\n\nQuestion: Who went south?\nAnswer: John.",
    }


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UserError, match=r"babilong_qa1 hides its facts in books\. Name files or folders of texts: --books"):
        examples(load_task("babilong_qa1"), 0, 1)
    with pytest.raises(ValueError, match="babi must be the folder of bAbI's files for qa4"):
        load_task("babilong_qa4")
    with pytest.raises(ValueError, match="length must be 0, or more than reserve=300"):
        load_task("babilong_qa1", length=300)
    with pytest.raises(UserError, match="the books hold no text"):
        Books([" "])
