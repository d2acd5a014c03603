"""Checkpoints of a forecaster's training from strangers: a run goes on with them and its next step is finite, or a UserError says why."""

import copy
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domains.timeseries.checkpoints import BestWeights, Patience
from domains.timeseries.training import ForecasterModule
from domains.timeseries.windows import RandomWindows, Series
from tests.domains.timeseries.test_resume import entries, estimator
from tests.fuzz.test_run_checkpoints import Run, mutated_checkpoints, places, refused
from titans_seq.training.checkpoints import checkpoints_of, read_checkpoint
from titans_seq.training.metrics import WriteMetrics
from titans_seq.training.module import CHECKPOINT_KEY
from titans_seq.training.optimizer import make_optimizer
from titans_seq.training.restore import set_random_state

ESTIMATOR = estimator(max_epochs=2, patience=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    ESTIMATOR.train(entries(), checkpoints=folder)
    path = checkpoints_of(folder)[0]
    checkpoint = read_checkpoint(path)
    return Run(path.read_bytes(), checkpoint, places(checkpoint), folder / path.name)


class Going(NamedTuple):
    """What a checkpoint is loaded into."""

    trainer: pl.Trainer
    best: BestWeights
    patience: Patience
    module: ForecasterModule
    start: dict[str, torch.Tensor]
    windows: RandomWindows

    def __repr__(self) -> str:
        """Without the model."""
        return "Going()"


@pytest.fixture(scope="module")
def going(run: Run) -> Going:
    module = ESTIMATOR.create_lightning_module()
    best, patience = BestWeights(WriteMetrics(ESTIMATOR.training_config), validating=True), Patience("val_loss", patience=3)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[best, patience],
    )
    trainer.ckpt_path = str(run.path)
    module.trainer = trainer
    best.setup(trainer, module, "fit")
    windows = ESTIMATOR._windows([Series(entry, ESTIMATOR.config, univariate=True) for entry in entries()])
    return Going(trainer, best, patience, module, {name: x.clone() for name, x in module.state_dict().items()}, windows)


def go_on(going: Going, checkpoint: dict[str, Any]) -> None:
    """As Lightning does: check, load the parts, then one step; the weights that were the best so far are whole."""
    module = going.module
    module.load_state_dict(going.start)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    optimizer, schedule = make_optimizer(module.model, module.config)
    optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer_states"][0]))  # it would write into what it is given
    schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    going.trainer.fit_loop.load_state_dict(checkpoint["loops"]["fit_loop"])
    for callback in (going.best, going.patience):
        callback.load_state_dict(copy.deepcopy(checkpoint["callbacks"][callback.state_key]))
    set_random_state(checkpoint[CHECKPOINT_KEY]["random"][0])
    assert module.position is not None
    going.windows.load_state_dict(module.position)
    loss = module.model.loss(going.windows.take())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(x).all() for x in module.model.parameters())
    module.load_state_dict(going.best.weights)
    assert all(torch.isfinite(x).all() for x in module.model.state_dict().values())


@given(data=st.data())
def test_whole_checkpoints_that_say_something_else(run: Run, going: Going, data: st.DataObject) -> None:
    checkpoint = data.draw(mutated_checkpoints(run.checkpoint, run.places), label="checkpoint")
    if not isinstance(checkpoint.get(CHECKPOINT_KEY), dict):  # read_checkpoint sees to that
        return
    refused(run.path, lambda: go_on(going, checkpoint))


def test_the_checkpoint_itself_is_gone_on_with(run: Run, going: Going) -> None:
    go_on(going, run.checkpoint)
