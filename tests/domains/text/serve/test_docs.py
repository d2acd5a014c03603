"""The blocks of docs/serving.md run as printed, against a server of the model that they name."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import blocks, commands
from tests.domains.text.serve.conftest import Server
from tests.limits import HANG


@pytest.fixture
def documented(model_folder: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(model_folder, tmp_path / "log", "--sessions", tmp_path / "sessions", "--name", "model")
    try:
        yield server.wait()
    finally:
        server.end()


@pytest.mark.slow
def test_every_block_runs(documented: Server, tmp_path: Path) -> None:
    start, curl, python = blocks("docs/serving.md")
    assert ["titans-seq", "serve", "runs/novels/model", "--sessions", "sessions"] in commands(start)
    lines = [["sh", "-c", f"{line} --fail-with-body"] for line in curl.text.splitlines()]
    for command in [*lines, [sys.executable, "-c", python.text]]:
        command[-1] = command[-1].replace("http://127.0.0.1:8000", documented.url)
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=HANG)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "novel.safetensors").stat().st_size > 1000
    listed = {session["id"]: session["tokens"] for session in documented.get("/v1/sessions").json()["data"]}
    assert listed.keys() == {"novel", "other", "talk"}
    assert listed["novel"] == listed["other"] == len("It was the best of times.")
