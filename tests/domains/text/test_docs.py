"""The blocks of docs/text.md run in order, commands with small sizes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "text.md").read_text(encoding="utf-8")
SMALL = {
    "train": "--preset debug --batch-size 2 --segment-length 32 --max-steps 2 --quiet",
    "generate": "--max-tokens 8",
    "tokenizer": "--vocab-size 300 --quiet",
    "eval": "--limit 2 --quiet",
}
TASKS = {
    "texts/lambada/lambada_test.jsonl": '{"text": "It was the best"}\n',
    "texts/piqa/valid.jsonl": '{"goal": "open", "sol1": "push", "sol2": "pull"}\n',
    "texts/piqa/valid-labels.lst": "1\n",
    "my_tasks/rows.jsonl": '{"prompt": "It was", "answer": "best"}\n',
    "my_tasks/task.yaml": """
task: my_task
dataset_path: json
dataset_kwargs: {data_files: {test: my_tasks/rows.jsonl}}
output_type: loglikelihood
test_split: test
doc_to_text: prompt
doc_to_target: " {{answer}}"
""",
}


@pytest.mark.slow
def test_every_block_runs(tmp_path: Path) -> None:
    (tmp_path / "novels").mkdir()
    for name in ("novels/one.txt", "novels/two.txt", "other.txt"):
        (tmp_path / name).write_text("It was the best of times, it was the worst of times. " * 30)
    for name, text in TASKS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "sh", "python", "python", "sh", "python"]
    for kind, block in blocks:
        for line in [block] if kind == "python" else block.strip().splitlines():
            run(kind, line, tmp_path)
    for name in ("scores/positions.png", "evaluated/results.json", "tuned/model.safetensors"):
        assert (tmp_path / name).is_file()


def run(kind: str, text: str, folder: Path) -> None:
    if kind == "sh":
        command = text.partition("#")[0].strip()
        what = command.split()[2]
        for flag in re.findall(r"--[a-z-]+", SMALL.get(what, "")):
            command = re.sub(rf" {flag} \S+", "", command)
        done = f"{sys.executable} -m titans_seq.cli {command.removeprefix('titans-seq ')} {SMALL.get(what, '')}"
        arguments = ["sh", "-c", done]
    else:
        arguments = [sys.executable, "-c", text]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, f"{arguments}\n{ended.stderr}"
