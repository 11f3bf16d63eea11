"""What passes a relay arrives whole and in order, and never sooner than it was told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.delay_relay import DelayFile, Relay


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that sends back what it gets, for one connection."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connected, _ = server.accept()
        with connected:
            while data := connected.recv(65536):
                connected.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    host, port = server.getsockname()
    yield f"{host}:{port}"
    server.close()
    thread.join(timeout=10)


def _round_trip(connected: socket.socket, data: bytes) -> tuple[bytes, float]:
    """What came back, and after how many seconds."""
    began = time.monotonic()
    threading.Thread(target=connected.sendall, args=(data,), daemon=True).start()
    got = b""
    while len(got) < len(data):
        got += connected.recv(65536)
    return got, time.monotonic() - began


def test_bytes_pass_whole_and_as_late_as_told_even_if_told_on_the_way(echo: str, tmp_path: Path) -> None:
    delay = DelayFile(tmp_path / "delay")
    told = DelayFile(tmp_path / "delay")  # as another process has it
    host, _, port = Relay(echo, delay).address.partition(":")
    data = bytes(range(256)) * 2000

    with socket.create_connection((host, int(port)), timeout=10) as connected:
        assert _round_trip(connected, data)[0] == data
        told.seconds = 0.05
        late, seconds = _round_trip(connected, data)
        connected.shutdown(socket.SHUT_WR)
        rest = connected.recv(1)

    assert late == data
    assert seconds >= 0.1  # there and back
    assert rest == b""


def test_a_delay_below_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a delay of -1 s: it is 0 or more"):
        DelayFile(tmp_path / "delay").seconds = -1
