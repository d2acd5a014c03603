"""Sharded checkpoints: every rank writes what it holds, any number of ranks reads it back (torch.distributed.checkpoint).

A checkpoint is a folder: a safetensors file a rank, and checkpoint.json with the optimizer's settings and the files' checksums. The usual
format of torch.distributed.checkpoint pickles its metadata; this is its safetensors format, so nothing is ever unpickled.
"""

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer

from titans_seq import strict_json
from titans_seq.errors import UserError
from titans_seq.files import sync_folder

INDEX_NAME = "checkpoint.json"
FORMAT = 1
_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True, cpu_offload=True)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder for all ranks to write into; when all have left the block it takes the name `folder`. Whoever is killed, and whenever,
    under that name is the old content or the new.

    Raises:
        UserError: a rank does not see the folder that the first one made.
    """
    folder = Path(folder)
    temporary, replaced = (folder.with_name(f".{folder.name}.{what}") for what in ("unfinished", "replaced"))
    if _rank() == 0:
        for left in (temporary, replaced):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
    _barrier()
    if not temporary.is_dir():
        raise UserError(
            f"{folder.parent}: rank {_rank()} does not see what rank 0 writes there; checkpoints need a folder all nodes share."
        )
    yield temporary
    _barrier()
    if _rank() == 0:
        sync_folder(temporary)
        if folder.exists():
            os.rename(folder, replaced)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    _barrier()


def save_sharded(
    folder: str | Path,
    model: nn.Module,
    optimizers: Optimizer | Sequence[Optimizer] = (),
    values: dict[str, Any] | None = None,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all. Called by all ranks; also without torch.distributed, by one process.

    Args:
        folder: of the checkpoint, on a file system that all ranks see; replaced if it is there.
        model: plain, or sharded by `fully_shard`; a rank writes the shards it holds, and its part of what all hold.
        optimizers: of the model's parameters.
        values: what else belongs to it, as JSON: the step, a learning rate. The first rank's are written.
        also: called by the first rank with the unfinished folder, to add files of its own.
    """
    content = _content(model, optimizers)
    tensors = {name: x for name, x in content.items() if isinstance(x, Tensor)}
    with whole_folder(folder) as temporary:
        writer = dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        with _alone_without_warning():
            dcp.save(tensors, storage_writer=writer)
        mine = {path.name: _checksum(path) for path in temporary.glob(f"shard-{_rank() + 1:05d}-*.safetensors")}
        index = {
            "format": FORMAT,
            "files": {name: sum_ for files in all_gather(mine) for name, sum_ in files.items()},
            "settings": {name: x for name, x in content.items() if name not in tensors},
            "values": values or {},
        }
        if _rank() == 0:
            (temporary / INDEX_NAME).write_text(json.dumps(index, indent=1, allow_nan=False) + "\n")
            if also is not None:
                also(temporary)


def load_sharded(folder: str | Path, model: nn.Module, optimizers: Optimizer | Sequence[Optimizer] = ()) -> dict[str, Any]:
    """Read what `save_sharded` wrote into a model and its optimizers, on any number of ranks, sharded or not. Called by all ranks.

    Returns:
        The `values`.

    Raises:
        UserError: the folder is missing, no checkpoint, incomplete, damaged, or of another model.
    """
    folder = Path(folder)
    index = _read_index(folder)
    _on_all_ranks(lambda: _check_files(folder, index, _rank(), dist.get_world_size() if dist.is_initialized() else 1))
    content = _content(model, optimizers)
    tensors = {name: x for name, x in content.items() if isinstance(x, Tensor)}
    missing = sorted(name for name, x in content.items() if name not in tensors and name not in index["settings"])
    if missing:
        raise UserError(f"{folder}: of another model or optimizer: it has no {missing[0]}, and {len(missing) - 1} more are missing.")
    reader = dcp.HuggingFaceStorageReader(str(folder))
    _on_all_ranks(lambda: _check_outline(folder, _outline(folder, reader), tensors))
    settings = {name: tuple(x) if isinstance(x, list) else x for name, x in index["settings"].items() if name in content}
    for name, x in settings.items():
        if not _is_like(x, content[name]):
            raise UserError(f"{folder / INDEX_NAME}: {name} is {x!r:.80}, expected a value such as {content[name]!r}.")
    try:
        with _alone_without_warning():
            dcp.load(tensors, storage_reader=reader)
    except (dcp.api.CheckpointException, RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: does not fit this model and optimizer ({_first_line(error)}).") from error
    content |= tensors | settings
    model_part, optimizer_part = (
        {name.removeprefix(part): x for name, x in content.items() if name.startswith(part)} for part in ("model.", "optimizer.")
    )
    set_state_dict(model, optimizers, model_state_dict=model_part, optim_state_dict=optimizer_part, options=_OPTIONS)
    return index["values"]


def _content(model: nn.Module, optimizers: Optimizer | Sequence[Optimizer]) -> dict[str, Any]:
    """Tensors and settings under flat names, the same whatever holds them: model.WEIGHT, optimizer.state.WEIGHT.exp_avg, .."""
    weights, state = get_state_dict(model, optimizers, options=_OPTIONS)
    return {f"model.{name}": x for name, x in weights.items()} | {f"optimizer.{name}": x for name, x in state.items()}


def read_model(folder: str | Path) -> dict[str, Tensor]:
    """The model's tensors of a checkpoint, whole, on the CPU: what `model.state_dict()` was. By one process, on its own.

    Raises:
        UserError: the folder is missing, no checkpoint, incomplete or damaged.
    """
    folder = Path(folder)
    _check_files(folder, _read_index(folder))
    reader = dcp.HuggingFaceStorageReader(str(folder))
    found = _outline(folder, reader)
    tensors = {name: torch.empty(x.size, dtype=x.properties.dtype) for name, x in found.items() if name.startswith("model.")}
    with _alone_without_warning():
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix("model."): x for name, x in tensors.items()}


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX_NAME).is_file():
        raise UserError(f"{folder}: no sharded checkpoint: it has no {INDEX_NAME}.")
    try:
        index = strict_json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise UserError(f"{folder / INDEX_NAME}: its format is {index['format']!r}, this version reads {FORMAT}.")
        whole = all(isinstance(index[key], dict) for key in ("files", "settings", "values"))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder / INDEX_NAME}: damaged, or not written by save_sharded ({error}).") from error
    if not whole:
        raise UserError(f"{folder / INDEX_NAME}: damaged, or not written by save_sharded.")
    return index


def _check_files(folder: Path, index: dict[str, Any], rank: int = 0, ranks: int = 1) -> None:
    """All files that the index names are there, no others; this rank's share of them has the right checksums, and holds finite numbers."""
    present, expected = {path.name for path in folder.glob("*.safetensors")}, index["files"]
    for name in sorted(present ^ set(expected)):
        raise UserError(f"{folder / name}: {'not part of this checkpoint' if name in present else 'missing'}.")
    for name in sorted(expected)[rank::ranks]:
        if _checksum(folder / name) != expected[name]:
            raise UserError(f"{folder / name}: damaged (its checksum is wrong). Take an older checkpoint.")
        _check_finite(folder / name)


def _outline(folder: Path, reader: dcp.HuggingFaceStorageReader) -> dict[str, Any]:
    """Size, dtype and shards of every tensor, as the files say.

    Raises:
        UserError: they contradict one another.
    """
    try:
        found: dict[str, Any] = reader.read_metadata().state_dict_metadata
        for name, x in found.items():
            if not _are_whole(tuple(x.size), x.chunks):
                raise ValueError(f"the shards of {name} do not lie end to end, or are not all of it")
    except Exception as error:  # the reader takes the files at their word, and trips over whatever is amiss
        raise UserError(f"{folder}: its files contradict one another ({type(error).__name__}: {error!s:.200}).") from error
    return found


def _are_whole(shape: tuple[int, ...], chunks: Sequence[Any]) -> bool:
    """Whether shards lie end to end along the first dimension, and together are a tensor of `shape`."""
    if not shape:
        return [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in chunks] == [((), ())]
    end = 0
    for offsets, sizes in sorted((tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in chunks):
        if offsets != (end, *[0] * (len(shape) - 1)) or sizes[1:] != shape[1:]:
            return False
        end += sizes[0]
    return end == shape[0]


def _check_outline(folder: Path, found: dict[str, Any], expected: dict[str, Tensor]) -> None:
    for name, x in expected.items():
        given = found.get(name)
        if given is None or given.size != x.shape or given.properties.dtype != x.dtype:
            there = "nothing" if given is None else f"{tuple(given.size)} {given.properties.dtype}"
            raise UserError(f"{folder}: does not fit this model and optimizer: {name} needs {tuple(x.shape)} {x.dtype}, there is {there}.")


def _check_finite(path: Path) -> None:
    """One tensor of a file after the other."""
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open cannot be iterated
                x = file.get_tensor(name)
                if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                    raise UserError(f"{path}: {name} holds NaN or an infinity; its training had failed. Take an older checkpoint.")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error}).") from error


def _is_like(given: Any, like: Any) -> bool:
    """Whether a setting of an optimizer can stand in the place of another: numbers for numbers, else the same type."""
    if isinstance(like, tuple):
        return isinstance(given, tuple) and len(given) == len(like) and all(map(_is_like, given, like))
    if isinstance(like, float):
        return type(given) in (int, float)
    return type(given) is type(like)


@contextmanager
def _alone_without_warning() -> Iterator[None]:
    """One process without torch.distributed is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _first_line(error: BaseException) -> str:
    """Of the error of the first rank that had one."""
    if isinstance(error, dcp.api.CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return str(error).partition("\n")[0] or type(error).__name__


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def all_gather(value: Any) -> list[Any]:
    """`value` of every rank, in order."""
    if not dist.is_initialized():
        return [value]
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def _on_all_ranks(check: Callable[[], None]) -> None:
    """Raise on every rank what any of them finds, so that none waits for one that has stopped."""
    problem = ""
    try:
        check()
    except UserError as error:
        problem = str(error)
    for found in all_gather(problem):
        if found:
            raise UserError(found)
