"""`TitansForDNA`: streaming, causality, what counts in the loss, both strands, saving."""

from pathlib import Path

import pytest
import torch

from domains.dna.config import DNAConfig
from domains.dna.data.alphabet import SOFT, encode
from domains.dna.metrics import BITS_PER_BASE
from domains.dna.model import BEGIN, TitansForDNA
from domains.dna.presets import debug
from titans_seq.config import VARIANTS, Variant


def codes(*texts: str) -> torch.Tensor:
    return torch.stack([torch.from_numpy(encode(text).copy()).long() for text in texts])


BASES = codes("ACGTTGCANNACgtacgtTTGACCAG", "ttgacNACGTTGCATTGACCAGAAAA")
TOKENS = torch.cat([torch.full((2, 1), BEGIN), BASES[:, :-1]], dim=1)
BATCH = {"tokens": TOKENS, "targets": BASES, "mask": None, "reset": None}


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> TitansForDNA:
    torch.manual_seed(0)
    model = TitansForDNA(debug(request.param)).eval()
    torch.nn.init.normal_(model.head.weight)  # so that what it read shows
    return model


@torch.no_grad()
def test_any_split_of_a_stream_is_one_pass(model: TitansForDNA) -> None:
    whole, end = model(TOKENS)
    assert whole.shape == (2, 26, 4)
    for cut in (1, 7, 25):
        first, state = model(TOKENS[:, :cut])
        rest, state = model(TOKENS[:, cut:], state)
        torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, rtol=1e-4, atol=1e-5)
        for x, y in zip(state.tensors(), end.tensors(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_no_base_is_predicted_from_itself_or_later_ones(model: TitansForDNA) -> None:
    before, _ = model(TOKENS)
    changed = TOKENS.clone()
    changed[:, 15:] = (TOKENS[:, 15:] + 1) % 4
    after, _ = model(changed)
    torch.testing.assert_close(before[:, :15], after[:, :15], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before[:, 15], after[:, 15])


@torch.no_grad()
def test_the_soft_mask_changes_no_logits(model: TitansForDNA) -> None:
    soft = torch.where(TOKENS == BEGIN, TOKENS, TOKENS | SOFT)
    assert torch.equal(model(soft)[0], model(TOKENS & 7)[0])


@torch.no_grad()
def test_n_is_read_and_never_counts(model: TitansForDNA) -> None:
    loss, units, _ = model.loss(BATCH)
    assert float(units) == 52 - 3  # three N
    logits, _ = model(TOKENS)
    chances = logits.log_softmax(-1)
    by_hand = [-float(chances[row, t, base & 7]) for row in range(2) for t, base in enumerate(BASES[row].tolist()) if base & 7 < 4]
    assert float(loss) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    with_base = TOKENS.clone()
    with_base[0, 9] = 0  # the first N
    assert not torch.allclose(model(with_base)[0][0, 9:], logits[0, 9:])


@pytest.mark.parametrize(("weight", "units"), [(1.0, 49.0), (0.25, 40.75), (0.0, 38.0)])
@torch.no_grad()
def test_soft_masked_bases_count_as_the_policy_says(weight: float, units: float) -> None:
    """Of 49 bases 11 are soft-masked; what these are matters only if they count."""
    torch.manual_seed(0)
    model = TitansForDNA(DNAConfig(titans=debug("lmm").titans, soft_mask_weight=weight)).eval()
    torch.nn.init.normal_(model.head.weight)
    loss, counted, _ = model.loss(BATCH)
    assert float(counted) == pytest.approx(units)
    other = {**BATCH, "targets": torch.where((BASES & SOFT) > 0, (BASES + 1) % 4 | SOFT, BASES)}
    assert (float(model.loss(other).loss) == pytest.approx(float(loss), rel=1e-6)) == (weight == 0)


@torch.no_grad()
def test_padding_is_not_counted(model: TitansForDNA) -> None:
    mask = torch.ones(2, 26, dtype=torch.bool)
    mask[1, 5:] = False
    batch = {**BATCH, "mask": mask}
    loss, units, _ = model.loss(batch)
    assert float(units) == 24 + 5
    other = {**batch, "tokens": torch.where(mask, TOKENS, 2), "targets": torch.where(mask, BASES, 3)}
    assert float(model.loss(other).loss) == pytest.approx(float(loss), rel=1e-6)


@torch.no_grad()
def test_only_n_is_no_loss() -> None:
    model = TitansForDNA(debug())
    loss, units, _ = model.loss({**BATCH, "targets": codes("N" * 26, "n" * 26)})
    assert (float(loss), float(units)) == (0, 0)


@torch.no_grad()
def test_an_untrained_model_needs_two_bits_a_base() -> None:
    loss, _, _ = TitansForDNA(debug()).loss(BATCH)
    assert float(loss) * BITS_PER_BASE.factor == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_saved_models_come_back(variant: Variant, tmp_path: Path) -> None:
    model = TitansForDNA(DNAConfig(titans=debug(variant).titans, soft_mask_weight=0.5)).eval()
    model.save_pretrained(tmp_path)
    loaded = TitansForDNA.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])


def test_text_is_no_tokens_and_the_message_makes_them() -> None:
    model = TitansForDNA(debug())
    with pytest.raises(TypeError, match=r"got str; `domains.dna.data.alphabet.encode` makes codes of text") as error:
        model("ACGT")
    way = str(error.value).rpartition("of text: ")[2]
    tokens = eval(way, {"torch": torch, "encode": encode})
    assert model(tokens)[0].shape == (1, 4, 4)


@pytest.mark.parametrize("tokens", [torch.tensor([1, 2]), torch.tensor([[1.0]]), torch.tensor([[6]]), torch.tensor([[-1]])])
def test_tokens_of_another_form_are_refused(tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="tokens must be"):
        TitansForDNA(debug()).eval()(tokens)


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="soft_mask_weight"):
        DNAConfig(soft_mask_weight=weight)
