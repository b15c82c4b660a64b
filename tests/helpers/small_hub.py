"""A stand-in on this machine for the Hugging Face hub: as much of its HTTP API as its client needs to make a repository
and to upload and fetch files. Files of weights go the way of large ones."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

LARGE = ".safetensors"


class Hub:
    """What the stand-in holds, and what was asked of it: (method, path, token)."""

    def __init__(self) -> None:
        self.address = ""
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.told_sizes: dict[str, int] = {}  # instead of the true ones
        self.token = "hf_of_the_test"

    def commit_of(self, name: str) -> str:
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.repositories[name].items())
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()


def answer(hub: Hub, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content for a request."""

    def said(content: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json"}, json.dumps(content).encode()

    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        there = name in hub.repositories
        hub.repositories.setdefault(name, {})
        hub.private.setdefault(name, bool(asked.get("private")) or asked.get("visibility") == "private")
        return said({"url": f"{hub.address}/{name}", "name": name}, 409 if there else 200)
    if path == "/api/validate-yaml":
        return said({"errors": [], "warnings": []})
    if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
        files = json.loads(body)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in files
        ]
        return said({"files": modes})
    if re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
        objects = [
            {
                "oid": each["oid"],
                "size": each["size"],
                "actions": {"upload": {"href": f"{hub.address}/blobs/{each['oid']}"}},
            }
            for each in json.loads(body)["objects"]
        ]
        return said({"transfer": "basic", "objects": objects})
    if method == "PUT" and path.startswith("/blobs/"):
        hub.blobs[path.rpartition("/")[2]] = body
        return said({})
    if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
        files = hub.repositories[found[1]]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
        commit = hub.commit_of(found[1])
        return said({"commitUrl": f"{hub.address}/{found[1]}/commit/{commit}", "commitOid": commit, "success": True})
    if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/[^/]+)?", path):
        if (files := hub.repositories.get(found[1])) is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        siblings = [{"rfilename": name, "size": hub.told_sizes.get(name, len(data))} for name, data in files.items()]
        return said({"id": found[1], "sha": hub.commit_of(found[1]), "siblings": siblings, "private": False})
    if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        files = hub.repositories.get(found[1], {})
        if found[3] not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        data = files[found[3]]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": hub.commit_of(found[1])}
        return 200, headers, data
    return 404, {}, b""


@contextmanager
def small_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.read_body()
            path = urlsplit(self.path).path
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.requests.append((self.command, path, token))
            writes = self.command in ("POST", "PUT") and not path.startswith("/blobs/")
            refused = writes and token != hub.token
            status, headers, content = (403, {}, b"") if refused else answer(hub, self.command, path, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
