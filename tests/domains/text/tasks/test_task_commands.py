"""`titans-seq text task`: what is written, trained and printed."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from domains.text.model import TitansForCausalLM
from domains.text.presets import debug
from domains.text.tasks import TASKS, load_task, report
from domains.text.tasks.needles import Needles
from domains.text.tasks.task import generator
from titans_seq import MemoryConfig, UserError, cli
from titans_seq.memory import scale_forgetting

SIZES = ("--preset", "debug", "--batch-size", "4", "--quiet")


def command(*arguments: object) -> None:
    """`titans-seq text task`, in this process."""
    cli.build_app()(["text", "task", *map(str, arguments)])


def test_all_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    command("list")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(TASKS)
    assert lines[2] == "    length=64, symbols=8192, pairs=8, power=0.01, random_filler=True"


def test_examples_are_written_for_other_tools(tmp_path: Path) -> None:
    command("make", "niah_multikey_2", "-o", tmp_path / "needles.jsonl", "--count", "3", "--seed", "5", "-s", "length=1500")
    rows = [json.loads(line) for line in (tmp_path / "needles.jsonl").read_text().splitlines()]
    task = load_task("niah_multikey_2", length=1500)
    assert isinstance(task, Needles)
    for i, row in enumerate(rows):
        question = task.question(generator(5, "test", i))
        assert row["input"] + row["answer_prefix"] == question.prompt
        assert row["outputs"] == list(question.answers)
        assert row["length"] == len(question.prompt) + 128 <= 1500
        assert row["bytes"] == len(question.prompt)
    command("make", "parity", "-o", tmp_path / "bits.jsonl", "--count", "2", "--set", "length=5", "--set", "min_length=null")
    bits = [json.loads(line) for line in (tmp_path / "bits.jsonl").read_text().splitlines()]
    assert [len(row["inputs"]) for row in bits] == [5, 5]


def test_facts_alone_are_trained_on_and_tested_in_longer_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("train", "babilong_qa1", "-o", tmp_path / "run", "-s", "length=0", "--max-steps", "2", "--checkpoint-every", "2", *SIZES)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["training"]["segment_length"] > 50  # bytes
    capsys.readouterr()
    command("evaluate", tmp_path / "run" / "model", "--lengths", "0", "--count", "4", "--quiet")
    assert capsys.readouterr().out.splitlines()[2].split()[0] == "0"


def test_a_model_is_trained_and_tested_at_longer_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ("--max-steps", "2", "--checkpoint-every", "1")
    command("train", "mqar", "-o", tmp_path / "run", "-s", "symbols=16", "-s", "length=16", "-s", "pairs=2", *steps, *SIZES)
    folder = tmp_path / "run" / "model"
    assert json.loads((folder / "task.json").read_text())["settings"]["pairs"] == 2
    capsys.readouterr()
    command("evaluate", folder, "--times", "4", "--count", "5", "-o", tmp_path / "scores", "--quiet")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "mqar: 5 examples a length"
    assert [line.split()[0] for line in printed[2:5]] == ["16", "32", "64"]
    assert printed[1].split() == ["length", "tokens", "accuracy", "chance", "answers", "whole", "bits", "guess_bits"]
    assert [line.split()[-1] for line in printed[2:5]] == ["3.000"] * 3  # one of eight values
    assert [line.split()[3] for line in printed[2:5]] == ["0.125"] * 3
    assert printed[5:] == [
        "Shares of asked tokens, of answers, and of whole examples that are right; bits per asked token (docs/text_tasks.md).",
        "Chance: accuracy of a guess among all possible answers.",
        "Guess_bits: bits of such a guess; a model that needs more knows less than nothing.",
    ]
    rows = list(csv.DictReader((tmp_path / "scores" / "scores.csv").read_text().splitlines()))
    assert [float(row["tokens"]) for row in rows] == [16, 32, 64]
    assert [float(row["guess_bits"]) for row in rows] == [3, 3, 3]
    assert all(2 < float(row["bits"]) < 6 for row in rows)  # two steps teach nothing
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["lengths.png", "scores.csv"]


def test_training_says_what_a_guess_is_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--preset", "debug", "--batch-size", "4", "--max-steps", "1")
    command("train", "parity", "-o", tmp_path / "run", *sizes)
    assert (
        capsys.readouterr().out.splitlines()[0]
        == "parity: guessing among its 2 answers gets 0.5000 right, and takes 1.0000 bits per token."
    )
    command("train", "facts", "-o", tmp_path / "text", *sizes)
    assert "guessing" not in capsys.readouterr().out


def test_compression_is_trained_with_the_head_that_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("train", "mad_compression", "-o", tmp_path / "run", "-s", "length=8", "--count", "8", "--max-steps", "4", *SIZES)
    capsys.readouterr()
    command("evaluate", tmp_path / "run" / "model", "--count", "5", "--json", "--quiet")
    assert json.loads(capsys.readouterr().out)["tokens"] == 8


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Also with more steps than were planned, where the learning rate as good as stays."""

    def train(folder: Path, steps: int, *more: str) -> dict[str, torch.Tensor]:
        schedule = ("--warmup-steps", "0", "--minimum-share", "0.999999")
        command("train", "copy", "-o", folder, "--max-steps", steps, *schedule, *SIZES, *more)
        return TitansForCausalLM.from_pretrained(folder / "model").state_dict()

    train(tmp_path / "parts", 2)
    with pytest.raises(UserError, match="already holds a run"):
        train(tmp_path / "parts", 4)
    parts, whole = train(tmp_path / "parts", 4, "--resume"), train(tmp_path / "whole", 4)
    for name, x in whole.items():
        torch.testing.assert_close(parts[name], x, rtol=0, atol=1e-6)
    of_task = (tmp_path / "parts" / "model" / "task.json").read_text()
    with pytest.raises(UserError, match="the run was started on other data: of the same sizes, but not the same ones"):
        train(tmp_path / "parts", 6, "--resume", "-s", "min_length=9")
    with pytest.raises(UserError, match="the run was started on other data or other batches: 0 windows then and 8 now"):
        train(tmp_path / "parts", 6, "--resume", "--count", "8")
    assert (tmp_path / "parts" / "model" / "task.json").read_text() == of_task


def test_needles_are_scored_by_depth_and_as_they_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of any language model of bytes."""
    TitansForCausalLM(debug()).save_pretrained(tmp_path / "model")
    arguments = ("--task", "niah_single_1", "-s", "reserve=8", "--count", "6", "--written", "--quiet")
    command("evaluate", tmp_path / "model", *arguments, "--lengths", "600", "900", "-o", tmp_path / "scores")
    printed = capsys.readouterr().out.splitlines()
    header = printed[1].split()
    assert header == ["length", "tokens", "bytes", "accuracy", "chance", "answers", "whole", "bits", "guess_bits", "written"]
    tokens, size = (int(part) for part in printed[2].split()[1:3])
    assert size == tokens - 1  # the end of a document before it is no byte
    assert [len(line.split()) for line in printed[2:4]] == [
        len(header) - 2
    ] * 2  # of 9,000,000 numbers no chance is told, and no loss of a guess
    assert "Chance" not in printed[-1]
    rows = list(csv.DictReader((tmp_path / "scores" / "depths.csv").read_text().splitlines()))
    assert [sum(int(row["examples"]) for row in rows if row["length"] == length) for length in ("600", "900")] == [6, 6]
    assert (tmp_path / "scores" / "depths.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("make", "mkar", "-o", "x.jsonl"), "^there is no task 'mkar'. Did you mean 'mqar'"),
        (("make", "mqar", "-o", "x.jsonl", "-s", "pairs"), "--set pairs: must be NAME=VALUE"),
        (("make", "mqar", "-o", "x.jsonl", "-s", "pairs=x"), "pairs must be of type int"),
        (("make", "mqar", "-o", "x.jsonl", "-s", "lenght=3"), "did you mean 'length'"),
        (("make", "niah_single_2", "-o", "x.jsonl"), "Name files or folders of texts: --books"),
        (("make", "parity", "-o", "x.jsonl", "--end-token", "a"), "--end-token names a token of --tokenizer"),
        (
            ("make", "mqar", "-o", "x.jsonl", "--books", "none"),
            "^--books none: is of tasks of text .*, and mqar is one of symbols. Leave it",
        ),
        (("make", "mqar", "-o", "x.jsonl", "--tokenizer", "none.json"), "^--tokenizer none.json: is of tasks of text"),
        (("train", "mqar", "-o", "run", "--tokenizer", "none.json"), "^--tokenizer none.json: is of tasks of text"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lengths", "500", "200"), "^--lengths: length must be 0, or more than reserve=300, got 200$"),
        (("--lengths", "500", "301"), "^babilong_qa1: length=301 is too short for the stories"),
        (
            ("--task", "niah_single_1", "-s", "values=10000000000000000"),
            "^--set: length must be at least keys times values = 10000000000000000",
        ),
        (("--task", "niah_single_1", "--lengths", "2000000000"), "^--lengths: length must be between 1 and 1000000000, got 2000000000"),
        (("--lengths", "2000000000"), "^--lengths: length must be between 0 and 1000000000, got"),
        (("--task", "facts", "--lengths", "2000000000"), "^--lengths: length must be between 1 and 1000000000, got"),
        (("--task", "mqar", "--lengths", "64", "--times", "4"), "^--times 4: makes lengths of the task's own, and --lengths names others."),
        (("--task", "mqar", "--written"), "^--written: is of tasks of text"),
        (("--task", "mqar", "--books", "none"), "^--books none: is of tasks of text"),
    ],
)
def test_what_cannot_be_evaluated_is_said_first(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several lengths before any of them is."""
    (tmp_path / "book.txt").write_text("The ship went over the sea. " * 40)
    TitansForCausalLM(debug()).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(report, "evaluate_length", None)
    task = () if "--task" in arguments else ("--task", "babilong_qa1", "-s", "reserve=300", "--books", tmp_path / "book.txt")
    with pytest.raises(UserError, match=message):
        command("evaluate", tmp_path / "model", *task, *arguments, "--quiet")


def test_models_are_evaluated_and_scored_with_another_forgetting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As if they had been saved so."""
    model = TitansForCausalLM(debug()).eval()
    model.save_pretrained(tmp_path / "model")
    scale_forgetting(model, 50)
    model.save_pretrained(tmp_path / "scaled")
    (tmp_path / "book.txt").write_text("The ship went over the sea. " * 40)
    found = []
    for name, *flags in (("model",), ("model", "--scale-forgetting", "50"), ("scaled",)):
        command("evaluate", tmp_path / name, "--task", "facts", "--lengths", "900", "--count", "3", "--json", "--quiet", *flags)
        cli.build_app()(["text", "score", str(tmp_path / name), str(tmp_path / "book.txt"), "--json", "--quiet", *flags])
        task, text = map(json.loads, capsys.readouterr().out.splitlines())
        assert [row.get("scale_forgetting") for row in (task, text)] == [50 if flags else None] * 2
        found.append((task["bits"], text["bits_per_byte"]))
    assert found[1] == found[2]
    assert all(abs(a / b - 1) > 1e-4 for a, b in zip(found[0], found[1], strict=True))


@pytest.mark.parametrize("named", [("task", "evaluate", "model", "--task", "facts"), ("score", "model", "book.txt")])
def test_a_model_that_never_forgets_has_no_forgetting_to_scale(
    named: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("The ship went over the sea.")
    titans = replace(debug().titans, memory=MemoryConfig(num_heads=2, forgetting="none"))
    TitansForCausalLM(replace(debug(), titans=titans)).save_pretrained("model")
    with pytest.raises(UserError, match=r"^--scale-forgetting 0\.01: no memory of model forgets\. Leave it out\.$"):
        cli.build_app()(["text", *named, "--scale-forgetting", "0.01"])


def test_a_negative_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("evaluate", tmp_path, "--task", "mqar", "--seed", "-1")
    assert 'Invalid value "-1" for --seed. Must be >= 0.' in capsys.readouterr().err


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_length_that_is_done_is_kept_when_the_next_is_not(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    TitansForCausalLM(debug()).save_pretrained(tmp_path / "model")
    once = report.evaluate_length

    def ended(model: Any, task: Any, *rest: Any) -> report.Row:
        if task.length == 900:
            raise KeyboardInterrupt
        return once(model, task, *rest)

    monkeypatch.setattr(report, "evaluate_length", ended)
    arguments = ("--task", "niah_single_1", "-s", "reserve=8", "--lengths", 600, 900, "--count", 2, *(["--json"] if form == "json" else []))
    with pytest.raises(KeyboardInterrupt):
        command("evaluate", tmp_path / "model", *arguments, "-o", tmp_path / "scores", "--quiet")
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[0])["length"] == 600 if form == "json" else printed[2].split()[0] == "600"
    rows = list(csv.DictReader((tmp_path / "scores" / "scores.csv").read_text().splitlines()))
    assert [row["length"] for row in rows] == ["600"]
    assert float(rows[0]["bytes"]) == float(rows[0]["tokens"]) - 1


def test_a_model_without_a_task_needs_a_name(tmp_path: Path) -> None:
    TitansForCausalLM(debug()).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"was not trained on a task by titans-seq\. Name one: --task"):
        command("evaluate", tmp_path / "model")
    for damaged in ("{}", '{"task": "mqar", "settings": {}, "seed": -1}'):
        (tmp_path / "model" / "task.json").write_text(damaged)
        with pytest.raises(UserError, match=r"task\.json: damaged"):
            command("evaluate", tmp_path / "model")
