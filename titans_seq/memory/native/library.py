"""The native kernels as a shared library: compiled by this machine's C++ compiler when first used, kept in the user's cache folder.

The library's name is a hash of the sources, the compiler and this processor, since it is built for this processor alone and a home folder
may be shared between several.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from filelock import FileLock

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
SWITCH = "TITANS_SEQ_NATIVE"
HOW = "install g++ or clang++, or name a compiler by the variable CXX"


class CompilationError(Exception):
    """There is no library, and the text says why and what to do."""


@functools.cache
def problem(number: str) -> str | None:
    """Why the library for "float" or "double" cannot be had here, in words, None if it can.

    Looks for it, and compiles it, the first time; warns if that fails.
    """
    if os.environ.get(SWITCH) == "0":
        return f"is switched off by {SWITCH}=0"
    try:
        library(number)
    except CompilationError as error:
        return str(error)
    return None


@functools.cache
def library(number: str) -> ctypes.CDLL:
    """The loaded library for "float" or "double"; CompilationError if there is none to be had."""
    command = [*find_compiler(), *FLAGS, f"-DTITANS_NUMBER={number}"]
    try:
        path = cache_folder() / f"memory-{number}-{fingerprint(command)}.so"
    except RuntimeError as error:  # there is no home folder
        raise _failed(f"have no place to be kept ({error}): set XDG_CACHE_HOME to a folder of yours") from error
    try:
        if is_whole(path):  # also where nothing may be written
            return ctypes.CDLL(str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not is_whole(path):
                compile_library(command, path)
            return ctypes.CDLL(str(path))
    except OSError as error:
        raise _failed(f"cannot be kept in {path.parent} ({error}): set XDG_CACHE_HOME to a folder of yours") from error


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "titans_seq"


def find_compiler() -> list[str]:
    """The command of $CXX, or of the first C++ compiler on PATH."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    missing = f"CXX names {named[0]!r}, which is not on PATH" if named else "none is on PATH"
    raise CompilationError(f"needs a C++ compiler, and {missing}: {HOW}")


def fingerprint(command: Sequence[str]) -> str:
    """Of all that the library depends on."""
    found = hashlib.sha256()
    for path in [*sorted(SOURCES.glob("*.h")), SOURCES / "memory.cpp"]:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    for text in (*command, _output([*command, "--version"]), processor()):
        found.update(text.encode() + b"\0")
    return found.hexdigest()[:24]


def processor() -> str:
    """What of this processor decides which instructions a library may hold."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return platform.machine() + "".join(line for line in lines if line.split("\t")[0].strip(": ") in wanted)


def compile_library(command: Sequence[str], path: Path) -> None:
    """Build into a folder beside `path`, and move the whole file there; its digest first, so that it is never without."""
    with TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [*command, str(SOURCES / "memory.cpp"), "-o", str(built)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if result.returncode != 0 or not built.exists():
            tail = "\n".join((result.stderr or result.stdout).strip().splitlines()[-10:])
            raise _failed(f"could not be compiled by `{shlex.join(command)}`:\n{tail}\n{HOW}")
        noted = built.with_suffix(".sha256")
        noted.write_text(digest(built))
        noted.replace(path.with_suffix(".sha256"))
        built.replace(path)


def is_whole(path: Path) -> bool:
    """Whether the library is there as it was built: loading one that was cut off would end the process."""
    try:
        return digest(path) == path.with_suffix(".sha256").read_text()
    except OSError:
        return False


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _failed(text: str) -> CompilationError:
    """An error that is worth a warning as well: `impl="auto"` goes on with another form."""
    warnings.warn(f"The native kernels of the memory {text}", stacklevel=2)
    return CompilationError(text)


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    except OSError as error:
        raise CompilationError(f"needs a C++ compiler, and {command[0]} cannot be run ({error}): {HOW}") from error
