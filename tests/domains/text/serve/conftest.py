"""Servers as processes of their own, on loopback, and what their answers must be."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from openai import OpenAI

from domains.text.config import GenerationConfig
from domains.text.context import Context, begin
from domains.text.generate import Generated, generate
from domains.text.model import TitansForCausalLM
from tests.domains.text.conftest import small

NAME = "ships"
COMMAND = (sys.executable, "-m", "titans_seq.cli", "serve")


class Server:
    """`titans-seq serve`, started; ready after `wait`."""

    def __init__(self, model: Path, log: Path, *flags: object) -> None:
        self.log, self.url = log, ""
        name = () if "--name" in flags else ("--name", NAME)
        arguments = [*COMMAND, str(model), *name, "--port", "0", *map(str, flags)]
        with log.open("w") as file:
            self.process = subprocess.Popen(arguments, stderr=file)

    def wait(self) -> "Server":
        """Until it answers."""
        while not (found := re.search(r" at (http://\S+) ", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        self.url = found[1]
        while True:
            try:
                self.get("/health")
                return self
            except requests.ConnectionError:
                time.sleep(0.05)

    def client(self, api_key: str = "none", retries: int = 0) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=retries)

    def complete(self, prompt: Any, **options: Any) -> Any:
        """By OpenAI's client; `session` and others that it does not know go into the body as they are."""
        more = {name: options.pop(name) for name in ("session", "top_k", "min_p", "repetition_penalty") if name in options}
        with self.client() as client:
            answer = client.completions.create(model=NAME, prompt=prompt, extra_body=more, **options)
            return list(answer) if options.get("stream") else answer

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=60, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **options)

    def delete(self, path: str) -> requests.Response:
        return requests.delete(self.url + path, timeout=60)

    def raw(self, request: str, receive_buffer: int = 4096) -> socket.socket:
        """A connection by hand, on which this was sent: lines of a head and what came of a body."""
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        found.settimeout(30)
        host, _, port = self.url.removeprefix("http://").partition(":")
        found.connect((host, int(port)))
        found.sendall(request.replace("\n", "\r\n").encode())
        return found

    def session(self, id: str) -> None:
        """A new one."""
        assert self.post("/v1/sessions", {"id": id}).status_code == 201

    def state(self, id: str, folder: Path) -> Context:
        """What a session holds, as it is exported; the file is mapped, and is not written again."""
        path = folder / f"{id}-{len(list(folder.iterdir()))}.safetensors"
        path.write_bytes(self.get(f"/v1/sessions/{id}/state").content)
        return Context.load(path)

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/health").json()
        return found

    def wait_idle(self) -> None:
        """Until nothing runs."""
        while self.health()["running"]:
            time.sleep(0.02)

    def end(self, signal: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, and see how it did."""
        self.process.send_signal(signal)
        return self.process.wait(60)


@pytest.fixture(scope="session")
def language_model() -> TitansForCausalLM:
    """Of bytes, untrained; those of 水 and of a few letters come most."""
    model = small()
    usual = torch.zeros(model.config.vocabulary, dtype=torch.bool)
    usual[list("水 abc.".encode())] = True
    with torch.no_grad():
        model.embedding.weight[~usual] *= 0.3
    return model


@pytest.fixture(scope="session")
def model_folder(language_model: TitansForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    language_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def server(model_folder: Path) -> Iterator[Server]:
    """With sessions, for tests that leave it as it was but for sessions of their own names."""
    started = Server(model_folder, model_folder.parent / "log", "--sessions", model_folder.parent / "sessions")
    try:
        yield started.wait()
    finally:
        started.end()


def lone(model: TitansForCausalLM, turns: Sequence[str], config: GenerationConfig) -> list[Generated]:
    """What a session must answer to prompts that come one after the other."""
    context, answers = begin(model), []
    for turn in turns:
        (answer,) = generate(model, [turn], config, context)
        answers.append(answer)
        context = answer.context
    return answers


def equal(one: Context, other: Context) -> bool:
    """To the bit."""
    pairs = list(zip(one.tensors(), other.tensors(), strict=True))
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)
