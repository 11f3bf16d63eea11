"""The store's HTTPS server: facts, progress, index, byte ranges, what was measured; for members of this pipe alone.

A thread a connection, blocking TLS, memory-mapped slices. The handshake runs in that thread under a deadline, so a
silent stranger never holds up the accept loop, and the number of connections is bounded. Why this and not uvicorn or
cheroot: docs/weights.md.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import BaseRequestHandler, TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import unquote, urlsplit

from languagepipes_api.names import Identity
from languagepipes_api.store_answers import ArithmeticChoices, Problem, StoreRefusal
from pydantic import ValidationError

from languagepipes_node import metrics
from languagepipes_node.net.addresses import address_family, split_address
from languagepipes_node.net.errors import TlsError
from languagepipes_node.net.tls import TlsFiles, peer_identity
from languagepipes_node.store.state import StoreState
from languagepipes_node.weights.errors import BrokenFile, StoreUnavailable, WeightsError
from languagepipes_node.weights.remote import etag

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
IDLE_SECONDS = 60.0
RETRY_AFTER_SECONDS = 1
MAX_CONNECTIONS = 256
_SEND_BYTES = 4 * 1024 * 1024
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")
_ARITHMETIC = re.compile(r"/v1/arithmetic/([0-9a-f]{64})")
_MAX_PUT_BYTES = 4096
_SUFFIX_RANGE = re.compile(r"bytes=-(\d{1,18})")


class StoreServer(ThreadingMixIn, TCPServer):
    """Serves `store_state` on `listen` to members of `identity`'s pipe. Raises OSError if it cannot bind."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, listen: str, tls: TlsFiles, identity: Identity, store_state: StoreState) -> None:
        host, port = split_address(listen)
        self.address_family = address_family(host)
        self.tls = tls
        self.identity = identity
        self.store_state = store_state
        tls.server_context()  # fails now rather than at the first connection
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Connection)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self, *, stop_poll_seconds: float = 0.5) -> None:
        """Accept from a thread of its own, which sees `stop` within `stop_poll_seconds`."""
        threading.Thread(target=self.serve_forever, args=(stop_poll_seconds,), name="store-accept", daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            log.warning("refused a connection: %d are open", MAX_CONNECTIONS)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Reached by whatever a connection's thread did not expect; the others go on.
        log.exception("a connection from %s failed", client_address)


class _Connection(BaseRequestHandler):
    """TLS first, then HTTP over it until the peer hangs up."""

    server: StoreServer

    def handle(self) -> None:
        raw: socket.socket = self.request
        raw.settimeout(HANDSHAKE_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with self.server.tls.server_context().wrap_socket(raw, server_side=True) as secured:
                peer = peer_identity(secured)
                secured.settimeout(IDLE_SECONDS)
                _Exchange(secured, peer, self.client_address, self.server)
        except (OSError, TlsError) as error:  # ssl.SSLError and time-outs are OSErrors
            log.debug("a connection from %s ended: %s", self.client_address, error)


class _Exchange(BaseHTTPRequestHandler):
    """One connection's requests."""

    protocol_version = "HTTP/1.1"
    server_version = "languagepipes-store"
    sys_version = ""
    server: StoreServer
    connection: ssl.SSLSocket

    def __init__(self, connection: ssl.SSLSocket, peer: Identity, address: Any, server: StoreServer) -> None:
        self._peer = peer
        super().__init__(connection, address, server)

    def do_GET(self) -> None:
        if self._is_ours():
            try:
                self._answer()
            except WeightsError as error:
                if error.retriable:
                    self._send_error(503, error.reason, str(error))
                else:
                    self._send_error(500, error.reason, str(error))

    def do_PUT(self) -> None:
        if not self._is_ours():
            return
        arithmetic = _ARITHMETIC.fullmatch(self.path)
        length = self.headers.get("Content-Length", "")
        if arithmetic is None or not length.isdecimal() or not 0 < int(length) <= _MAX_PUT_BYTES:
            self.close_connection = True  # its body is not read
            self._send_error(400, "WrongRequest", f"only /v1/arithmetic/SHA256 is put, in 1 to {_MAX_PUT_BYTES} bytes")
            return
        body = self.rfile.read(int(length))
        try:
            choices = ArithmeticChoices.model_validate_json(body)
        except ValidationError as error:
            self._send_error(400, "WrongRequest", f"these are no choices of arithmetic: {error.errors()[0]['msg']}")
            return
        self._send_json(self.server.store_state.arithmetic.put(arithmetic[1], choices).model_dump())

    def _is_ours(self) -> bool:
        """Whether the peer is a member of this pipe; else 403 is sent."""
        ours = self.server.identity
        if (self._peer.namespace, self._peer.pipe) == (ours.namespace, ours.pipe):
            return True
        self.close_connection = True
        self._send_error(403, "WrongPipe", f"this store belongs to {ours.namespace}/{ours.pipe}")
        return False

    def _answer(self) -> None:
        store_state, path = self.server.store_state, unquote(urlsplit(self.path).path)
        if path == "/v1/progress":
            self._send_json(store_state.progress().model_dump())
        elif path == "/v1/facts":
            facts = store_state.facts
            if facts is None:
                raise _why_not(store_state, "the model's facts are not known yet")
            self._send_json({"facts": facts.to_json()})
        elif path == "/v1/index":
            if store_state.index is None:
                raise _why_not(store_state, "the index is not made yet")
            if self._is_as_asked(store_state):
                self._send_body(200, store_state.index_json, "application/json")
        elif path.startswith("/v1/files/"):
            self._send_file(path.removeprefix("/v1/files/"))
        elif arithmetic := _ARITHMETIC.fullmatch(path):
            choices = store_state.arithmetic.get(arithmetic[1])
            if choices is None:
                self._send_error(404, "NotFound", "no member has measured this yet")
            else:
                self._send_json(choices.model_dump())
        else:
            known = "/v1/facts, /v1/progress, /v1/index, /v1/files/NAME and /v1/arithmetic/SHA256"
            self._send_error(404, "NotFound", f"there are {known}")

    def _is_as_asked(self, store_state: StoreState) -> bool:
        """Whether this is the revision of If-Match, if one is asked for; else 412 is sent."""
        asked = self.headers.get("If-Match")
        ours = store_state.weights_revision
        if asked is None or asked == etag(ours):
            return True
        planned = unquote(asked.strip('"'))[:100]
        self._send_error(
            412,
            "OtherRevision",
            f"the store has revision {ours} of the model, and the plan is for {planned}: members wait for a store that "
            "has it; if the files of the source were changed, put them back, or delete the pipe and apply it again",
        )
        return False

    def _send_file(self, name: str) -> None:
        store_state = self.server.store_state
        index = store_state.index
        if index is None:
            raise _why_not(store_state, "the index is not made yet")
        if not self._is_as_asked(store_state):
            return
        if name not in index.files:  # the index decides, never the file system
            self._send_error(404, "NotFound", "the index names no such file")
            return
        if name not in store_state.paths:
            raise _why_not(store_state, f"{name} is not verified yet")
        size = index.files[name]
        asked = self.headers.get_all("Range") or []
        span = _range(asked[0], size) if asked else (0, size)
        if span is None or len(asked) > 1:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin, end = span
        with store_state.paths[name].open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != size:
                raise BrokenFile(f"{name}: was changed while it was served; restart the store")
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
            self.send_header("Content-Length", str(end - begin))
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if begin < end:
                self._send_mapped(stream.fileno(), begin, end)

    def _send_mapped(self, descriptor: int, begin: int, end: int) -> None:
        served = metrics.STORE_SERVED_BYTES.labels(_member(self._peer))
        aligned = begin - begin % mmap.ALLOCATIONGRANULARITY
        with (
            mmap.mmap(descriptor, end - aligned, access=mmap.ACCESS_READ, offset=aligned) as mapped,
            memoryview(mapped) as view,
        ):
            mapped.madvise(mmap.MADV_SEQUENTIAL)
            for first in range(begin - aligned, end - aligned, _SEND_BYTES):
                with view[first : first + _SEND_BYTES] as part:
                    self.connection.sendall(part)
                    served.inc(len(part))

    def _send_json(self, value: object) -> None:
        self._send_body(200, json.dumps(value).encode(), "application/json")

    def _send_error(self, status: int, reason: str, message: str) -> None:
        refusal = StoreRefusal(error=Problem(reason=reason, message=message))
        self._send_body(status, json.dumps(refusal.model_dump()).encode(), "application/json")

    def _send_body(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", str(RETRY_AFTER_SECONDS))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _why_not(store_state: StoreState, otherwise: str) -> WeightsError:
    """The error that explains why something is not there: for good if the store failed, else for now."""
    if store_state.error is not None:
        return store_state.error if store_state.failed else StoreUnavailable(str(store_state.error))
    return StoreUnavailable(
        f"{otherwise}: {store_state.phase.lower()}, {store_state.done_bytes} of {store_state.total_bytes} bytes"
    )


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Half-open, of one range of RFC 9110 section 14.1.2; None if there is no such part of the file."""
    if match := _RANGE.fullmatch(header.strip()):
        begin = int(match[1])
        end = min(size, int(match[2]) + 1) if match[2] else size
        return (begin, end) if begin < end else None
    if match := _SUFFIX_RANGE.fullmatch(header.strip()):
        length = min(size, int(match[1]))
        return (size - length, size) if length else None
    return None


def _member(identity: Identity) -> str:
    """A bounded label: replicas and stages are bounded by the plan."""
    if identity.role == "stage":
        return f"replica-{identity.replica}/stage-{identity.index}"
    return f"replica-{identity.replica}/end-model" if identity.role == "end-model" else identity.role
