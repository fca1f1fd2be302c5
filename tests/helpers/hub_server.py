"""A stand-in of the Hub on this machine: as much of its HTTP interface as pushing and loading a model takes."""

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import huggingface_hub

TOKEN = "hf_stand_in"
LARGE_FILES = (".safetensors", "tokenizer.json")  # kept in the large file store, as on the Hub


@dataclass
class Hub:
    """What has arrived: files of each repository, and the requests by method and path."""

    endpoint: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    fail_on: str | None = None  # answer 500 to requests whose path holds this


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status=200, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.body()
        if self.hub.fail_on and self.hub.fail_on in path:
            return self.answer(500, {"error": "out of order"})
        if self.command in ("GET", "HEAD"):
            return self.read(path)
        if path.startswith("/store/"):
            content = body
            oid = path.rsplit("/", 1)[1]
            assert hashlib.sha256(content).hexdigest() == oid
            self.hub.large_files[oid] = content
            return self.answer()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        return self.write(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def write(self, path: str, body: bytes):
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'someone'}/{request['name']}"
            known = name in self.hub.repositories
            self.hub.repositories.setdefault(name, {})
            self.hub.private.setdefault(name, request.get("visibility") == "private" or bool(request.get("private")))
            return self.answer(409 if known else 200, {"url": f"{self.hub.endpoint}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.hub.endpoint}/store/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        _, _, _, owner, name, action, revision = path.split("/")  # /api/models/owner/name/action/revision
        assert revision == "main"
        if action == "preupload":
            modes = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith(LARGE_FILES) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for entry in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": modes})
        assert action == "commit"
        return self.commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])

    def commit(self, name: str, lines: list[dict]):
        files = self.hub.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.commits.append(next(line["value"]["summary"] for line in lines if line["key"] == "header"))
        oid = f"{len(self.hub.commits):040d}"
        url = f"{self.hub.endpoint}/{name}/commit/{oid}"
        return self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def read(self, path: str):
        parts = path.strip("/").split("/")
        kind = "datasets/" if "datasets" in parts[:2] else ""  # the repositories of models have no such word
        if kind and parts[0] != "api":
            del parts[0]
        name = kind + "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.hub.repositories.get(name)
        if files is None:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        commit = f"{len(self.hub.commits):040d}"
        if parts[0] == "api" and "tree" in parts:
            tree = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
            return self.answer(200, tree)
        if parts[0] == "api":
            siblings = [{"rfilename": file} for file in files]
            private = self.hub.private.get(name, False)
            return self.answer(200, {"id": name, "sha": commit, "siblings": siblings, "private": private, "tags": []})
        file = "/".join(parts[4:])  # owner/name/resolve/revision/file
        headers = {"X_Repo_Commit": commit}
        if file not in files:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **headers)
        etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
        return self.answer(200, files[file], ETag=etag, **headers)


@contextlib.contextmanager
def stand_in_hub() -> Iterator[Hub]:
    """Serve on a free port until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def take_for_the_hub(monkeypatch, server, cache) -> None:
    """Let this process take `server` for the Hub, with the cache folder `cache`."""
    without_waiting(monkeypatch)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def without_waiting(monkeypatch) -> None:
    """Let requests that fail be repeated at once, not after 1, 2, 4, ... seconds."""
    clock = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
