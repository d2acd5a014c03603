"""Fixtures and rules for the whole suite."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# `fuzz`, ten thousand new cases a test, is chosen by `pytest tests/fuzz --hypothesis-profile=fuzz` (make fuzz).
_quick = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
settings.register_profile("suite", max_examples=100, derandomize=True, database=None, deadline=20_000, suppress_health_check=_quick)
settings.register_profile("fuzz", settings.get_profile("suite"), max_examples=10_000, derandomize=False, print_blob=True)
settings.load_profile("suite")

# Small operations: more threads only wait for one another where cores are shared. For this process, and for those that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are named by their number: archives hold the time of day, and all workers of a parallel run must name a test alike."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """By this process and those that a test starts, also where a shell has started the tests in its background and has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data sets that are not shipped."""
    folder = os.environ.get("TITANS_SEQ_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TITANS_SEQ_DATA does not name a folder with the real data sets")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests with their reason where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
