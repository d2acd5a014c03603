"""`python -m benchmarks.dna.cost` on short sequences: every cell, and one that is left out."""

import json
from pathlib import Path

import pytest

from benchmarks.dna import cost


def test_every_cell_is_measured_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SUBJECTS", ("Titans, memory alone", "attention"))
    output = tmp_path / "cost.json"
    cost.main(["--lengths", "64,128,100000000", "--budget-seconds", "60", "--output", str(output)])
    cells = json.loads(output.read_text())["cells"]
    for rows in (rows for mode in cost.MODES for rows in cells[mode].values()):
        assert [row["length"] for row in rows] == [64, 128, 100_000_000]
        assert all(row["cpu_seconds"] > 0 for row in rows[:2])
        assert rows[2]["left_out"].startswith("would take about")
    assert "100,000,000" in capsys.readouterr().out
