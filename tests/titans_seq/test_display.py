"""What objects show in a notebook: well-formed HTML with the facts in it, whatever the values are."""

from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch

from domains.dna.data import open_example
from domains.text.config import TextConfig
from domains.text.model import TitansForCausalLM
from domains.timeseries.data import load_example
from titans_seq import MemoryConfig, Titans, TitansConfig
from titans_seq.display import html_table
from titans_seq.inspect import record

VOID = {"br", "hr", "img", "meta"}


class _Reader(HTMLParser):
    """The text of each element, and a failure where tags do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.text.append(data.strip())


def shown(thing: object) -> list[str]:
    reader = _Reader()
    reader.feed(thing if isinstance(thing, str) else thing._repr_html_())  # type: ignore[attr-defined]
    assert not reader.open
    return reader.text


def test_a_configuration_shows_every_value_and_marks_what_was_chosen() -> None:
    text = shown(TitansConfig(dim=64, num_layers=3, memory=MemoryConfig(chunk_size=32)))
    values = dict(pairwise(text))
    assert (values["num_layers"], values["memory.chunk_size"]) == ("3", "32")
    assert text[text.index("memory.chunk_size") + 2] == "*"
    assert text[text.index("memory.depth") + 2] != "*"


def test_a_state_shows_its_tensors_and_its_bytes() -> None:
    model = Titans(TitansConfig(dim=16, num_layers=1, memory=MemoryConfig(num_heads=2)))
    state = model.init_state(3)
    text = shown(state)
    assert text[0].startswith("TitansState, ")
    assert "for 3 rows" in text[0]
    assert sum(name.startswith("blocks.0.") for name in text) == len(state.tensors())


def test_a_model_shows_its_parameters_by_part() -> None:
    model = TitansForCausalLM(TextConfig())
    text = shown(model)
    total = sum(x.numel() for x in model.parameters())
    assert text[0] == f"TitansForCausalLM, {total:,} parameters"
    table = text[: text.index("configuration")]
    counts = [int(count.replace(",", "")) for _, count in pairwise(table[1:]) if count.replace(",", "").isdigit()]
    assert sum(counts) == total
    assert "configuration" in text


def test_a_recording_says_what_it_holds() -> None:
    model = Titans(TitansConfig(dim=16, num_layers=2, memory=MemoryConfig(num_heads=2)))
    with record(model) as recording:
        assert "of nothing yet" in shown(recording)[0]
        model(torch.randn(1, 9, 16))
    text = shown(recording)
    assert "of 9 tokens" in text[0]
    assert "blocks.1.mixer.memory" in text


def test_data_shows_what_was_found() -> None:
    assert {"D", ", ".join(load_example().targets)} <= set(shown(load_example()))
    text = shown(open_example())
    assert text[0].startswith("Genome ")
    assert "5,386" in text


@pytest.mark.parametrize("cell", ["<script>alert(1)</script>", "a & b", '"'])
def test_what_stands_in_a_cell_is_text(cell: str) -> None:
    assert shown(html_table(cell, [(cell, 1)])) == [cell, cell, "1"]
