"""The port of /metrics and health that every member has."""

from __future__ import annotations

import urllib.request

import pytest
from languagepipes_node import health
from languagepipes_node.health import MemberState


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_health_is_served_on_ipv4_and_ipv6(host: str) -> None:
    server = health.serve(f"{host}:0", MemberState("stage"))
    try:
        with urllib.request.urlopen(f"http://{host}:{server.server_port}/healthz", timeout=5) as response:
            assert response.read() == b"ok\n"
    finally:
        server.shutdown()
        server.server_close()
