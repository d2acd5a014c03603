"""Imports of libraries that have something to say in a notebook."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_import() -> Iterator[None]:
    """To import Lightning, transformers or huggingface_hub in: in a notebook without ipywidgets tqdm, which they import, warns that its
    bars need those, and our bars (progress.py) do not.

    It is a matter of this import alone: who takes `tqdm.auto` for bars of their own later is warned as if it had not been.
    """
    before = set(sys.modules)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        yield
    for name in {"tqdm.auto", "tqdm.autonotebook"} - before:
        sys.modules.pop(name, None)
