"""Unit tests need no network: a socket that would reach one is refused, on loopback too."""

from __future__ import annotations

import socket
from typing import Any

import pytest


class NoNetwork(socket.socket):
    """A socket that neither binds nor connects an IP address."""

    def connect(self, address: Any, /) -> None:
        self._refuse(address)
        super().connect(address)

    def connect_ex(self, address: Any, /) -> int:
        self._refuse(address)
        return super().connect_ex(address)

    def bind(self, address: Any, /) -> None:
        self._refuse(address)
        super().bind(address)

    def _refuse(self, address: Any) -> None:
        assert self.family not in (socket.AF_INET, socket.AF_INET6), (
            f"a unit test opens a connection to {address}: move it to tests/integration"
        )


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses to bind or connect an IP socket: such a test belongs to tests/integration."""
    monkeypatch.setattr(socket, "socket", NoNetwork)
