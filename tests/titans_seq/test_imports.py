"""What `import titans_seq` and `titans-seq --help` load: as little as they can."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import titans_seq
from tests.limits import HANG

HEAVY = ("gluonts", "Bio", "polars", "pandas", "lightning", "torchmetrics", "matplotlib", "sklearn", "tokenizers", "transformers")


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    report = "import json, sys; sys.stderr.write(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    script = f"try:\n    {code}\nfinally:\n    {report}\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stderr))


def test_importing_the_package_loads_no_domain_library() -> None:
    loaded = modules_after("import titans_seq; titans_seq.Titans")
    assert "torch" in loaded
    assert not loaded & {*HEAVY, "domains", "huggingface_hub", "cyclopts"}


def test_a_model_that_can_be_trained_is_read_without_lightning() -> None:
    loaded = modules_after("import titans_seq.training.trainable")
    assert "torch" in loaded
    assert "lightning" not in loaded


def test_a_model_of_dna_is_read_without_what_scores_need() -> None:
    assert not modules_after("import domains.dna.model, domains.dna.variants") & {"sklearn", "scipy", "pandas", "matplotlib", "lightning"}


def test_every_name_of_the_package_is_there() -> None:
    """They are imported when they are asked for, and no other name is."""
    assert all(getattr(titans_seq, name) is not None for name in titans_seq.__all__)
    assert set(titans_seq.__all__) <= set(dir(titans_seq))
    with pytest.raises(AttributeError, match="module 'titans_seq' has no attribute 'Titan'"):
        titans_seq.Titan  # noqa: B018


def test_help_loads_neither_torch_nor_a_domain_library() -> None:
    loaded = modules_after(
        "import sys; sys.argv = ['titans-seq', 'forecast', 'backtest', '--help']; from titans_seq.cli import main; main()"
    )
    assert {"cyclopts", "domains"} <= loaded
    assert not loaded & {*HEAVY, "torch", "numpy", "huggingface_hub", "safetensors"}


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="titans-seq")
    assert command.value == "titans_seq.cli:main"
    result = subprocess.run([Path(sys.executable).with_name("titans-seq"), "--help"], capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stderr
    assert "Usage: titans-seq" in result.stdout
