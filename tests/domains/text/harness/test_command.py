"""`titans-seq text eval` on local task files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from domains.text.cli.harness_tasks import unknown_tasks
from domains.text.config import GenerationConfig
from domains.text.generate import generate
from domains.text.questions import ask, last_words, read_lambada
from tests.domains.text.conftest import small
from tests.limits import HANG
from titans_seq import UserError, cli

OWN = """
task: own_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: prompt
doc_to_target: answer
generation_kwargs: {{until: [], max_gen_toks: 5, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` makes of files goes with the test."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("TQDM_DISABLE", "1")


def test_local_tasks_and_ones_own(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours by --data, and a task of the user's folder that generates; the file holds what is printed."""
    model = small()
    model.save_pretrained(tmp_path / "model")
    (made,) = generate(model, ["It was"], GenerationConfig(max_tokens=5, temperature=0))
    (tmp_path / "own").mkdir()
    rows = [{"prompt": "It was", "answer": made.text}, {"prompt": "The", "answer": "no such answer"}]
    (tmp_path / "own" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own" / "task.yaml").write_text(OWN.format(file=tmp_path / "own" / "rows.jsonl"))
    asked = ["--tasks", "local_lambada", "own_answers", "--include-path", str(tmp_path / "own"), "--data", str(data)]
    arguments = ["text", "eval", str(tmp_path / "model"), *asked, "--json", "-o", str(tmp_path / "out"), "--quiet"]
    cli.build_app()(arguments)
    found = json.loads(capsys.readouterr().out)
    assert found["own_answers"]["exact_match,none"] == 0.5
    words = last_words(ask(model, read_lambada(data / "lambada" / "lambada_test.jsonl")))
    assert found["local_lambada"]["perplexity,none"] == pytest.approx(words.perplexity, rel=1e-4)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["results"] == found
    assert written["config"]["model"] == str(tmp_path / "model")


def test_a_table_is_printed_and_limits_are_kept(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small().save_pretrained(tmp_path / "model")
    (tmp_path / "all").mkdir()
    data.rename(tmp_path / "all" / "text")
    monkeypatch.setenv("TITANS_SEQ_DATA", str(tmp_path / "all"))
    cli.build_app()(["text", "eval", str(tmp_path / "model"), "--tasks", "local_piqa,local_lambada", "--limit", "1", "--batch-size", "2"])
    table = capsys.readouterr().out
    assert "local_piqa" in table
    assert "local_lambada" in table
    assert "acc_bytes" in table


def test_data_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().save_pretrained(tmp_path / "model")
    monkeypatch.delenv("TITANS_SEQ_DATA", raising=False)
    start = ["text", "eval", str(tmp_path / "model"), "--tasks", "local_piqa"]
    for more, message in (
        ([], "no folder of data: name it, --data FOLDER"),
        (["--data", str(tmp_path / "none")], "none: is no folder"),
        (["--include-path", str(tmp_path / "none")], "none: is no folder"),
        (["--data", str(tmp_path)], r"valid.*: cannot be read \(No such file"),
    ):
        with pytest.raises(UserError, match=message):
            cli.build_app()([*start, *more])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("task: own", "task: [\ntask: own"),
            "--tasks own_answers: a file of --include-path names it, but lm-evaluation-harness cannot read",
        ),
        (("rows.jsonl", "none.jsonl"), r"--tasks own_answers: no questions could be made \(FileNotFoundError: .*none\.jsonl"),
        (("doc_to_text: prompt", 'doc_to_text: "{{nothing.x}}"'), "no questions could be made .*'nothing' is undefined"),
    ],
)
def test_a_task_of_ones_own_that_is_not_right_is_named(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "It was", "answer": "no"}\n')
    (tmp_path / "task.yaml").write_text(OWN.format(file=tmp_path / "rows.jsonl").replace(*change))
    with pytest.raises(UserError, match=message):
        cli.build_app()(["text", "eval", str(tmp_path / "model"), "--tasks", "own_answers", "--include-path", str(tmp_path)])


def test_quiet_is_quiet(data: Path, tmp_path: Path) -> None:
    """Also of what the harness prints by itself; only git may say that this is no repository."""
    small().save_pretrained(tmp_path / "model")
    arguments = ["text", "eval", str(tmp_path / "model"), "--tasks", "local_lambada", "--data", str(data), "--json", "--quiet"]
    program = f"from titans_seq import cli; cli.build_app()({arguments})"
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    environment.pop("TQDM_DISABLE")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, env=environment)
    assert json.loads(done.stdout)["local_lambada"]
    assert [line for line in done.stderr.splitlines() if "not a git repository" not in line] == []


def test_a_harness_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'titans-seq\[lm-eval\]'"):
        cli.build_app()(["text", "eval", str(tmp_path), "--tasks", "local_piqa"])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("no_such_task_at_all", r"no such task\. (Did you mean .*\? )?Here are local_arc_challenge, local_lambada"),
        ("hellaswog", r"no such task\. Did you mean hellaswag, "),
        ("own_answer", r"no such task\. Did you mean own_answers"),
        ("local_pika", r"no such task\. Did you mean local_piqa"),
    ],
)
def test_a_task_that_is_nowhere_is_refused_before_anything_is_loaded(task: str, message: str, tmp_path: Path) -> None:
    """In a process of its own: neither the harness's index nor torch nor the model, which is not there."""
    (tmp_path / "task.yaml").write_text(OWN.format(file="none"))
    arguments = ["text", "eval", "no-such-model", "--tasks", "local_piqa", task, "--include-path", str(tmp_path)]
    program = (
        "import sys; from titans_seq import UserError, cli\n"
        f"try: cli.build_app()({arguments})\n"
        "except UserError as error: print(error)\n"
        "assert not {'torch', 'datasets', 'lm_eval.tasks'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert re.match(rf"--tasks {task}: {message}", done.stdout), done.stdout


@pytest.mark.slow  # it looks through all of the harness's own
def test_no_task_of_the_harness_is_refused() -> None:
    from lm_eval.tasks import TaskManager

    assert unknown_tasks(TaskManager().all_tasks, []) == {}
