"""Training out of one process, as a user starts it: torchrun, the language model, real text files, real kills."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from domains.text.model import TitansForCausalLM
from domains.text.train import train
from tests.docs.pages import blocks, commands
from tests.limits import HANG
from tests.titans_seq.distributed.conftest import HERE, environment, wait_for
from tests.titans_seq.distributed.train_ranks import MODEL, TRAINING
from titans_seq import Titans, UserError, presets
from titans_seq.cli import build_app
from titans_seq.training import TrainingConfig
from titans_seq.training.checkpoints import checkpoints_of, step_of
from titans_seq.training.metrics import read_metrics

Torchrun = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def alone(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    output = tmp_path_factory.mktemp("runs") / "alone"
    train([texts], output, MODEL, TRAINING, progress=False)
    return output


def losses(output: Path) -> list[tuple[str, float, str]]:
    """(step, loss, which) of each row of metrics."""
    found = []
    for row in read_metrics(output / "metrics.csv"):
        for name in ("train_bits_per_byte", "validation_bits_per_byte"):
            found += [(row["step"], float(row[name]), name)] if row[name] else []
    assert len(found) == 12
    return found


def weights(output: Path) -> dict[str, torch.Tensor]:
    return TitansForCausalLM.from_pretrained(output / "model").state_dict()


def assert_close(output: Path, expected: Path) -> None:
    """To float32 rounding, ten steps on."""
    for (step, loss, name), (expected_step, expected_loss, expected_name) in zip(losses(output), losses(expected), strict=True):
        assert (step, name) == (expected_step, expected_name)
        assert loss == pytest.approx(expected_loss, abs=1e-5), f"{name} of step {step}"
    torch.testing.assert_close(weights(output), weights(expected), rtol=0, atol=1e-3)


def assert_same(output: Path, expected: Path) -> None:
    """To the last bit."""
    assert losses(output) == losses(expected)
    assert all(map(torch.equal, weights(output).values(), weights(expected).values()))


def test_two_ranks_train_as_one_process(torchrun: Torchrun, texts: Path, tmp_path: Path, alone: Path) -> None:
    """The command under torchrun, DDP, the same global batch: the same losses, and the first rank alone speaks and writes."""
    settings = {name: value for name, value in TRAINING.to_dict().items() if name not in ("devices", "strategy")}
    (tmp_path / "run.json").write_text(json.dumps({"model": MODEL.to_dict(), **settings}))
    arguments = [texts, "-o", tmp_path / "run", "--config", tmp_path / "run.json", "--devices", 2, "--strategy", "ddp", "--quiet"]
    (printed,) = wait_for(torchrun("-m", 2, "titans_seq.cli", "text", "train", *arguments))
    assert printed.splitlines().count(str(tmp_path / "run" / "model")) == 1
    assert_close(tmp_path / "run", alone)
    assert "titans-seq text train " in (tmp_path / "run" / "model" / "README.md").read_text()


def kill_last_rank(process: subprocess.Popen[str], output: Path, ranks: int) -> None:
    """From outside, once there are two checkpoints: in mid-run."""
    deadline = time.monotonic() + HANG
    while len(checkpoints_of(output / "checkpoints")) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(int((output / f"pid-0-{ranks - 1}").read_text()), signal.SIGKILL)
    assert not (output / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_rank_is_recovered_from(torchrun: Torchrun, texts: Path, tmp_path: Path, alone: Path, strategy: str) -> None:
    """One of two ranks is killed: torchrun starts both anew, they go on from the last checkpoint and end as if nothing had been."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = torchrun("train_ranks.py", 2, texts, killed, strategy, 2, max_restarts=1)
    try:
        kill_last_rank(process, killed, 2)
    finally:
        wait_for(process)
    assert (killed / "pid-1-1").is_file()  # it was started again
    assert not [path.name for path in killed.rglob("*") if "unfinished" in path.name or "replaced" in path.name]
    wait_for(torchrun("train_ranks.py", 2, texts, whole, strategy, 2))
    assert_same(killed, whole)
    assert_close(killed, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_sharded_run_resumes_on_another_number_of_ranks(
    torchrun: Torchrun, texts: Path, tmp_path: Path, alone: Path, before: int, after: int
) -> None:
    """FSDP2, the carried state included."""
    output = tmp_path / "run"
    process = torchrun("train_ranks.py", before, texts, output, "fsdp", before)
    try:
        kill_last_rank(process, output, before)
    finally:
        with pytest.raises(AssertionError, match="exit codes"):
            wait_for(process)
    saved = checkpoints_of(output / "checkpoints")[-1]
    assert len(list(saved.glob("*.safetensors"))) == before
    with pytest.raises(UserError, match="written with strategy 'fsdp', not to be resumed with 'auto'"):
        train([texts], output, MODEL, TRAINING, resume=True, progress=False)
    wait_for(torchrun("train_ranks.py", after, texts, output, "fsdp", after))
    assert_close(output, alone)


@pytest.mark.parametrize("stopped", ["0", "1"])
def test_sigterm_before_the_first_step_ends_all_ranks(texts: Path, tmp_path: Path, stopped: str) -> None:
    """One of two ranks is asked to end while both start: both end after the first step, with a checkpoint."""
    script = [sys.executable, str(HERE / "stopped_ranks.py"), str(texts), str(tmp_path / "run"), stopped]
    process = subprocess.Popen(script, env=environment(), stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        errors = process.communicate(timeout=HANG)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Stopped at step 1. The same command with --resume goes on from step 1." in errors
    assert [step_of(path) for path in checkpoints_of(tmp_path / "run" / "checkpoints")] == [1]


DOCUMENT = "docs/scaling.md"


def assert_command_is_known(words: list[str]) -> None:
    """What stands after torchrun's own options is a command that `titans-seq` takes, for as many processes as torchrun starts."""
    place = words.index("titans_seq.cli")
    _, bound, _ = build_app().parse_args(words[place + 1 :], exit_on_error=False)
    (started,) = (int(word.partition("=")[2]) for word in words[:place] if word.startswith("--nproc-per-node="))
    assert bound.arguments["training"].devices == started


def test_scripts_and_manifests_of_the_document_are_sound() -> None:
    """Shell that parses; a Job that reaches its Service; commands that are known."""
    (manifests,) = blocks(DOCUMENT, "yaml")
    service, job = yaml.safe_load_all(manifests.text)
    pod = job["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{pod['subdomain']}:29500" in command
    assert f"--nnodes={job['spec']['completions']}" in command
    typed = [words for block in blocks(DOCUMENT, "bash") for words in commands(block) if "titans_seq.cli" in words]
    assert len(typed) == 2
    for words in (*typed, command):
        assert_command_is_known(words)


def test_a_single_file_is_not_resumed_by_fsdp(texts: Path, tmp_path: Path, alone: Path) -> None:
    """Nor a sharded checkpoint without it (`test_a_sharded_run_resumes_on_another_number_of_ranks`)."""
    shutil.copytree(alone, tmp_path / "run")
    sharded = replace(TRAINING, strategy="fsdp")
    with pytest.raises(UserError, match=r"step-00000010\.ckpt: written without strategy 'fsdp', .* Resume with 'auto' or 'ddp'"):
        train([texts], tmp_path / "run", MODEL, sharded, resume=True, progress=False)


@pytest.mark.slow
def test_the_example_of_sequence_parallelism_runs(torchrun: Torchrun, tmp_path: Path) -> None:
    """Two ranks have the losses of a loop without them."""
    (example,) = (block.text for block in blocks(DOCUMENT, "python") if block.title == "stream.py")
    (tmp_path / "stream.py").write_text(example)
    (printed,) = wait_for(torchrun(tmp_path / "stream.py", 2))
    found = [float(x) for x in re.findall(r"^\d (\d\.\d+)$", printed, flags=re.MULTILINE)]
    torch.manual_seed(0)
    model = Titans(presets.debug("mag"))
    optimizer, x = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.randn(8, 1001, 16)
    for _ in range(3):
        optimizer.zero_grad()
        loss = (model(x[:, :-1])[0] - x[:, 1:]).square().sum() / x[:, 1:].numel()
        loss.backward()
        optimizer.step()
        assert found.pop(0) == pytest.approx(loss.item(), abs=1e-5)
    assert not found


def test_fsdp_has_no_moving_average() -> None:
    with pytest.raises(ValueError, match=r"TrainingConfig\.ema_decay must be None with strategy='fsdp', got 0\.9"):
        TrainingConfig(strategy="fsdp", ema_decay=0.9)


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"TrainingConfig\.strategy must be one of 'auto', 'ddp', 'fsdp', got 'deepspeed'"):
        TrainingConfig(strategy="deepspeed")
