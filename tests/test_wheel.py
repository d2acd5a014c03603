"""What a user installs: the wheel, in an environment with nothing else in it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BACKBONE = """
import torch, titans_seq
assert "site-packages" in titans_seq.__file__, titans_seq.__file__
y, state = titans_seq.Titans(titans_seq.TitansConfig(dim=16, num_layers=1))(torch.randn(1, 5, 16))
print(tuple(y.shape), state.batch_size)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command outside the repository, so that nothing of it is imported by chance."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    run(*build, cwd=folder)
    (found,) = folder.glob("titans_seq-*.whl")
    return found


def test_the_wheel_holds_every_module_and_all_data_that_they_read(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files", "titans_seq", "domains"], cwd=ROOT, capture_output=True, text=True, check=True)
    missing = [name for name in listed.stdout.split() if name not in held]
    assert not missing
    assert not [name for name in held if name.startswith(("tests", "benchmarks", "notebooks", "examples"))]


@pytest.mark.slow
@pytest.mark.parametrize("extras", ["", "[tensorboard]"], ids=["plain", "extras"])
def test_it_installs_into_an_empty_environment_and_works_there(extras: str, wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    commands = tmp_path / "venv" / "bin"
    constraints = ("--constraint", ROOT / "constraints.txt")
    run(commands / "python", "-m", "pip", "install", "--quiet", *constraints, f"{wheel}{extras}", cwd=tmp_path)
    assert "forecast" in run(commands / "titans-seq", cwd=tmp_path)
    assert run(commands / "python", "-c", BACKBONE, cwd=tmp_path).strip() == "(1, 5, 16) 1"
    assert "titans" in run(commands / "titans-seq", "doctor", cwd=tmp_path)
    train = ("--epochs", "1", "--batches", "2", "-o", "model")
    run(commands / "titans-seq", "forecast", "train", *train, cwd=tmp_path)
    assert "TitansForecaster" in run(commands / "titans-seq", "info", "model", cwd=tmp_path)
    assert run(commands / "python", "-m", "pip", "check", cwd=tmp_path).strip() == "No broken requirements found."
