"""Lightning's strategies for these models: DDP, and FSDP2 with sharded checkpoints. Made by name with `make_strategy`."""

import logging
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn

from titans_seq.distributed.checkpoint import load_sharded, save_sharded
from titans_seq.distributed.fully_sharded import shard_model, use_every_parameter
from titans_seq.training import config

log = logging.getLogger("titans_seq")

STRATEGIES: tuple[str, ...] = get_args(config.Strategy)
REST_NAME = "lightning.ckpt"
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


def make_strategy(name: str, timeout: timedelta = timedelta(minutes=30)) -> "Strategy | str":
    """What `Trainer(strategy=...)` takes.

    Args:
        name: "ddp" (every rank holds the model), "fsdp" (every rank holds a share of parameters, gradients and optimizer state), or "auto":
            one device, or what Lightning takes for more.
        timeout: after which a rank that waits for a lost one fails.

    Raises:
        ValueError: another name.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}, got {name!r}")
    _warn_of_stale_store()
    if name == "ddp":
        return DataParallelStrategy(timeout=timeout, gradient_as_bucket_view=True)
    if name == "fsdp":
        return FullyShardedStrategy(timeout=timeout)
    return "auto"


def _warn_of_stale_store() -> None:
    """Seen with torch 2.13: the store that torchrun shares with the ranks still names those of before a restart (pytorch issue 135712)."""
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        log.warning("torchrun may fail to restart killed ranks: start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment.")


class DataParallelStrategy(DDPStrategy):
    """DDP for models with a carried state: first states have a gradient also where no stream begins."""

    def configure_ddp(self) -> None:
        """Before the model is wrapped."""
        assert self.lightning_module is not None
        use_every_parameter(self.lightning_module)
        super().configure_ddp()


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices of the job (`shard_model`); the Lightning module needs nothing for it.

    A checkpoint is a folder that any number of ranks loads (`save_sharded`), with all that is not a tensor of the model or the optimizer in
    lightning.ckpt, through the Trainer's CheckpointIO.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(tensor_parallel_size=1, timeout=timeout)

    def setup_environment(self) -> None:
        """Every device is a data-parallel rank."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """Shard the module, then make its optimizers."""
        assert self.accelerator is not None
        assert self.lightning_module is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.lightning_module)
        self.model_to_device()
        shard_model(self.lightning_module, self.device_mesh["data_parallel"], [s for s in _STEPS if hasattr(self.lightning_module, s)])
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Empty: `save_checkpoint` writes the optimizers themselves."""
        return {}

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Empty: `save_checkpoint` writes the module itself."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a folder, whole or not at all."""
        assert self.lightning_module is not None
        path = Path(self.broadcast(filepath))
        rest = {name: x for name, x in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        save_sharded(
            path, self.lightning_module, self.optimizers, also=lambda folder: self.checkpoint_io.save_checkpoint(rest, folder / REST_NAME)
        )

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a folder that `save_checkpoint` wrote, on any number of ranks. Tensors and plain values only, whatever is asked for."""
        assert self.lightning_module is not None
        path = Path(self.broadcast(checkpoint_path))
        load_sharded(path, self.lightning_module, self.optimizers)
        return self.checkpoint_io.load_checkpoint(path / REST_NAME, weights_only=True)

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Delete the folder, if it is there."""
        if self.is_global_zero:
            shutil.rmtree(filepath, ignore_errors=True)
