"""Clients that stop reading, or stop sending, keep no place: real sockets on loopback, a server with one place and little patience."""

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.domains.text.serve.conftest import NAME, Server

SECRET = "Authorization: Bearer secret"
BODY = {"model": NAME, "prompt": "ab " * 300, "max_tokens": 1, "n": 16, "echo": True, "logprobs": 5, "stream": True}
"""Is answered with some 4 MB, more than the buffers between server and client hold."""


@pytest.fixture(scope="module")
def impatient(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("impatient")
    flags = ("--max-requests", 1, "--max-stall-seconds", 1, "--api-key", "secret", "--sessions", folder / "sessions")
    server = Server(model_folder, folder / "log", *flags)
    try:
        yield server.wait()
    finally:
        server.process.kill()
        server.process.wait()


def ask(server: Server, receive_buffer: int) -> socket.socket:
    """A client that has read the first line of a long answer."""
    body = json.dumps(BODY)
    head = f"POST /v1/completions HTTP/1.1\nHost: here\n{SECRET}\nContent-Type: application/json\nContent-Length: {len(body)}\n\n"
    client = server.raw(head + body, receive_buffer)
    assert client.recv(15) == b"HTTP/1.1 200 OK"
    return client


def test_a_client_that_stops_reading_loses_its_place(impatient: Server) -> None:
    with ask(impatient, 4096) as client:
        impatient.wait_idle()  # while the connection is open at this end
        text = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert b"[DONE]" not in text
    log = impatient.log.read_text()
    assert "a client has read nothing for 1 seconds: its connection is closed." in log
    assert "completion left: texts=16" in log
    assert "Traceback" not in log


def test_a_client_that_reads_slowly_is_waited_for(impatient: Server) -> None:
    """For longer than one that reads nothing."""
    text, began = b"", time.monotonic()
    with ask(impatient, 1 << 16) as client:
        while b"[DONE]" not in text[-100:]:
            part = client.recv(1 << 16)
            assert part, impatient.log.read_text()
            text += part
            time.sleep(len(part) / 1.5e6)
    assert time.monotonic() - began > 2
    assert text.count(b'"text":') == 32


def upload(server: Server, id: str, head: str = SECRET) -> socket.socket:
    """A client that begins to send a state, and goes no further."""
    return server.raw(f"PUT /v1/sessions/{id}/state HTTP/1.1\nHost: here\n{head}\nContent-Length: 500\n\nbegun")


def answer(client: socket.socket) -> tuple[int, str]:
    """Status and code of an error."""
    with client, HTTPResponse(client) as found:
        found.begin()
        return found.status, json.load(found)["error"]["code"]


def test_a_client_that_stops_sending_loses_its_place(impatient: Server) -> None:
    with upload(impatient, "stalled") as client:
        while not impatient.health()["running"]:
            time.sleep(0.02)
        assert answer(client) == (408, "request_timeout")
    assert impatient.health()["running"] == 0
    assert not list((impatient.log.parent / "sessions").glob(".titans-seq-*"))


def test_a_client_that_sends_drop_by_drop_loses_its_place(impatient: Server) -> None:
    with upload(impatient, "dripping") as client:
        client.settimeout(0.3)
        began = time.monotonic()
        while time.monotonic() - began < 30:
            client.sendall(b".")
            try:
                found = client.recv(12, socket.MSG_PEEK)
            except TimeoutError:
                continue
            assert found == b"HTTP/1.1 408"
            break
        client.settimeout(60)
        assert answer(client) == (408, "request_timeout")
    impatient.wait_idle()


def test_a_state_that_may_not_be_imported_now_is_refused_before_it_has_come(impatient: Server) -> None:
    """As are requests without the key."""
    with ask(impatient, 4096):
        assert answer(upload(impatient, "early")) == (429, "too_many_requests")
        assert answer(upload(impatient, "early", "Authorization: Bearer wrong")) == (401, "invalid_api_key")
    impatient.wait_idle()
