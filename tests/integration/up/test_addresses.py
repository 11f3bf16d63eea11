"""Ports stay ours from before the first member starts until the end, whoever else asks for one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from languagepipes_operator.cli.up.addresses import HeldPorts, PortTaken


@pytest.fixture
def ports() -> Iterator[HeldPorts]:
    with HeldPorts() as ports:
        yield ports


def listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_server((host, int(port)))  # SO_REUSEADDR, as every member's listener has


def test_a_member_can_listen_on_a_held_port_again_and_again(ports: HeldPorts) -> None:
    address = ports.hold()
    for _ in range(3):
        with listen(address) as server, socket.create_connection(server.getsockname()) as client:
            connection, _ = server.accept()
            # The member's side closes first, which leaves its port in TIME_WAIT.
            connection.close()
            assert client.recv(1) == b""


def test_nobody_is_given_a_held_port_by_chance(ports: HeldPorts) -> None:
    held = {int(ports.hold().rpartition(":")[2]) for _ in range(50)}
    assert len(held) == 50
    with contextlib.ExitStack() as stack:
        for _ in range(2000):
            other = stack.enter_context(socket.socket())
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", 0))
            assert other.getsockname()[1] not in held


def test_a_port_where_somebody_listens_is_refused_with_the_remedy(ports: HeldPorts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortTaken) as refusal:
            ports.hold(port)
    assert str(refusal.value) == (
        f"port {port} on 127.0.0.1 is taken by another program: stop it, or choose another with --port"
    )


def test_a_port_that_somebody_left_a_moment_ago_is_not_refused(ports: HeldPorts) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        port = server.getsockname()[1]
        connection, _ = server.accept()
        connection.close()
        assert client.recv(1) == b""
    assert ports.hold(port) == f"127.0.0.1:{port}"


def test_ports_are_free_for_everybody_at_the_end() -> None:
    with HeldPorts() as ports:
        port = int(ports.hold().rpartition(":")[2])
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
