"""`python -m benchmarks.text.memory_tasks`: what is measured, gone on with, and shown."""

import json
from pathlib import Path

import pytest

from benchmarks.text import memory_tasks
from benchmarks.text.baselines import count


def test_what_is_measured_once_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "found.json"
    arguments = ["--tasks", "mqar,mad_compression", "--steps", "1", "--output", str(output)]
    memory_tasks.main([*arguments, "--subjects", "titans"])
    first = json.loads(output.read_text())["cells"]
    assert list(first) == ["mqar | titans | 0", "mad_compression | titans | 0"]
    assert list(first["mqar | titans | 0"]["scores"]) == ["1", "4", "16", "64"]
    memory_tasks.main([*arguments, "--subjects", "titans,transformer"])
    second = json.loads(output.read_text())["cells"]
    assert second.keys() - first.keys() == {"mqar | transformer | 0", "mad_compression | transformer | 0"}
    assert all(second[key] == cell for key, cell in first.items())
    sizes = [second[f"mqar | {key} | 0"]["parameters"] for key in ("titans", "transformer")]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02
    text = memory_tasks.markdown(second, {})
    assert "| task | length | Titans | transformer | *Titans, published* |" in text
    assert text.count("\n| ") == 7  # two of the head, four lengths, one
    assert "*0.496*" in text
    assert text in capsys.readouterr().out


def test_rates_are_searched_on_examples_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_tasks, "SEARCH", tmp_path / "search.json")
    memory_tasks.main(["--search", "--subjects", "transformer", "--steps", "1"])
    found = json.loads(memory_tasks.SEARCH.read_text())["cells"]
    assert list(found) == [f"transformer | {rate:g}" for rate in memory_tasks.SEARCHED]
    assert [cell["settings"]["training"]["learning_rate"] for cell in found.values()] == list(memory_tasks.SEARCHED)
    shown = " | ".join(f"{cell['accuracy']:.3f}" for cell in found.values())
    assert f"| transformer | {shown} |" in memory_tasks.markdown({}, found)
    with pytest.raises(SystemExit):
        memory_tasks.main(["--search", "--tasks", "parity"])


def test_every_subject_and_trial_can_be_made() -> None:
    """Settings are the tasks' own; subjects have as many parameters as Titans."""
    from domains.text.tasks.registry import default_settings

    for trial in memory_tasks.TRIALS.values():
        assert set(trial.settings) <= set(default_settings(trial.name))
    base = memory_tasks.config_for(memory_tasks.load_task("mqar", symbols=64), memory_tasks.TextConfig(titans=memory_tasks.BACKBONE))
    size = count(memory_tasks.configure("titans", base))
    for key in memory_tasks.USUAL:
        assert abs(count(memory_tasks.configure(key, base, size, context=64)) / size - 1) < 0.02
