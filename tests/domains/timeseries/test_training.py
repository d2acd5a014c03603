"""A forecaster's training as all domains train: what it writes down, how it ends when it is asked to, and what its settings do."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from domains.timeseries.checkpoints import BestWeights
from tests.domains.timeseries.test_resume import BATCHES, EPOCHS, SMALL, assert_same, entries, estimator, steps, weights
from titans_seq import UserError
from titans_seq.training.checkpoints import checkpoints_of, read_checkpoint
from titans_seq.training.metrics import read_metrics

CLOCK = ("windows_per_second", "seconds")
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"ema_decay": 0.7},
    "accumulated": {"accumulate": 2, "num_batches_per_epoch": 5},
    "no-validation": {"validation_windows": 0},
    "average-no-validation": {"ema_decay": 0.7, "validation_windows": 0},
}


def rows_without_clock(path: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in read_metrics(path)]


def test_a_row_of_metrics_after_every_epoch_and_its_validation(tmp_path: Path) -> None:
    best = estimator().train_model(entries(), metrics=tmp_path / "metrics.csv").trainer.checkpoint_callback
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [BATCHES * (1 + n // 2) for n in range(2 * EPOCHS)]
    assert [int(row["epoch"]) for row in rows] == [1 + n // 2 for n in range(2 * EPOCHS)]
    trained, validated = rows[::2], rows[1::2]
    assert [int(row["windows"]) for row in trained] == [8 * BATCHES * (n + 1) for n in range(EPOCHS)]
    for name in ("train_scaled_CRPS", "learning_rate", "gradient_norm", "windows_per_second"):
        assert all(float(row[name]) > 0 for row in trained), name
    seconds = [float(row["seconds"]) for row in rows]
    assert 0 < seconds[0] < seconds[-1] < 100
    assert seconds == sorted(seconds)
    assert isinstance(best, BestWeights)
    assert best.best_model_score <= min(float(row["validation_scaled_CRPS"]) for row in validated)


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        (
            {"ridge_start": False, "lr": 0.06, "patience": 1},
            "Stopped at step {last} of {all}, as none of the last 1 validations was better.",
        ),
        ({}, "Ended at step {last} of {all}."),
        ({"validation_windows": 0}, "Ended at step {last} of {all}."),
        ({"lr": 10.0}, "Ended at step {last} of {all}."),
    ],
)
def test_the_last_line_says_why_it_ended_and_what_is_kept(
    changes: dict[str, Any], how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = estimator(**changes, progress=True).train_model(entries(), metrics=tmp_path / "metrics.csv")
    line = capfd.readouterr().out.splitlines()[-1]
    rows = read_metrics(tmp_path / "metrics.csv")
    validating = changes.get("validation_windows") != 0
    column = "validation_scaled_CRPS" if validating else "train_scaled_CRPS"
    losses = {int(row["step"]): float(row[column]) for row in rows if row[column]}
    best = min(losses, key=losses.__getitem__)
    kept = f"of step {best}, the best in {'validation' if validating else 'training'}."
    lowest = trained.trainer.checkpoint_callback.best_model_score
    if "ridge_start" in changes or not validating:
        assert lowest == losses[best]
    elif lowest < losses[best]:
        kept = "before the first step: none was better in validation."
    assert line == f"{how.format(last=max(losses), all=EPOCHS * BATCHES)} Kept are the weights {kept}"
    assert ("Stopped" in line) == (max(losses) < EPOCHS * BATCHES)
    estimator(**changes).train(entries())
    assert capfd.readouterr().out == ""


def test_a_training_without_validation_that_diverges_keeps_what_it_began_with(capfd: pytest.CaptureFixture[str]) -> None:
    trained = estimator(validation_windows=0, lr=1e30, gradient_clip=None, ridge_start=False, progress=True).train_model(entries())
    assert all(bool(torch.isfinite(x).all()) for x in trained.trained_net.state_dict().values())
    line = capfd.readouterr().out.splitlines()[-1]
    assert line.endswith("Kept are the weights before the first step: no epoch had a loss that is a number.")


class Signal(pl.Callback):
    """Sends this process a signal while a step runs."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.signum)


QUICK = {("plain", 1), ("plain", BATCHES), ("average", BATCHES + 1), ("accumulated", 2), ("average-no-validation", 2)}
ASKED = [(name, step) for name in CHANGES for step in (1, BATCHES - 1, BATCHES, BATCHES + 1, 3 * BATCHES + 2)]


@pytest.mark.parametrize(("name", "step"), [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.slow) for one in ASKED])
def test_asked_to_end_it_goes_on_from_the_step_to_the_same_weights(
    name: str, step: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = CHANGES[name]
    expected = weights(estimator(**changes).train(entries(), metrics=tmp_path / "whole.csv"))
    run = {"checkpoints": tmp_path / "run", "metrics": tmp_path / "metrics.csv"}
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        estimator(**changes, trainer_kwargs={"callbacks": [Signal(signal.SIGTERM, step)]}).train(entries(), **run)
    assert stop.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert steps(tmp_path / "run")[-1] == step
    assert f"Stopped at step {step}. The same command with --resume goes on from step {step}." in caplog.text
    assert_same(expected, weights(estimator(**changes).train(entries(), **run)))
    assert rows_without_clock(tmp_path / "metrics.csv") == rows_without_clock(tmp_path / "whole.csv")


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_ends_after_the_step_with_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        estimator(trainer_kwargs={"callbacks": [Signal(signal.SIGINT, 5)]}).train(entries(), checkpoints=tmp_path)
    assert steps(tmp_path)[-1] == 5
    with pytest.raises(KeyboardInterrupt):
        estimator(trainer_kwargs={"callbacks": [Signal(signal.SIGINT, 5)]}).train(entries())


class Steps(pl.Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.weights.append({name: x.detach().clone() for name, x in pl_module.state_dict().items()})


def test_the_moving_average_is_what_is_kept() -> None:
    """That of the best epoch, computed here from the weights of each step; as Lightning has it, the first step's begin it."""
    watched = Steps()
    settings = {"ema_decay": 0.6, "trainer_kwargs": {"callbacks": [watched]}, "validation_windows": 0}
    made = estimator(**settings).train_model(entries())
    average, averages = {name: x.double() for name, x in watched.weights[0].items()}, []
    for n, step in enumerate(watched.weights):
        average = {name: 0.6 * average[name] + 0.4 * step[name] if n else average[name] for name in step}
        averages.append(average)
    kept = made.trained_net.state_dict()

    def nearest(epochs: list[dict[str, torch.Tensor]]) -> float:
        return min(max(float((x - one[name]).abs().max()) for name, x in kept.items() if x.numel()) for one in epochs)

    assert nearest(averages[BATCHES - 1 :: BATCHES]) < 1e-5
    assert nearest(watched.weights[BATCHES - 1 :: BATCHES]) > 1e-3


def test_batches_that_are_accumulated_are_one_step(tmp_path: Path) -> None:
    """Of five batches an epoch two and two and one; the gradient's norm is clipped at what was asked for."""
    changes = {"accumulate": 2, "num_batches_per_epoch": 5, "gradient_clip": 1e-3}
    estimator(**changes, max_epochs=2).train(entries(), checkpoints=tmp_path, metrics=tmp_path / "metrics.csv")
    assert steps(tmp_path) == [3, 6]
    assert [int(row["step"]) for row in read_metrics(tmp_path / "metrics.csv")] == [3, 3, 6, 6]
    assert [row["windows"] for row in read_metrics(tmp_path / "metrics.csv")] == ["40", "", "80", ""]
    moments = read_checkpoint(checkpoints_of(tmp_path)[0])["optimizer_states"][0]["state"].values()
    norm = float(torch.stack([moment["exp_avg"].norm() for moment in moments]).norm())
    assert 0 < norm < 1e-3


def test_bf16_trains_nearly_as_float32_does(tmp_path: Path) -> None:
    """The head and the linear part stay exact, so the loss does; weights and forecasts are float32."""
    losses = {}
    quiet_backbone = SMALL | {"dropout": 0.0}
    for precision in ("32", "bf16"):
        predictor = estimator(precision=precision, titans=quiet_backbone, lr=2e-3).train(entries(), metrics=tmp_path / precision)
        losses[precision] = [float(row["validation_scaled_CRPS"]) for row in read_metrics(tmp_path / precision)[1::2]]
        assert all(x.dtype != torch.bfloat16 for x in weights(predictor).values())
        (forecast,) = predictor.predict(entries(count=1))
        assert forecast.quantile(0.5).dtype == "float32"
    assert losses["bf16"] != losses["32"]
    assert losses["bf16"] == pytest.approx(losses["32"], rel=2e-3)


def test_what_diverges_ends_with_the_best_weights_before(caplog: pytest.LogCaptureFixture) -> None:
    class Break(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == BATCHES:
                pl_module.model.to_horizon.weight.data.fill_(torch.nan)

    whole = estimator(max_epochs=1).train_model(entries()).trainer.checkpoint_callback.best_model_score
    made = estimator(trainer_kwargs={"callbacks": [Break()]}).train_model(entries())
    assert re.search(r"The loss is nan at step 6: training has diverged and ends; .* Lower the learning rate \(now 0\.02\)", caplog.text)
    assert caplog.text.count("has diverged") == 1
    assert made.trainer.global_step == 2 * BATCHES
    assert all(bool(torch.isfinite(x).all()) for x in made.trained_net.state_dict().values())
    assert made.trainer.checkpoint_callback.best_model_score == pytest.approx(whole, rel=0.2)


def test_settings_that_cannot_be() -> None:
    for name, own in (("gradient_clip_val", "gradient_clip"), ("accumulate_grad_batches", "accumulate"), ("min_epochs", "patience")):
        with pytest.raises(ValueError, match=f"trainer_kwargs has '{name}': give the estimator {own}.* instead"):
            estimator(trainer_kwargs={name: 2})
    with pytest.raises(ValueError, match=r"TrainingConfig\.batch_size must be a multiple of devices times nodes, 3, got 8"):
        estimator(devices=3)
    with pytest.raises(ValueError, match=r"TrainingConfig\.ema_decay must be strictly between 0 and 1"):
        estimator(ema_decay=1.0)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="precision '16' scales its gradients on CUDA devices only"):
            estimator(precision="16")


def test_a_launcher_must_start_as_many_processes_as_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started, but devices=1 times nodes=1 is 1"):
        estimator().train(entries())
