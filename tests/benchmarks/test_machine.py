"""What tells whether two runs ran the same code."""

from pathlib import Path

import pytest

from benchmarks.machine import ROOT, source_digest
from benchmarks.text.stages import SOURCES


def test_a_digest_is_of_the_sources_that_are_named_and_of_no_others(tmp_path: Path) -> None:
    (tmp_path / "rule" / "deep").mkdir(parents=True)
    for name in ("rule/a.py", "rule/deep/b.py", "one.py", "other.py", "rule/notes.txt"):
        (tmp_path / name).write_text(name)
    first = source_digest(("rule", "one.py"), tmp_path)
    for name, counts in {"other.py": False, "rule/notes.txt": False, "one.py": True, "rule/deep/b.py": True}.items():
        (tmp_path / name).write_text("changed")
        assert (source_digest(("rule", "one.py"), tmp_path) != first) == counts, name
        (tmp_path / name).write_text(name)
    assert source_digest(("rule", "one.py"), tmp_path) == first
    with pytest.raises(FileNotFoundError):
        source_digest(("rule", "gone.py"), tmp_path)


def test_the_sources_of_trained_models_are_there() -> None:
    assert all((ROOT / source).exists() for source in SOURCES)
