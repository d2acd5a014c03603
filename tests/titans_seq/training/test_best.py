"""choose="best": the model is that of the validation with the lowest loss, also where the run was killed on the way."""

from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from domains.text.model import TextConfig
from domains.text.train import train
from tests.titans_seq.training.small import SMALL, TINY, results, small_model
from titans_seq import UserError
from titans_seq.training.checkpoints import checkpoints_of, read_checkpoint
from titans_seq.training.loaders import TrainingLoader
from titans_seq.training.module import TrainingData
from titans_seq.training.run import train as run

CONFIG = replace(TINY, choose="best", learning_rate=1.0, minimum_share=0.9, max_steps=8, validate_every=1, keep_checkpoints=9)
"""With a rate so high that the last step is not the best."""


@pytest.fixture(scope="module", params=[None, 0.9], ids=["weights", "average"])
def trained(request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    config = replace(CONFIG, ema_decay=request.param)
    output = tmp_path_factory.mktemp("best") / "run"
    with redirect_stdout(StringIO()) as printed:
        train([texts], output, TextConfig(titans=SMALL), config)
    return output, config, printed.getvalue()


def losses_of(output: Path) -> dict[int, float]:
    rows, _ = results(output)
    return {int(row["step"]): float(row["validation_bits_per_byte"]) for row in rows if row["validation_bits_per_byte"]}


def test_the_model_is_that_of_the_best_validation(trained: tuple[Path, Any, str]) -> None:
    output, _, printed = trained
    losses = losses_of(output)
    best = min(losses, key=losses.__getitem__)
    assert len(losses) == 8
    assert best < 8
    assert printed.splitlines()[-1] == f"Kept are the weights of step {best}, the best in validation."
    _, weights = results(output)
    saved = read_checkpoint(output / "checkpoints" / f"step-{best:08d}.ckpt")["state_dict"]
    assert all(torch.equal(x, saved[f"model.{name}"]) for name, x in weights.items())
    card = (output / "model" / "README.md").read_text()
    assert f"| steps | {best} |" in card
    assert f"| bits per byte, validation | {losses[best]:.6g} |" in card
    assert "Of the step with the best validation" in card


def test_a_killed_run_chooses_the_same(trained: tuple[Path, Any, str], texts: Path, tmp_path: Path) -> None:
    """Gone on with after the second step, the file of the best that it had come to being there."""
    output, config, _ = trained
    other = tmp_path / "other"
    train([texts], other, TextConfig(titans=SMALL), config, progress=False)
    for path in checkpoints_of(other / "checkpoints")[2:]:
        path.unlink()
    train([texts], other, TextConfig(titans=SMALL), config, resume=True, progress=False)
    (rows, weights), (expected_rows, expected) = results(other), results(output)
    assert rows == expected_rows
    assert all(torch.equal(x, expected[name]) for name, x in weights.items())
    (other / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match=r"best\.ckpt: no such file: the best weights so far are gone"):
        train([texts], other, TextConfig(titans=SMALL), replace(config, max_steps=9), resume=True, progress=False)


def test_without_validation_there_is_no_best(tmp_path: Path) -> None:
    def data() -> TrainingData:
        return TrainingData(lambda rank, world_size: TrainingLoader(None, 1), None)  # type: ignore[arg-type]

    with pytest.raises(UserError, match="choose='best' needs data to validate on"):
        run(small_model, data, CONFIG, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="choose must be 'last' with strategy='fsdp'"):
        replace(CONFIG, ema_decay=None, strategy="fsdp")
