"""Real ranks on loopback or through a file, so that any number of tests run side by side; whatever happens, no rank outlives its test."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.limits import HANG

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def environment(**variables: object) -> dict[str, str]:
    """This checkout's packages before others."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path} | {name: str(value) for name, value in variables.items()}


def wait_for(*processes: subprocess.Popen[str]) -> list[str]:
    """What each printed. The first failure, or a hang, ends all, with the process groups that they began."""
    deadline = time.monotonic() + HANG
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    printed = [process.communicate()[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert not any(codes), f"exit codes {codes}\n" + "\n".join(text[-9000:] for text in printed)
    return printed


@pytest.fixture(scope="session")
def start_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Function (script of this folder, number of ranks, arguments): runs the ranks to their end, returns what each printed."""

    def start(script: str, ranks: int, *arguments: object) -> list[str]:
        meeting = tmp_path_factory.mktemp("meeting") / "file"
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "error::UserWarning:titans_seq", str(HERE / script), *map(str, arguments)],
                env=environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, INIT_METHOD=f"file://{meeting}"),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,
            )
            for rank in range(ranks)
        ]
        return wait_for(*processes)

    return start


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., subprocess.Popen[str]]:
    """Function (script of this folder, or "-m" and a module as the first argument; number of ranks, arguments, max_restarts): starts
    them as a user does. End it with `wait_for`."""

    def start(script: str, ranks: int, *arguments: object, max_restarts: int = 0) -> subprocess.Popen[str]:
        options = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={max_restarts}"]
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                *options,
                script if script == "-m" else str(HERE / script),
                *map(str, arguments),
            ],
            env=environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1),  # docs/scaling.md
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    return start
