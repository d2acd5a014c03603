"""Facts in noise: what is told, where it lies, and what is asked."""

import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.text.config import of_preset
from domains.text.model import TitansForCausalLM
from domains.text.tasks import load_task
from domains.text.tasks.evaluate import Scores
from domains.text.tasks.facts import SENTENCES, Facts
from domains.text.tasks.needles import NOISE
from domains.text.tasks.report import Row, depth_shares, evaluate_lengths
from domains.text.tasks.task import Example, examples, generator
from domains.text.tasks.train import train
from domains.text.tasks.words import ADJECTIVES
from domains.text.tokenizers import ByteTokenizer, JsonTokenizer, Tokenizer, train_tokenizer
from titans_seq.errors import UserError
from titans_seq.losses import IGNORED
from titans_seq.training import TrainingConfig

FACT = re.compile(r"The (\w+) is (\w+)\.")


@cache
def words() -> JsonTokenizer:
    """A token a word."""
    task = made(ByteTokenizer(), length=400)
    return train_tokenizer((task.text(generator(0, "training", i)) for i in range(300)), 4000)


def made(tokenizer: Tokenizer, **settings: Any) -> Facts:
    task = load_task("facts", tokenizer, **settings)
    assert isinstance(task, Facts)
    return task


def sentences(text: str) -> list[str]:
    return re.findall(r"[A-Z][^.]*\.", text)


def test_noise_is_that_of_ruler() -> None:
    assert " ".join(SENTENCES) == NOISE
    assert len(SENTENCES) == 5


def test_each_fact_is_told_once_among_noise_and_one_is_asked() -> None:
    for i in range(50):
        question = made(words(), length=150, facts=3).question(generator(0, "test", i))
        told = sentences(question.prompt.removesuffix(question.prefix))
        facts = [one for one in told if one not in SENTENCES]
        assert len(facts) == 3
        assert len({FACT.sub(r"\1", one) for one in facts}) == 3
        assert f"{question.question} {question.answers[0]}." in facts
        hay = [SENTENCES.index(one) for one in told if one in SENTENCES]
        assert all((b - a) % len(SENTENCES) == 1 for a, b in pairwise(hay))  # in their order
        before = [one for one in told[: told.index(f"{question.question} {question.answers[0]}.")] if one in SENTENCES]
        assert question.depth == len(before) / len(hay)


def test_a_haystack_of_facts_never_tells_the_answer_twice() -> None:
    for i in range(50):
        question = made(words(), length=300, haystack="facts").question(generator(0, "test", i))
        assert question.prompt.count(f"{question.question} ") == 1
        assert not set(sentences(question.prompt)) & set(SENTENCES)


@pytest.mark.parametrize("haystack", ["noise", "facts"])
def test_prompts_are_as_long_as_they_may_be(haystack: str) -> None:
    for tokenizer in (words(), ByteTokenizer()):
        for length in (64, 200, 1024):
            task = made(tokenizer, length=length if tokenizer is words() else 4 * length, haystack=haystack)
            longest = max(task.tokens(f" {one}") for one in (*SENTENCES, "The blossom is cheerful."))
            sizes = [task.tokens(task.question(generator(0, "test", i)).prompt) for i in range(20)]
            assert all(task.length - longest < size + task.reserve <= task.length for size in sizes)


def test_training_tells_facts_again_and_asks_every_token() -> None:
    task = made(words(), length=100)
    one: Example = examples(task, 0, 1, "training")[0]
    assert (one.targets[:-1] == one.inputs[1:]).all()
    assert one.inputs[0] == task.end
    texts = [task.text(generator(0, "training", i)) for i in range(200)]
    facts = [[s for s in sentences(text) if s not in SENTENCES] for text in texts]
    assert all(len(set(some)) <= 2 for some in facts)
    assert np.mean([len(some) / len(sentences(text)) for some, text in zip(facts, texts, strict=True)]) == pytest.approx(0.8, abs=0.05)


def test_a_test_asks_for_the_quality_alone() -> None:
    task = made(words())
    for i, one in enumerate(examples(task, 0, 20)):
        asked = one.targets[one.targets != IGNORED]
        assert task.tokenizer.decode(asked.tolist()).strip() == task.question(generator(0, "test", i)).answers[0]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer, words])
def test_room_is_kept_for_any_quality(tokenizer: Callable[[], Tokenizer]) -> None:
    task = made(tokenizer(), length=400)
    for example in examples(task, 0, 40):
        assert len(example.inputs) <= 400
    assert task.reserve == max(task.tokens(f" {quality}") for quality in ADJECTIVES[:40])


def test_depths_are_spread_over_the_haystack() -> None:
    depths = [made(words(), length=500).question(generator(0, "test", i)).depth for i in range(200)]
    assert np.histogram(np.array(depths, float), bins=4, range=(0, 1))[0].min() > 30


def test_the_score_is_whether_the_quality_was_written() -> None:
    question = made(words()).question(generator(0, "test", 0))
    task = made(words())
    assert task.score(question, f" {question.answers[0]}.") == 1
    assert task.score(question, " none.") == 0


def test_what_is_too_short_is_an_error() -> None:
    with pytest.raises(UserError, match=r"length=10 is \d+ tokens too short"):
        made(words(), length=10).question(generator(0, "test", 0))
    with pytest.raises(UserError, match="too short for a sentence"):
        made(words(), length=3).text(generator(0, "training", 0))


def test_a_trained_model_reads_texts_with_the_tokeniser_of_its_task(tmp_path: Path) -> None:
    """It is saved with the model."""
    task = made(words(), length=32)
    training = TrainingConfig(max_steps=2, batch_size=4, warmup_steps=0)
    model = TitansForCausalLM.from_pretrained(train(task, tmp_path, of_preset("debug"), training, held_out=4, progress=False))
    assert model.tokenizer.identity == task.tokenizer.identity
    rows = evaluate_lengths(model, task, [32, 64], count=10, seed=0, written=True)
    assert depth_shares(rows).shape == (5, 2)
    assert [sum(size for _, size in row.depths or ()) for row in rows] == [10, 10]


def test_a_task_without_depths_has_no_map() -> None:
    with pytest.raises(ValueError, match="has no depth"):
        depth_shares([Row(32, Scores(1, 32.0, 1.0, None, 1.0, 1.0, 0.0))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"facts": 40}, "facts must be between 1 and things - 1 = 39"),
        ({"things": 1000}, "things must be at most"),
        ({"qualities": 0}, "qualities must be between 1 and"),
        ({"noise": 1.0}, "noise must be in"),
        ({"haystack": "essay"}, "haystack must be one of 'noise', 'facts'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task("facts", **settings)
