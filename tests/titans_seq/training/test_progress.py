"""What a run shows, and what it writes down."""

import re
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from domains.text.metrics import BITS_PER_BYTE
from domains.text.model import TextConfig
from domains.text.train import train
from tests.limits import HANG
from tests.titans_seq.training.small import SMALL, TINY
from titans_seq.training.metrics import MetricsFile, WriteMetrics, read_metrics
from titans_seq.training.progress import TrainingProgress


def test_lines_where_there_is_no_terminal(texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is trained, one line at the end and one a validation, in the domain's unit; Lightning's own notices are not among them."""
    train([texts], tmp_path / "run", TextConfig(titans=SMALL), TINY)
    shown = capfd.readouterr()
    *about, size = shown.out.splitlines()[:3]
    assert [line.split()[0] for line in about] == ["Trained", "Validated"]
    assert re.fullmatch(r"The model has [\d,]+ parameters; 12 steps\.", size)
    lines = shown.out.splitlines()[3:]
    assert len(lines) == 4
    for line, step in zip((lines[0], lines[1], lines[3]), (5, 10, 12), strict=True):
        assert re.fullmatch(rf"step {step}: validation \d+\.\d{{4}} bits per byte", line)
    assert re.fullmatch(r"step 12/12  \d+\.\d{4} bits per byte  [\d,]+ tokens/s  0:00:00 left", lines[2])
    assert shown.err == ""


def test_the_values_shown_are_those_of_the_file(texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train([texts], tmp_path / "run", TextConfig(titans=SMALL), TINY)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    validations = [float(row["validation_bits_per_byte"]) for row in rows if row["validation_bits_per_byte"]]
    shown = [float(value) for value in re.findall(r"validation (\S+)", capfd.readouterr().out)]
    assert shown == pytest.approx(validations, abs=1e-4)
    steps = [row for row in rows if row["tokens"]]
    assert [int(row["tokens"]) for row in steps] == [int(row["step"]) * 3 * 16 * 2 for row in steps]
    assert all(float(row["tokens_per_second"]) > 0 for row in steps)
    assert max(float(row["learning_rate"]) for row in steps) == TINY.learning_rate


def test_a_bar_on_a_terminal() -> None:
    config, metrics = replace(TINY, max_steps=200), WriteMetrics(TINY)
    screen = StringIO()
    progress = TrainingProgress(config, metrics, Console(file=screen, force_terminal=True, width=100))
    trainer: Any = SimpleNamespace(global_step=0)
    module: Any = SimpleNamespace(model=SimpleNamespace(metric=BITS_PER_BYTE))
    progress.on_train_start(trainer, module)
    metrics.last = {"train_bits_per_byte": 1.2345678}
    for step in range(1, 201):
        trainer.global_step = step
        progress.on_train_batch_end(trainer, module)
    progress.on_train_end(trainer, module)
    plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n")
    last = [line for line in plain.splitlines() if line][-1]
    assert "200/200" in last
    assert "1.2346 bits per byte" in last
    assert "tokens/s" in last
    assert "0:00:00 left" in last


def test_a_table_goes_on_after_the_step_that_is_resumed(tmp_path: Path) -> None:
    """Later rows and a line that a kill cut off are dropped; a table of other columns keeps what it can."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,old\n1,0.5,a\n2,0.25,b\n3,0.1,c\n4,0.")
    file = MetricsFile(path, ["loss", "new"])
    file.begin(2)
    file.log_metrics({"loss": 0.125, "new": 7}, step=3)
    file.save()
    assert path.read_text() == "step,loss,new\n1,0.5,\n2,0.25,\n3,0.125,7\n"


def test_tensorboard_where_it_is_installed(texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train([texts], tmp_path / "run", TextConfig(titans=SMALL), TINY, progress=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["train_bits_per_byte"]]
    written = [(event.step, event.value) for event in events.Scalars("train_bits_per_byte")]
    assert written == [(int(row["step"]), pytest.approx(float(row["train_bits_per_byte"]))) for row in rows]


def test_settings_load_without_lightning() -> None:
    """The command line's help needs them."""
    import subprocess

    code = "import sys; import titans_seq.training; assert 'lightning' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=HANG).returncode == 0
