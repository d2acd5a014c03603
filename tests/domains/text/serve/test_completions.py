"""Completions by the real client: the same texts as in Python, in OpenAI's form; what cannot be answered is refused by name."""

import math
from typing import Any

import openai
import pytest
import requests
import torch

from domains.text.config import GenerationConfig
from domains.text.generate import generate
from domains.text.model import TitansForCausalLM
from domains.text.serve.logprobs import RowLogprobs
from domains.text.tokenizers import JsonTokenizer
from tests.domains.text.conftest import word_level
from tests.domains.text.serve.conftest import NAME, Server

PROMPT = "a cab 水"


def ids_of(names: list[str]) -> list[int]:
    """Bytes, by the names of tokens."""
    return [int(name.removeprefix("token_id:")) if len(name) > 1 else ord(name) for name in names]


def text_of(names: list[str]) -> str:
    return bytes(ids_of(names)).decode(errors="replace")


def test_a_completion_is_what_generate_gives(server: Server, language_model: TitansForCausalLM) -> None:
    config = GenerationConfig(max_tokens=24, temperature=0.9, top_p=0.95, top_k=50, min_p=0.01, repetition_penalty=1.1, seed=3)
    (expected,) = generate(language_model, [PROMPT], config)
    options = {"temperature": 0.9, "top_p": 0.95, "seed": 3, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1}
    answer = server.complete(PROMPT, max_tokens=24, **options)
    (choice,) = answer.choices
    assert choice.text == expected.text
    assert choice.finish_reason == {"end": "stop"}.get(expected.reason, expected.reason)
    assert (answer.object, answer.model, answer.system_fingerprint) == ("text_completion", NAME, language_model.identity())
    used = answer.usage
    assert (used.prompt_tokens, used.completion_tokens) == (len(PROMPT.encode()), len(expected.tokens))
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens


def test_batches_and_samples_are_rows_side_by_side(server: Server, language_model: TitansForCausalLM) -> None:
    prompts = ["", "ab", "a longer one, ab ab ab"]
    config = GenerationConfig(max_tokens=10, seed=5)
    expected = [made.text for made in generate(language_model, [prompt for prompt in prompts for _ in range(2)], config)]
    answer = server.complete(prompts, max_tokens=10, seed=5, n=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == expected
    tokens = [list(prompt.encode()) for prompt in prompts]
    assert [choice.text for choice in server.complete(tokens, max_tokens=10, seed=5, n=2).choices] == expected
    assert server.complete(tokens[2], max_tokens=10, seed=4).choices == server.complete(prompts[2], max_tokens=10, seed=4).choices


def test_a_stream_is_the_whole_in_pieces_and_never_half_a_character(server: Server) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.7, "n": 2, "logprobs": 0}
    for options["seed"] in range(30):
        whole = server.complete(PROMPT, **options)
        if any("\u0800" <= character < "\ufffd" for choice in whole.choices for character in choice.text):
            break  # a character of three bytes
    else:
        pytest.fail("no seed writes a character of three bytes")
    chunks = server.complete(PROMPT, **options, stream=True, stream_options={"include_usage": True})
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert "".join(piece.text for piece in mine) == choice.text == text_of(choice.logprobs.tokens)
        assert [name for piece in mine for name in piece.logprobs.tokens] == choice.logprobs.tokens
        assert [piece.finish_reason for piece in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        assert len(mine) > 10


def test_the_stream_ends_as_openai_says(server: Server) -> None:
    body = {"model": NAME, "prompt": "a", "max_tokens": 2, "temperature": 0, "stream": True}
    answer = server.post("/v1/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.content.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


def test_stop_strings_end_texts_and_are_left_out(server: Server) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "seed": 7, "temperature": 0.7, "logprobs": 0}
    whole = server.complete(PROMPT, **options).choices[0]
    stop = whole.text[12:14]
    cut = server.complete(PROMPT, **options, stop=["never comes", stop]).choices[0]
    assert cut.text == whole.text.partition(stop)[0]
    assert cut.finish_reason == "stop"
    assert cut.logprobs.text_offset == [place for place in whole.logprobs.text_offset if place < len(cut.text)]
    chunks = server.complete(PROMPT, **options, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == cut.text
    assert [name for chunk in chunks for name in chunk.choices[0].logprobs.tokens] == cut.logprobs.tokens


def test_tokens_are_named_as_they_stand_in_the_text() -> None:
    """Of a tokeniser that drops the space before a first word: one that stands for a space and a word is not named as the word is."""
    tokenizer = JsonTokenizer(word_level("[UNK]", "\u2581the", "\u2581ship", "ship", metaspace=True))
    logits = torch.tensor([[0.0, 3, 2, 1, 0], [0, 1, 3, 2, 0], [0, 1, 3, 2, 0]])
    row, tokens = RowLogprobs(tokenizer, 1, after=tokenizer.end), [1, 2, 3]
    row.add(tokens, logits, [0, 3, 8])
    found, nats = row.take(), logits.double().log_softmax(-1).tolist()
    assert found["tokens"] == ["the", " ship", "ship"]
    assert "".join(found["tokens"]) == tokenizer.decode(tokens)
    assert found["token_logprobs"] == pytest.approx([nats[0][1], nats[1][2], nats[2][3]])
    assert found["top_logprobs"][2] == pytest.approx({" ship": nats[2][2], "ship": nats[2][3]})


def test_logprobs_are_the_models_own(server: Server, language_model: TitansForCausalLM) -> None:
    """Echoed prompt and text: every token's, the first one's too, for a document's end stands before it."""
    choice = server.complete("ab 水c", max_tokens=6, seed=1, temperature=0.5, logprobs=2, echo=True).choices[0]
    assert choice.text.startswith("ab 水c")
    found = choice.logprobs
    ids = ids_of(found.tokens)
    assert text_of(found.tokens) == choice.text
    with torch.no_grad():
        nats = language_model(torch.tensor([[language_model.config.end, *ids[:-1]]]))[0][0].double().log_softmax(-1)
    expected = nats[torch.arange(len(ids)), torch.tensor(ids)]
    torch.testing.assert_close(torch.tensor(found.token_logprobs, dtype=torch.float64), expected, rtol=1e-4, atol=1e-4)
    best = nats.max(-1).values.tolist()
    assert [max(top.values()) for top in found.top_logprobs] == pytest.approx(best, abs=1e-4)
    assert all(name in top and 2 <= len(top) <= 3 for name, top in zip(found.tokens, found.top_logprobs, strict=True))
    assert found.text_offset[:8] == [0, 1, 2, 3, 3, 3, 4, 5]


def test_a_prompt_can_be_scored_alone(server: Server) -> None:
    """As lm-evaluation-harness asks: no token is made."""
    answer = server.complete("abc " * 100, max_tokens=0, echo=True, logprobs=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == ("abc " * 100, "length", 0)
    assert len(choice.logprobs.token_logprobs) == 400
    assert all(math.isfinite(nats) and nats < 0 for nats in choice.logprobs.token_logprobs)
    assert choice.logprobs.top_logprobs is None


def test_models_are_listed(server: Server) -> None:
    with server.client() as client:
        assert [model.id for model in client.models.list()] == [NAME]
        assert client.models.retrieve(NAME).owned_by == "titans-seq"
        with pytest.raises(openai.NotFoundError, match="this server's model is 'ships'"):
            client.models.retrieve("other")


def test_who_wants_to_chat_is_told_where_completions_are(server: Server) -> None:
    messages: Any = [{"role": "user", "content": "Who came?"}]
    with server.client() as client, pytest.raises(openai.NotFoundError, match="'ships' has no chat form") as refused:
        client.chat.completions.create(model=NAME, messages=messages)
    assert "POST /v1/completions with a `prompt`" in refused.value.message
    assert refused.value.code == "no_chat"


@pytest.mark.parametrize(
    ("change", "status", "param", "message"),
    [
        ({"model": "gpt"}, 404, "model", "this server's model is 'ships', not 'gpt'"),
        ({"best_of": 3}, 400, "best_of", "does not support it"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "does not support it"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias", "does not support it"),
        ({"suffix": "x"}, 400, "suffix", "does not support it"),
        ({"user": "me"}, 400, "user", "does not support it"),
        ({"max_token": 5}, 400, "max_token", "unknown parameter 'max_token'"),
        ({"temperature": -1}, 400, "temperature", "must be at least 0"),
        ({"temperature": "hot"}, 400, "temperature", "valid number"),
        ({"top_p": 0}, 400, "top_p", "in (0, 1]"),
        ({"seed": -1}, 400, "seed", "between 0 and 2**63 - 1"),
        ({"n": 0}, 400, "n", "greater than or equal to 1"),
        ({"n": True}, 400, "n", "valid integer"),
        ({"n": 17}, 422, "n", "prompts times n is 17, this server's limit is 16"),
        ({"max_tokens": 4097}, 422, "max_tokens", "limit is 4,096"),
        ({"logprobs": 6}, 400, "logprobs", "less than or equal to 5"),
        ({"stop": [""]}, 400, "stop", "at least one character"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "goes with stream=true"),
        ({"prompt": {"a": 1}}, 400, "prompt", "expected a text, a list of tokens"),
        ({"prompt": ["a", 1]}, 400, "prompt", "expected a text, a list of tokens"),
        ({"prompt": [1, 257]}, 400, "prompt", "tokens are from 0 to 256"),
        ({"prompt": "\ud800"}, 400, "prompt", "surrogate"),
        ({"\ud800": 1}, 400, None, "unicode"),
        ({"prompt": "a" * 65_537}, 413, "prompt", "65,537 tokens, the limit is 65,536"),
        ({"session": "none"}, 404, "session", "there is no session 'none'"),
        ({"session": "../../etc/passwd"}, 400, "session", "is no session's id"),
        ({"session": "none", "n": 2}, 400, "session", "one prompt, n=1"),
    ],
    ids=str,
)
def test_what_cannot_be_answered_is_refused_by_name(
    change: dict[str, Any], status: int, param: str | None, message: str, server: Server
) -> None:
    answer = server.post("/v1/completions", {"model": NAME, "prompt": "a", "max_tokens": 1} | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert message in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "missing"),
        (b"{", "invalid_json"),
        (b"[]", "model_attributes_type"),
        (b"\xff\xfe", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"model": NaN}', "string_type"),
    ],
    ids=["nothing", "open", "list", "no UTF-8", "deep", "NaN"],
)
def test_what_is_no_json_object_is_refused(body: bytes, code: str, server: Server) -> None:
    answer = requests.post(f"{server.url}/v1/completions", data=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/sessions"])
def test_a_body_that_is_not_said_to_be_json_is_refused_as_that(path: str, kind: str | None, server: Server) -> None:
    """As curl sends it where -H is forgotten; a page of another site could send it without being asked for leave."""
    headers = {} if kind is None else {"Content-Type": kind}
    answer = requests.post(server.url + path, data=b'{"model": "ships", "prompt": "a"}', headers=headers, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
    assert error["message"] == f"the body's Content-Type is '{kind or 'none'}': send JSON with 'Content-Type: application/json'."


def test_neutral_values_ask_for_nothing(server: Server) -> None:
    neutral: dict[str, Any] = {"best_of": 1, "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "suffix": None, "user": ""}
    neutral |= {"logprobs": None, "stop": None, "top_p": None, "stream": False}
    assert server.complete("a", max_tokens=1, temperature=0, extra_headers={}, **neutral).choices[0].finish_reason == "length"


def test_unknown_paths_and_methods_are_errors_of_the_same_form(server: Server) -> None:
    assert server.post("/v1/embeddings", {}).json()["error"]["message"] == "/v1/embeddings: Not Found"
    assert server.get("/v1/completions").status_code == 405
    with pytest.raises(openai.NotFoundError):
        server.client().embeddings.create(model=NAME, input="a")
