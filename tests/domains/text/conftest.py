"""Small models and tokenisers."""

import pytest
import torch

from domains.text.config import TextConfig
from domains.text.model import TitansForCausalLM
from domains.text.tokenizers import JsonTokenizer, train_tokenizer
from titans_seq import presets
from titans_seq.config import VARIANTS

WORDS = "the ship went over the sea, and the wind — Größe, 水, 🚢 — was from the land. "


@pytest.fixture(scope="session")
def bpe() -> JsonTokenizer:
    """A byte-level BPE that has some merges."""
    return train_tokenizer(iter([WORDS * 20]), 300)


def small(seed: int = 0, **changes: object) -> TitansForCausalLM:
    """A model of two layers whose logits differ enough for texts to."""
    torch.manual_seed(seed)
    config = TextConfig(titans=presets.debug("mac"), **changes)  # type: ignore[arg-type]
    model = TitansForCausalLM(config).eval()
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    return model


@pytest.fixture
def model() -> TitansForCausalLM:
    """Of bytes, untrained."""
    return small()


@pytest.fixture(params=VARIANTS)
def of_variant(request: pytest.FixtureRequest) -> TitansForCausalLM:
    """Of bytes, of every variant."""
    torch.manual_seed(0)
    model = TitansForCausalLM(TextConfig(titans=presets.debug(request.param))).eval()
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    return model
