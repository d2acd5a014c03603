"""Downloads from a server on loopback that does all that servers do: the file that comes is the right one, or none comes."""

import hashlib
import io
import multiprocessing
import os
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.serving import serving
from titans_seq import UserError, download
from titans_seq.download import fetch
from titans_seq.unpack import UnpackLimits

CONTENT = bytes(range(256)) * 2000
HASH = hashlib.sha256(CONTENT).hexdigest()
LIMIT = 1_000_000


class Handler(BaseHTTPRequestHandler):
    """The path says how the server behaves; `server.requests` keeps (path, Range) of each request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/").split("/")[0]
        wanted = self.headers.get("Range")
        self.server.requests.append((path, wanted))  # type: ignore[attr-defined]
        getattr(self, f"do_{path}")(int(wanted.split("=")[1].rstrip("-")) if wanted else 0)

    def first(self) -> bool:
        return len(self.server.requests) == 1  # type: ignore[attr-defined]

    def send(self, status: int, body: bytes, declared: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if declared is None else declared))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def part(self, start: int, stop: int | None = None) -> None:
        """What lies from `start` on, cut off at `stop` although all of it is announced."""
        whole = CONTENT[start:]
        headers = {"Content_Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}
        self.send(206 if start else 200, CONTENT[start:stop], len(whole), **headers)

    def do_good(self, start: int) -> None:
        self.part(start)

    def do_truncated(self, start: int) -> None:
        self.part(start, 100_000 if self.first() else None)

    def do_without_ranges(self, start: int) -> None:
        self.part(0, 100_000 if self.first() else None)

    def do_endless_cut(self, start: int) -> None:
        self.part(start, start + 10)

    def do_silent(self, start: int) -> None:
        if self.first():
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:5000])
            time.sleep(6)
            self.close_connection = True
        else:
            self.part(start)

    def do_slow(self, start: int) -> None:
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("Content-Range", f"bytes {start}-")
        self.end_headers()
        pause = 0.0 if start else 0.05
        for i in range(start, len(CONTENT), 1 << 14):
            self.wfile.write(CONTENT[i : i + (1 << 14)])
            time.sleep(pause)

    def do_other_file(self, start: int) -> None:
        """Goes on with bytes of another file, but has the right one from its start."""
        self.send(206, bytes(len(CONTENT) - start), Content_Range=f"bytes {start}-") if start else self.part(0)

    def do_shrunk(self, start: int) -> None:
        self.send(416, b"") if start else self.part(0)

    def do_busy(self, start: int) -> None:
        self.send(503, b"wait", Retry_After="0") if len(self.server.requests) < 3 else self.part(start)  # type: ignore[attr-defined]

    def do_down(self, start: int) -> None:
        self.send(503, b"")

    def do_missing(self, start: int) -> None:
        self.send(404, b"no")

    def do_moved(self, start: int) -> None:
        self.send(302, b"", Location="/good/data.bin")

    def do_circle(self, start: int) -> None:
        self.send(302, b"", Location="/circle/data.bin")

    def do_to_file(self, start: int) -> None:
        self.send(302, b"", Location="file:///etc/passwd")

    def do_to_nowhere(self, start: int) -> None:
        self.send(302, b"", Location="http://[")

    def do_wrong(self, start: int) -> None:
        self.send(200, CONTENT[::-1])

    def do_huge(self, start: int) -> None:
        self.send(200, b"x", declared=LIMIT + 1)

    def do_unannounced(self, start: int) -> None:
        """Without a length, and without an end but for the client's."""
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
                self.server.sent += 1 << 16  # type: ignore[attr-defined]
        except OSError:
            self.close_connection = True

    def do_chunked_rubbish(self, start: int) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"zz\r\nhello\r\n")
        self.close_connection = True

    def do_archive(self, start: int) -> None:
        self.send(200, self.server.archive)  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        self.archive = b""

    def handle_error(self, *_: object) -> None:
        """A client that went away."""

    def url(self, path: str, name: str = "data.bin") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}/{name}"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Path]:
    def get(path: str, sha256: str = HASH, name: str = "data.bin", **options: object) -> Path:
        settings = {"folder": tmp_path / "in" / "here", "max_bytes": LIMIT, "progress": False, "timeout": 5.0} | options
        return fetch(server.url(path, name), sha256, **settings)  # type: ignore[arg-type]

    return get


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


@pytest.mark.parametrize("path", ["good", "truncated", "without_ranges", "busy", "moved"])
def test_the_file_comes_whole(path: str, get: Callable[..., Path], tmp_path: Path) -> None:
    file = get(path)
    assert file == tmp_path / "in" / "here" / "data.bin"
    assert file.read_bytes() == CONTENT
    assert left_behind(tmp_path) == ["data.bin"]


def test_a_cut_download_goes_on_where_it_stopped(get: Callable[..., Path], server: Server) -> None:
    get("truncated")
    assert server.requests == [("truncated", None), ("truncated", "bytes=100000-")]


def test_a_silent_server_is_asked_again(get: Callable[..., Path], server: Server) -> None:
    assert get("silent", timeout=2).read_bytes() == CONTENT
    assert server.requests == [("silent", None), ("silent", "bytes=5000-")]


def test_a_later_call_goes_on_after_a_killed_process(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "here"
    process = multiprocessing.get_context("spawn").Process(
        target=fetch, args=(server.url("slow"), HASH), kwargs={"folder": folder, "max_bytes": LIMIT, "progress": False}
    )
    process.start()
    deadline = time.monotonic() + 60
    while not (found := [path for path in folder.glob(".*.part") if path.stat().st_size > 50_000]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    held = found[0].stat().st_size
    assert 0 < held < len(CONTENT)
    assert get("slow").read_bytes() == CONTENT
    assert server.requests[-1] == ("slow", f"bytes={held}-")


@pytest.mark.parametrize("path", ["other_file", "shrunk"])
def test_a_part_of_something_else_is_thrown_away(path: str, get: Callable[..., Path], tmp_path: Path) -> None:
    part = tmp_path / "in" / "here" / f".data.bin.{HASH[:16]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"other" * 100)
    assert get(path).read_bytes() == CONTENT


def test_a_complete_part_needs_no_server(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    part = tmp_path / "in" / "here" / f".data.bin.{HASH[:16]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert get("down").read_bytes() == CONTENT
    assert server.requests == []


def test_a_right_file_is_not_fetched_again_and_a_wrong_one_is(get: Callable[..., Path], server: Server) -> None:
    file = get("good")
    get("good")
    assert len(server.requests) == 1
    file.write_bytes(b"edited")
    assert get("good", HASH.upper()).read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("wrong", rf"SHA-256 .* is {hashlib.sha256(CONTENT[::-1]).hexdigest()}, expected {HASH}.*Try again"),
        ("huge", rf"says that it has {LIMIT + 1} bytes, more than max_bytes={LIMIT}"),
        ("unannounced", rf"sends at least \d+ bytes, more than max_bytes={LIMIT}"),
        ("missing", "answers 404 Not Found. Check the address"),
        ("down", "given up after 5 attempts .*503 Service Unavailable"),
        ("circle", "Exceeded 5 redirects"),
        ("to_file", "No connection adapters"),
        ("to_nowhere", "redirects to what is no address .*Check the address"),
        ("chunked_rubbish", "given up after 5 attempts"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(path: str, message: str, get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{server.url(path)}: .*{message}"):
        get(path)
    assert left_behind(tmp_path) in ([], [f".data.bin.{HASH[:16]}.part"])
    assert server.sent < 8 * LIMIT  # the rest lies in buffers of the sockets


def test_what_came_is_kept_for_the_next_call(get: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"given up after 5 attempts .* 50 bytes are kept: call again"):
        get("endless_cut")
    assert get("good").read_bytes() == CONTENT


def test_a_failed_download_leaves_the_old_file(get: Callable[..., Path]) -> None:
    file = get("good")
    with pytest.raises(UserError, match="expected 0000"):
        get("wrong", "0" * 64)
    assert file.read_bytes() == CONTENT


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/x: given up after 5 attempts"):
        fetch("http://127.0.0.1:9/x", HASH, folder=tmp_path, max_bytes=9, progress=False)


@pytest.mark.parametrize("form", [str, Path.as_uri], ids=["path", "uri"])
def test_files_of_this_machine(form: Callable[[Path], str], tmp_path: Path) -> None:
    source = tmp_path / "a b.bin"
    source.write_bytes(CONTENT)
    assert fetch(form(source), HASH, folder=tmp_path / "to", max_bytes=LIMIT, progress=False).read_bytes() == CONTENT
    with pytest.raises(UserError, match=f"has {len(CONTENT)} bytes, more than max_bytes=5"):
        fetch(form(source), HASH, folder=tmp_path / "other", max_bytes=5, progress=False)
    with pytest.raises(UserError, match="no such file"):
        fetch(form(tmp_path / "none"), HASH, folder=tmp_path / "other", max_bytes=5, progress=False)


@pytest.mark.parametrize(
    "url", ["http://x/", "http://x/a/..", "http://x/a%2F..", "http://x/%00", "http://x/%5Ca", "ftp://x/a", "http://[x/a", "", "data:,x"]
)
def test_addresses_without_a_file_name(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file name|addresses begin|no address"):
        fetch(url, HASH, folder=tmp_path, max_bytes=1)
    assert list(tmp_path.iterdir()) == []


def test_secrets_in_an_address_are_not_shown(server: Server, tmp_path: Path) -> None:
    url = server.url("missing").replace("http://", "http://me:hunter2@") + "?token=hunter2"
    with pytest.raises(UserError) as caught:
        fetch(url, HASH, folder=tmp_path, max_bytes=1)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("sha256", "max_bytes"), [("", 1), ("g" * 64, 1), (HASH[:-1], 1), (HASH, 0)])
def test_arguments_are_checked(sha256: str, max_bytes: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sha256 must be 64|max_bytes must be at least 1"):
        fetch("http://x/y", sha256, folder=tmp_path, max_bytes=max_bytes)


def test_a_folder_that_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("")
    with pytest.raises(UserError, match="name another folder"):
        fetch(server.url("good"), HASH, folder=tmp_path / "in", max_bytes=LIMIT, progress=False)


def test_processes_take_turns(get: Callable[..., Path], server: Server) -> None:
    """Ranks of one machine that fetch the same file at once: one downloads, all get it."""
    threads = [threading.Thread(target=get, args=("good",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert get("good").read_bytes() == CONTENT


def test_the_progress_bar_tells_the_file(get: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    get("good", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "data.bin" in err
    assert "512.0/512.0 kB" in err


def test_unpacks_once(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/b.txt", "hello")
    server.archive = buffer.getvalue()
    sha256 = hashlib.sha256(server.archive).hexdigest()
    folder = get("archive", sha256, "set.zip", unpack=UnpackLimits(1000))
    assert folder == tmp_path / "in" / "here" / f"set-{sha256[:12]}"
    assert (folder / "a" / "b.txt").read_text() == "hello"
    before = folder.stat().st_mtime_ns
    assert get("archive", sha256, "set.zip", unpack=UnpackLimits(1000)) == folder
    assert folder.stat().st_mtime_ns == before
    assert len(server.requests) == 1


def test_a_hostile_archive_leaves_nothing(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        archive.addfile(tarfile.TarInfo("../../escaped"), io.BytesIO())
    server.archive = buffer.getvalue()
    with pytest.raises(UserError, match=r"set.tar.xz: '../../escaped' leads out of the folder"):
        get("archive", hashlib.sha256(server.archive).hexdigest(), "set.tar.xz", unpack=UnpackLimits(1000))
    assert left_behind(tmp_path) == ["set.tar.xz"]
    with pytest.raises(UserError, match="unknown kind of archive"):
        get("good", unpack=UnpackLimits(1000))
