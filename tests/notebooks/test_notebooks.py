"""The notebooks: what is kept is what the sources say, and each runs from its first cell to its last in a kernel."""

import importlib.util
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted(FOLDER.glob("0*.py"))
each = pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])


def images(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_there_are_notebooks() -> None:
    numbers = [source.stem[:2] for source in SOURCES]
    assert numbers == ["01", "02", "03", "04", "05"]


@each
def test_the_kept_notebook_is_of_this_source_and_ran_without_an_error(source: Path) -> None:
    kept = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    cells = [(cell.cell_type, cell.source) for cell in jupytext.read(source).cells]
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == cells, f"run `python notebooks/build.py {source.stem}`"
    assert images(kept) >= 3
    assert not [output for cell in kept.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert "What to try next" in kept.cells[-1].source
    nbformat.validate(kept)


@pytest.mark.slow
@each
def test_it_runs_in_a_fresh_kernel(source: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("build_notebooks", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    notebook = build.execute(source, tmp_path)  # raises what a cell raises
    assert images(notebook) == images(nbformat.read(source.with_suffix(".ipynb"), as_version=4))
