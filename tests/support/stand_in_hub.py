"""A stand-in for the Hub on loopback, which speaks its protocol as huggingface_hub asks it: metadata with sizes and
hashes, resolve with X-Repo-Commit and linked headers, a redirect of large files to another host, ranges, and errors.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in_token"
_REVISION = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """files: by commit. refs: branch or tag → commit. gated: whether a token is asked for."""

    files: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    gated: bool = False


@dataclass
class StandIn:
    """What the hub holds, how it misbehaves, and what it was asked.

    cut_after: file → bytes after which the connection is cut, once. wrong: files whose bytes differ from their hash.
    failing: how many of the next requests are answered 503. no_ranges: Range is ignored.
    together: files whose bytes come only once as many of them are asked for as the barrier counts.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    failing: int = 0
    no_ranges: bool = False
    together: dict[str, threading.Barrier] = field(default_factory=dict)
    endpoint: str = ""
    cdn: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)

    def add(
        self, name: str, commit: str, files: dict[str, bytes], *, branch: str = "main", gated: bool = False
    ) -> None:
        repository = self.repositories.setdefault(name, Repository({}, {}))
        repository.files[commit] = files
        repository.refs[branch] = commit
        repository.gated = gated

    def sent_bytes(self) -> int:
        return sum(self.sent.values())

    def forget(self) -> None:
        self.requests.clear()
        self.sent.clear()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn
    is_cdn = False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.stand_in
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, dict(self.headers)))
        if hub.failing:
            hub.failing -= 1
            self._error(503, "", "try later")
        elif self.is_cdn:
            _, repository, commit, name = path.split("/", 3)
            self._body(name, hub.repositories[repository.replace("--", "/")].files[commit][name], {})
        elif match := _REVISION.fullmatch(path):
            self._metadata(match[1], match[2])
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._error(404, "", "no such route")

    def _find(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.stand_in.repositories.get(name)
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None:
            self._error(401, "RepoNotFound", "Repository not found")
        elif repository.gated and not authorized:
            self._error(401, "GatedRepo", "Access to this model is restricted")
        elif (commit := repository.refs.get(revision, revision)) not in repository.files:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository, commit
        return None

    def _metadata(self, name: str, revision: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        repository, commit = found
        siblings: list[dict[str, Any]] = []
        for file, data in repository.files[commit].items():
            sibling: dict[str, Any] = {"rfilename": file}
            if "blobs=" in self.path:
                sibling |= {"size": len(data), "blobId": _git_sha1(data)}
                if is_large(file):
                    digest = hashlib.sha256(data).hexdigest()
                    sibling["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        body = json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False}).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _resolve(self, name: str, revision: str, file: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        repository, commit = found
        data = repository.files[commit].get(file)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_sha1(data)}"'}
        if is_large(file):
            headers |= {
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                "Location": f"{self.stand_in.cdn}/{name.replace('/', '--')}/{commit}/{file}?signature=secret",
                "Content-Length": "0",
            }
            self._head(302, headers)
        else:
            self._body(file, data, headers)

    def _body(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        hub = self.stand_in
        if name in hub.wrong:
            data = data[:-1] + bytes([data[-1] ^ 1])
        begin, end, status = 0, len(data), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not hub.no_ranges:
            begin, end, status = int(asked[1]), min(end, int(asked[2]) + 1) if asked[2] else end, 206
            if begin >= len(data):
                self._head(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
                return
            headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
        self._head(status, {**headers, "Content-Length": str(end - begin), "Accept-Ranges": "bytes"})
        if self.command == "HEAD":
            return
        if not asked and (barrier := hub.together.get(name)) is not None:
            barrier.wait(timeout=20)
        part = data[begin:end]
        cut = hub.cut_after.get(name)
        if cut is not None and len(part) > cut:
            del hub.cut_after[name]
            part = part[:cut]
            self.close_connection = True
        hub.sent[name] = hub.sent.get(name, 0) + len(part)
        self.wfile.write(part)
        if self.close_connection:
            self.wfile.flush()
            self.connection.close()

    def _error(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "X-Error-Message": message}
        self._head(status, headers | ({"X-Error-Code": code} if code else {}))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # connections that are cut on purpose


@contextmanager
def stand_in_hub(host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None) -> Iterator[StandIn]:
    """Two servers, on loopback by default: the hub, and the other host that large files are redirected to."""
    hub = StandIn()
    handlers = [
        type("Hub", (_Handler,), {"stand_in": hub}),
        type("Cdn", (_Handler,), {"stand_in": hub, "is_cdn": True}),
    ]
    servers = [_QuietServer((host, 0), handler) for handler in handlers]
    for server in servers:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.endpoint, hub.cdn = (
        f"{'http' if tls is None else 'https'}://{host}:{server.server_address[1]}" for server in servers
    )
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
