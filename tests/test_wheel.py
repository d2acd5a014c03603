"""What a user installs: the wheel, in an environment with nothing else in it."""

import os
import shutil
import subprocess
import sys
import tomllib
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


SERVE = """
from titans_seq import UserError, cli
try:
    cli.build_app()(["serve", "run/model", "--host", "192.0.2.1"])  # an address that no machine has
except UserError as error:
    print(error)
"""
HF = """
try:
    import domains.text.hf, transformers
    print(type(transformers.AutoModelForCausalLM.from_pretrained("run/model")).__name__)
except ImportError as error:
    print(error)
"""
EVAL = """
from titans_seq import UserError, cli
try:
    cli.build_app()(["text", "eval", "run/model", "--tasks", "no_such_task"])
except UserError as error:
    print(error)
"""
OF_EXTRAS = {"serve": (SERVE, "cannot be listened on"), "hf": (HF, "TitansTextForCausalLM"), "lm-eval": (EVAL, "no such task")}
"""A use of each, and what it says; without the extra it says how to install it."""


def clean() -> dict[str, str]:
    """An environment in which nothing of the repository is imported by chance."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command outside the repository."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean(), capture_output=True, text=True, timeout=1800)
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


ASK = "import sys; print('3.%d' % sys.version_info.minor)"


def other_pythons() -> dict[str, Path]:
    """Interpreters newer than the one that runs, by version: those on the PATH, and pyenv's."""
    named = [shutil.which(f"python3.{minor}") for minor in range(sys.version_info.minor + 1, 20)]
    found = {}
    for path in [*(Path(name) for name in named if name), *sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"))]:
        said = subprocess.run([path, "-c", ASK], capture_output=True, text=True, check=False)
        version = said.stdout.strip()
        if said.returncode == 0 and int(version.removeprefix("3.")) > sys.version_info.minor:  # pyenv's stand-ins on the PATH may fail
            found[version] = path
    return found


@pytest.mark.slow
def test_newer_pythons_take_the_wheel_and_compile_it_without_a_warning(wheel: Path, tmp_path: Path) -> None:
    """What it needs is left out: of torch there need be no build without CUDA for them."""
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no newer Python here")
    for version, python in pythons.items():
        run(python, "-m", "venv", tmp_path / version, cwd=tmp_path)
        own = tmp_path / version / "bin" / "python"
        run(own, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
        packages = tmp_path / version / "lib" / f"python{version}" / "site-packages"
        run(own, "-W", "error", "-m", "compileall", "-q", "-f", packages / "titans_seq", packages / "domains", cwd=tmp_path)


def test_the_oldest_python_is_said_once(wheel: Path) -> None:
    """By the wheel, to ruff and to mypy."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = settings["project"]["requires-python"].removeprefix(">=")
    (metadata,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA")]
    assert f"Requires-Python: >={oldest}" in zipfile.ZipFile(wheel).read(metadata).decode()
    tools = settings["tool"]
    assert (tools["ruff"]["target-version"], tools["mypy"].get("python_version", oldest)) == (f"py{oldest.replace('.', '')}", oldest)


EXTRAS = {"plain": "", "all": "[serve,hf,lm-eval,tensorboard]"}


@pytest.mark.slow
@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS)
def test_it_installs_into_an_empty_environment_and_works_there(extras: str, wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    commands = tmp_path / "venv" / "bin"
    constraints = ("--constraint", ROOT / "constraints.txt")
    run(commands / "python", "-m", "pip", "install", "--quiet", *constraints, f"{wheel}{extras}", cwd=tmp_path)
    assert "forecast" in run(commands / "titans-seq", cwd=tmp_path)
    assert run(commands / "python", "-c", BACKBONE, cwd=tmp_path).strip() == "(1, 5, 16) 1"
    assert "titans" in run(commands / "titans-seq", "doctor", cwd=tmp_path)
    train = ("--max-steps", "2", "-o", "model")
    run(commands / "titans-seq", "forecast", "train", *train, cwd=tmp_path)
    assert "titans_forecaster" in run(commands / "titans-seq", "info", "model", cwd=tmp_path)
    (tmp_path / "book.txt").write_text("It was the best of times, it was the worst of times. " * 40)
    text = ("text", "train", "book.txt", "-o", "run", "--preset", "debug", "--max-steps", "2", "--quiet")
    run(commands / "titans-seq", *text, cwd=tmp_path)
    for name, (needs, done) in OF_EXTRAS.items():
        used = subprocess.run([commands / "python", "-c", needs], cwd=tmp_path, env=clean(), capture_output=True, text=True, timeout=1800)
        assert used.returncode == 0, f"{name}: {used.stderr[-3000:]}"
        assert (done if name in extras else f"pip install 'titans-seq[{name}]'") in used.stdout, f"{name}: {used.stdout[-3000:]}"
    assert run(commands / "python", "-m", "pip", "check", cwd=tmp_path).strip() == "No broken requirements found."
