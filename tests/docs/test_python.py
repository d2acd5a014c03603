"""The Python of every page runs as printed: its blocks in their order, in one namespace, in a folder of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import PAGES, Block, blocks

SLOW = {"README.md": "TitansEstimator", "docs/timeseries.md": "calibrate"}
"""What a block of the page holds that trains a forecaster as long as it takes; without it the page runs in every suite."""
SERVED = "docs/serving.md"
"""Its client needs the server of tests/domains/text/serve/test_docs.py."""


def python_of(page: str) -> list[Block]:
    """Blocks that a reader pastes; one with a title is a file, which other tests read."""
    return [block for block in blocks(page, "python") if not block.title]


def quick(page: str) -> list[Block]:
    """Those of them that do not train for long."""
    return [block for block in python_of(page) if page not in SLOW or SLOW[page] not in block.text]


def run(parts: list[Block]) -> dict[str, Any]:
    """What they leave behind. Tracebacks name page and line."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in parts:
        exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), names)
    return names


def text_page(folder: Path) -> None:
    """A language model as `titans-seq text train` leaves it, and questions to ask it."""
    from domains.text.config import TextConfig
    from domains.text.model import TitansForCausalLM
    from titans_seq import presets

    TitansForCausalLM(TextConfig(titans=presets.debug("mac"))).save_pretrained(folder / "runs/novels/model")
    for name, text in {
        "lambada/lambada_test.jsonl": json.dumps({"text": "It was the best"}),
        "piqa/valid.jsonl": json.dumps({"goal": "open", "sol1": "push", "sol2": "pull"}),
        "piqa/valid-labels.lst": "1",
    }.items():
        (folder / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "texts" / name).write_text(f"{text}\n")


def choosing_page(folder: Path) -> None:
    """A language model as `titans-seq text task train` leaves it."""
    from domains.text.config import TextConfig
    from domains.text.model import TitansForCausalLM
    from titans_seq import presets

    TitansForCausalLM(TextConfig(titans=presets.debug("mal"))).save_pretrained(folder / "runs/mqar/model")


BEFORE: dict[str, Callable[[Path], None]] = {"docs/text.md": text_page, "docs/choosing.md": choosing_page}
LEFT = {
    "README.md": ["bits.png", "phix174-model/model.safetensors", "stream.safetensors", "my-backbone/README.md"],
    "docs/choosing.md": ["runs/far/model.safetensors"],
    "docs/dna.md": ["windows.csv", "audit.json"],
    "docs/text.md": ["stream.safetensors", "context.safetensors", "tuned/model.safetensors"],
    "docs/text_tasks.md": ["depths.png"],
}
"""Files that the blocks say they write."""


@pytest.mark.parametrize("page", [page for page in PAGES if quick(page) and page != SERVED])
def test_the_page_runs_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    BEFORE.get(page, lambda folder: None)(tmp_path)
    run(quick(page))
    assert not [name for name in LEFT.get(page, []) if not (tmp_path / name).is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_what_trains_on_the_page_runs_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in python_of(page) if SLOW[page] in block.text)
    run([block])
