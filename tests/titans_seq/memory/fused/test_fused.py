"""What the Triton kernels promise without a GPU: its errors and choices here, its numbers and its compilation in processes of their own."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.limits import HANG
from titans_seq.memory import choose_implementation, fused

HERE = Path(__file__).parent


def run_lane(file: str, marks: str, **environment: str) -> None:
    """A file of tests in a process of its own: whether Triton interprets or compiles is settled when it is imported."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rfE",
        "--tb=short",
        "--durations=5",
        "-p",
        "no:cacheprovider",
        "-m",
        marks,
        str(HERE / file),
    ]
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(command, cwd=HERE.parents[3], env=kept | environment, capture_output=True, text=True, timeout=3600)
    print(result.stdout)
    if result.returncode != 0:
        pytest.fail(f"{file}:\n{result.stdout}{result.stderr}", pytrace=False)


def test_numbers_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    run_lane("interpreted.py", "not slow", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_more_numbers_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    run_lane("interpreted.py", "slow", TRITON_INTERPRET="1")


def test_compiles_ahead_of_time(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run_lane("compiled.py", "not slow", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.slow
def test_more_compiles_ahead_of_time(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run_lane("compiled.py", "slow", TRITON_CACHE_DIR=str(tmp_path))


def run_in_triton(case: Any) -> None:
    """As `neural_memory` runs it on a GPU."""
    options = {"chunk_size": 16, "gradient": "chunk", "surprise_clip": None, "mask": None, "reset": None} | case.options
    fused.fused_memory(case.q, case.k, case.v, case.gates, case.weights, None, **options)


def test_needs_a_gpu(make_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "HAS_TRITON", True)
    with pytest.raises(ValueError, match=r"needs an NVIDIA GPU, got a tensor on cpu .* Use impl='chunkwise'"):
        run_in_triton(make_case())


def test_needs_triton(make_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "HAS_TRITON", False)
    with pytest.raises(ValueError, match=r"needs triton, which is not installed .*pip install triton.* Use impl='chunkwise'"):
        run_in_triton(make_case())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "depth 1 and 2, got 3"),
        ({"channelwise": True}, "alpha per channel"),
        ({"depth": 1, "norm": False, "gradient": "token"}, "gradient='token'"),
        ({"width": 130}, "head widths up to 128, got 130"),
        ({"expansion": 5}, "up to 4 times the head width 4, got 20"),
        ({"chunk_size": 65}, "chunks of up to 64 tokens, got chunk_size=65"),
    ],
    ids=str,
)
def test_what_it_does_not_do_is_refused(make_case: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"impl='fused' .*{message}\. Use impl='chunkwise'"):
        run_in_triton(make_case(length=3, **options))


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda")


def test_auto_says_what_it_runs_on_a_gpu(make_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case()
    monkeypatch.setattr(fused, "unavailable", lambda q: None)
    q = case.q.as_subclass(OnGpu)
    assert choose_implementation(q[:, :, :1], case.gates, case.weights).impl == "recurrent"
    chosen = choose_implementation(q, case.gates, case.weights)
    assert chosen == ("fused", "The tensors are on an NVIDIA GPU, and the Triton kernels do all that is asked.")
    to_first = dataclasses.replace(case.weights, forgetting_towards="first_state")
    assert choose_implementation(q, case.gates, to_first) == chosen
    refused = choose_implementation(q, case.gates, case.weights, chunk_size=100)
    assert refused == ("chunkwise", "The fused form supports chunks of up to 64 tokens, got chunk_size=100.")


def test_importing_and_running_on_cpu_imports_no_triton() -> None:
    script = """
import sys, torch, titans_seq
from titans_seq.memory import Gates, MemoryWeights, neural_memory
x, gate = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4)
neural_memory(x, x, x, [Gates(gate, gate, gate)], MemoryWeights(layers=[torch.rand(1, 4, 4)]))
assert not any(name.partition(".")[0] == "triton" for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=HANG)
