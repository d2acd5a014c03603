"""Scores: of files, of several tokenisers, by position."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from domains.text.cli.score import _row
from domains.text.config import TextConfig
from domains.text.data import END, read_texts
from domains.text.model import TitansForCausalLM
from domains.text.plots import plot_positions
from domains.text.score import FIRST, FileScore, RangeScore, by_file, by_position, range_of, score
from domains.text.tokenizers import JsonTokenizer
from titans_seq import presets

TEXTS = ["the ship went over the sea. " * 12, "é", "and the wind was from the land, " * 5]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path / "a.jsonl"


def nats_of(model: TitansForCausalLM, tokens: list[int]) -> np.ndarray:
    """Of each token, in one pass."""
    row = torch.tensor([tokens])
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(row[:, :-1])[0][0], row[0, 1:], reduction="none").double().numpy()


@pytest.mark.parametrize("segment_length", [3, 50, 1000])
def test_scores_are_those_of_one_pass(segment_length: int, model: TitansForCausalLM, path: Path) -> None:
    read: list[int] = []
    scores = list(score(model, read_texts([path]), segment_length, read.append))
    nats = [nats_of(model, [END, *text.encode(), END]) for text in TEXTS]
    assert sum(read) == sum(map(len, nats))
    for one, expected, text in zip(scores, nats, TEXTS, strict=True):
        assert one.bits == pytest.approx(expected.sum() / math.log(2), rel=1e-4)
        assert one.bytes == len(text.encode())
    (file,) = by_file(scores)
    size = sum(len(text.encode()) for text in TEXTS)
    assert file.bits_per_byte == pytest.approx(sum(x.sum() for x in nats) / math.log(2) / size, rel=1e-4)
    assert file.documents == 3


def test_positions_are_those_in_their_documents(model: TitansForCausalLM, path: Path) -> None:
    ranges = by_position(score(model, read_texts([path]), 100))
    nats = [nats_of(model, [END, *text.encode(), END]) for text in TEXTS]
    bounds = [0, 64, 128, 256, 512]
    assert [(one.start, one.stop) for one in ranges] == list(pairwise(bounds))
    for one in ranges:
        inside = np.concatenate([x[one.start : one.stop] for x in nats])
        assert one.tokens == len(inside)
        assert one.bits_per_token == pytest.approx(inside.mean() / math.log(2), rel=1e-4)


def test_each_range_is_as_long_as_all_before() -> None:
    positions = np.arange(5000)
    expected = [0 if p < FIRST else int(math.log2(p // FIRST)) + 1 for p in positions]
    assert range_of(positions).tolist() == expected


def test_bits_per_byte_do_not_depend_on_how_text_is_cut(bpe: JsonTokenizer, path: Path) -> None:
    """A model that knows nothing needs log2 V for each token: of any tokeniser that is exact to compute by hand."""
    model = TitansForCausalLM(TextConfig(titans=presets.debug("lmm")).with_tokenizer(bpe), bpe).eval()
    torch.nn.init.zeros_(model.embedding.weight)
    (file,) = by_file(score(model, read_texts([path], bpe)))
    count = sum(len(ids) for ids in bpe.encode_batch(TEXTS))
    size = sum(len(text.encode()) for text in TEXTS)
    assert file.bits_per_byte == pytest.approx(math.log2(bpe.vocabulary) * (count + len(TEXTS)) / size, rel=1e-6)
    assert file.bits_per_token == pytest.approx(math.log2(bpe.vocabulary) * (count + len(TEXTS)) / count, rel=1e-6)
    assert file.perplexity == pytest.approx(bpe.vocabulary ** ((count + len(TEXTS)) / count), rel=1e-5)


def test_a_perplexity_that_no_float_holds_is_infinite() -> None:
    assert FileScore(Path("a"), 1, 1, 1, 2000.0).perplexity == math.inf
    assert _row(FileScore(Path("a"), 1, 1, 1, 2000.0))["perplexity"] is None, "JSON has no number for it"
    assert math.isnan(FileScore(Path("a"), 1, 1, 0, 1.0).perplexity)


def test_the_plot_shows_every_range(tmp_path: Path) -> None:
    ranges = [RangeScore(0, 64, 64, 3.0), RangeScore(64, 128, 64, 2.5), RangeScore(128, 256, 9, 2.25)]
    figure = plot_positions(ranges, "byte", tmp_path / "p.png")
    (ax,) = figure.axes
    (stairs,) = ax.patches
    assert stairs.get_data().values.tolist() == [3.0, 2.5, 2.25]  # type: ignore[attr-defined]
    assert stairs.get_data().edges.tolist() == [1, 64, 128, 256]  # type: ignore[attr-defined]
    assert ax.xaxis.get_major_formatter()(2048, 0) == "2K"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
