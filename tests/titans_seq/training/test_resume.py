"""A killed run, resumed, is the run that was never killed: same losses, same weights, bit for bit."""

import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from domains.text.model import TextConfig
from domains.text.train import train
from tests.titans_seq.training.small import SMALL, TINY, command, forks, results, run, start
from titans_seq.errors import UserError
from titans_seq.training.checkpoints import checkpoints_of, newest_checkpoint, step_of
from titans_seq.training.metrics import read_metrics


@pytest.fixture(scope="module")
def uninterrupted(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    train([texts], output, TextConfig(titans=SMALL), TINY, progress=False)
    return output


def assert_same(first: Path, second: Path) -> None:
    (rows, weights), (other_rows, other_weights) = results(first), results(second)
    assert rows == other_rows
    assert [row["step"] for row in rows if row["train_bits_per_byte"]] == ["2", "4", "6", "8", "10", "12"]
    assert [row["step"] for row in rows if row["validation_bits_per_byte"]] == ["5", "10", "12"]
    assert all(map(torch.equal, weights.values(), other_weights.values()))


KILL_IN_THE_WRITER = """
import os, signal
calls, real = 0, {name}
def dying(*args, **kwargs):
    global calls
    calls += "ckpt" in str(args[0]) or {counts_all}
    if calls == {calls}:
        {half}
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
{name} = dying
"""
"""Kills the process at the `calls`-th call of a function that takes part in writing a checkpoint."""


KILL_AT_A_MOMENT = """
import signal, time
import torch
calls, last, real = 0, 0.0, torch.save
def timed(*args, **kwargs):
    global calls, last
    calls, before, last = calls + 1, last, time.monotonic()
    if calls == {calls}:
        signal.setitimer(signal.ITIMER_REAL, {steps} * (last - before))
    return real(*args, **kwargs)
torch.save = timed
"""
"""Ends the process from outside itself, by a timer of the kernel: a part of a step's time after its `calls`-th checkpoint begins."""


KILLS = {
    "half-written": KILL_IN_THE_WRITER.format(
        name="torch.save", counts_all=True, calls=4, half="args[1].write(bytes(1000)); args[1].flush()"
    ),
    "before-renaming": KILL_IN_THE_WRITER.format(name="os.replace", counts_all=False, calls=4, half="pass"),
    "before-syncing": KILL_IN_THE_WRITER.format(name="os.fsync", counts_all=True, calls=9, half="pass"),
}


@pytest.fixture(scope="module")
def killed(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was killed in each of these ways."""
    folder = tmp_path_factory.mktemp("killed")
    assert forks(texts, folder, TINY, KILLS) == dict.fromkeys(KILLS, -signal.SIGKILL)
    return folder


@pytest.mark.parametrize("kill", KILLS)
def test_killed_inside_the_write_of_a_checkpoint(kill: str, texts: Path, killed: Path, uninterrupted: Path) -> None:
    output = killed / kill
    assert not (output / "model").exists()
    assert checkpoints_of(output / "checkpoints")
    assert newest_checkpoint(output / "checkpoints") == checkpoints_of(output / "checkpoints")[-1]  # whole, whatever was being written
    train([texts], output, TextConfig(titans=SMALL), TINY, resume=True, progress=False)
    assert_same(output, uninterrupted)
    assert not [path for path in output.rglob("*") if "unfinished" in path.name]


def test_killed_while_sequences_are_short(texts: Path, tmp_path: Path) -> None:
    """At the end of a stage of a length warm-up, and inside one."""
    config = replace(TINY, length_warmup=(3, 3))
    kills = {name: KILL_IN_THE_WRITER.format(name="torch.save", counts_all=True, calls=calls, half="pass") for name, calls in ENDS.items()}
    assert forks(texts, tmp_path, config, kills) == dict.fromkeys(kills, -signal.SIGKILL)
    train([texts], tmp_path / "whole", TextConfig(titans=SMALL), config, progress=False)
    for name, calls in ENDS.items():
        assert [int(path.stem.removeprefix("step-")) for path in checkpoints_of(tmp_path / name / "checkpoints")][-1] == calls - 1
        train([texts], tmp_path / name, TextConfig(titans=SMALL), config, resume=True, progress=False)
        assert_same(tmp_path / name, tmp_path / "whole")
    with pytest.raises(UserError, match=r"training\.length_warmup was \[3, 3\], is \[3\]"):
        train([texts], tmp_path / "whole", TextConfig(titans=SMALL), replace(config, length_warmup=(3,)), resume=True, progress=False)


ENDS = {"between stages": 4, "inside a stage": 6}
"""Which writing of a checkpoint, of one a step, a process dies in."""


@pytest.mark.slow
def test_killed_at_random_moments_again_and_again(texts: Path, tmp_path: Path) -> None:
    """Twelve kills in a run that writes a checkpoint after every step."""
    config = replace(TINY, max_steps=400, validate_every=20)
    train([texts], tmp_path / "whole", TextConfig(titans=SMALL), config, progress=False)
    output, moments, steps = tmp_path / "killed", random.Random(0), [0]
    for _ in range(12):
        kill = KILL_AT_A_MOMENT.format(calls=moments.randint(2, 25), steps=moments.uniform(0.01, 1))  # at step 312 at the latest
        died = run(command(texts, output, config, resume=True, before=kill))
        assert died.returncode == -signal.SIGALRM, died.stderr
        newest = newest_checkpoint(output / "checkpoints")
        assert newest is not None
        steps.append(step_of(newest))
    assert steps == sorted(set(steps))  # every process went on
    finished = run(command(texts, output, config, resume=True))
    assert finished.returncode == 0, finished.stderr
    (rows, weights), (other_rows, other_weights) = results(output), results(tmp_path / "whole")
    assert rows == other_rows
    assert all(map(torch.equal, weights.values(), other_weights.values()))


@pytest.mark.slow
def test_two_devices_are_one_and_go_on_as_one(texts: Path, tmp_path: Path) -> None:
    """Two processes share the batch: the losses and gradients of one, and its checkpoint resumes on one with them. A signal to one of them
    ends both after the same step, with a checkpoint.
    """
    backbone = replace(SMALL, dropout=0.0)
    config = replace(TINY, batch_size=4, ema_decay=None, checkpoint_every=3, log_every=2)
    train([texts], tmp_path / "one", TextConfig(titans=backbone), config, progress=False)
    two = replace(config, devices=2, strategy="ddp")
    process = start(command(texts, tmp_path / "two", replace(two, checkpoint_every=1000), backbone=backbone))
    table = tmp_path / "two" / "metrics.csv"
    while process.poll() is None and not (table.exists() and read_metrics(table)):
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert len(checkpoints_of(tmp_path / "two" / "checkpoints")) == 1
    finished = run(command(texts, tmp_path / "two", two, resume=True, backbone=backbone))
    assert finished.returncode == 0, finished.stderr
    mixed = tmp_path / "mixed"
    shutil.copytree(tmp_path / "two", mixed)
    checkpoints_of(mixed / "checkpoints")[-1].unlink()
    train([texts], mixed, TextConfig(titans=backbone), config, resume=True, progress=False)
    expected = results(tmp_path / "one")[0]
    for output in (tmp_path / "two", mixed):
        rows = results(output)[0]
        assert [row["step"] for row in rows] == [row["step"] for row in expected]
        for row, other in zip(rows, expected, strict=True):
            assert [float(x or 0) for x in row.values()] == pytest.approx([float(x or 0) for x in other.values()], rel=1e-4)
