"""Going on with texts: against a plain loop, in batches, as a stream, from what was read before."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domains.text.beam import beam_search
from domains.text.config import GenerationConfig, TextConfig
from domains.text.context import begin, extend
from domains.text.data import END
from domains.text.generate import generate, stream
from domains.text.model import TitansForCausalLM
from domains.text.output import RowOutput, StopStrings
from domains.text.speculative import speculate
from domains.text.tokenizers import ByteTokenizer, JsonTokenizer
from tests.domains.text.conftest import small, word_level
from titans_seq import presets
from titans_seq.sampling import chances, draw, make_generators, penalise_repetition

PROMPTS = ["It was the", "", "a much longer prompt than the other one, é"]
GREEDY = GenerationConfig(temperature=0, max_tokens=10)


def plain(model: TitansForCausalLM, prompt: str, config: GenerationConfig, row: int = 0) -> list[int]:
    """Token by token, everything read again for each."""
    generator = make_generators(config.seed, row + 1)[row]
    prompt_bytes, tokens = list(prompt.encode()), list[int]()
    while len(tokens) < config.max_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([[END, *prompt_bytes, *tokens]]))[0][:, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, [*prompt_bytes, *tokens]] = True
        token = int(draw(chances(penalise_repetition(logits, seen, config.repetition_penalty), config), [generator]))
        if token == END:
            break
        tokens.append(token)
    return tokens


@pytest.mark.parametrize(
    "config",
    [
        GREEDY,
        GenerationConfig(max_tokens=10, seed=3),
        GenerationConfig(max_tokens=10, temperature=0.5, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.3),
    ],
    ids=["greedy", "sampled", "filtered"],
)
def test_a_batch_of_unequal_prompts_is_each_by_a_plain_loop(of_variant: TitansForCausalLM, config: GenerationConfig) -> None:
    made = generate(of_variant, PROMPTS, config)
    for row, (prompt, one) in enumerate(zip(PROMPTS, made, strict=True)):
        expected = plain(of_variant, prompt, config, row)
        assert one.tokens == expected
        assert one.text == ByteTokenizer().decode(expected)
        assert one.reason == ("length" if len(expected) == 10 else "end")


def test_one_text_is_no_list_of_prompts(model: TitansForCausalLM) -> None:
    with pytest.raises(TypeError, match=r"write \[prompt\]"):
        generate(model, "abc")


def test_seeds_say_what_is_drawn(model: TitansForCausalLM) -> None:
    texts = [generate(model, ["a", "a"], GenerationConfig(max_tokens=16, seed=seed)) for seed in (0, 0, 1)]
    assert [one.tokens for one in texts[0]] == [one.tokens for one in texts[1]]
    assert len({tuple(one.tokens) for made in texts for one in made}) == 4
    assert generate(model, [], GREEDY) == []


def test_pieces_are_the_text(model: TitansForCausalLM) -> None:
    config = GenerationConfig(max_tokens=40, seed=5)
    pieces = list(stream(model, PROMPTS, config))
    for row, one in enumerate(generate(model, PROMPTS, config)):
        own = [piece for piece in pieces if piece.row == row]
        assert "".join(piece.text for piece in own) == one.text
        assert [piece.ended is not None for piece in own] == [False] * (len(own) - 1) + [True]


def test_a_text_goes_on_from_where_another_ended(of_variant: TitansForCausalLM) -> None:
    """Prompt, text and the next prompt as one prompt; also from a context of one row, which stays as it was, for several prompts."""
    (first,) = generate(of_variant, ["It was "], GREEDY)
    (second,) = generate(of_variant, [" and "], GREEDY, first.context)
    tokens = [*b"It was ", *first.tokens, *b" and "]
    whole = extend(of_variant, begin(of_variant), [torch.tensor(tokens).numpy()])
    (expected,) = generate(of_variant, [""], GREEDY, whole)
    assert second.tokens == expected.tokens
    asked = generate(of_variant, ["", " and ", ""], GREEDY, first.context)
    assert asked[0].tokens == asked[2].tokens
    assert asked[1].tokens == second.tokens
    with pytest.raises(ValueError, match="context must have one row or 3"):
        generate(of_variant, PROMPTS, GREEDY, begin(of_variant, 2))


def test_the_end_ends_a_text_and_is_not_read() -> None:
    model = small(tie_embeddings=False)
    assert model.head is not None
    with torch.no_grad():  # the end is the likeliest after "." alone
        model.head.weight.copy_(model.embedding.weight)
        config = GenerationConfig(temperature=0, max_tokens=12)
        tokens = plain(model, "a", config)
        model.head.weight[END] = model.head.weight[tokens[3]] * 3
    (one,) = generate(model, ["a"], config)
    assert one.reason == "end"
    assert one.tokens == plain(model, "a", config)
    assert END not in one.tokens
    (more,) = generate(model, ["b"], config, one.context)
    (expected,) = generate(model, ["b"], config, extend(model, begin(model), [torch.tensor([97, *one.tokens]).numpy()]))
    assert more.tokens == expected.tokens


@given(text=st.text("abc", max_size=20), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), cuts=st.data())
def test_stop_strings_end_the_text_wherever_it_is_cut(text: str, stops: list[str], cuts: st.DataObject) -> None:
    stop, given_out, rest = StopStrings(stops), "", text
    while rest and not stop.found:
        size = cuts.draw(st.integers(1, len(rest)))
        given_out, rest = given_out + stop.add(rest[:size]), rest[size:]
        assert not any(one in given_out for one in stops)
    given_out += "" if stop.found else stop.finish()
    ends = [(place + len(one), place) for one in stops if (place := text.find(one)) >= 0]
    if not ends:
        assert (given_out, stop.found) == (text, False)
    else:
        assert stop.found
        assert text.startswith(given_out)
        assert any(text[len(given_out) :].startswith(one) for one in stops)


def test_a_stop_string_across_tokens_is_left_out() -> None:
    output = RowOutput(ByteTokenizer(), ["END"], 20)
    assert "".join(output.add(token) for token in b"an E, an EN") == "an E, an "
    assert output.reason is None
    assert output.add(ord("D")) == ""
    assert (output.reason, bytes(output.tokens)) == ("stop", b"an E, an END")


def test_what_is_held_back_comes_at_the_end() -> None:
    output = RowOutput(ByteTokenizer(), ["END"], 5)
    assert "".join(output.add(token) for token in b"an EN") == "an EN"
    assert output.reason == "length"
    output = RowOutput(ByteTokenizer(), [], 2)
    assert [output.add(token) for token in "🚢".encode()[:2]] == ["", "\ufffd"]


def test_a_stop_string_ends_a_text(model: TitansForCausalLM) -> None:
    config = GenerationConfig(max_tokens=60, seed=1)
    (free,) = generate(model, ["a"], config)
    stop = free.text[7:9]
    (one,) = generate(model, ["a"], GenerationConfig(max_tokens=60, seed=1, stop=(stop,)))
    assert one.reason == "stop"
    assert one.text == free.text[: free.text.index(stop)]


@pytest.mark.parametrize(
    "setting", [{"max_tokens": 0}, {"repetition_penalty": 0.0}, {"repetition_penalty": 1e-300}, {"stop": ("",)}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        GenerationConfig(**setting)  # type: ignore[arg-type]


def tiny_vocabulary(seed: int = 0) -> TitansForCausalLM:
    """Four tokens, the last of which ends a document."""
    from tests.domains.text.test_speculative import letters

    return letters(seed)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beams_that_hold_everything_find_the_best_texts(length_penalty: float) -> None:
    """Against all texts of up to three tokens."""
    model, end = tiny_vocabulary(), 3
    texts: list[tuple[float, list[int]]] = []

    def visit(tokens: list[int], nats: float) -> None:
        if len(tokens) == 3:
            texts.append((nats / max(1, len(tokens)) ** length_penalty, tokens))
            return
        with torch.no_grad():
            costs = -model(torch.tensor([[end, 0, *tokens]]))[0][0, -1].double().log_softmax(-1)
        for token, cost in enumerate(costs.tolist()):
            if token == end:
                texts.append(((nats + cost) / (len(tokens) + 1) ** length_penalty, tokens))
            else:
                visit([*tokens, token], nats + cost)

    visit([], 0.0)
    expected = sorted(texts)
    found = beam_search(model, "a", beams=64, max_tokens=3, length_penalty=length_penalty)
    assert len(found) == len(expected) == 1 + 3 + 9 + 27
    for beam, (cost, tokens) in zip(found, expected, strict=True):
        assert beam.tokens == tokens
        assert beam.cost(length_penalty) == pytest.approx(cost, rel=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_beam_ends_before_a_stop_string(beams: int, model: TitansForCausalLM) -> None:
    """Its text is cut there, and its tokens and nats are those it took; an empty one is none. One beam writes as without search."""
    free = beam_search(model, "It was", beams, max_tokens=12)
    stop = free[0].text[4:6]
    found = beam_search(model, "It was", beams, max_tokens=12, stop=["zzz", "", stop])
    assert found != free
    assert not any(stop in beam.text for beam in found)
    stopped = [beam for beam in found if stop in model.tokenizer.decode(beam.tokens)]
    assert stopped
    for beam in stopped:
        assert not beam.ended
        assert beam.text == model.tokenizer.decode(beam.tokens).partition(stop)[0]
        with torch.no_grad():
            logits = model(torch.tensor([[model.config.end, *b"It was", *beam.tokens]]))[0][0]
        nats = -logits[6:-1].double().log_softmax(-1)[range(len(beam.tokens)), beam.tokens].sum()
        assert beam.nats == pytest.approx(float(nats), rel=1e-4)
    if beams == 1:
        (greedy,) = generate(model, ["It was"], GenerationConfig(temperature=0, max_tokens=12, stop=(stop,)))
        assert (found[0].text, found[0].tokens) == (greedy.text, greedy.tokens)


@pytest.mark.parametrize(
    "words", [("\u2581the", "\u2581ship", "\u2581sea", "s"), ("the", "ship", "sea", "##s")], ids=["metaspace", "wordpiece"]
)
def test_prompt_and_text_are_one_text(words: tuple[str, ...]) -> None:
    """Of tokenisers whose texts drop the space before their first word."""
    tokenizer = JsonTokenizer(word_level("[UNK]", *words, metaspace=words[-1] == "s"))
    torch.manual_seed(0)
    model = TitansForCausalLM(TextConfig(titans=presets.debug("lmm")).with_tokenizer(tokenizer), tokenizer).eval()
    prompt, config = "the ship", GenerationConfig(temperature=0, max_tokens=6)
    (read,) = tokenizer.encode_batch([prompt])
    (sampled,) = generate(model, [prompt], config)
    (beam,) = beam_search(model, prompt, beams=1, max_tokens=6)
    guessed = [piece.ended for piece in speculate(model, model, prompt, config)][-1]
    assert guessed is not None
    assert sampled.text.startswith(" ")
    for made in (sampled, beam, guessed):
        assert prompt + made.text == tokenizer.decode([*read.tolist(), *made.tokens])
    alone = extend(model, begin(model), [read])
    assert generate(model, [""], config, alone)[0].text == sampled.text, "what was read before is what it follows"


def test_one_beam_is_greedy(of_variant: TitansForCausalLM) -> None:
    (beam,) = beam_search(of_variant, "It was", beams=1, max_tokens=12)
    assert beam.tokens == plain(of_variant, "It was", GenerationConfig(temperature=0, max_tokens=12))
    with pytest.raises(ValueError, match="beams and max_tokens must be at least 1"):
        beam_search(of_variant, "", beams=0)
