"""Examples of all tasks: the same from a seed everywhere, each by itself, none of the test in training."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from domains.text.tasks import TASKS, Examples, Task, examples, load_task
from domains.text.tasks.books import Books
from domains.text.tasks.task import generator, shared
from titans_seq import strict_json
from titans_seq.errors import UserError
from titans_seq.losses import IGNORED

BOOK = " ".join(f"Call me number {i}, for so I was called at sea. It was so." for i in range(300))
GOLDEN = Path(__file__).with_name("golden.json")


def made(name: str, folder: Path | None = None) -> Task:
    """With its defaults, but for a shorter text."""
    settings: dict[str, object] = {} if name in ("mqar", "copy") or not name.startswith(("niah", "babilong")) else {"length": 2500}
    if name in ("babilong_qa4", "babilong_qa5", "babilong_qa10"):
        assert folder is not None
        for part, sentence in (("train", "A is b."), ("test", "C is d.")):
            path = folder / f"{name.removeprefix('babilong_')}_x_{part}.txt"
            path.write_text(f"1 {sentence}\n2 Is it?\tyes\t1\n3 {sentence}\n4 Is it?\tno\t3\n")
        settings["babi"] = str(folder)
    return load_task(name, books=Books([BOOK]), **settings)


def digest(task: Task) -> str:
    found = hashlib.sha256()
    for part in ("training", "test"):
        for one in Examples(task, 7, 3, part):  # type: ignore[arg-type]
            found.update(one.inputs.astype("<i8").tobytes() + one.targets.astype("<i8").tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_gives_the_same_examples_on_every_machine(name: str, tmp_path: Path) -> None:
    """As they were when the file was made: a change of it breaks what others have reported."""
    assert digest(made(name, tmp_path)) == strict_json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_of_the_model_and_each_by_itself(name: str, tmp_path: Path) -> None:
    task = made(name, tmp_path)
    some, more = examples(task, 0, 2), examples(task, 0, 4)
    assert all((a.inputs == b.inputs).all() and (a.targets == b.targets).all() for a, b in zip(some, more, strict=False))
    assert (Examples(task, 0, 4, "test")[-1].inputs == more[3].inputs).all()
    for one in more:
        assert one.inputs.shape == one.targets.shape
        assert one.inputs.dtype == one.targets.dtype == np.int64
        assert 0 <= one.inputs.min() <= one.inputs.max() < task.vocabulary
        asked = one.targets[one.targets != IGNORED]
        assert 0 <= asked.min() <= asked.max() < task.vocabulary
        assert len(asked) > 0


def test_parts_of_a_seed_differ() -> None:
    task = load_task("mqar")
    parts = [examples(task, 0, 50, part) for part in ("training", "validation", "test")]  # type: ignore[arg-type]
    assert shared(parts[0], parts[1]) == shared(parts[0], parts[2]) == shared(parts[1], parts[2]) == 0


def test_what_is_tested_is_not_trained_on() -> None:
    """Of 64 sequences there are, half are held out: training has the others alone, and says how often it drew again."""
    task = load_task("associative_recall", length=2, symbols=9)
    test = examples(task, 0, 6)
    training = Examples(task, 0, 200, "training", test)
    assert shared(list(training), test) == 0
    assert training.redrawn > 0
    assert shared(examples(task, 0, 200, "training"), test) > 0  # else this would show nothing
    with pytest.raises(UserError, match="there are no other examples than those held out"):
        list(Examples(task, 0, 200, "training", examples(task, 0, 2000)))


def test_short_words_may_come_up_in_both() -> None:
    task = load_task("parity", length=3, min_length=3)
    test = examples(task, 0, 50)
    assert shared(list(Examples(task, 0, 50, "training", test)), test) == 50


@pytest.mark.parametrize("name", ["mqar", "mad_recall", "parity", "niah_single_1", "babilong_qa1", "copy"])
def test_a_task_at_another_length(name: str) -> None:
    task = made(name)
    longer = task.at_length(2 * task.length)
    assert longer.vocabulary == task.vocabulary
    sizes = [len(one.example(generator(0, "test", 0)).inputs) for one in (task, longer)]
    assert sizes[1] > 1.5 * sizes[0]
    assert load_task(name, books=Books([BOOK]), **longer.settings()).length == longer.length


def test_a_task_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"there is no task 'mkar'\. Did you mean 'mqar'"):
        load_task("mkar")


if __name__ == "__main__":  # accepts a change
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        GOLDEN.write_text(json.dumps({name: digest(made(name, Path(temporary))) for name in TASKS}, indent=1) + "\n")
