"""A server on this machine that speaks the protocol of the Hugging Face hub, weights by redirect as large files are."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

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
        self.commits.setdefault(name, []).append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} | others)
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
