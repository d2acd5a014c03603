"""While a command starts: a spinner on a terminal until something else is written, and nothing anywhere else."""

import io
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cyclopts import App

from tests.limits import HANG
from titans_seq.cli import build_app
from titans_seq.options import ConfigFile
from titans_seq.starting import starting

SPINS = "⠋ starting"


class Terminal(io.StringIO):
    """A screen."""

    def isatty(self) -> bool:
        return True


def wait_for_spinner(screen: io.StringIO) -> None:
    deadline = time.monotonic() + 60
    while "starting" not in screen.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error as one; called in the test itself, as pytest sets the streams anew before it."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return terminal


@pytest.mark.parametrize("how", ["print", "bytes", "stderr", "nothing", "error"])
def test_it_ends_before_anything_else_is_written(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, bytes_out = on_a_terminal(monkeypatch), io.BytesIO()
    out = io.TextIOWrapper(bytes_out, encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    try:
        with starting(delay=0):
            wait_for_spinner(screen)
            if how == "print":
                print("said")
            elif how == "bytes":
                sys.stdout.buffer.write(b"said")
            elif how == "stderr":
                print("said", file=sys.stderr)
            elif how == "error":
                raise KeyError
            if how != "nothing":
                assert (sys.stdout, sys.stderr) == (out, screen)
    except KeyError:
        assert how == "error"
    out.flush()
    assert (sys.stdout, sys.stderr) == (out, screen)
    shown, erased, after = screen.getvalue().rpartition("\x1b[2K")  # the line is taken away
    assert SPINS in shown
    assert erased
    assert after.endswith("said\n") == (how == "stderr")
    assert bytes_out.getvalue().decode().strip() == ("said" if how in ("print", "bytes") else "")


def test_what_is_written_while_it_ends_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a handler of a signal does."""
    screen = on_a_terminal(monkeypatch)
    with starting(delay=0):
        wait_for_spinner(screen)
        watched, write, written = sys.stderr, screen.write, list[str]()

        def write_within(text: str) -> int:
            if threading.current_thread() is threading.main_thread() and not written:
                written.append(text)
                print("within", file=watched)
            return write(text)

        monkeypatch.setattr(screen, "write", write_within)
        print("said", file=sys.stderr)
    assert written
    assert "within" in screen.getvalue()
    assert screen.getvalue().endswith("said\n")


@pytest.mark.parametrize("case", ["quiet", "fast", "no terminal", "forced colours", "dumb terminal", "of a launcher"])
def test_nothing_is_shown(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_a_terminal(monkeypatch)
    if case in ("no terminal", "forced colours"):
        monkeypatch.setattr(screen, "isatty", lambda: False)
    if case == "forced colours":
        monkeypatch.setenv("FORCE_COLOR", "1")
    if case == "dumb terminal":
        monkeypatch.setenv("TERM", "dumb")
    if case == "of a launcher":
        monkeypatch.setenv("LOCAL_RANK", "0")
    with starting(quiet=case == "quiet", delay=HANG if case == "fast" else 0):
        time.sleep(0.05)
    assert screen.getvalue() == ""


@pytest.mark.parametrize(("line", "spins"), [("quiet = true", False), ("quiet = false", True), ("", True)])
def test_a_file_of_options_can_be_quiet(line: str, spins: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(line)
    screen, app = on_a_terminal(monkeypatch), App(config=build_app().config, result_action="return_value")

    @app.default
    def command(*, quiet: bool = False, config: ConfigFile = None) -> bool:
        return sys.stderr is not screen

    with starting(delay=HANG):
        assert app(["--config", str(tmp_path / "run.toml")]) == spins


def test_a_command_that_imports_torch_shows_it(tmp_path: Path) -> None:
    """As a user has it: standard error on a real terminal, standard output in a file."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "titans_seq.cli", "info", str(tmp_path)]
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=os.environ | {"TERM": "xterm", "COLUMNS": "200"}) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 1000):
                shown += chunk
        except OSError:  # the other end is closed
            pass
        process.wait(timeout=HANG)
    os.close(ours)
    text = shown.decode()
    assert text.index("starting") < text.index("Error: ")
    assert "starting" not in text[text.index("Error: ") :]
