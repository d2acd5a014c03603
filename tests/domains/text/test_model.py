"""`TitansForCausalLM`: shapes, streaming, the loss, saving."""

import math
from pathlib import Path

import pytest
import torch

from domains.text.data import END
from domains.text.metrics import BITS_PER_BYTE
from domains.text.model import TextConfig, TitansForCausalLM
from titans_seq import presets

TEXT = torch.tensor([[END, *b"It was the best of times"], [END, *b"it was the worst of time"]])


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> TitansForCausalLM:
    return TitansForCausalLM(TextConfig(titans=presets.debug("mac"), tie_embeddings=request.param)).eval()


def test_logits_stream(model: TitansForCausalLM) -> None:
    whole, _ = model(TEXT)
    assert whole.shape == (2, 25, 257)
    first, state = model(TEXT[:, :10])
    rest, _ = model(TEXT[:, 10:], state)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_untrained_model_needs_eight_bits_a_byte(model: TitansForCausalLM) -> None:
    """All 257 tokens are about as likely; the end's bits are counted with the bytes'."""
    targets = torch.cat([TEXT[:, 1:], torch.full((2, 1), END)], dim=1)
    loss, units, _ = model.loss({"tokens": TEXT, "targets": targets, "mask": None, "reset": None})
    assert int(units) == 48
    assert float(loss) * BITS_PER_BYTE.factor == pytest.approx(math.log2(257) * 50 / 48, rel=0.02)


@torch.no_grad()
def test_padding_is_not_counted(model: TitansForCausalLM) -> None:
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[1, 5:] = False
    batch = {"tokens": TEXT[:, :-1], "targets": TEXT[:, 1:], "mask": mask, "reset": None}
    loss, units, _ = model.loss(batch)
    assert int(units) == 29
    other = {**batch, "tokens": torch.where(mask, batch["tokens"], 7), "targets": torch.where(mask, batch["targets"], 9)}
    assert float(model.loss(other).loss) == pytest.approx(float(loss), rel=1e-6)


@torch.no_grad()
def test_saved_models_come_back(model: TitansForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = TitansForCausalLM.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(TEXT)[0], model(TEXT)[0])


@pytest.mark.parametrize("tokens", [torch.tensor([1, 2]), torch.tensor([[1.0]]), torch.tensor([[257]]), torch.tensor([[-1]])])
def test_tokens_of_another_form_are_refused(model: TitansForCausalLM, tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="tokens must be"):
        model(tokens)
