"""Speculative decoding: the large model's text, greedy to the token and sampled in distribution."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Inner

from domains.text.config import GenerationConfig, TextConfig
from domains.text.context import begin, extend
from domains.text.generate import Generated, generate
from domains.text.model import TitansForCausalLM
from domains.text.speculative import Tally, _Proposals, _Run, speculate
from domains.text.tokenizers import JsonTokenizer
from tests.domains.text.conftest import small
from titans_seq import presets
from titans_seq.errors import UserError
from titans_seq.sampling import chances


def letters(seed: int) -> TitansForCausalLM:
    """A model of four tokens: a, b, c and the end."""
    inner = Inner(models.WordLevel({"a": 0, "b": 1, "c": 2, "</s>": 3}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = JsonTokenizer(inner.to_str())
    torch.manual_seed(seed)
    backbone = replace(presets.debug("lmm"), num_layers=1)
    model = TitansForCausalLM(TextConfig(titans=backbone).with_tokenizer(tokenizer), tokenizer).eval()
    torch.nn.init.normal_(model.embedding.weight, std=0.15)
    return model


def whole(model: TitansForCausalLM, draft: TitansForCausalLM, prompt: str, config: GenerationConfig, **more: object) -> Generated:
    pieces = list(speculate(model, draft, prompt, config, **more))  # type: ignore[arg-type]
    ended = pieces[-1].ended
    assert ended is not None
    assert "".join(piece.text for piece in pieces) == ended.text
    return ended


@pytest.mark.parametrize(("proposals", "penalty"), [(1, 1.4), (4, 1.0)])
def test_greedy_text_is_that_of_the_large_model(of_variant: TitansForCausalLM, proposals: int, penalty: float) -> None:
    """With a draft that is right, and one that is wrong; and what comes after it too."""
    config = GenerationConfig(temperature=0, max_tokens=14, repetition_penalty=penalty)
    (alone,) = generate(of_variant, ["It was"], config)
    for draft, all_right in ((of_variant, True), (small(3), False)):
        tally = Tally()
        made = whole(of_variant, draft, "It was", config, proposals=proposals, tally=tally)
        assert made[:3] == alone[:3]
        assert tally.proposed == tally.passes * proposals
        if all_right:
            assert tally.accepted == tally.proposed
            assert tally.passes <= -(-14 // (proposals + 1))
        (more, expected) = (generate(of_variant, [" a"], config, one.context)[0] for one in (made, alone))
        assert more.tokens == expected.tokens
        assert made.context.length.tolist() == alone.context.length.tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_draft_that_is_sometimes_right_changes_nothing(seed: int) -> None:
    model, draft = letters(seed), letters(seed)
    with torch.no_grad():
        draft.embedding.weight += 0.05 * torch.randn_like(draft.embedding.weight)
    config, tally = GenerationConfig(temperature=0, max_tokens=25), Tally()
    (alone,) = generate(model, ["ab"], config)
    assert whole(model, draft, "ab", config, tally=tally)[:3] == alone[:3]
    assert tally.passes > 0


@pytest.mark.parametrize(
    "setting", [{}, {"temperature": 0.7, "top_p": 0.8}, {"repetition_penalty": 1.5}], ids=["plain", "filtered", "penalised"]
)
@pytest.mark.parametrize("rounds", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_sampled_texts_are_distributed_as_the_large_models(setting: dict[str, float], rounds: int) -> None:
    """All texts of two tokens, counted against their exact chances under the large model alone."""
    model, draft = letters(0), letters(1)
    config = replace(GenerationConfig(max_tokens=2), **setting)  # type: ignore[arg-type]
    exact = exact_chances(model, config)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(rounds):
        made = whole(model, draft, "a", replace(config, seed=seed), proposals=2)
        counts[(*made.tokens, *([3] if made.reason == "end" else []))] += 1
    assert set(counts) <= {text for text, chance in exact.items() if chance > 0}
    assert sum(exact.values()) == pytest.approx(1)
    check_counts([counts[text] for text in exact], [rounds * chance for chance in exact.values()])


def check_counts(counts: list[int], expected: list[float]) -> None:
    """A chi-square test, of which about one right one in 10,000 fails; what is expected less than five times counts as one."""
    often = [(count, number) for count, number in zip(counts, expected, strict=True) if number >= 5]
    often.append((sum(counts) - sum(count for count, _ in often), sum(expected) - sum(number for _, number in often)))
    chi_square = sum((count - number) ** 2 / number for count, number in often if number > 1e-9)
    degrees = len(often) - 1
    assert degrees >= 2
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_a_judged_token_has_the_large_models_chances(seed: int) -> None:
    """Whatever proposes: the first token, and the second where the first was taken, counted over many judgements."""
    torch.manual_seed(seed)
    proposing, wanted = (torch.rand(rows, 4).square().double().softmax(-1) for rows in (2, 3))
    proposing[:, 3], wanted[:, 0] = 0, wanted[:, 0] * 0.1  # what one never proposes, and the other rarely wants
    proposing, wanted = (x / x.sum(-1, keepdim=True) for x in (proposing, wanted))
    run = _Run(letters(0), letters(1), GenerationConfig(seed=seed), 2, torch.zeros(1, 4, dtype=torch.bool))
    first, second = [0] * 4, [0] * 4
    for _ in range(3000):
        tokens = [int(torch.multinomial(row, 1)) for row in proposing]
        judged, taken = run._judge(_Proposals(tokens, proposing, []), wanted)
        assert judged[:taken] == tokens[:taken]
        assert len(judged) == taken + 1
        first[judged[0]] += 1
        if len(judged) > 1:
            second[judged[1]] += 1
    check_counts(first, (3000 * wanted[0]).tolist())
    check_counts(second, (sum(second) * wanted[1]).tolist())


def exact_chances(model: TitansForCausalLM, config: GenerationConfig) -> dict[tuple[int, ...], float]:
    from titans_seq.sampling import penalise_repetition

    def following(tokens: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([[3, 0, *tokens]]))[0][:, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, [0, *tokens]] = True
        found: list[float] = chances(penalise_repetition(logits, seen, config.repetition_penalty), config)[0].tolist()
        return found

    first = following([])
    exact = {(3,): first[3]}
    for one, other in itertools.product(range(3), range(4)):
        exact[(one, other)] = first[one] * following([one])[other]
    return exact


def test_it_goes_on_from_what_both_have_read(model: TitansForCausalLM) -> None:
    draft, config = small(1), GenerationConfig(temperature=0, max_tokens=12)
    text = model.tokenizer.encode_batch(["A long text that was read before."])
    contexts = [extend(one, begin(one), text) for one in (model, draft)]
    (alone,) = generate(model, ["It"], config, contexts[0])
    made = whole(model, draft, "It", config, context=contexts[0], draft_context=contexts[1])
    assert made[:3] == alone[:3]
    with pytest.raises(ValueError, match="context and draft_context must both be given"):
        whole(model, draft, "It", config, context=contexts[0])


def test_what_does_not_fit_is_refused(model: TitansForCausalLM) -> None:
    with pytest.raises(UserError, match="the draft model has another tokeniser"):
        whole(model, letters(0), "a", GenerationConfig())
    with pytest.raises(ValueError, match="proposals must be at least 1"):
        whole(model, small(1), "a", GenerationConfig(), proposals=0)
