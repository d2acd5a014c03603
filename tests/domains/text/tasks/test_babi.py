"""Stories and their answers, checked by a solver that reads the sentences alone; bAbI's files; how an answer is scored."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from domains.text.tasks.babi import LABELS, Story, compare_answers, find_file, read_stories
from domains.text.tasks.stories import DROPPED, GAVE, GOT, MOVED, RECENT, THINGS, TOLD, tell
from tests.domains.text.tasks.solver import answer
from titans_seq.errors import UserError

DATA = Path(os.environ.get("TITANS_SEQ_DATA", "data")) / "text" / "babi" / "en"
VERBS = {"move": MOVED, "is": ("is in",), "is not": ("is not in", "is no longer in"), "get": GOT, "drop": DROPPED, "give": GAVE}
needs_babi = pytest.mark.skipif(not DATA.is_dir(), reason="TITANS_SEQ_DATA has no text/babi/en")


@pytest.mark.parametrize("task", TOLD)
def test_our_stories_have_the_answers_that_follow_from_them(task: str) -> None:
    answers = Counter[str]()
    for seed in range(300):
        story = tell(task, np.random.default_rng(seed))
        assert answer(story.facts, story.question) == story.answer, story
        answers[story.answer] += 1
        asked = tell(task, np.random.default_rng(seed), questions=6)
        assert all(answer(asked.facts, question) == right for question, right in asked.more), asked
        assert len({asked.question, *(question for question, _ in asked.more)}) == 1 + len(asked.more) <= 6
    assert set(",".join(answers).split(",")) >= set(LABELS[task]) - {"three"}  # all answers come up
    assert max(answers.values()) < 240


@needs_babi
@pytest.mark.parametrize("task", ["qa2", "qa3"])
def test_our_stories_of_things_are_as_those_of_the_files(task: str) -> None:
    """How long they are, what happens in them, and what is asked: as often held, as long since it was got or dropped."""
    theirs = read_stories(find_file(DATA, task))
    ours = [tell(task, np.random.default_rng(seed)) for seed in range(1000)]
    found = [np.array([_measures(story) for story in stories]) for stories in (ours, theirs)]
    lengths, parts = ([x[:, 0] for x in found], [x[:, 1:].mean(0) for x in found])
    np.testing.assert_allclose(*(np.quantile(x, [0.1, 0.25, 0.5, 0.75, 0.9]) for x in lengths), rtol=0.15)
    np.testing.assert_allclose(*parts, rtol=0.1, atol=0.03)
    assert all(length % 2 == 0 for length in lengths[0])


def _measures(story: Story) -> tuple[float, ...]:
    """Facts; of them the shares of moves and of things got; whether the thing is held; facts since it was got or dropped."""
    moves, got = ([any(verb in fact for verb in verbs) for fact in story.facts] for verbs in (MOVED, GOT))
    thing = next(thing for thing in THINGS if thing in story.question)
    last = max(n for n, fact in enumerate(story.facts) if thing in fact)
    return len(moves), float(np.mean(moves)), float(np.mean(got)), got[last], len(moves) - last


@needs_babi
@pytest.mark.parametrize("task", ["qa6", "qa7", "qa8", "qa9"])
def test_our_stories_of_people_are_as_those_of_the_files(task: str) -> None:
    """How long they are, what happens in them, what is answered, and how long ago what is asked for was told."""
    theirs = [story for part in ("train", "test") for story in read_stories(find_file(DATA, task, part))]
    ours = [tell(task, np.random.default_rng(seed)) for seed in range(2000)]
    found = [np.array([_measures_of_people(story) for story in stories]) for stories in (ours, theirs)]
    np.testing.assert_allclose(*(x[:, :2].mean(0) for x in found), rtol=0.1)
    np.testing.assert_allclose(*(x[:, 2:].mean(0) for x in found), atol=0.03)
    assert [x[:, 1].max() for x in found] == [RECENT] * 2
    assert all(length % 2 == 0 for length in found[0][:, 0])


def _measures_of_people(story: Story) -> tuple[float, ...]:
    """Facts; how many facts ago the one that is asked for was told (1: the last); of facts the shares of each kind; whether things were got
    and given; whether the answer is none, nothing or no, and whether it is of two things or more.
    """
    kinds = [next(kind for kind, verbs in VERBS.items() if any(f" {verb} the " in fact for verb in verbs)) for fact in story.facts]
    carrying = story.question.endswith("carrying?")
    person, asked = story.question.split()[-2 if carrying else 1], ("get", "drop", "give") if carrying else ("move", "is", "is not")
    last = max(n for n, fact in enumerate(story.facts) if fact.startswith(person) and kinds[n] in asked)
    shares = (kinds.count(kind) / len(kinds) for kind in VERBS)
    none, many = story.answer in ("none", "nothing", "no"), "," in story.answer or story.answer in ("two", "three")
    return len(kinds), len(kinds) - last, *shares, "get" in kinds, "give" in kinds, none, many


@needs_babi
@pytest.mark.parametrize("task", TOLD)
def test_the_solver_answers_the_files_of_babi(task: str) -> None:
    """So that it can judge ours. (The order of a list of things is left open, there and in the score.)"""
    stories = read_stories(find_file(DATA, task))
    assert len(stories) == 1000
    for story in stories:
        assert sorted(answer(story.facts, story.question).split(",")) == sorted(story.answer.split(",")), story


def test_a_file_gives_a_story_a_question(tmp_path: Path) -> None:
    path = tmp_path / "qa1_single-supporting-fact_test.txt"
    path.write_text(
        "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n"
        "3 John went to the hallway.\n4 Where is John?\thallway\t3\n1 A b.\n2 C? \td\t1\n"
    )
    stories = read_stories(find_file(tmp_path, "qa1"))
    assert [(len(story.facts), story.question, story.answer) for story in stories] == [
        (1, "Where is Mary?", "bathroom"),
        (2, "Where is John?", "hallway"),
        (1, "C?", "d"),
    ]


def test_what_is_no_file_of_babi_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qa1_x_train.txt").write_text("1 A.\n")
    with pytest.raises(UserError, match=r"must hold one qa1_\.\._test.txt of bAbI, found 0"):
        find_file(tmp_path, "qa1")
    with pytest.raises(UserError, match="holds no question"):
        read_stories(tmp_path / "qa1_x_train.txt")
    (tmp_path / "other.txt").write_text("1 A.\nno number\n")
    with pytest.raises(UserError, match=r"other.txt, line 2: must be"):
        read_stories(tmp_path / "other.txt")
    with pytest.raises(UserError, match=r"none.txt: cannot be read as a file of bAbI \(No such file"):
        read_stories(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("task", "target", "output", "question", "right"),
    [
        ("qa1", "kitchen", "The most recent location of Mary is kitchen. Where is John?", "Where is Mary?", True),
        ("qa1", "kitchen", "KITCHEN", "Where is Mary?", True),
        ("qa1", "kitchen", "kitchen or garden", "Where is Mary?", False),  # no other label
        ("qa1", "kitchen", "I do not know. kitchen", "Where is Mary?", False),  # the first sentence counts
        ("qa1", "kitchen", "kitchen<context>garden", "Where is Mary?", True),
        ("qa1", "kitchen", "kitchen\n<example> garden", "Where is Mary?", True),
        ("qa1", "kitchen", "kitchen Question: garden", "Where is Mary?", False),  # cut at "Question" of a text in lower case: never
        ("qa3", "office", "Before the kitchen the apple was in the office.", "Where was the apple before the kitchen?", True),
        ("qa5", "Bill", "bill", "Who gave the milk to Fred?", True),
        ("qa6", "no", "Not in the kitchen", "Is Mary in the kitchen?", True),  # "not" has "no"
        ("qa7", "one", "one", "How many objects is Mary carrying?", True),
        ("qa7", "none", "none", "How many objects is Mary carrying?", False),  # "none" has "one"
        ("qa8", "apple,milk", "milk, apple", "What is Mary carrying?", True),
        ("qa8", "apple,milk", "apple", "What is Mary carrying?", False),
        ("qa8", "apple", "apple, milk", "What is Mary carrying?", False),
        ("qa10", "maybe", "maybe", "Is Bill in the park?", True),
    ],
)
def test_answers_are_compared_as_babilong_does(task: str, target: str, output: str, question: str, right: bool) -> None:
    assert compare_answers(target, output, question, task) == right
