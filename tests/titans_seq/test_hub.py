"""Models on the hub, against a real server on this machine that speaks the hub's protocol, weights by redirect as large files are."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch

from titans_seq import Titans, UserError, load_model, presets
from titans_seq.card import Card

TOKEN = "hf_" + "x" * 20
NAMES = r"[\w.-]+/[\w.-]+"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a list of commits (files by path), the newest last; `private` ones need TOKEN."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut_weights_after: int | None = None
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.storage = f"http://localhost:{self.server_address[1]}"  # another host, as far as a client can tell

    def put(self, name: str, folder: Path, **others: bytes) -> str:
        """A new commit with the files of a folder; its hash."""
        self.commits.setdefault(name, []).append({path.name: path.read_bytes() for path in folder.iterdir()} | others)
        return self.commit_hash(name, len(self.commits[name]) - 1)

    @staticmethod
    def commit_hash(name: str, index: int) -> str:
        return hashlib.sha1(f"{name} {index}".encode()).hexdigest()

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.commits[name]
        if revision == "main":
            return self.commit_hash(name, len(commits) - 1), commits[-1]
        return next(((revision, files) for i, files in enumerate(commits) if self.commit_hash(name, i) == revision), None)


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, found: Any) -> None:
        self.reply(200, json.dumps(found).encode(), Content_Type="application/json")

    def allowed(self, name: str) -> bool:
        """As the hub does, a private repository looks like none to those who may not see it."""
        mine = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name in self.server.commits and (mine or name not in self.server.private):
            return True
        self.reply(401 if not mine else 404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        return False

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if match := re.fullmatch(rf"/api/models/({NAMES})(?:/revision/(.+))?", path):
            self.info(match[1], match[2] or "main")
        elif match := re.fullmatch(rf"/api/models/({NAMES})/tree/([^/]+)", path):
            self.tree(match[1], match[2])
        elif match := re.fullmatch(rf"/({NAMES})/resolve/([^/]+)/(.+)", path):
            self.resolve(*match.groups())
        elif match := re.fullmatch(r"/storage/(\w+)", path):
            self.storage(self.server.blobs[match[1]])
        else:
            self.reply(404)

    do_HEAD = do_GET

    def found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if not self.allowed(name):
            return None
        found = self.server.find(name, revision)
        if found is None:
            self.reply(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        return found

    def info(self, name: str, revision: str) -> None:
        if found := self.found(name, revision):
            siblings = [{"rfilename": path} for path in found[1]]
            self.reply_json({"id": name, "modelId": name, "sha": found[0], "private": False, "tags": [], "siblings": siblings})

    def tree(self, name: str, revision: str) -> None:
        if found := self.found(name, revision):
            self.reply_json([self.entry(path, content) for path, content in found[1].items()])

    @staticmethod
    def entry(path: str, content: bytes) -> dict[str, Any]:
        sha, size = hashlib.sha256(content).hexdigest(), len(content)
        large = {"lfs": {"oid": sha, "size": size, "pointerSize": 130}} if path.endswith(".safetensors") else {}
        return {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(content).hexdigest(), **large}

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self.found(name, revision)
        if not found:
            return
        commit, files = found
        if path not in files:
            self.reply(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=commit)
            return
        entry = self.entry(path, files[path])
        if "lfs" not in entry:
            self.reply(200, files[path], ETag=f'"{entry["oid"]}"', X_Repo_Commit=commit)
            return
        sha = entry["lfs"]["oid"]
        self.server.blobs[sha] = files[path]
        headers = {"X_Linked_ETag": f'"{sha}"', "X_Linked_Size": str(entry["size"]), "X_Repo_Commit": commit}
        self.reply(302, Location=f"{self.server.storage}/storage/{sha}", **headers)

    def storage(self, content: bytes) -> None:
        """A large file, from the byte that a `Range` header names; `cut_weights_after` bytes break the connection once."""
        begin = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        self.server.asked.append(f"from byte {begin}")
        part, cut = content[begin:], self.server.cut_weights_after
        headers = {"Content_Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
        if cut is None:
            self.reply(206 if begin else 200, part, **headers)
            return
        self.server.cut_weights_after = None
        self.reply(200, part[:cut], Content_Length=str(len(part)))
        self.close_connection = True

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, b'{"error": "Invalid username or password."}', Content_Type="application/json")
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.server.private.add(name)
            self.server.commits.setdefault(name, [{}])
            self.reply_json({"url": f"{self.server.address}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.reply_json({"errors": [], "warnings": []})
        elif match := re.fullmatch(rf"/api/models/({NAMES})/preupload/main", path):
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.reply_json({"files": files})
        elif match := re.fullmatch(rf"/api/models/({NAMES})/commit/main", path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.reply(404)

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
        self.server.commits[name].append(self.server.commits[name][-1] | files)
        oid = self.server.commit_hash(name, len(self.server.commits[name]) - 1)
        self.reply_json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.address}/{name}/commit/{oid}"})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def model(tmp_path: Path) -> Titans:
    """Saved in tmp_path / "model"."""
    model = Titans(presets.debug("mag")).eval()
    model.save_pretrained(tmp_path / "model", card=Card(title="Mine"))
    return model


@pytest.fixture
def options(hub: Hub, tmp_path: Path) -> dict[str, Any]:
    return {"endpoint": hub.address, "cache_dir": tmp_path / "cache", "token": False}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_a_model_comes_from_the_hub_with_its_three_files_and_stays_in_the_cache(
    hub: Hub, model: Titans, tmp_path: Path, options: dict
) -> None:
    hub.put("owner/name", tmp_path / "model", **{"optimizer.pt": b"a pickle", "big.bin": b"0" * 10_000})
    assert same(Titans.from_pretrained("owner/name", **options), model)
    assert same(load_model("owner/name", **options), model)
    kept = {path.name for path in (tmp_path / "cache").rglob("*") if path.parent.parent.name == "snapshots"}
    assert kept == {"config.json", "model.safetensors", "README.md"}
    assert sum(line.startswith("GET /storage") for line in hub.asked) == 1  # downloaded once
    assert not any("optimizer.pt" in line or "big.bin" in line for line in hub.asked)


def test_a_revision_is_named_by_its_commit_and_main_moves_on(hub: Hub, model: Titans, tmp_path: Path, options: dict) -> None:
    first = hub.put("owner/name", tmp_path / "model")
    assert same(Titans.from_pretrained("owner/name", **options), model)
    newer = Titans(presets.debug("lmm"))
    newer.save_pretrained(tmp_path / "newer")
    hub.put("owner/name", tmp_path / "newer")
    assert Titans.from_pretrained("owner/name", **options).config.variant == "lmm"
    assert same(Titans.from_pretrained("owner/name", revision=first, **options), model)
    with pytest.raises(UserError, match=r"owner/name: the model has no revision 'v9'. Name a branch, tag or commit"):
        Titans.from_pretrained("owner/name", revision="v9", **options)


def test_without_a_connection_the_cache_serves(hub: Hub, model: Titans, tmp_path: Path, options: dict) -> None:
    hub.put("owner/name", tmp_path / "model")
    Titans.from_pretrained("owner/name", **options)
    gone = {**options, "endpoint": "http://127.0.0.1:9"}  # nobody listens there
    assert same(Titans.from_pretrained("owner/name", **gone), model)
    assert same(Titans.from_pretrained("owner/name", local_files_only=True, **options), model)
    for others in ({}, {"local_files_only": True}):
        with pytest.raises(UserError, match=r"owner/other: no folder .* not in the cache, .* HF_HUB_OFFLINE"):
            Titans.from_pretrained("owner/other", **gone, **others)


def test_a_private_model_needs_the_token(hub: Hub, model: Titans, tmp_path: Path, options: dict) -> None:
    hub.put("owner/secret", tmp_path / "model")
    hub.private.add("owner/secret")
    for name in ("owner/secret", "owner/nothing"):
        with pytest.raises(UserError, match=rf"{name}: no folder of that name here and no such model on the hub.*hf auth login"):
            Titans.from_pretrained(name, **options)
    assert same(Titans.from_pretrained("owner/secret", **{**options, "token": TOKEN}), model)


def test_a_repository_of_something_else_is_refused(hub: Hub, tmp_path: Path, options: dict) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    hub.put("owner/other", tmp_path / "other")
    with pytest.raises(UserError, match=r"model.safetensors: no such file"):
        Titans.from_pretrained("owner/other", **options)


def test_a_broken_download_is_taken_up_again(hub: Hub, model: Titans, tmp_path: Path, options: dict) -> None:
    """Half a file is never loaded."""
    hub.put("owner/name", tmp_path / "model")
    hub.cut_weights_after = 10_000
    assert same(Titans.from_pretrained("owner/name", **options), model)
    assert sum(line.startswith("GET /storage") for line in hub.asked) == 2


@pytest.mark.parametrize("name", ["./model", "a/b/c", "../x", "nowhere"])
def test_what_is_no_name_asks_no_server(name: str, hub: Hub, options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        Titans.from_pretrained(name, **options)
    assert hub.asked == []


def test_a_folder_comes_before_the_hub(hub: Hub, model: Titans, tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "model", tmp_path / "owner" / "name")
    assert same(Titans.from_pretrained("owner/name", **options), model)
    assert hub.asked == []


def test_what_is_pushed_can_be_loaded(hub: Hub, model: Titans, options: dict) -> None:
    address = model.push_to_hub("owner/new", card=Card(title="Pushed"), private=True, token=TOKEN, endpoint=hub.address)
    assert address == f"{hub.address}/owner/new"
    assert set(hub.commits["owner/new"][-1]) == {"config.json", "model.safetensors", "README.md"}
    assert b"# Pushed" in hub.commits["owner/new"][-1]["README.md"]
    assert "owner/new" in hub.private
    assert same(load_model("owner/new", **{**options, "token": TOKEN}), model)


def test_pushing_needs_a_name_and_the_right(hub: Hub, model: Titans) -> None:
    with pytest.raises(UserError, match='"owner/name"'):
        model.push_to_hub("just-a-name", token=TOKEN, endpoint=hub.address)
    with pytest.raises(UserError, match=r"owner/new: .*hf auth login"):
        model.push_to_hub("owner/new", token="hf_wrong", endpoint=hub.address)


def test_info_of_a_model_on_the_hub(hub: Hub, model: Titans, tmp_path: Path) -> None:
    """The whole way as a user goes it: a process, the address in HF_ENDPOINT, the cache in HF_HOME."""
    hub.put("owner/name", tmp_path / "model")
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [str(Path(sys.executable).with_name("titans-seq")), "info"]
    done = subprocess.run([*command, "owner/name", "--json"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == sum(x.numel() for x in model.parameters())
    done = subprocess.run([*command, "owner/nothing"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: owner/nothing: no folder of that name here")
    assert "Traceback" not in done.stderr
