"""Sessions: each its own memory, to the bit, over requests, restarts and servers; a request that does not end changes nothing."""

import re
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import torch
from openai import OpenAI

from domains.text.config import GenerationConfig
from domains.text.context import Context, begin, extend
from domains.text.model import TitansForCausalLM
from tests.domains.text.conftest import small
from tests.domains.text.serve.conftest import NAME, Server, equal, lone

ENDLESS = 4000
"""Tokens, far more than a test waits for; drawn greedily, so that no chance end comes before."""


def ask(client: OpenAI, session: str, prompt: str, **options: Any) -> Any:
    return client.completions.create(model=NAME, prompt=prompt, extra_body={"session": session}, **options)


def endless(client: OpenAI, session: str | None = None) -> Any:
    """A stream that has begun."""
    more = {} if session is None else {"session": session}
    stream = client.completions.create(
        model=NAME, prompt="ab", max_tokens=ENDLESS, temperature=0, stream=True, extra_body=more, logit_bias={}
    )
    next(stream)
    return stream


def test_a_session_remembers_and_others_do_not(server: Server, language_model: TitansForCausalLM, tmp_path: Path) -> None:
    config = GenerationConfig(max_tokens=8, seed=1, stop=("a",))
    turns = ["bcb ", "", "水c"]
    expected = lone(language_model, turns, config)
    server.session("alone")
    server.session("other")
    for turn, answer in zip(turns, expected, strict=True):
        assert server.complete(turn, session="alone", max_tokens=8, seed=1, stop="a").choices[0].text == answer.text
    assert equal(server.state("alone", tmp_path), expected[-1].context)
    assert equal(server.state("other", tmp_path), begin(language_model))
    found = server.get("/v1/sessions/alone").json()
    assert found["tokens"] == int(expected[-1].context.length) - 1
    assert found["object"] == "session"


def test_a_stream_goes_on_with_a_session_as_a_whole_answer_does(server: Server, language_model: TitansForCausalLM, tmp_path: Path) -> None:
    (expected,) = lone(language_model, ["cab"], GenerationConfig(max_tokens=8, seed=1))
    server.session("streamed")
    chunks = server.complete("cab", session="streamed", max_tokens=8, seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    assert equal(server.state("streamed", tmp_path), expected.context)


def test_a_long_text_is_read_in_parts(server: Server, language_model: TitansForCausalLM, tmp_path: Path) -> None:
    """max_tokens=0 reads alone. What is read at a time changes nothing but the last bits."""
    server.session("reader")
    for part in ("a ship " * 60, "at sea " * 5):
        answer = server.complete(part, session="reader", max_tokens=0)
        assert (answer.choices[0].text, answer.usage.prompt_tokens) == ("", len(part))
    whole = extend(language_model, begin(language_model), language_model.tokenizer.encode_batch(["a ship " * 60 + "at sea " * 5]))
    found = server.state("reader", tmp_path)
    assert found.length.tolist() == whole.length.tolist()
    for x, y in zip(found.tensors(), whole.tensors(), strict=True):
        assert x.shape == y.shape
        assert (x - y).abs().max() < 1e-3


def test_forks_go_their_own_ways(server: Server, language_model: TitansForCausalLM, tmp_path: Path) -> None:
    server.session("root")
    server.complete("ab", session="root", max_tokens=4, seed=1)
    assert server.post("/v1/sessions/root/fork", {"id": "branch"}).json()["tokens"] == 6
    before = server.state("root", tmp_path)
    assert equal(server.state("branch", tmp_path), before)
    server.complete("cc", session="branch", max_tokens=4, seed=1)
    assert equal(server.state("root", tmp_path), before)
    assert not equal(server.state("branch", tmp_path), before)
    made_up = server.post("/v1/sessions/root/fork").json()["id"]
    assert equal(server.state(made_up, tmp_path), before)


def test_sessions_are_listed_and_deleted(server: Server) -> None:
    server.session("going")
    assert "going" in [session["id"] for session in server.get("/v1/sessions").json()["data"]]
    assert server.delete("/v1/sessions/going").json() == {"id": "going", "object": "session.deleted", "deleted": True}
    assert "going" not in [session["id"] for session in server.get("/v1/sessions").json()["data"]]
    for again in (server.delete("/v1/sessions/going"), server.get("/v1/sessions/going"), server.get("/v1/sessions/going/state")):
        assert (again.status_code, again.json()["error"]["code"]) == (404, "session_not_found")
    assert len(server.post("/v1/sessions").json()["id"]) == 24


@pytest.mark.parametrize("id", ["..", "a.b", "A", "", "a" * 65, "-a", "a b", "a%2fb", "水"])
def test_what_is_no_id_is_refused(id: str, server: Server) -> None:
    refused = server.post("/v1/sessions", {"id": id.replace("%2f", "/")})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "id")
    if id:
        for answer in (server.get(f"/v1/sessions/{id}/state"), server.delete(f"/v1/sessions/{id}")):
            assert answer.status_code in (400, 404, 405)
        assert requests.put(f"{server.url}/v1/sessions/{id}/state", data=b"x", timeout=60).status_code in (400, 404)


def test_a_session_has_one_request_at_a_time(server: Server, tmp_path: Path) -> None:
    server.session("busy")
    before = server.state("busy", tmp_path)
    with server.client() as client:
        stream = endless(client, "busy")
        with pytest.raises(openai.ConflictError, match="session 'busy' is at work on another request"):
            ask(client, "busy", "a", max_tokens=1)
        assert server.delete("/v1/sessions/busy").status_code == 409
        assert server.post("/v1/sessions", {"id": "busy"}).json()["error"]["code"] == "session_exists"
        assert equal(server.state("busy", tmp_path), before)  # what the last request left
        assert server.post("/v1/sessions/busy/fork", {"id": "meanwhile"}).status_code == 201
        stream.close()
    server.wait_idle()
    server.complete("a", session="busy", max_tokens=1)


def test_a_cancelled_stream_stops_the_work_and_changes_nothing(server: Server, tmp_path: Path) -> None:
    server.session("cancelled")
    server.complete("ab", session="cancelled", max_tokens=3)
    before, made = server.state("cancelled", tmp_path), server.health()["tokens_made"]
    with server.client() as client:
        stream = endless(client, "cancelled")
        assert client.completions.create(model=NAME, prompt="c", max_tokens=3).choices  # others have their turns meanwhile
        assert server.health()["running"] == 1
        stream.close()
    server.wait_idle()
    after = server.health()["tokens_made"]
    assert 3 < after - made < ENDLESS // 2
    assert server.health()["tokens_made"] == after
    assert equal(server.state("cancelled", tmp_path), before)
    assert "completion left: texts=1" in server.log.read_text()


def test_a_client_that_does_not_wait_for_a_whole_answer_stops_it(server: Server) -> None:
    made = server.health()["tokens_made"]
    with pytest.raises(requests.Timeout):
        requests.post(
            f"{server.url}/v1/completions", json={"model": NAME, "prompt": "a", "max_tokens": ENDLESS, "temperature": 0}, timeout=0.5
        )
    server.wait_idle()
    assert server.health()["tokens_made"] - made < ENDLESS // 2


def talk(server: Server, id: str, turns: list[str], config: GenerationConfig) -> list[str]:
    """The answers of a session to prompts one after the other."""
    server.session(id)
    with server.client(retries=1000) as client:
        return [ask(client, id, turn, max_tokens=config.max_tokens, seed=config.seed).choices[0].text for turn in turns]


def check_side_by_side(server: Server, model: TitansForCausalLM, folder: Path, count: int, turns: int, others: Callable[[], None]) -> None:
    """Sessions at the same time, with other work among them, answer as each would alone, and hold the same, to the bit."""
    config = [GenerationConfig(max_tokens=6 + i % 3, seed=i) for i in range(count)]
    asked = [[f"{i} {'ab' * j}" for j in range(turns)] for i in range(count)]
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            others()

    with ThreadPoolExecutor(count + 1) as pool:
        disturbing = pool.submit(disturb)
        answers = list(pool.map(lambda i: talk(server, f"load-{count}-{i}", asked[i], config[i]), range(count)))
        stop.set()
        disturbing.result()
    for i in range(count):
        expected = lone(model, asked[i], config[i])
        assert answers[i] == [answer.text for answer in expected]
        assert equal(server.state(f"load-{count}-{i}", folder), expected[-1].context)


def test_sessions_side_by_side_answer_as_each_alone(server: Server, language_model: TitansForCausalLM, tmp_path: Path) -> None:
    def others() -> None:
        with server.client() as client:
            endless(client).close()

    check_side_by_side(server, language_model, tmp_path, count=4, turns=2, others=others)


@pytest.mark.slow
def test_many_sessions_side_by_side_answer_as_each_alone(server: Server, language_model: TitansForCausalLM, tmp_path: Path) -> None:
    """More than may run at a time: clients that are told so try again."""

    def others() -> None:
        with server.client(retries=1000) as client:
            stream = endless(client)
            client.completions.create(model=NAME, prompt=["a", "bb"], max_tokens=2)
            stream.close()

    check_side_by_side(server, language_model, tmp_path, count=24, turns=5, others=others)


def test_sessions_outlive_a_kill_and_move_to_another_server(
    model_folder: Path, language_model: TitansForCausalLM, server: Server, tmp_path: Path
) -> None:
    """A kill in the middle of an answer leaves each session as its last answer did; damaged files are named, and harm no other."""
    folder, config = tmp_path / "sessions", GenerationConfig(max_tokens=5, seed=2)
    expected = lone(language_model, ["ab", "cc"], config)
    first = Server(model_folder, tmp_path / "first", "--sessions", folder).wait()
    for id in ("kept", "torn"):
        first.session(id)
        first.complete("ab", session=id, max_tokens=5, seed=2)
    body = {"model": NAME, "prompt": "ab", "max_tokens": ENDLESS, "temperature": 0, "stream": True, "session": "kept"}
    with requests.post(f"{first.url}/v1/completions", json=body, stream=True, timeout=60) as running:
        lines = running.iter_lines()
        next(lines)
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(requests.RequestException):
            list(lines)
    (folder / "torn.session.safetensors").write_bytes((folder / "torn.session.safetensors").read_bytes()[:-9])
    begin(small(1)).save_for(small(1), folder / "foreign.session.safetensors")
    (folder / ".titans-seq-left").write_bytes(b"half an upload")

    second = Server(model_folder, tmp_path / "second", "--sessions", folder, "--grace", 300).wait()
    try:
        listed = {session["id"]: session for session in second.get("/v1/sessions").json()["data"]}
        assert listed.keys() == {"kept", "torn", "foreign"}
        assert listed["kept"]["tokens"] == 7
        assert "damaged" in listed["torn"]["problem"]
        whose = (
            f"belongs to another model (system_fingerprint {small(1).identity()}) than the one that is served ({language_model.identity()})"
        )
        assert listed["foreign"]["problem"].startswith(whose)
        refusals = {
            "torn": ("session 'torn' cannot be gone on with", "session_damaged"),
            "foreign": (f"session 'foreign' {whose}", "session_of_another_model"),
        }
        for id in ("torn", "foreign"):
            assert f"session {id} cannot be gone on with" in second.log.read_text()
            message, code = refusals[id]
            with pytest.raises(openai.UnprocessableEntityError, match=re.escape(message)) as refused:
                second.complete("a", session=id)
            assert refused.value.code == code
            assert str(tmp_path) not in second.post("/v1/completions", {"model": NAME, "session": id}).text
            assert second.post(f"/v1/sessions/{id}/fork").status_code == 422
            assert second.delete(f"/v1/sessions/{id}").status_code == 200
        assert second.complete("cc", session="kept", max_tokens=5, seed=2).choices[0].text == expected[1].text
        assert equal(second.state("kept", tmp_path), expected[1].context)
        assert [path.name for path in sorted(folder.iterdir())] == [".lock", "kept.session.safetensors"]
        exported = second.get("/v1/sessions/kept/state").content
        answer = second.complete("水", session="kept", max_tokens=5, seed=2)
        assert_ends_properly(second)
    finally:
        second.process.kill()
    imported = requests.put(f"{server.url}/v1/sessions/moved/state", data=exported, timeout=60)
    assert imported.status_code == 201, imported.text
    assert equal(server.state("moved", tmp_path), expected[1].context)
    assert server.complete("水", session="moved", max_tokens=5, seed=2).choices == answer.choices


def assert_ends_properly(server: Server) -> None:
    """On SIGTERM what runs ends as it would have, and nothing new is taken on."""
    with server.client() as client:
        stream = client.completions.create(model=NAME, prompt="ab", max_tokens=40, seed=1, stream=True)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        pieces = list(stream)
    assert pieces[-1].choices[0].finish_reason == "length"
    assert server.process.wait(60) == -signal.SIGTERM
    assert "ended." in server.log.read_text()
    with pytest.raises(requests.ConnectionError):
        server.health()


def test_what_is_no_state_of_the_model_is_not_imported(
    server: Server, language_model: TitansForCausalLM, model_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"

    def refused(content: bytes) -> str:
        answer = requests.put(f"{server.url}/v1/sessions/imported/state", data=content, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unusable_state")
        assert server.get("/v1/sessions/imported").status_code == 404
        message: str = answer.json()["error"]["message"]
        return message

    assert "damaged" in refused(b"")
    begin(language_model).save_for(language_model, path)
    assert "damaged" in refused(path.read_bytes()[:-1])
    begin(small(1)).save_for(small(1), path)
    assert f"is a state of another model ({small(1).identity()}), not of this one" in refused(path.read_bytes())
    begin(language_model, 2).save_for(language_model, path)
    assert "holds 2 texts, expected one" in refused(path.read_bytes())
    start = begin(language_model)
    start.map(lambda x: x * float("nan") if x.is_floating_point() else x).save_for(language_model, path)
    assert "NaN" in refused(path.read_bytes())
    Context(start.state, start.last + 1, start.length).save_for(language_model, path)
    assert "no such token" in refused(path.read_bytes())
    Context(start.state, start.last, start.length + 2**62).save_for(language_model, path)
    assert "no text is so long" in refused(path.read_bytes())
    start.map(lambda x: torch.full_like(x, 3e38) if x.is_floating_point() else x).save_for(language_model, path)
    assert "no finite numbers" in refused(path.read_bytes())
    assert not list((model_folder.parent / "sessions").glob(".titans-seq-*"))
