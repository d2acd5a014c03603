"""Texts to train on."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts of unequal length, one of them longer than a row's share."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(5):
        (folder / f"{i}.txt").write_text(" ".join(f"{word}{i}" for word in ("ship", "sea", "wind", "land") * (2 + 5 * i)))
    return folder
