"""Statements that may end the process, such as a library's reader on a damaged file, tried in a process of its own first."""

import subprocess
import sys


def end_of(statement: str, *arguments: str) -> str | None:
    """How a Python statement that can use `sys.argv[1:]` ended its process; None where it ran through or raised an exception."""
    done = subprocess.run([sys.executable, "-P", "-c", statement, *arguments], capture_output=True, check=False)
    if done.returncode in (0, 1):  # 1 is an exception, which the caller meets as well
        return None
    return (done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"])[0]
