"""The kernels compiled for GPUs that need not be there. `test_fused.py` runs this file in a process of its own.

A kernel that compiles, within a chip's shared memory, is not yet one that runs: the tests marked `gpu` are for that.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from titans_seq.memory import MemoryWeights, fused
from titans_seq.memory.kernels.backward import backward_kernel
from titans_seq.memory.kernels.forward import forward_kernel

SHARED_KIB = {80: 163, 90: 227, 100: 227}  # what one program may use on each chip
KERNELS = {
    "forward": (forward_kernel, {"REPLAY": False, "SAVE": True}),
    "replay": (forward_kernel, {"REPLAY": True, "SAVE": False}),
    "backward": (backward_kernel, {}),
}
INTEGERS = {"active_ptr": "*i8", "restart_ptr": "*i8", "anchor_at_ptr": "*i32"}
STREAMS = ("q_ptr", "k_ptr", "v_ptr", "y_ptr", "d_y_ptr", "d_q_ptr", "d_k_ptr", "d_v_ptr")  # in the inputs' dtype, others in float32
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


def compile_kernel(
    name: str, capability: int, width: int, expansion: int, dtype: torch.dtype, chunk_size: int, depth: int, clip: float, to_first: bool
) -> Any:
    kernel, constants = KERNELS[name]
    hidden = width if depth == 1 else width * expansion
    shapes = [(width, hidden), (hidden, width)][:depth]
    sizes = fused.Sizes.of(MemoryWeights(layers=[torch.empty(1, *shape) for shape in shapes]), chunk_size)
    sizes_of_kernel = sizes.constants(backward=name == "backward")
    options = {option: sizes_of_kernel.pop(option) for option in ("num_warps", "num_stages")}
    constants = constants | sizes_of_kernel | {"NORM": True, "RESIDUAL": True, "TO_FIRST": to_first, "ACTIVATION": "gelu", "CLIP": clip}
    constants |= {"EPS": 1e-5, "PRECISION": fused.PRECISION[dtype], "EXACT": "tf32x3"}

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument in STREAMS:
            return POINTERS[dtype]
        return INTEGERS.get(argument, "*fp32" if argument.endswith("_ptr") else "i32")

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    values = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    source = ASTSource(kernel, signature, values, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spilled_bytes(compiled: Any, folder: Path) -> str:
    """Stack bytes a thread, what did not fit into registers, by the tool that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return "unknown"
    (folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    report = subprocess.run([tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", report)
    return found.group(1) if found else "unknown"


def check(
    folder: Path,
    name: str,
    capability: int,
    width: int,
    dtype: torch.dtype,
    *,
    expansion: int = 4,
    chunk_size: int = 16,
    depth: int = 2,
    clip: float = 0.0,
    to_first: bool = False,
) -> None:
    compiled = compile_kernel(name, capability, width, expansion, dtype, chunk_size, depth, clip, to_first)
    shared = compiled.metadata.shared
    stack = spilled_bytes(compiled, folder)
    print(f"{name} sm{capability} D={width} {dtype}: {shared / 1024:.0f} KiB shared, {stack} bytes of stack a thread")
    assert shared <= SHARED_KIB[capability] * 1024


@pytest.mark.parametrize(
    ("name", "capability", "width", "dtype"),
    [
        ("forward", 80, 64, torch.bfloat16),
        ("forward", 90, 128, torch.float32),
        ("replay", 90, 64, torch.bfloat16),
        ("backward", 90, 64, torch.bfloat16),
        ("backward", 100, 64, torch.float32),
    ],
    ids=str,
)
def test_compiles_within_shared_memory(tmp_path: Path, name: str, capability: int, width: int, dtype: torch.dtype) -> None:
    check(tmp_path, name, capability, width, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [64, 128], ids="D{}".format)
@pytest.mark.parametrize("capability", [80, 90, 100], ids="sm{}".format)
def test_backward_for_every_chip_width_and_dtype(tmp_path: Path, capability: int, width: int, dtype: torch.dtype) -> None:
    """The largest kernel; the smaller ones share their code with it, and are compiled for a chip each above."""
    check(tmp_path, "backward", capability, width, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"width": 64, "dtype": torch.bfloat16, "to_first": True},
        {"width": 64, "dtype": torch.float16},
        {"width": 64, "dtype": torch.bfloat16, "clip": 1.0},
        {"width": 32, "dtype": torch.bfloat16, "expansion": 2},
        {"width": 64, "dtype": torch.bfloat16, "depth": 1},
        {"width": 128, "dtype": torch.float32, "depth": 1},
        {"width": 64, "dtype": torch.bfloat16, "chunk_size": 32},
        {"width": 64, "dtype": torch.bfloat16, "chunk_size": 64},
    ],
    ids=str,
)
def test_backward_with_other_options(tmp_path: Path, options: dict) -> None:
    check(tmp_path, "backward", 80, **options)
