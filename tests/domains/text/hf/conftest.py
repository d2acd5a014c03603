"""A saved model of ours, and what transformers makes of its folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

import domains.text.hf  # noqa: F401 - registers the classes
from domains.text.config import TextConfig
from domains.text.model import TitansForCausalLM
from domains.text.tokenizers import JsonTokenizer
from tests.domains.text.conftest import small


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """No bars and no advice."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity_warning()


@pytest.fixture(params=["bytes", "bpe"])
def ours(request: pytest.FixtureRequest, bpe: JsonTokenizer) -> TitansForCausalLM:
    """Of both tokenisers."""
    if request.param == "bytes":
        return small()
    config = small().config.with_tokenizer(bpe)
    assert isinstance(config, TextConfig)
    torch.manual_seed(0)
    model = TitansForCausalLM(config, bpe).eval()
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    return model


@pytest.fixture
def folder(ours: TitansForCausalLM, tmp_path: Path) -> Path:
    """Where it is saved."""
    ours.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
