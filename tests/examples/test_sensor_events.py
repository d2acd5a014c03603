"""docs/adding_a_domain.md: the package that it shows, installed as anyone installs one, does what the page says."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.docs.pages import blocks
from tests.limits import HANG
from titans_seq import UserError
from titans_seq.training.checkpoints import checkpoints_of
from titans_seq.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "sensor_events"
DOCUMENT = "docs/adding_a_domain.md"
PAGE = (ROOT / DOCUMENT).read_text(encoding="utf-8")
INSTALL, MAKE, TRAIN, INFO, SCORE, RESUME = (line for block in blocks(DOCUMENT, "sh") for line in block.text.splitlines())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    pip, install, path = shlex.split(INSTALL)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", pip, install, *options, path], cwd=ROOT, check=True, timeout=HANG)
    return folder


def environment(site: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "COLUMNS": "200"}


def split(command: str) -> list[str]:
    """A line of the page, with this environment's titans-seq."""
    name, *arguments = shlex.split(command)
    return [str(Path(sys.executable).with_name(name)), *arguments]


def run(arguments: list[str], site: Path, folder: Path) -> str:
    """What it printed; it must end well and complain of nothing."""
    done = subprocess.run(arguments, cwd=folder, env=environment(site), capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with events.csv and runs/press: a training that was killed after its first checkpoint, and resumed."""
    folder = tmp_path_factory.mktemp("work")
    run(split(MAKE), site, folder)
    checkpoints = folder / "runs" / "press" / "checkpoints"
    with subprocess.Popen(split(TRAIN), cwd=folder, env=environment(site), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not checkpoints_of(checkpoints):
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    assert checkpoints_of(checkpoints)
    assert not (folder / "runs" / "press" / "model").exists()
    assert run(split(RESUME), site, folder).endswith("runs/press/model\n")
    return folder


def test_its_commands_are_listed(site: Path, tmp_path: Path) -> None:
    assert "Events of a machine: what happens next, and when." in run(split("titans-seq --help"), site, tmp_path)
    for flag in ("--resume", "--model.smallest-spread", "--model.titans.memory.chunk-size", "--training.max-steps", "--config"):
        assert flag in run(split("titans-seq sensor-events train --help"), site, tmp_path)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_whole(trained: Path) -> None:
    rows = read_metrics(trained / "runs" / "press" / "metrics.csv")
    assert [row["step"] for row in rows if row["train_bits_per_event"]] == [str(step) for step in range(10, 201, 10)]
    assert float(rows[-1]["validation_bits_per_event"]) < float(rows[0]["train_bits_per_event"]) - 1


@pytest.mark.slow
def test_its_model_is_known_by_its_type(site: Path, trained: Path) -> None:
    found = json.loads(run([*split(INFO), "--json"], site, trained))
    assert (found["model_type"], found["class"]) == ("sensor_events", "sensor_events.model.EventModel")
    code = "from titans_seq import load_model; print(type(load_model('runs/press/model')).__name__)"
    assert run([sys.executable, "-c", code], site, trained) == "EventModel\n"


@pytest.mark.slow
def test_its_model_remembers_the_load(site: Path, trained: Path) -> None:
    """On held-out shifts it beats the baseline of the page, and knows better what the load decides; the page's figures are those."""
    found = json.loads(run([*split(SCORE), "--json"], site, trained))
    baseline, model = found["markov_renewal"], found["model"]
    assert model["bits_per_event"] < baseline["bits_per_event"] - 0.8
    assert baseline["of_late_fault"] > 1.5
    assert model["of_late_fault"] < 1.25
    assert f"In {found['late_faults']} of them" in PAGE
    assert f"({found['events_before_them']:.0f} in the median)" in PAGE
    names = ("bits_per_event", "of_type", "of_gap", "of_late_fault")
    for scores, row, tolerance in ((baseline, "Markov renewal process", 0.01), (model, "the model", 0.25)):
        (cells,) = (line.split("|")[2:-1] for line in PAGE.splitlines() if line.startswith(f"| {row}"))
        assert [float(cell.strip(" *")) for cell in cells] == pytest.approx([scores[n] for n in names], abs=tolerance)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a CSV file with the columns shift, seconds, event"),
        ("shift,event\n1,feed\n", 'unable to find column "seconds"'),
        ("shift,seconds,event\n1,soon,feed\n", "could not parse `soon`"),
        ("shift,seconds,event\n1,2,feed\n1,1,press\n", "line 3: got 1, 1.0, press; needed are .* seconds that do not fall"),
        ("shift,seconds,event\n1,2,feed\n1,3,pres\n", "line 3: got 1, 3.0, pres; .* one of the events load_copper"),
        ("shift,seconds,event\n1,nan,feed\n", "line 2: got 1, nan, feed"),
        ("shift,seconds,event\n1,1e300,feed\n", "line 2"),
        ("shift,seconds,event\n,1,feed\n", "line 2: got None, 1.0, feed"),
        ("shift,seconds,event\n1,2,feed\n", "1 shifts are too few: at least 10"),
    ],
)
def test_files_that_are_no_events_are_refused(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    from sensor_events.data import read_events, split

    (tmp_path / "events.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        split(read_events(tmp_path / "events.csv"))


FILES = ["pyproject.toml", *sorted(f"sensor_events/{path.name}" for path in (EXAMPLE / "sensor_events").glob("*.py"))]


@pytest.mark.parametrize("path", FILES)
def test_the_page_shows_every_line_of_the_package(path: str) -> None:
    """In its order, and nothing else."""
    shown = "\n".join(block.text for block in blocks(DOCUMENT) if block.title == path)
    assert [line for line in shown.splitlines() if line] == [line for line in (EXAMPLE / path).read_text().splitlines() if line]


def test_the_page_shows_no_other_file() -> None:
    assert {block.title for block in blocks(DOCUMENT) if block.title} == set(FILES)
