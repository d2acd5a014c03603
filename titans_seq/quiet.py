"""Imports of libraries that have something to say in a notebook."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def quiet_import() -> Iterator[None]:
    """To import Lightning, transformers or huggingface_hub in: in a notebook without ipywidgets tqdm, which they import, warns that its
    bars need those, and our bars (progress.py) do not.

    It is a matter of this import alone: filters that it sets stay, and who takes `tqdm.auto` for bars of their own later is warned as if it
    had not been imported.
    """
    before, show = set(sys.modules), warnings.showwarning

    def show_others(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
    ) -> None:
        if not str(message).startswith("IProgress not found"):
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = show_others
    try:
        yield
    finally:
        if warnings.showwarning is show_others:
            warnings.showwarning = show
        for name in {"tqdm.auto", "tqdm.autonotebook"} - before:
            sys.modules.pop(name, None)
