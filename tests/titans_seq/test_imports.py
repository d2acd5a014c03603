"""What `import titans_seq` and `titans-seq --help` load: torch and little else."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

HEAVY = ("gluonts", "Bio", "polars", "pandas", "lightning", "torchmetrics", "matplotlib", "sklearn", "tokenizers", "transformers")


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    report = "import json, sys; sys.stderr.write(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    script = f"try:\n    {code}\nfinally:\n    {report}\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stderr))


def test_importing_the_package_loads_no_domain_library() -> None:
    loaded = modules_after("import titans_seq")
    assert "torch" in loaded
    assert not loaded & {*HEAVY, "domains"}


def test_help_loads_no_domain_library() -> None:
    loaded = modules_after("import sys; sys.argv = ['titans-seq', '--help']; from titans_seq.cli import main; main()")
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="titans-seq")
    assert command.value == "titans_seq.cli:main"
    result = subprocess.run([Path(sys.executable).with_name("titans-seq"), "--help"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "Usage: titans-seq" in result.stdout
