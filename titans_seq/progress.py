"""Progress bars: on a terminal, and in a notebook. All of the package that are not a library's own are made here.

In a notebook a bar is a line of plain text that is replaced as it goes: it needs no widgets, and is kept as it ended.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

_WIDTH = 100
_SECONDS = 0.25
"""Between two refreshes in a notebook."""


def make_bar(*columns: str | ProgressColumn, console: Console | None = None, transient: bool = True, disable: bool = False) -> Progress:
    """A bar, to be started by `with`, of rich's columns.

    Args:
        columns: what it shows; none for rich's usual ones.
        console: where to; None for standard error.
        transient: take it away when it has ended, which a notebook does not.
        disable: show nothing.
    """
    console = console or Console(stderr=True)
    if console.is_jupyter:
        return NotebookProgress(*columns, disable=disable)
    disable = disable or (transient and not console.is_interactive)  # where rich leaves an empty line in its place
    return Progress(*columns, console=console, transient=transient, disable=disable, refresh_per_second=4)


@contextmanager
def progress(what: str, total: int | None, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar; what it gives is told how much was done.

    >>> with progress("reading", total=1000) as advance:
    ...     advance(10)
    """
    with make_bar(disable=quiet) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


class NotebookProgress(Progress):
    """A bar in the output of a notebook's cell, from start to stop."""

    def __init__(self, *columns: str | ProgressColumn, disable: bool = False) -> None:
        plain = Console(file=StringIO(), width=_WIDTH, force_terminal=False, force_jupyter=False, color_system=None)
        super().__init__(*columns, console=plain, auto_refresh=False, disable=disable)
        self._output: Any = None
        self._shown = 0.0

    def start(self) -> None:
        """Show it below what the cell has shown."""
        if not self.disable and self._output is None:
            from IPython.display import display  # there in any kernel

            self._output = display(self._text(), raw=True, display_id=True)

    def stop(self) -> None:
        """Leave it as it is now."""
        self._replace()
        self._output = None

    def refresh(self) -> None:
        """Show what has changed, unless that was done a moment ago."""
        if time.monotonic() - self._shown >= _SECONDS:
            self._replace()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As of rich, and show it."""
        super().advance(task_id, advance)
        self.refresh()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As of rich, and show it."""
        super().update(task_id, **changes)
        self.refresh()

    def _replace(self) -> None:
        if self._output is not None:
            self._output.update(self._text(), raw=True)
            self._shown = time.monotonic()

    def _text(self) -> dict[str, str]:
        with self.console.capture() as captured:
            self.console.print(self.get_renderable())
        return {"text/plain": "\n".join(line.rstrip() for line in captured.get().splitlines())}
