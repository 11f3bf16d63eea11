"""The port of /metrics and health that every member has."""

from __future__ import annotations

import contextlib
import select
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from languagepipes_api.names import Identity
from languagepipes_node import health
from languagepipes_node.end_model.openai.server import ApiServer
from languagepipes_node.health import MemberState
from languagepipes_node.net.addresses import split_address
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.store.server import StoreServer
from languagepipes_node.store.state import StoreState
from languagepipes_node.wire.tls_transport import TlsTransport
from languagepipes_operator.certificates.authority import issue, new_ca, write_tls_dir


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_health_is_served_on_ipv4_and_ipv6(host: str) -> None:
    server = health.serve(f"{host}:0", MemberState("stage"))
    try:
        with urllib.request.urlopen(f"http://{host}:{server.server_port}/healthz", timeout=5) as response:
            assert response.read() == b"ok\n"
    finally:
        server.shutdown()
        server.server_close()


def test_a_client_that_sends_a_byte_now_and_then_holds_no_thread_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_CONNECTION_SECONDS", 0.5)
    server = health.serve("127.0.0.1:0", MemberState("stage"))
    try:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as slow:
            started = time.monotonic()
            with contextlib.suppress(ConnectionError):
                slow.sendall(b"GET /healthz HTTP/1.1\r\n")
                while not select.select([slow], [], [], 0.1)[0]:
                    assert time.monotonic() - started < 5
                    slow.sendall(b"X: 1\r\n")
                slow.recv(1)
        assert 0.4 < time.monotonic() - started < 3
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/healthz", timeout=5) as response:
            assert response.read() == b"ok\n"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", ["health", "ring", "store", "api"])
def test_all_addresses_means_both_families_at_every_port(kind: str, tmp_path: Path) -> None:
    ca, who = new_ca("default", "p"), Identity("default", "p", -1, "store")
    write_tls_dir(tmp_path, ca, issue(ca, who))
    close: Callable[[], object]
    if kind == "health":
        server = health.serve("[::]:0", MemberState("stage"))
        port, close = server.server_port, server.server_close
    elif kind == "ring":
        listener = TlsTransport(TlsFiles(tmp_path)).listen("[::]:0")
        port, close = split_address(listener.address)[1], listener.close
    elif kind == "store":
        store = StoreServer("[::]:0", TlsFiles(tmp_path), who, StoreState())
        port, close = store.port, store.server_close
    else:
        api = ApiServer(FastAPI(), "[::]:0")
        port, close = split_address(api.address)[1], api.stop
    try:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()
    finally:
        close()
