"""Safetensors files, written whole or not at all."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from titans_seq.errors import UserError

REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that models compute in."""


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors` to `path` through a file beside it, so that a kill or a power cut leaves the old file or the new one.

    When it returns, the new one is on the disk.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".titans-seq-") as folder:
        temporary = Path(folder) / path.name
        temporary.touch()  # with the permissions that a new file has here
        mode = temporary.stat().st_mode
        save_file(tensors, str(temporary), metadata=metadata)
        temporary.chmod(mode)
        sync_file(temporary)
        os.replace(temporary, path)
    sync_folder(path.parent)


def read_safetensors(path: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the metadata of a file; device="meta" reads shapes and dtypes without the values.

    Raises:
        UserError: there is no GPU; the file is missing, not a whole safetensors file, or holds NaN or an infinity, of which nothing can be
            computed. The format has no checksum: other damage to the values passes (a download's is checked by its hash,
            titans_seq.download).
    """
    if not Path(path).is_file():
        if Path(path).is_dir():
            raise UserError(f"{path}: is a folder. Name the file in it.")
        raise UserError(f"{path}: no such file. Check the path; it is looked up from {Path.cwd()}.")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device}: torch finds no GPU here. `titans-seq doctor` says what there is; device='cpu' works anywhere.")
    meta = device.type == "meta"
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            read = _outline if meta else type(file).get_tensor
            tensors = {name: read(file, name) for name in file.keys()}  # noqa: SIM118 - safe_open cannot be iterated
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:  # the last three for shapes beyond all numbers
        message = str(error).partition("\n")[0]
        raise UserError(f"{path}: damaged or not a safetensors file ({message}). Save it anew, or name another file.") from error
    for name, x in tensors.items():
        if x.dtype in REAL and not x.is_meta and not torch.isfinite(x).all():
            raise UserError(f"{path}: tensor {name!r} holds NaN or an infinity; the file is damaged, or its training had failed.")
    return tensors if meta else {name: x.to(device) for name, x in tensors.items()}, metadata


def _outline(file: Any, name: str) -> Tensor:
    """Shape and dtype of one tensor in an open file."""
    part = file.get_slice(name)
    shape = part.get_shape()
    return torch.empty(shape, dtype=(part[:0] if shape else file.get_tensor(name)).dtype, device="meta")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Have what was written to a file on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the renaming itself on the disk, where folders can be synced."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
