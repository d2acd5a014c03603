"""A forecaster's training that was killed and resumed is the training that was never killed: the same weights, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock

from domains.timeseries.estimator import TitansEstimator
from titans_seq import AttentionConfig, MemoryConfig, TitansConfig, UserError
from titans_seq.training.checkpoints import WholeFileCheckpointIO, checkpoints_of, read_checkpoint
from titans_seq.training.metrics import read_metrics

ROOT = Path(__file__).parents[3]
EPOCHS, BATCHES = 6, 3
SMALL = TitansConfig(
    dim=16,
    num_layers=1,
    variant="mag",
    dropout=0.1,
    memory=MemoryConfig(num_heads=1, expansion=1),
    attention=AttentionConfig(num_heads=1, sliding_window=8),
).to_dict()


def entries(seed: int = 0, count: int = 3) -> list[dict[str, Any]]:
    """Random walks: what the closed form finds, an epoch can make better."""
    random = np.random.default_rng(seed)
    start = pd.Period("2020-01-01", freq="D")
    return [{"item_id": str(i), "start": start, "target": random.normal(size=150).cumsum().astype(np.float32)} for i in range(count)]


def estimator(**changes: Any) -> TitansEstimator:
    """With dropout and cut patches, which draw random numbers; the learning rate is so high that it gets better and worse."""
    settings = {"prediction_length": 4, "freq": "D", "context_length": 16, "titans": SMALL, "progress": False, "unfinished_patches": True}
    quick = {"max_epochs": EPOCHS, "num_batches_per_epoch": BATCHES, "batch_size": 8, "patience": None, "lr": 0.02}
    return TitansEstimator(**{**settings, **quick, **changes})


def weights(predictor: Any) -> dict[str, torch.Tensor]:
    return predictor.model.state_dict()


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(map(torch.equal, one.values(), other.values()))


def steps(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in checkpoints_of(folder)]


KILLED = """
import os, signal, sys
import torch
from tests.domains.timeseries.test_resume import entries, estimator
calls, real = 0, {name}
def dying(*args, **kwargs):
    global calls
    calls += "ckpt" in str(args)
    if calls == {calls}:
        {half}
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
{name} = dying
estimator(**{changes}).train(entries(), checkpoints=sys.argv[1])
"""
HALF = "args[1].write(bytes(1000)); args[1].flush()"


def kill(folder: Path, name: str, calls: int, half: str = "pass", **changes: Any) -> None:
    """Train in a process of its own, which kills itself at a call that takes part in writing a checkpoint."""
    script = KILLED.format(name=name, calls=calls, half=half, changes=changes)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run that was never killed: its checkpoints, and the weights that it ended with."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, weights(estimator().train(entries(), checkpoints=folder))


def test_checkpoints_change_nothing(whole: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, trained = whole
    assert_same(trained, weights(estimator().train(entries())))
    assert steps(folder) == [(EPOCHS - 1) * BATCHES, EPOCHS * BATCHES]


def test_killed_in_the_write_of_a_checkpoint_and_resumed(whole: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """Twice: in the middle of a file, and before its renaming. After the kill, another process goes on."""
    kill(tmp_path, "torch.save", 3, HALF)
    assert steps(tmp_path) == [BATCHES, 2 * BATCHES]
    kill(tmp_path, "os.replace", 2)
    assert steps(tmp_path) == [2 * BATCHES, 3 * BATCHES]
    assert list(tmp_path.glob("*.unfinished"))
    assert_same(whole[1], weights(estimator().train(entries(), checkpoints=tmp_path)))
    assert not list(tmp_path.glob("*.unfinished"))
    ended, resumed = (read_checkpoint(checkpoints_of(folder)[-1]) for folder in (whole[0], tmp_path))
    assert_same(ended["state_dict"], resumed["state_dict"])  # those of the last epoch too


class Stopped(Exception):
    """The training was stopped."""


class StopAt(pl.Callback):
    """Stops the training in the middle of an epoch, 0 ..."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.begun: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begun = {name: x.clone() for name, x in pl_module.state_dict().items()}

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise Stopped


def stop(folder: Path, epoch: int, **changes: Any) -> dict[str, torch.Tensor]:
    """Stop a training in the middle of an epoch, and give the weights that it began with."""
    at = StopAt(epoch)
    with pytest.raises(Stopped):
        estimator(**changes, trainer_kwargs={"callbacks": [at]}).train(entries(), checkpoints=folder)
    return at.begun


@pytest.mark.parametrize("epoch", range(1, EPOCHS))
def test_the_best_epoch_counts_from_whichever_epoch_it_goes_on(epoch: int, whole: tuple[Path, Any], tmp_path: Path) -> None:
    stop(tmp_path, epoch)
    assert steps(tmp_path)[-1] == epoch * BATCHES
    assert_same(whole[1], weights(estimator().train(entries(), checkpoints=tmp_path)))


def test_the_weights_before_the_first_step_count_as_well(tmp_path: Path) -> None:
    """At an absurd learning rate nothing is better than the closed form, also after a stop."""
    begun = stop(tmp_path, 2, lr=10.0)
    assert_same(begun, estimator(lr=10.0).train_model(entries(), checkpoints=tmp_path).trained_net.state_dict())


def test_patience_counts_the_epochs_before(tmp_path: Path) -> None:
    """An epoch that is no better than the best one before the stop ends it, and it stays ended."""
    settings = {"lr": 0.15, "patience": 1}
    expected: int = estimator(**settings).train_model(entries()).trainer.current_epoch
    assert 2 <= expected < EPOCHS
    stop(tmp_path, expected - 1, **settings)
    for _ in range(2):
        assert estimator(**settings).train_model(entries(), checkpoints=tmp_path).trainer.current_epoch == expected
        assert steps(tmp_path)[-1] == expected * BATCHES


@pytest.mark.parametrize("changes", [{}, {"num_batches_per_epoch": 5, "accumulate": 2, "ema_decay": 0.9}], ids=["plain", "accumulated"])
def test_a_last_epoch_may_be_short(changes: dict[str, Any], tmp_path: Path) -> None:
    """Seven steps in epochs of three: validated after 3, 6 and 7, resumed in any, and ended for good."""
    settings = {"max_steps": 7, "validation_windows": 1, **changes}
    columns = ("step", "epoch", "validation_scaled_CRPS")
    expected = weights(estimator(**settings).train(entries(), metrics=tmp_path / "whole.csv"))
    for epoch in (1, 2):
        folder = tmp_path / str(epoch)
        stop(folder, epoch, **settings)
        assert_same(expected, weights(estimator(**settings).train(entries(), checkpoints=folder, metrics=folder / "metrics.csv")))
        assert steps(folder) == [6, 7]
        ended = estimator(**settings).train_model(entries(), checkpoints=folder)
        assert (ended.trainer.global_step, steps(folder)) == (7, [6, 7])
        assert_same(expected, weights(ended.predictor))
    rows = [[row[name] for name in columns] for row in read_metrics(tmp_path / "whole.csv")]
    assert [row[:2] for row in rows if row[2]] == [["3", "1"], ["6", "2"], ["7", "3"]]
    with pytest.raises(ValueError, match="trainer_kwargs has 'max_steps': give the estimator max_steps instead"):
        estimator(trainer_kwargs={"max_steps": 7})


def test_without_validation_the_best_training_loss_counts(tmp_path: Path) -> None:
    expected = weights(estimator(validation_windows=0).train(entries()))
    stop(tmp_path, 3, validation_windows=0)
    assert_same(expected, weights(estimator(validation_windows=0).train(entries(), checkpoints=tmp_path)))


def test_another_run_is_refused(whole: tuple[Path, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "run")
    for changes, message in (
        ({"batch_size": 9}, "training.batch_size was 8, is 9"),
        ({"max_epochs": 9}, f"training.max_steps was {EPOCHS * BATCHES}, is {9 * BATCHES}"),
        ({"context_length": 20}, "model.context_length was 16, is 20"),
    ):
        with pytest.raises(UserError, match=message):
            estimator(**changes).train(entries(), checkpoints=folder)
    with pytest.raises(UserError, match=r"training.data was '3 series, digest .*', is '3 series, digest"):
        estimator().train(entries(seed=1), checkpoints=folder)
    with pytest.raises(ValueError, match="ckpt_path or checkpoints, not both"):
        estimator().train(entries(), checkpoints=folder, ckpt_path=checkpoints_of(folder)[-1])
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="another process is training in it"):
        estimator().train(entries(), checkpoints=folder)


def test_a_damaged_checkpoint_is_passed_over_and_a_foreign_one_refused(
    whole: tuple[Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "run")
    _, last = checkpoints_of(folder)
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    assert_same(whole[1], weights(estimator().train(entries(), checkpoints=folder)))
    assert "Passed over" in caplog.text
    for change, message in (
        (lambda x: [x.pop(name) for name in ("state_dict", "optimizer_states")], "state_dict is None"),
        (lambda x: x.pop("optimizer_states"), "optimizer_states is None"),
        (lambda x: x["callbacks"].pop("BestWeights"), "callbacks.BestWeights is None"),
        (lambda x: x["callbacks"]["BestWeights"]["weights"].popitem(), "callbacks.BestWeights.weights is a dictionary"),
        (lambda x: x["loops"]["fit_loop"]["state_dict"]["combined_loader"][0].update(taken=-1), "combined_loader.taken is -1"),
        (lambda x: x["titans_seq"]["random"].__setitem__(0, 1), r"random\[0\] has no cuda"),
        (lambda x: next(iter(x["state_dict"].values())).fill_(torch.nan), "holds NaN"),
    ):
        checkpoint = read_checkpoint(last)
        change(checkpoint)
        other = tmp_path / f"other{message[:3]}{len(message)}"
        WholeFileCheckpointIO().save_checkpoint(checkpoint, other / last.name)
        with pytest.raises(UserError, match=f"damaged, or not written by a run of these settings: .*{message}"):
            estimator().train(entries(), checkpoints=other)
