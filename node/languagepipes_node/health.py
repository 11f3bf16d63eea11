"""A member's own HTTP port: /metrics, /healthz, /readyz and /status. It never shows text of a request.

Liveness depends on this process alone: it fails after a minute without progress while weights load, and when a thread
that the member cannot do without takes longer for a step than it announced to its `Watchdog`: the ring thread or the
engine, those that accept, read and keep links, the API's event loop.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from languagepipes_api.member_status import MemberStatus
from prometheus_client import make_wsgi_app

from languagepipes_node import metrics
from languagepipes_node.net.addresses import address_family, split_address
from languagepipes_node.net.errors import TlsError
from languagepipes_node.net.tls import TlsFiles

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_LOADING_STALL_SECONDS = 60.0
# A question and its answer take milliseconds.
_CONNECTION_SECONDS = 30.0
# A waiting thread reports to its watchdog at least five times a second, so this is ample.
WAITING_SECONDS = 60.0
# One frame's compute. The End Model gives a frame of a size never seen 120 s, since the first may page in all weights.
COMPUTING_SECONDS = 180.0


class Watchdog:
    """Notices that a thread hangs: it announces each step and how long that may take. `expect` is cheap."""

    def __init__(self) -> None:
        self._what, self._until = "", float("inf")
        self._lock = threading.Lock()
        self._others: weakref.WeakSet[Watchdog] = weakref.WeakSet()

    def another(self) -> Watchdog:
        """For one more thread: what hangs there is an error here too, for as long as the returned object is kept."""
        watchdog = Watchdog()
        with self._lock:
            self._others.add(watchdog)
        return watchdog

    def expect(self, what: str, within_seconds: float) -> None:
        """The thread begins `what`, and calls `expect` or `rest` again within that time."""
        self._what, self._until = what, time.monotonic() + within_seconds

    def rest(self) -> None:
        """Nothing is expected any more."""
        self._until = float("inf")

    @property
    def error(self) -> str:
        """What hangs; empty if nothing does."""
        late = time.monotonic() - self._until
        if late > 0:
            return f"{self._what} makes no progress: {late:.0f} s over its time"
        with self._lock:
            others = list(self._others)
        return next((error for other in others if (error := other.error)), "")


@dataclass
class MemberState:
    """What a member reports of itself. state: "starting" | "waiting" | "loading" | "ready" | "failed".

    Fields are written by one thread and read by any; each is replaced whole. `extra`: the fields of `MemberStatus` that
    only its role has, asked at each /status. tls: the files that its connections use, once known. watchdog: of the
    working thread; `another` of the rest.
    """

    role: str
    state: str = "starting"
    message: str = ""
    loaded_bytes: int = 0
    total_bytes: int = 0
    extra: Callable[[], dict[str, Any]] = field(default=dict)
    progressed_at: float = field(default_factory=time.monotonic)
    tls: TlsFiles | None = None
    watchdog: Watchdog = field(default_factory=Watchdog)

    def enter(self, state: str, message: str = "") -> None:
        self.state, self.message = state, message
        self.progressed_at = time.monotonic()

    def wait(self, dependency: str, why: str) -> None:
        """While the state is "waiting": what it waits for, and why. Otherwise nothing changes."""
        if self.state == "waiting":
            self.message = f"waiting for {dependency}: {why}"

    def loaded(self, total_bytes: int) -> None:
        """Report how many bytes of weights are in place by now."""
        self.loaded_bytes = total_bytes
        self.progressed_at = time.monotonic()
        metrics.LOAD_BYTES.set(self.loaded_bytes)

    def moving(self) -> None:
        """Loading is not stuck: bytes of a tensor arrived, or the store is away, which no restart would help."""
        self.progressed_at = time.monotonic()

    def to_load(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        metrics.LOAD_TOTAL_BYTES.set(total_bytes)

    @property
    def error(self) -> str:
        """Why this process must be restarted; empty if it need not be."""
        if self.state == "loading" and time.monotonic() - self.progressed_at >= _LOADING_STALL_SECONDS:
            return "loading makes no progress"
        return self.watchdog.error

    @property
    def alive(self) -> bool:
        return not self.error

    def status(self) -> MemberStatus:
        """The answer of /status now."""
        fields = {
            "role": self.role,
            "state": self.state,
            "message": self.message,
            "loaded_bytes": self.loaded_bytes,
            "total_bytes": self.total_bytes,
            **self._certificates(),
            **self.extra(),
        }
        return MemberStatus.model_validate(fields, extra="forbid")

    def _certificates(self) -> dict[str, Any]:
        """bundle: SHA-256 of the ca.crt that a connection made now would use; the operator rotates the CA by it."""
        if self.tls is not None:
            try:
                report = self.tls.report()
            except TlsError:
                pass  # reported where a connection is needed
            else:
                ends = datetime.fromtimestamp(report.leaf_not_after, UTC).isoformat()
                return {"bundle": report.bundle, "leaf_not_after": ends}
        return {"bundle": "", "leaf_not_after": None}

    def certificate_expiry(self) -> float:
        """Unix time; 0 while there is no certificate that can be used."""
        try:
            return 0.0 if self.tls is None else self.tls.report().leaf_not_after
        except TlsError:
            return 0.0


class _Server(ThreadingMixIn, WSGIServer):
    """Closes a connection that is still open after `_CONNECTION_SECONDS`: each holds a thread, and a client that sends
    a byte now and then would hold it for good.
    """

    request_queue_size = 64
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._since: dict[Any, float] = {}  # by connection
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called by `serve_forever`, twice a second."""
        late = time.monotonic() - _CONNECTION_SECONDS
        for request, since in list(self._since.items()):
            if since < late:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)  # the thread that reads from it ends


class _ServerIPv6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # how long a client that connects and sends nothing may hold a thread

    def log_message(self, format: str, *args: Any) -> None:
        pass


def accepted_format(accept: str) -> str:
    """The Accept header to answer: prometheus_client writes `vllm:…` as `vllm_…` in OpenMetrics unless the scraper says
    that it takes any name (Prometheus 3 does). Others get the plain text format, which all of them take."""
    return accept if "escaping=allow-utf-8" in accept.replace(" ", "") else "text/plain; version=0.0.4"


def serve(listen: str, state: MemberState, *, ready: Callable[[], tuple[bool, str]] | None = None) -> WSGIServer:
    """Serve health and metrics on `listen` ("host:port", an IPv6 host in brackets) from a daemon thread.

    ready: called at each /readyz for (ready, reason); by default a member is ready in state "ready". Raises OSError if
    the address cannot be bound.
    """
    exposition = make_wsgi_app()
    metrics.CERTIFICATE_EXPIRY.set_function(state.certificate_expiry)

    def readiness() -> tuple[bool, str]:
        if ready is not None:
            return ready()
        return state.state == "ready", state.message or state.state

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            environ["HTTP_ACCEPT"] = accepted_format(environ.get("HTTP_ACCEPT", ""))
            shown: Iterable[bytes] = exposition(environ, start_response)
            return shown
        if path == "/healthz":
            error = state.error
            return _answer(start_response, not error, error or "ok")
        if path == "/readyz":
            is_ready, reason = readiness()
            return _answer(start_response, is_ready, "ok" if is_ready else reason)
        if path == "/status":
            body = json.dumps(state.status().to_json()).encode()
            start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
            return [body]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"this port serves /metrics, /healthz, /readyz and /status\n"]

    host, port = split_address(listen)
    kind = _ServerIPv6 if address_family(host) == socket.AF_INET6 else _Server
    server = make_server(host, port, application, kind, _QuietHandler)
    threading.Thread(target=server.serve_forever, name="telemetry", daemon=True).start()
    return server


def _answer(start_response: StartResponse, good: bool, text: str) -> Iterable[bytes]:
    body = f"{text}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response("200 OK" if good else "503 Service Unavailable", headers)
    return [body]
