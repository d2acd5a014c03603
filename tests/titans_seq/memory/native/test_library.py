"""Compiling, keeping and loading the native kernels, and what is said where that cannot be done."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.limits import HANG
from titans_seq.memory import choose_implementation, native
from titans_seq.memory.native import library


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing loaded or known yet, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.library.cache_clear()
    library.problem.cache_clear()
    yield tmp_path / "titans_seq"
    library.library.cache_clear()
    library.problem.cache_clear()


@pytest.fixture
def tiny_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Something that compiles at once in place of the kernels."""
    if native.unavailable(torch.empty(0)) is not None:
        pytest.skip("no C++ compiler")
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "memory.cpp").write_text('extern "C" int titans_forward(const void*) { return sizeof(TITANS_NUMBER); }')
    monkeypatch.setattr(library, "SOURCES", folder)
    return folder


def test_compiled_once_and_found_again(tiny_sources: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.library("double").titans_forward(None) == 8
    (kept,) = fresh.glob("*.so")
    library.library.cache_clear()
    monkeypatch.setattr(library, "compile_library", lambda *_: pytest.fail("compiled again"))
    assert library.library("double").titans_forward(None) == 8
    assert [path.name for path in fresh.glob("*.so")] == [kept.name]


@pytest.mark.parametrize("change", ["source", "compiler", "processor"])
def test_another_source_compiler_or_processor_is_another_library(
    tiny_sources: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    library.library("float")
    library.library.cache_clear()
    if change == "source":
        (tiny_sources / "more.h").write_text("// a comment")
    elif change == "compiler":
        monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-DNDEBUG"))
    else:
        monkeypatch.setattr(library, "processor", lambda: "another")
    library.library("float")
    assert len(list(fresh.glob("*.so"))) == 2


@pytest.mark.parametrize("content", [b"", b"\x7fELF and no more", None], ids=["empty", "broken", "cut"])
def test_a_damaged_library_is_made_again(tiny_sources: Path, fresh: Path, content: bytes | None) -> None:
    command = [*library.find_compiler(), *library.FLAGS, "-DTITANS_NUMBER=float"]
    path = fresh / f"memory-float-{library.fingerprint(command)}.so"
    fresh.mkdir(parents=True)
    if content is None:
        library.compile_library(command, path)
        content = path.read_bytes()[:4096]
        path.unlink()
    path.write_bytes(content)
    assert library.library("float").titans_forward(None) == 4


def test_two_processes_at_once(tiny_sources: Path, fresh: Path) -> None:
    """They wait for one another, and both have it."""
    script = f"""
from pathlib import Path
from titans_seq.memory.native import library
library.SOURCES = Path({str(tiny_sources)!r})
assert library.library('float').titans_forward(None) == 4
"""
    processes = [subprocess.Popen([sys.executable, "-c", script], env=dict(os.environ)) for _ in range(2)]
    assert [process.wait(timeout=HANG) for process in processes] == [0, 0]
    assert len(list(fresh.glob("*.so"))) == 1
    assert not [path for path in fresh.iterdir() if path.is_dir()]


def says(case: Any) -> str:
    """Why `auto` does not take the fused form; and the explicit call is refused with the same words."""
    chosen = choose_implementation(case.q, case.gates, case.weights)
    assert chosen.impl == "chunkwise"
    reason = chosen.reason.removeprefix("The fused form ").removesuffix(".")
    with pytest.raises(ValueError, match="impl='fused'") as error:
        case.run("fused")
    assert str(error.value) == f"impl='fused' {reason}. Use impl='chunkwise'"
    assert torch.equal(case.run("auto")[0], case.run("chunkwise")[0])
    return reason


def test_without_a_compiler(make_case: Any, fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert says(make_case()) == f"needs a C++ compiler, and none is on PATH: {library.HOW}"


def test_a_named_compiler_that_is_not_there(make_case: Any, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler --flag")
    assert "CXX names 'no-such-compiler', which is not on PATH" in says(make_case())


def test_a_compiler_that_fails_is_reported_once(make_case: Any, fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'memory.cpp:1: error: no room' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.warns(UserWarning, match="no room") as warned:
        reason = says(make_case())
    assert len(warned) == 1
    assert "could not be compiled by" in reason
    assert "error: no room" in reason
    assert not list(fresh.glob("*.so"))


def test_a_cache_folder_that_cannot_be_written(make_case: Any, fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="set XDG_CACHE_HOME"):
        assert "set XDG_CACHE_HOME to a folder of yours" in says(make_case())


def test_switched_off(make_case: Any, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.SWITCH, "0")
    assert says(make_case()) == "is switched off by TITANS_SEQ_NATIVE=0"


def test_the_structure_is_that_of_the_header() -> None:
    """Every field in the same order: the kernels read what Python wrote."""
    from titans_seq.memory.native.operator import Call

    header = (library.SOURCES / "arguments.h").read_text()
    body = header[header.index("struct Arguments {") : header.index("};")]
    lines = [line.split("//")[0] for line in body.splitlines()[1:]]
    text = " ".join(lines).replace("const", " ").replace("*", " ")
    for kind in ("int64_t", "uint8_t", "double", "void"):
        text = text.replace(kind, " ")
    names = [name.strip() for name in text.replace(";", ",").split(",") if name.strip()]
    assert names == [name for name, _ in Call._fields_]
    assert ctypes.sizeof(Call) == 8 * len(names)
