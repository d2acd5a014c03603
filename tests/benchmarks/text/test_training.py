"""How the text benchmarks train and score: what a batch holds, and that every token is scored once."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.text import training
from benchmarks.text.baselines import BaselineConfig, BaselineForCausalLM
from benchmarks.text.training import batches, fit, nats_at, stream_nats, window_nats
from titans_seq import presets
from titans_seq.training import TrainingConfig

TOKENS = torch.arange(103)
CARRIED = TrainingConfig(batch_size=3, segment_length=8, max_steps=6)
FRESH = TrainingConfig(batch_size=3, segment_length=8, max_steps=6, carry_state=False)


def small() -> BaselineForCausalLM:
    torch.manual_seed(0)
    return BaselineForCausalLM(BaselineConfig(titans=presets.debug("mag"))).double().eval()


def nats_of(model: BaselineForCausalLM, tokens: Tensor) -> Tensor:
    """In one pass from a fresh state."""
    with torch.no_grad():
        return F.cross_entropy(model(tokens[None, :-1])[0][0], tokens[1:], reduction="none")


def test_rows_that_are_carried_read_the_text_in_order() -> None:
    found = list(islice(batches(TOKENS, CARRIED), 9))
    assert [batch.begins.tolist() for batch in found] == [[begins] * 3 for begins in (True, False, False, False) * 2 + (True,)]
    assert found[0].tokens[:, 0].tolist() == [0, 32, 64]
    whole = torch.cat([batch.tokens for batch in found[:4]], 1)
    assert torch.equal(whole, torch.stack([TOKENS[n : n + 32] for n in (0, 32, 64)]))
    assert all(torch.equal(batch.targets, batch.tokens + 1) for batch in found)
    assert torch.equal(found[4].tokens, found[0].tokens)
    with pytest.raises(ValueError, match="103 tokens are too few for 30 rows of 8"):
        next(batches(TOKENS, TrainingConfig(batch_size=30, segment_length=8)))


def test_windows_lie_anywhere_and_a_seed_repeats_them() -> None:
    found = list(islice(batches(TOKENS, FRESH), 200))
    starts = torch.cat([batch.tokens[:, 0] for batch in found])
    assert all(batch.begins.all() and torch.equal(batch.targets, batch.tokens + 1) for batch in found)
    assert (starts.min(), starts.max()) == (0, 94)
    assert torch.equal(next(batches(TOKENS, FRESH)).tokens, found[0].tokens)


def test_every_token_is_scored_once_and_as_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = small(), torch.randint(0, 257, (103,))
    monkeypatch.setattr(training, "READ", 10)
    torch.testing.assert_close(stream_nats(model, tokens), nats_of(model, tokens))
    expected = torch.cat([nats_of(model, tokens[n : n + 21]) for n in range(0, 102, 20)])
    torch.testing.assert_close(window_nats(model, tokens, 20, rows=2), expected)
    assert len(expected) == 102
    torch.testing.assert_close(window_nats(model, tokens[:12], 20), nats_of(model, tokens[:12]))
    torch.testing.assert_close(nats_at(model, tokens, torch.tensor([5, 50]), 9)[1], nats_of(model, tokens[50:60]))


@pytest.mark.parametrize("config", [CARRIED, FRESH], ids=["carried", "fresh"])
def test_training_is_on_the_text_and_repeats(config: TrainingConfig) -> None:
    losses = []
    for _ in range(2):
        model, text = small(), torch.tensor([*b"ab" * 60])
        before = stream_nats(model, text).mean()
        losses.append(fit(model, text, config).losses)
        assert not model.training
        assert stream_nats(model, text).mean() < before
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx(5.55, abs=0.1)  # ln 257: nothing is known before the first step


def test_a_carried_state_is_the_one_of_the_segment_before() -> None:
    text = torch.randint(0, 257, (103,))
    first, second = list(islice(batches(text, CARRIED), 2))
    config = TrainingConfig(batch_size=3, segment_length=8, max_steps=2, learning_rate=1e-12)
    losses = fit(small(), text, config).losses
    model = small()
    whole = torch.cat([first.tokens, second.tokens], 1)
    with torch.no_grad():
        logits = model(whole)[0][:, 8:]
    assert losses[1] == pytest.approx(F.cross_entropy(logits.flatten(0, 1), second.targets.flatten()).item(), abs=1e-9)


def test_carried_rows_begin_anew_where_a_document_does() -> None:
    """Every third segment of a row, each row at another step, and what came before is nothing to it."""
    text = torch.randint(0, 257, (103,))
    found = list(islice(batches(text, CARRIED, document=3), 4))
    assert [batch.begins.tolist() for batch in found] == [[True] * 3, [False, False, True], [False, True, False], [True, False, False]]
    config = TrainingConfig(batch_size=3, segment_length=8, max_steps=2, learning_rate=1e-12)
    losses = fit(small(), text, config, document=3).losses
    model = small()
    with torch.no_grad():
        fresh = model(found[1].tokens)[0]
        carried = model(torch.cat([found[0].tokens, found[1].tokens], 1))[0][:, 8:]
    logits = torch.cat([carried[:2], fresh[2:]])
    assert losses[1] == pytest.approx(F.cross_entropy(logits.flatten(0, 1), found[1].targets.flatten()).item(), abs=1e-9)


@pytest.mark.parametrize("config", [CARRIED, FRESH], ids=["carried", "fresh"])
def test_a_training_that_was_ended_goes_on_to_the_same_weights(config: TrainingConfig, tmp_path: Path) -> None:
    text, checkpoint = torch.randint(0, 257, (103,)), tmp_path / "some.checkpoint"
    config = replace(config, checkpoint_every=2)
    whole = small()
    losses = fit(whole, text, config).losses

    def end(step: int, nats: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small(), text, config, end, checkpoint)
    resumed, steps = small(), []
    found = fit(resumed, text, config, lambda step, nats: steps.append(step), checkpoint)
    assert steps == [5, 6]
    assert found.losses == losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
