"""The speed benchmark runs, says what it measured and what not, and gives no speed to a form that is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import speed

ROOT = Path(speed.__file__).parents[1]


def test_quick_run_writes_what_it_measured(tmp_path: Path) -> None:
    output = tmp_path / "new" / "speed.json"
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--threads", "1", "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert "chunkwise" in run.stdout
    found = json.loads(output.read_text())

    assert found["command"].startswith("python -m benchmarks.speed --quick")
    assert found["torch"] == torch.__version__
    assert found["threads"] == 1
    assert {"date", "revision", "python", "cpu", "cpus", "elapsed_seconds"} <= set(found)
    checks = found["parity"]["checks"]
    assert {check["subject"] for check in checks} == {"chunkwise", "recurrent", "memory layer"}
    assert all(check["passed"] and 0 <= check["largest_error"] <= 1e-9 and check["tensors"] > 10 for check in checks)

    cells = found["cells"]
    assert {(cell["subject"], cell["mode"]) for cell in cells} == {(s, m) for s in speed.SUBJECTS for m in speed.MODES}
    for cell in cells:
        assert cell["runs"] == 5
        assert cell["memory_mib"] >= 0
        assert 0 < cell["seconds"]["min"] <= cell["seconds"]["median"] <= cell["seconds"]["max"]
        assert cell["tokens_per_second"]["median"] == pytest.approx(cell["tokens"] / cell["seconds"]["median"])
        if (cell["subject"], cell["mode"]) == ("chunkwise", "forward"):
            assert cell["ratio_to_bmm"] == pytest.approx(cell["gflop_per_second"] / cell["bmm_gflop_per_second"])
            assert cell["gflop_per_second"] == pytest.approx(cell["forward_gflop"] / cell["seconds"]["median"])
        else:
            assert cell["gflop_per_second"] is None


@pytest.mark.parametrize("broken", ["chunkwise", "memory layer"])
def test_a_form_that_is_wrong_has_no_speed(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(speed, "PARITY_TOKENS", 5)
    module = speed if broken == "chunkwise" else sys.modules["titans_seq.memory.layer"]
    right = module.neural_memory

    def wrong(
        q: Any, k: Any, v: Any, gates: Any, weights: Any, state: Any = None, chunk_size: int = 16, impl: str = "auto", **options: Any
    ) -> Any:
        y, state = right(q, k, v, gates, weights, state, chunk_size, impl, **options)
        return (y + 1e-7 if impl == "chunkwise" else y), state

    monkeypatch.setattr(module, "neural_memory", wrong)
    measured = []
    monkeypatch.setattr(speed, "measure", lambda cell, limits: measured.append(cell.subject) or speed.Result(cell))
    parities, results = speed.run_cells(speed.plan([32], [1], [4]), speed.Limits(1, 1.0), lambda text: None)

    assert {parity.subject: parity.passed for parity in parities} == {s: s != broken for s in ("recurrent", "chunkwise", "memory layer")}
    assert set(measured) == set(speed.SUBJECTS) - {broken}
    reasons = [result.skipped for result in results if result.cell.subject == broken]
    assert len(reasons) == 2
    assert all(reason.startswith("refused: differs from reference by ") for reason in reasons)


def test_a_form_that_is_not_finite_is_refused() -> None:
    assert not speed.Parity("chunkwise", 1, 16, 3, largest_error=None).passed


def test_what_is_not_measured_has_its_reason() -> None:
    parities = [speed.Parity("recurrent", 1, 16, 3, largest_error=0.0)]

    def reason(subject: str, mode: str, tokens: int, chunk_size: int = 16) -> str | None:
        return speed.reason_to_skip(speed.Cell(subject, mode, tokens, 1, chunk_size), 16, parities)

    assert reason("recurrent", "forward", 16384) is None
    assert "backward keeps the weights" in reason("recurrent", "forward + backward", 4096)
    assert "oracle" in reason("reference", "forward", 4096)
    assert "does not change the work" in reason("recurrent", "forward", 1024, chunk_size=64)
    assert reason("chunkwise", "forward", 1024) == "refused: no parity check"


def test_a_cell_beyond_twice_its_budget_is_ended() -> None:
    result = speed.measure(speed.Cell("reference", "forward + backward", 1024, 4, 16), speed.Limits(1, 0.05))
    assert result.measurement is None
    assert result.skipped == "no result after 0.1 s, twice the budget of a cell"


@pytest.mark.parametrize("expansion", [1, 4])
@pytest.mark.parametrize("chunk_size", [16, 64])
def test_counted_operations_are_those_of_the_matrix_products(chunk_size: int, expansion: int) -> None:
    """All products that torch counts in a forward, less those of the coefficients: C^2 x C and C^2 for each chunk, head and layer."""
    tokens = 2 * chunk_size
    call = speed.make_call(speed.Cell("chunkwise", "forward", tokens, expansion, chunk_size))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call.function()
    coefficients = speed.DEPTH * (2 * chunk_size**2 + 2 * chunk_size)
    assert counter.get_total_flops() == tokens * speed.HEADS * (speed.forward_operations(expansion, chunk_size) + coefficients)
