"""What a server does not take on, with small limits and an API key; and how it ends when it may not wait."""

import importlib
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests

from domains.text.serve.limits import Limits
from domains.text.serve.sessions import Sessions
from tests.domains.text.serve.conftest import NAME, Server
from titans_seq import UserError, cli

KEY = {"Authorization": "Bearer secret"}
FLAGS = {
    "--max-prompt-tokens": 20,
    "--max-new-tokens": 500,
    "--max-choices": 2,
    "--max-logprobs": 30,
    "--max-requests": 1,
    "--max-sessions": 2,
    "--max-body-bytes": 1000,
    "--api-key": "secret",
    "--grace": 0,
}


@pytest.fixture(scope="module")
def limited(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("limited")
    flags = [part for flag in FLAGS.items() for part in flag]
    server = Server(model_folder, folder / "log", "--sessions", folder / "sessions", *flags)
    try:
        yield server.wait()
    finally:
        server.process.kill()
        server.process.wait()


def complete(server: Server, **body: object) -> requests.Response:
    return server.post("/v1/completions", {"model": NAME, "prompt": "a", "max_tokens": 1} | body, headers=KEY)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer s\xe9cret".encode("latin-1")}])
def test_the_key_is_asked_for(headers: dict[str, str], limited: Server) -> None:
    for path in ("/v1/models", "/v1/sessions"):
        answer = limited.get(path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert limited.get("/health", headers=headers).status_code == 200
    unread = limited.post("/v1/completions", "no object", headers=headers)
    assert (unread.status_code, unread.json()["error"]["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        limited.client("wrong").models.list()
    assert limited.client("secret").models.list().data[0].id == NAME


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"prompt": "a" * 21}, 413, "prompt_too_long"),
        ({"prompt": "a" * 1000}, 413, "body_too_large"),
        ({"max_tokens": 501}, 422, "over_limit"),
        ({"prompt": ["a", "b", "c"]}, 422, "over_limit"),
        ({"prompt": ["a", "b"], "n": 2}, 422, "over_limit"),
        ({"max_tokens": 31, "logprobs": 0}, 422, "over_limit"),
        ({"prompt": ["a" * 20, "a" * 9], "logprobs": 0, "echo": True}, 422, "over_limit"),
        ({"prompt": "a" * 15, "n": 2, "logprobs": 0, "echo": True}, 422, "over_limit"),
    ],
    ids=["prompt", "body", "tokens", "prompts", "choices", "logprobs", "echoed", "echoed twice"],
)
def test_more_than_the_limits_is_refused(body: dict[str, object], status: int, code: str, limited: Server) -> None:
    answer = complete(limited, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert complete(limited, prompt=["a" * 20, "b"]).status_code == 200
    assert complete(limited, prompt=["a" * 19, "a" * 9], logprobs=0, echo=True).status_code == 200
    assert complete(limited, prompt=["a" * 20, "a" * 20], logprobs=0).status_code == 200


def test_bodies_without_a_length_are_counted_as_they_come(limited: Server) -> None:
    answer = requests.post(
        f"{limited.url}/v1/completions",
        data=iter([b'{"model": "', b"x" * 999]),
        headers=KEY | {"Content-Type": "application/json"},
        timeout=60,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_states_may_be_as_large_as_the_models_are(limited: Server) -> None:
    limited.post("/v1/sessions", {"id": "one"}, headers=KEY)
    state = limited.get("/v1/sessions/one/state", headers=KEY).content
    assert len(state) > 1000
    for content, status in ((state + bytes(1 << 17), 413), (state, 201)):
        answer = requests.put(f"{limited.url}/v1/sessions/two/state", data=content, headers=KEY, timeout=60)
        assert answer.status_code == status
    for answer in (
        limited.post("/v1/sessions", {"id": "three"}, headers=KEY),
        limited.post("/v1/sessions/one/fork", headers=KEY),
        requests.put(f"{limited.url}/v1/sessions/three/state", data=state, headers=KEY, timeout=60),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_sessions")


def test_a_request_too_many_is_told_to_come_again(limited: Server) -> None:
    body = {"model": NAME, "prompt": "a", "max_tokens": 500, "stream": True}
    with requests.post(f"{limited.url}/v1/completions", json=body, headers=KEY, stream=True, timeout=60) as running:
        lines = running.iter_lines()
        next(lines)
        answer = complete(limited)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["code"] == "too_many_requests"
    limited.wait_idle()
    assert complete(limited).status_code == 200


def test_a_server_that_may_not_wait_tells_whom_it_stops(limited: Server) -> None:
    """The last test of this server."""
    with limited.client("secret") as client:
        stream = client.completions.create(model=NAME, prompt="a", max_tokens=500, temperature=0, stream=True)  # no end by chance
        next(stream)
        limited.process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="the server is ending"):
            list(stream)
    assert limited.process.wait(60) == 130
    assert "Traceback" not in limited.log.read_text()


def test_a_folder_of_sessions_has_one_server(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    first = Sessions(folder, "model", 10)
    with pytest.raises(UserError, match=r"sessions: another server has it\. Wait for its end, or name another folder\."):
        Sessions(folder, "model", 10)
    first.close()
    Sessions(folder, "model", 10).close()


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (("serve",), ("--host", "192.0.2.1"), "--host 192.0.2.1 --port 8000: cannot be listened on"),
        (("serve",), ("--sessions", "file"), "--sessions file: "),
        (("text", "serve"), ("--api-key", " "), "--api-key is empty"),
        (("serve",), ("--name", "a\udcff"), r"--name 'a\\udcff': is not UTF-8"),
        (("text", "serve"), ("--max-choices", "0"), "--max-choices must be at least 1, got 0"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    command: tuple[str, ...], flags: tuple[str, ...], message: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        cli.build_app()([*command, str(model_folder), *flags])


def test_without_the_extra_the_command_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("domains.text.cli.serve"), "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the server needs fastapi and uvicorn, not installed here: pip install 'titans-seq\[serve\]'"):
        cli.build_app()(["serve", "model"])


def test_limits_are_checked() -> None:
    assert Limits().max_state_bytes is None
    with pytest.raises(ValueError, match="max_requests must be at least 1, got 0"):
        Limits(max_requests=0)
