"""Run the notebooks in a kernel and write them with their outputs: `python notebooks/build.py [NAME ..]`, all of them by default."""

import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(source: Path, folder: Path = FOLDER) -> nbformat.NotebookNode:
    """The notebook of a py:percent source, run from its first cell to its last in a fresh kernel that works in `folder`."""
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def main(names: list[str]) -> None:
    """Those of these names, or all."""
    for source in sorted(FOLDER.glob("0*.py")):
        if names and source.stem not in names:
            continue
        begun = time.monotonic()
        notebook = execute(source)
        for cell in notebook.cells:  # times and numbers that change with every run are no part of what is kept
            cell.metadata.pop("execution", None)
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        print(f"{source.stem}: {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
