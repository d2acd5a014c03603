"""`generate` of transformers beside ours."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, pipeline

from domains.text.beam import beam_search
from domains.text.config import GenerationConfig
from domains.text.context import begin, extend
from domains.text.generate import generate
from domains.text.hf import TitansCache
from domains.text.model import TitansForCausalLM
from tests.domains.text.conftest import WORDS, small
from titans_seq.sampling import chances, penalise_repetition

PROMPTS = ["It was", "The ship went over the sea, and", "水"]
GREEDY = GenerationConfig(max_tokens=12, temperature=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_unequal_prompts_go_on_as_ours_row_by_row(side: str, ours: TitansForCausalLM, folder: Path) -> None:
    """Greedy, with the cache and without it, which reads all again for each token."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder, padding_side=side)
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    expected = [one.tokens for one in generate(ours, PROMPTS, GREEDY)]
    for use_cache in (True, False):
        made = model.generate(**batch, max_new_tokens=12, do_sample=False, use_cache=use_cache)[:, batch.input_ids.shape[1] :]
        for row, tokens in zip(made.tolist(), expected, strict=True):
            assert row == tokens + [ours.config.end] * (12 - len(tokens))


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"repetition_penalty": 1.8},
        {"temperature": 1.5, "top_k": 40, "repetition_penalty": 0.7},
    ],
    ids=lambda how: "-".join(how),
)
@torch.no_grad()
def test_a_token_is_drawn_with_our_chances(how: dict[str, Any], folder: Path, ours: TitansForCausalLM) -> None:
    """Whatever was drawn before. (Several filters at once: transformers applies one after the other, ours each to the whole.)"""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(PROMPTS[1:2], return_tensors="pt")
    torch.manual_seed(3)
    asked = {"do_sample": True, "max_new_tokens": 8, "top_k": 0} | how
    out = model.generate(**batch, output_scores=True, return_dict_in_generate=True, **asked)
    config, read = dataclasses.replace(GREEDY, **({"temperature": 1.0} | how)), batch.input_ids.shape[1]
    assert len(out.scores) >= 4
    for number, scores in enumerate(out.scores):
        so_far = out.sequences[:, : read + number]
        logits = ours(so_far)[0][:, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, so_far, True)
        expected = chances(penalise_repetition(logits, seen, config.repetition_penalty), config)
        torch.testing.assert_close(scores.double().softmax(-1), expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("beams", [2, 4])
def test_beams_select_states(beams: int, ours: TitansForCausalLM, folder: Path) -> None:
    """All texts of the search and their nats; the second row of the batch is padded."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    how = {"num_beams": beams, "num_return_sequences": beams, "early_stopping": True, "do_sample": False, "max_new_tokens": 6}
    out = model.generate(**batch, **how, output_scores=True, return_dict_in_generate=True)
    texts = out.sequences[:, batch.input_ids.shape[1] :].tolist()
    for row, prompt in enumerate(PROMPTS[:2]):
        expected = beam_search(ours, prompt, beams, max_tokens=6)
        part = slice(row * beams, (row + 1) * beams)
        assert [[token for token in text if token != ours.config.end] for text in texts[part]] == [beam.tokens for beam in expected]
        assert out.sequences_scores[part].tolist() == pytest.approx([-beam.cost(1.0) for beam in expected], rel=1e-4)


def test_a_long_text_is_read_once_and_asked_twice(ours: TitansForCausalLM, folder: Path) -> None:
    """With a cache, prompts are new tokens alone; copies of it are forks."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    cache = TitansCache()
    model.generate(**tokenizer(WORDS * 3, return_tensors="pt"), cache=cache, max_new_tokens=1)
    context = extend(ours, begin(ours), ours.tokenizer.encode_batch([WORDS * 3]))
    for question in (" And", " Then what"):
        ids = torch.from_numpy(ours.tokenizer.encode_batch([question])[0].astype("int64"))[None]
        fork = copy.copy(cache)
        made = model.generate(input_ids=ids, cache=fork, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
        (expected,) = generate(ours, [question], dataclasses.replace(GREEDY, max_tokens=8), context)
        assert [token for token in made if token != ours.config.end] == expected.tokens
        assert fork.state is not None
        assert cache.state is not None
        assert fork.state.nbytes == cache.state.nbytes


def test_pipelines_and_streamers(folder: Path, ours: TitansForCausalLM) -> None:
    run = pipeline("text-generation", model=str(folder))
    made = run(PROMPTS[:2], max_new_tokens=12, do_sample=False, return_full_text=False, batch_size=2)
    expected = generate(ours, PROMPTS[:2], GREEDY)
    assert [one["generated_text"] for (one,) in made] == [one.text for one in expected]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**tokenizer(PROMPTS[1], return_tensors="pt"), max_new_tokens=12, do_sample=False, streamer=streamer)
    assert "".join(streamer) == expected[1].text


def test_stop_strings_end_a_text(folder: Path, ours: TitansForCausalLM) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    (free,) = generate(ours, [PROMPTS[0]], GREEDY)
    stop = free.text.strip()[1:3]
    batch = tokenizer(PROMPTS[0], return_tensors="pt")
    made = model.generate(**batch, max_new_tokens=12, do_sample=False, stop_strings=[stop], tokenizer=tokenizer)
    text = tokenizer.decode(made[0, batch.input_ids.shape[1] :])
    assert free.text.startswith(text)
    assert stop in text
    assert len(text) < len(free.text)
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 2, 8), max_new_tokens=1)


def test_what_a_memory_cannot_do_is_refused(tmp_path: Path) -> None:
    """Assisted decoding takes tokens back; ours restores states (domains.text.speculative)."""
    small().save_pretrained(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(**tokenizer("It was", return_tensors="pt"), assistant_model=model, max_new_tokens=2)
