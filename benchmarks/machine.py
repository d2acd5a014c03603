"""What every benchmark says about where it ran, and a parser of its options."""

import argparse
import hashlib
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def git(*arguments: str, folder: Path = ROOT) -> str:
    """Standard output of a git command."""
    run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def revision(folder: Path = ROOT) -> str | None:
    """The git revision, with "+changes" if tracked files differ from it; None outside a checkout."""
    try:
        found = git("rev-parse", "HEAD", folder=folder)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", folder=folder)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found + ("+changes" if changed else "")


def source_digest(sources: Sequence[str] = ("titans_seq", "benchmarks/speed"), root: Path = ROOT) -> str:
    """A digest of the source itself, files and folders: two runs with the same one ran the same code, whatever git says."""
    digest = hashlib.sha256()
    found = (one for source in sources for one in ([root / source] if source.endswith(".py") else (root / source).rglob("*.py")))
    for path in sorted(found):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def installed(package: str) -> str | None:
    """Version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Model name, with family and model number where /proc gives them: the name alone may be generic."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in known:
        return platform.processor() or platform.machine()
    return f"{known['model name']} (family {known.get('cpu family', '?')}, model {known.get('model', '?')})"


def available_mib() -> float:
    """Memory that can be taken without swapping, in MiB; where the system does not say, all that there is."""
    path = Path("/proc/meminfo")
    if path.exists():
        values = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return int(values["MemAvailable"].split()[0]) / 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20


def positive(kind: type) -> Callable[[str], Any]:
    """A parser of a positive number for argparse."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse
