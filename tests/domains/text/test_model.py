"""`TitansForCausalLM`: shapes, streaming, the loss, saving."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.text.config import TextConfig
from domains.text.data import END
from domains.text.metrics import BITS_PER_BYTE, BITS_PER_TOKEN
from domains.text.model import TitansForCausalLM
from domains.text.tokenizers import JsonTokenizer
from tests.domains.text.conftest import WORDS, small
from titans_seq import UserError, load_model, losses, presets
from titans_seq.training.trainable import LossOutput

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


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_loss_is_the_plain_one_in_any_chunks(z_loss: float, model: TitansForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, every gradient; the value is without the z-loss, the gradient with it."""
    model = model.double()
    model.config = dataclasses.replace(model.config, z_loss=z_loss)
    batch = {"tokens": TEXT[:, :-1], "targets": TEXT[:, 1:], "mask": None, "reset": None}
    logits, _ = model(batch["tokens"])
    nats = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum") / 48
    plain = nats + z_loss * logits.logsumexp(-1).square().sum() / 48
    parameters = list(model.parameters())
    expected = torch.autograd.grad(plain, parameters)

    monkeypatch.setattr(losses, "LARGEST_LOGITS", 5 * 257)
    found: LossOutput = model.loss(batch)
    torch.testing.assert_close(found.loss, nats, rtol=1e-12, atol=0)
    for x, y in zip(torch.autograd.grad(found.loss, parameters), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-13)


@torch.no_grad()
def test_saved_models_come_back(model: TitansForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = TitansForCausalLM.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(TEXT)[0], model(TEXT)[0])


def test_text_is_no_tokens(model: TitansForCausalLM) -> None:
    with pytest.raises(TypeError, match=r"tokens must be a torch.Tensor \(B, T\) of int64, got str; a tokeniser"):
        model("hello")


@pytest.mark.parametrize("tokens", [torch.tensor([1, 2]), torch.tensor([[1.0]]), torch.tensor([[257]]), torch.tensor([[-1]])])
def test_tokens_of_another_form_are_refused(model: TitansForCausalLM, tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="tokens must be"):
        model(tokens)


def test_the_tokenizer_is_saved_with_the_model(bpe: JsonTokenizer, tmp_path: Path) -> None:
    config = TextConfig(titans=presets.debug("lmm")).with_tokenizer(bpe)
    assert (config.vocabulary, config.end) == (bpe.vocabulary, bpe.end)
    TitansForCausalLM(config, bpe).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, TitansForCausalLM)
    assert loaded.tokenizer.identity == bpe.identity
    assert loaded.metric == BITS_PER_TOKEN
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()

    (tmp_path / "tokenizer.json").write_text(bpe.text.replace('"the"', '"eht"').replace("the", "eth"))
    with pytest.raises(UserError, match=r"tokenizer\.json: (is not the tokeniser that the model was trained with|no tokeniser)"):
        TitansForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    without = TitansForCausalLM.from_pretrained(tmp_path)
    without(torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(UserError, match=r"tokeniser.*is not there: .* copy tokenizer\.json beside its config\.json"):
        without.tokenizer  # noqa: B018
    with pytest.raises(ValueError, match="the tokeniser is"):
        TitansForCausalLM(TextConfig(titans=presets.debug("lmm")), bpe)


@pytest.mark.parametrize("values", [{"vocabulary": 0}, {"end": 257}, {"vocabulary": 300}, {"z_loss": -1.0}])
def test_configurations_that_do_not_fit_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        TextConfig(**values)  # type: ignore[arg-type]


def states_equal(model: TitansForCausalLM, one: torch.Tensor, mask: torch.Tensor) -> None:
    """A padded row's state is that of its tokens alone."""
    _, padded = model(one, mask=mask)
    _, alone = model(one[mask][None])
    for x, y in zip(padded.tensors(), alone.tensors(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@settings(max_examples=20)
@given(mask=st.lists(st.booleans(), min_size=13, max_size=13).filter(any))
@torch.no_grad()
def test_padding_anywhere_leaves_the_state_as_if_absent(of_variant: TitansForCausalLM, mask: list[bool]) -> None:
    tokens = torch.tensor([[END, *b"padded text."]])
    states_equal(of_variant, tokens, torch.tensor([mask]))


@torch.no_grad()
def test_lengths_are_padding_on_the_right(of_variant: TitansForCausalLM) -> None:
    """Each row as it alone, in two calls: logits of what is there, and the state, also where a row gets nothing."""
    of_variant = of_variant.double()
    rows = [b"", b"It was the best of times", b"it wa"]
    state, alone = None, [of_variant.init_state(1) for _ in rows]
    for start, width in ((0, 9), (9, 15)):
        parts = [row[start : start + width] for row in rows]
        tokens = torch.full((3, width), 7)
        for i, part in enumerate(parts):
            tokens[i, : len(part)] = torch.tensor(list(part))
        logits, state = of_variant(tokens, state, torch.tensor([len(part) for part in parts]))
        for i, part in enumerate(parts):
            if part:
                expected, alone[i] = of_variant(torch.tensor([list(part)]), alone[i])
                torch.testing.assert_close(logits[i, : len(part)], expected[0], rtol=1e-9, atol=1e-12)
    assert state is not None
    for x, y in zip(state.tensors(), type(state).cat(alone).tensors(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "lengths", [torch.tensor([1]), torch.tensor([1, 26]), torch.tensor([-1, 2]), torch.tensor([1.0, 2.0]), torch.tensor([[1, 2]])]
)
def test_lengths_of_another_form_are_refused(model: TitansForCausalLM, lengths: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="lengths must be"):
        model(TEXT, None, lengths)


def test_lengths_go_without_a_mask(model: TitansForCausalLM) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        model(TEXT, None, torch.tensor([1, 2]), mask=torch.ones(2, 25, dtype=torch.bool))


@torch.no_grad()
def test_rows_never_touch_each_other(of_variant: TitansForCausalLM) -> None:
    """To the bit, in outputs and states, also through several calls."""
    other = torch.cat([TEXT[:1], (TEXT[1:] * 7) % 256])
    states, outputs = [], []
    for tokens in (TEXT, other):
        first, state = of_variant(tokens[:, :11])
        second, state = of_variant(tokens[:, 11:], state)
        outputs.append(torch.cat([first, second], dim=1))
        states.append(state)
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert not torch.equal(outputs[0][1], outputs[1][1])
    for x, y in zip(states[0].tensors(), states[1].tensors(), strict=True):
        assert torch.equal(x[0], y[0])


@torch.no_grad()
def test_forked_streams_diverge_and_leave_the_first_alone(of_variant: TitansForCausalLM) -> None:
    _, state = of_variant(TEXT[:1, :13])
    kept = state.clone()
    forked = state.select(torch.tensor([0, 0]))
    logits, after = of_variant(TEXT[:, 13:14].clone().fill_(97), forked)
    assert torch.equal(logits[0], logits[1])
    logits, _ = of_variant(torch.tensor([[98], [99]]), after)
    assert not torch.equal(logits[0], logits[1])
    assert all(torch.equal(x, y) for x, y in zip(state.tensors(), kept.tensors(), strict=True))


@torch.no_grad()
def test_the_state_has_one_size_from_the_first_token_on(of_variant: TitansForCausalLM) -> None:
    sizes = {of_variant.init_state(1).nbytes}
    state = None
    for length in (1, 1, 7, 300):
        _, state = of_variant(torch.full((1, length), 100), state)
        sizes.add(state.nbytes)
    assert len(sizes) == 1


def test_states_of_other_models_are_refused() -> None:
    model, other = small(), TitansForCausalLM(TextConfig(titans=presets.tiny("mac"))).eval()
    for stranger in (other, TitansForCausalLM(TextConfig(titans=presets.debug("mag")))):
        with pytest.raises(ValueError, match="state"):
            model(TEXT[:1], stranger.init_state(1))


def test_no_token_sees_the_future_after_training(of_variant: TitansForCausalLM) -> None:
    """What training makes of gates and steps does not open a way back: other tokens from t on change nothing before t."""
    model = of_variant.double()
    tokens = torch.tensor([[model.config.end, *WORDS.encode()[:40]]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(tokens)[0][0, :-1], tokens[0, 1:]))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2, "it has learned"
    with torch.inference_mode():
        logits, _ = model(tokens)
        for t in range(1, tokens.shape[1], 5):
            other, _ = model(torch.cat([tokens[:, :t], 255 - tokens[:, t:].clamp(max=255)], 1))
            torch.testing.assert_close(other[:, :t], logits[:, :t], rtol=0, atol=1e-12)
            assert ((other[:, t:] - logits[:, t:]).abs().amax(-1) > 1e-6).all()
