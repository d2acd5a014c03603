"""What a checkpoint holds beside Lightning's part, as plain numbers and tensors; and the check that a run can go on with a checkpoint.

A damaged file is known by its checksums. What is checked here is a whole file that says something else than this package writes: before any
of it reaches the run, every part must have the form that the run itself would write.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from titans_seq.state import State, flatten, unflatten
from titans_seq.training.config import TrainingConfig
from titans_seq.training.optimizer import make_optimizer

_PYTHON_KEYS = 625


def check_fits(
    checkpoint: dict[str, Any],
    ours: dict[str, Any],
    model: Any,
    config: TrainingConfig,
    loops: dict[str, Any],
    callbacks: dict[str, dict[str, Any]],
) -> None:
    """Raise ValueError, which names the part, unless a run of `model` (a `Trainable`) and `config` can go on with `checkpoint`.

    checkpoint: as Lightning made it; of a sharded one what is not in its shards. ours: what titans_seq added to it. loops: as Lightning's
    loops and callbacks describe themselves now.
    """
    _check_ours(ours, model, config)
    _check_trainer(checkpoint, model, config, loops)
    check_form("callbacks", checkpoint.get("callbacks"), {}, loose=True)
    for key, like in callbacks.items():
        check_form(f"callbacks.{key}", checkpoint["callbacks"].get(key), like)
    if config.ema_decay is not None:
        if _is_whole(checkpoint, config):
            check_form("current_model_state", checkpoint.get("current_model_state"), _weights(model))
        check_form("averaging_state", checkpoint.get("averaging_state"), {"n_averaged": torch.tensor(0)})


def _check_trainer(checkpoint: dict[str, Any], model: torch.nn.Module, config: TrainingConfig, loops: dict[str, Any]) -> None:
    """Lightning's own part."""
    check_form("global_step", checkpoint.get("global_step"), 0)
    _check_loops(_entry("loops", checkpoint.get("loops"), "fit_loop"), loops, checkpoint["global_step"])
    optimizer, schedule = make_optimizer(model, config)
    check_form("lr_schedulers", checkpoint.get("lr_schedulers"), [schedule.state_dict()], flags=True)
    rates = checkpoint["lr_schedulers"][0]
    if rates["base_lrs"] != schedule.base_lrs or not all(0 <= rate <= config.learning_rate for rate in rates["_last_lr"]):
        raise ValueError("lr_schedulers holds other learning rates")
    if _is_whole(checkpoint, config):
        check_form("state_dict", checkpoint.get("state_dict"), _weights(model))
        _check_optimizer(checkpoint.get("optimizer_states"), optimizer)


def _is_whole(checkpoint: dict[str, Any], config: TrainingConfig) -> bool:
    """Whether tensors are in the checkpoint, not in shards beside it, which fit by name and shape."""
    return config.strategy != "fsdp" or "state_dict" in checkpoint or "optimizer_states" in checkpoint


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {f"model.{name}": x for name, x in model.state_dict().items()}


def _check_loops(given: Any, like: dict[str, Any], step: int) -> None:
    for key in like.keys() & (given.keys() if isinstance(given, dict) else set()):  # other versions of Lightning have others
        check_form(f"loops.fit_loop.{key}", given[key], like[key], loose=key.endswith("state_dict"))
    name, steps = "loops.fit_loop", given
    for key in ("epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed"):
        name, steps = f"{name}.{key}", _entry(name, steps, key)
    if steps != step:
        raise ValueError(f"{name} is {_described(steps)}, and global_step {step}")
    loaders = _entry("loops.fit_loop.state_dict", _entry("loops.fit_loop", given, "state_dict"), "combined_loader")
    if not isinstance(loaders, list) or len(loaders) != 1 or not isinstance(loaders[0], dict):
        raise ValueError(f"loops.fit_loop.state_dict.combined_loader is {_described(loaders)}, expected one dictionary")


def _check_ours(ours: dict[str, Any], model: Any, config: TrainingConfig) -> None:
    parts = {name: _entry("titans_seq", ours, name) for name in ("random", "carried", "window")}
    if not all(isinstance(part, list) for part in parts.values()) or len({len(part) for part in parts.values()}) != 1:
        raise ValueError(f"{', '.join(parts)} must be lists of one length, an entry a device")
    devices = len(parts["carried"])
    if devices == 0 or config.batch_size % devices:
        raise ValueError(f"it is of {devices} devices, which cannot share {config.batch_size} rows")
    zero = torch.zeros((), dtype=torch.float64)
    for i in range(devices):
        check_random(f"random[{i}]", parts["random"][i])
        check_form(f"window[{i}]", parts["window"][i], (zero, zero))
    with torch.no_grad():
        initial = model.init_state(config.batch_size // devices)
    carries = parts["carried"][0] is not None
    if carries and (initial is None or not config.carry_state):
        raise ValueError("it carries a state, which this run does not")
    for i, part in enumerate(parts["carried"]):
        check_form(f"carried[{i}]", part, pack(initial) if carries else None, cast=True)


def check_random(name: str, given: Any) -> None:
    """Raise ValueError unless `given` is what `random_state` gives."""
    cuda, python = _entry(name, given, "cuda"), _entry(name, given, "python")
    gauss = python[2] if isinstance(python, tuple) and len(python) == 3 and isinstance(python[2], float) else None
    if cuda is not None and not isinstance(cuda, Tensor):
        raise ValueError(f"{name}.cuda is {_described(cuda)}, expected a tensor or None")
    like = random_state()
    check_form(name, given, {**like, "cuda": cuda, "python": (*like["python"][:2], gauss)})
    _, keys, position, _, _ = given["numpy"]
    if position > len(keys) or keys.min() < 0 or keys.max() >= 2**32:
        raise ValueError(f"{name}.numpy is no state of a generator")
    if python[0] != like["python"][0] or python[1][-1] >= _PYTHON_KEYS or max(python[1]) >= 2**32:
        raise ValueError(f"{name}.python is no state of a generator")


def _check_optimizer(given: Any, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer: its groups; and of every parameter nothing, or moments of its shape."""
    like = optimizer.state_dict()
    if not isinstance(given, list) or len(given) != 1:
        raise ValueError(f"optimizer_states is {_described(given)}, expected one")
    groups = _entry("optimizer_states[0]", given[0], "param_groups")
    check_form("optimizer_states[0].param_groups", groups, like["param_groups"], flags=True)
    for group, expected in zip(groups, like["param_groups"], strict=True):
        other = [key for key, value in group.items() if key != "lr" and value != expected[key]]
        if other or not 0 <= group["lr"] <= expected["initial_lr"]:
            raise ValueError(f"optimizer_states[0].param_groups has another {', '.join(other or ['lr'])}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = _entry("optimizer_states[0]", given[0], "state")
    if not isinstance(state, dict) or not all(type(i) is int and 0 <= i < len(parameters) for i in state):
        raise ValueError(f"optimizer_states[0].state is not of {len(parameters)} parameters")
    for i, moments in state.items():
        name, p = f"optimizer_states[0].state[{i}]", parameters[i].detach()
        check_form(name, moments, {"step": torch.tensor(0.0), "exp_avg": p, "exp_avg_sq": p})
        for part in ("step", "exp_avg_sq"):
            if bool((moments[part] < 0).any()):
                raise ValueError(f"{name}.{part} is negative")


def _entry(name: str, given: Any, key: str) -> Any:
    if not isinstance(given, dict) or key not in given:
        raise ValueError(f"{name} has no {key}")
    return given[key]


def check_form(name: str, given: Any, like: Any, *, loose: bool = False, flags: bool = False, cast: bool = False) -> None:
    """Raise ValueError unless `given` is of the form of `like`: the same types, lengths and keys, shapes and dtypes; finite numbers,
    integers from 0; equal texts. loose: dictionaries may have any keys. flags: switches may be missing, torch's next version has more of
    them. cast: tensors may have another floating-point dtype.
    """
    if isinstance(like, Tensor):
        _check_tensor(name, given, like, cast)
    elif isinstance(like, dict):
        needed = {key for key, value in like.items() if not flags or not (value is None or isinstance(value, bool))}
        if not isinstance(given, dict) or not (loose or needed <= given.keys() <= like.keys()):
            raise ValueError(f"{name} is {_described(given)}, expected {_described(like)}")
        for key in like.keys() & given.keys():
            check_form(f"{name}.{key}", given[key], like[key], loose=loose, flags=flags, cast=cast)
    elif isinstance(like, list | tuple):
        if type(given) is not type(like) or len(given) != len(like):
            raise ValueError(f"{name} is {_described(given)}, expected {_described(like)}")
        for i, item in enumerate(like):
            check_form(f"{name}[{i}]", given[i], item, loose=loose, flags=flags, cast=cast)
    elif isinstance(like, float):
        if type(given) not in (float, int) or not abs(given) < float("inf"):
            raise ValueError(f"{name} is {_described(given)}, expected a finite number")
    elif type(like) is int:
        if type(given) is not int or not 0 <= given < 2**63:
            raise ValueError(f"{name} is {_described(given)}, expected a whole number from 0")
    elif type(given) is not type(like) or (isinstance(like, str) and given != like):
        raise ValueError(f"{name} is {_described(given)}, expected {_described(like)}")


def _check_tensor(name: str, given: Any, like: Tensor, cast: bool) -> None:
    plain = isinstance(given, Tensor) and given.layout == torch.strided and not given.is_meta and not given.is_quantized
    fits = plain and given.shape == like.shape
    if not fits or not (given.dtype == like.dtype or (cast and given.is_floating_point() and like.is_floating_point())):
        raise ValueError(f"{name} is {_described(given)}, expected {_described(like)}")
    if given.is_floating_point() and not bool(torch.isfinite(given).all()):
        raise ValueError(f"{name} holds NaN or an infinity")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {value.dtype}"
    if isinstance(value, dict):
        keys = ", ".join(sorted(f"{key!r:.40}" for key in value)[:5])
        return f"a dictionary of {len(value)} ({keys}{', ..' if len(value) > 5 else ''})"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.80}"


def pack(state: State) -> dict[str, Any]:
    """A state as plain numbers and tensors, that load without unpickling."""
    tensors: dict[str, Tensor] = {}
    structure = flatten(state, "state", tensors)
    return {"structure": structure, "tensors": {name: x.cpu() for name, x in tensors.items()}}


def unpack_rows(packed: list[Any], rank: int, world_size: int, device: torch.device) -> State | None:
    """The rows of a rank, of the state that any number of ranks carried, one after the other."""
    if packed[0] is None:
        return None
    states: list[State] = [unflatten(part["structure"], dict(part["tensors"])) for part in packed]
    if len(states) == world_size:
        return states[rank].to(device)
    tensors = iter([torch.cat(parts) for parts in zip(*(state.tensors() for state in states), strict=True)])
    whole = states[0].map(lambda _: next(tensors))
    rows = whole.batch_size // world_size
    return whole.select(torch.arange(rank * rows, (rank + 1) * rows)).to(device)


def random_state() -> dict[str, Any]:
    """States of torch's, CUDA's, NumPy's and Python's generators, as plain numbers and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),  # type: ignore[union-attr]
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
