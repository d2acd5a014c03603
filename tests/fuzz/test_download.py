"""Servers that answer anything at all: the right file comes, or a UserError, and no more than the limit is ever kept."""

import gzip
import hashlib
import socketserver
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.strategies import mutated_bytes
from tests.serving import serving
from titans_seq import UserError, download
from titans_seq.download import fetch

CONTENT = bytes(range(256)) * 8
HASH = hashlib.sha256(CONTENT).hexdigest()
LIMIT = 3000


class Server(socketserver.ThreadingTCPServer):
    """Sends the next of `answers` whatever is asked, each made from where the client wants to go on, and hangs up."""

    daemon_threads = True
    allow_reuse_address = True
    answers: list[Callable[[int], bytes]]

    def handle_error(self, *_: object) -> None:
        """A client that went away."""


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        start = 0
        while (line := self.rfile.readline()).strip():
            if line.lower().startswith(b"range: bytes="):
                start = int(line.split(b"=")[1].strip().rstrip(b"-"))
        if self.server.answers:  # type: ignore[attr-defined]
            self.wfile.write(self.server.answers.pop(0)(start))  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Server(("127.0.0.1", 0), Handler)) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(download, "LONGEST_WAIT", 0.0)


STATUSES = [
    "200 OK",
    "206 Partial Content",
    "200",
    "204 No Content",
    "100 Continue",
    "301 Moved",
    "304 Not Modified",
    "416 Range",
    "404 No",
]
STATUSES += ["500 Down", "503 Busy", "999 \xff", "-1 x", "abc"]
LOCATIONS = ["/", "/data.bin", "http://127.0.0.1:1/x", "http://[x/", "file:///etc/passwd", "//", "http://" + "a" * 80 + ":x/", "\xff", ""]
BODIES = [CONTENT, CONTENT[:100], CONTENT[100:], CONTENT[::-1], b"", CONTENT + b"more", bytes(LIMIT + 500), gzip.compress(CONTENT)]
HEADERS: dict[str, list[str]] = {
    "Content-Length": ["0", "5", str(len(CONTENT)), str(LIMIT + 1), "-5", "1e3", "9" * 30, "x", "", "5, 5", "\xb2"],
    "Content-Range": ["bytes 0-", "bytes 100-2047/2048", "bytes 5-1/2", "x", ""],
    "Transfer-Encoding": ["chunked", "gzip", "identity, chunked", "x"],
    "Content-Encoding": ["gzip", "identity", "br", "x"],
    "Location": LOCATIONS,
    "Retry-After": ["0", "1", "9" * 20, "-1", "Wed, 21 Oct 2026 07:28:00 GMT", "x"],
    "Set-Cookie": ["a=b", "x" * 70_000],
    "Connection": ["close", "keep-alive", "Upgrade"],
}


def chunked(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:700], body[700:]) if part) + b"0\r\n\r\n"


@st.composite
def answers(draw: st.DrawFn) -> Callable[[int], bytes]:
    """What a good server says, what a broken connection leaves of it, or status, headers and body of no connection with one another."""
    kind = draw(st.sampled_from(["good", "cut", "without ranges", "damaged", "any", "any", "bytes"]))
    if kind == "bytes":
        content = draw(st.binary(max_size=60))
        return lambda start: content
    if kind == "any":
        names = draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=4))
        lines = [f"{name}: {draw(st.sampled_from(HEADERS[name]))}" for name in names]
        head = "\r\n".join([f"HTTP/1.1 {draw(st.sampled_from(STATUSES))}", *lines]).encode("latin-1")
        body = draw(st.sampled_from(BODIES).flatmap(lambda body: st.sampled_from([body, chunked(body)])))
        return lambda start: head + b"\r\n\r\n" + body
    stop = draw(st.integers(0, len(CONTENT))) if kind == "cut" else None
    damage = draw(mutated_bytes(CONTENT)) if kind == "damaged" else CONTENT

    def answer(start: int) -> bytes:
        start = 0 if kind == "without ranges" else min(start, len(CONTENT))
        status = b"206 Partial Content\r\nContent-Range: bytes %d-2047/2048" % start if start else b"200 OK"
        return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(CONTENT) - start) + damage[start:stop]

    return answer


@given(
    sequence=st.lists(answers(), min_size=1, max_size=5),
    held=st.sampled_from([None, None, CONTENT[:100], b"other", CONTENT, bytes(LIMIT + 9)]),
)
def test_servers(sequence: list[Callable[[int], bytes]], held: bytes | None, server: Server, tmp_path: Path) -> None:
    server.answers = list(sequence)
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        part = Path(folder) / f".data.bin.{HASH[:16]}.part"
        if held is not None:
            part.write_bytes(held)
        url = f"http://127.0.0.1:{server.server_address[1]}/data.bin"
        try:
            file = fetch(url, HASH, folder=folder, max_bytes=LIMIT, timeout=2.0, progress=False)
        except UserError as error:
            assert url in str(error)
            str(error).encode()
            assert not (Path(folder) / "data.bin").exists()
            assert not part.exists() or part.stat().st_size <= LIMIT or part.read_bytes() == held
        else:
            assert file.read_bytes() == CONTENT
            assert not part.exists()
        left = {path.name for path in Path(folder).iterdir()}
        assert left <= {"data.bin", ".data.bin.lock", part.name}
