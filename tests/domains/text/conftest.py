"""Small models and tokenisers."""

import pytest
import torch
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers

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


def word_level(*words: str, metaspace: bool = False) -> str:
    """JSON of a tokeniser of whole words, the first for unknown ones. Spaces are WordPiece's, or in the words as Metaspace has them."""
    inner = Inner(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace() if metaspace else pre_tokenizers.Whitespace()
    inner.decoder = decoders.Metaspace() if metaspace else decoders.WordPiece()
    return str(inner.to_str())


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
