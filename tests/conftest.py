"""Fixtures and rules for the whole suite."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # small operations: more threads only wait for one another where cores are shared


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)


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
