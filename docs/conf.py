"""The site: `make docs` builds it into docs/_build. Pages are the Markdown beside this file, the API is from docstrings."""

from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
(HERE / "notebooks").mkdir(exist_ok=True)
for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):  # beside the pages here, a folder away on disk
    text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
    (HERE / "notebooks" / notebook.name).write_text(text, encoding="utf-8")

project = "titans_seq"
author = "the titans_seq developers"
version = release = installed("titans-seq")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "jupyter_execute"]  # what a build leaves
html_theme = "furo"
html_title = f"titans_seq {release}"
html_static_path: list[str] = []

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # they are kept with their outputs

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["myst.header", "ref.python"]  # one class is found under the package's name and its module's
