"""A sign of life while a command starts: importing torch and its company takes seconds in which nothing else is shown."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from cyclopts import App, ArgumentCollection
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

DELAY = 0.5
"""Seconds in which most of what needs no torch is done."""


@contextmanager
def starting(quiet: bool = False, delay: float = DELAY) -> Iterator[None]:
    """On a terminal show a spinner on standard error until something else is written to it or to standard output, or the end.

    Args:
        quiet: show nothing.
        delay: seconds before it is shown.
    """
    console = Console(file=sys.stderr)
    watched = console.is_interactive and console.file.isatty()  # rich takes a pipe for a terminal where FORCE_COLOR is set
    if quiet or not watched or is_launched():
        yield
        return
    sign = _Sign(console, delay)
    try:
        yield
    finally:
        sign.end()


def is_launched() -> bool:
    """Whether this is one of the processes that a launcher, such as torchrun or srun, started together."""
    return any(name in os.environ for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))  # as Lightning knows them


def end_if_quiet(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """End the spinner where a command is to be quiet, as a file of options may say: a cyclopts config, after those that read files."""
    quiet = any("--quiet" in argument.names and argument.tokens and argument.convert() is True for argument in arguments)
    if quiet and isinstance(sys.stderr, _Watched):
        sys.stderr.end()


class _Sign:
    """The spinner, begun by a timer and ended once; meanwhile it stands between the streams and who writes to them."""

    def __init__(self, console: Console, delay: float) -> None:
        spinner = Spinner("dots", text="starting")
        self._live = Live(spinner, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._lock, self._ended = threading.RLock(), False  # a handler of a signal, or a finaliser, may write within `end`
        self._streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self._watching = tuple(_Watched(stream, self.end) for stream in self._streams)
        self._timer = threading.Timer(delay, self._begin)
        self._timer.daemon = True
        self._timer.start()

    def _begin(self) -> None:
        with self._lock:
            if not self._ended:
                self._live.start()

    def end(self) -> None:
        """Take the spinner away, and give the streams back."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._timer.cancel()
            self._live.stop()
            for name, watching, stream in zip(("stdout", "stderr"), self._watching, self._streams, strict=True):
                if getattr(sys, name) is watching:
                    setattr(sys, name, stream)


class _Watched:
    """A stream that calls `end` before it is written to, also by way of its buffer."""

    def __init__(self, stream: TextIO, end: Callable[[], None]) -> None:
        self._stream, self.end = stream, end

    def write(self, text: str) -> int:
        """As of the stream."""
        self.end()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "writelines"):
            self.end()
        return getattr(self._stream, name)
