"""A store behind an HTTP proxy: the only one that knows where the Hub is."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from languagepipes_node.weights.remote import StoreClient
from support.llama_files import COMMIT, LAYERS, repository
from support.stand_in_hub import StandIn, stand_in_hub
from support.store_members import END_MODEL, TlsFor, store_settings
from support.store_process import store_process
from support.waiting import eventually

HUB = "hub.invalid"


class Proxy(ThreadingHTTPServer):
    """Forwards plain HTTP, whatever the host's name is, to this machine; hosts: those that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.hosts: set[str] = set()


class _Forward(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Proxy)
        asked = urlsplit(self.path)
        self.server.hosts.add(asked.hostname or "")
        onward = http.client.HTTPConnection("127.0.0.1", asked.port or 80, timeout=30)
        onward.request(self.command, asked._replace(scheme="", netloc="").geturl(), headers=dict(self.headers))
        answer = onward.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.read())

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def hub() -> Iterator[StandIn]:
    with stand_in_hub() as hub:
        hub.add("org/tiny", COMMIT, repository())
        yield hub


def test_metadata_and_files_come_by_the_proxy_that_the_environment_names(
    hub: StandIn, proxy: Proxy, tls_for: TlsFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{HUB}:{urlsplit(hub.endpoint).port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    settings = store_settings(tls_for, "hf://org/tiny", cache_dir=tmp_path / "cache")

    with store_process(settings), StoreClient(settings.store_listen or "", tls_for(END_MODEL)) as client:
        assert client.facts().layer_count == LAYERS
        eventually(lambda: client.progress()["phase"] == "Ready", seconds=120, what="the weights")

    assert HUB in proxy.hosts
