"""How likely texts are after others: as one pass over both says, whatever is shared and however it is cut."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models

from domains.text import context as module
from domains.text.config import GenerationConfig
from domains.text.context import begin
from domains.text.generate import generate
from domains.text.likelihood import Likelihood, encode_pair, follow, likelihoods
from domains.text.model import TitansForCausalLM
from domains.text.tokenizers import ByteTokenizer, JsonTokenizer
from titans_seq import losses

TEXTS = [
    ("It was the best of", " times"),
    ("It was the best of", " things"),
    ("", "It"),
    ("It was the best of", ""),
    ("Größe", " 水 and more"),
]


def tokens(pairs: Sequence[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [encode_pair(ByteTokenizer(), *pair) for pair in pairs]


def by_hand(model: TitansForCausalLM, context: np.ndarray, continuation: np.ndarray) -> Likelihood:
    """From the logits of both texts together."""
    ids = torch.tensor([[model.config.end, *context.tolist(), *continuation.tolist()]])
    with torch.no_grad():
        logits = model(ids)[0][0, len(context) : -1]
    targets = ids[0, len(context) + 1 :]
    nats = -logits.log_softmax(-1).gather(1, targets[:, None]).sum()
    return Likelihood(float(nats), bool((logits.argmax(-1) == targets).all()))


def test_what_becomes_one_token_with_its_context_is_asked_by_itself() -> None:
    tokenizer = JsonTokenizer(tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "c": 3}, [("a", "b")])).to_str())
    for context, continuation, expected in (
        ("ca", "b", ([3, 0], [1])),
        ("ca", "bc", ([3, 0], [3])),
        ("c", "ab", ([3], [2])),
        ("a", "", ([0], [])),
    ):
        assert tuple(part.tolist() for part in encode_pair(tokenizer, context, continuation)) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_likelihoods_are_those_of_one_pass(batch_size: int, of_variant: TitansForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where texts are read in pieces and their logits are made for some tokens at a time."""
    model = of_variant.double()
    monkeypatch.setattr(module, "SEGMENT", 5)
    monkeypatch.setattr(losses, "LARGEST_LOGITS", 3 * 257)
    (made,) = generate(model, ["It was"], GenerationConfig(max_tokens=7, temperature=0))
    pairs = [*tokens(TEXTS), (np.array([*b"It was"]), np.array(made.tokens))]
    done: list[int] = []
    found = likelihoods(model, pairs, batch_size, done.append)
    assert sum(done) == len(pairs)
    for one, pair in zip(found, pairs, strict=True):
        expected = by_hand(model, *pair)
        assert one.nats == pytest.approx(expected.nats, rel=1e-9)
        assert one.greedy == expected.greedy
    assert [one.greedy for one in found] == [False, False, False, True, False, True]


def test_a_shared_context_is_read_once(model: TitansForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    hidden = model.hidden

    def counted(ids: torch.Tensor, *given: Any, mask: torch.Tensor | None = None, **named: Any) -> Any:
        read.append(ids.numel() if mask is None else int(mask.sum()))
        return hidden(ids, *given, mask=mask, **named)

    monkeypatch.setattr(model, "hidden", counted)
    likelihoods(model, tokens([("a long context", f" {choice}") for choice in ("one", "two", "three")]))
    assert sum(read) == len("a long context") + 4 + 4 + 6


def test_a_whole_document_has_the_likelihood_of_its_tokens(model: TitansForCausalLM) -> None:
    rows = [np.array([*b"It was the best of times"]), np.array([*b"it was"])]
    nats, _ = follow(model, begin(model, 2), rows)
    for one, row in zip(nats.tolist(), rows, strict=True):
        assert one == pytest.approx(by_hand(model, row[:0], row).nats, rel=1e-5)


def test_white_space_goes_to_the_continuation(bpe: JsonTokenizer) -> None:
    """Tokens of both together, cut where those of the context alone end."""
    context, continuation = encode_pair(bpe, "the ship ", "went")
    assert context.tolist() == bpe.encode_batch(["the ship"])[0].tolist()
    assert bpe.decode([*context.tolist(), *continuation.tolist()]) == "the ship went"
    assert continuation.tolist() == bpe.encode_batch([" went"])[0].tolist()
    assert [part.tolist() for part in encode_pair(ByteTokenizer(), "", " a")] == [[], [*b" a"]]
