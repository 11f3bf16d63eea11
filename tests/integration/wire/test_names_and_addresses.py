"""Dialling by name: the resolver and dead addresses take no more than their time, and nothing is remembered."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from languagepipes_node.net import dialling
from languagepipes_node.weights import remote
from languagepipes_node.weights.errors import StoreUnavailable
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.errors import RingDown
from support.waiting import eventually
from support.wire_ring import FAST, Pki, identity, make_plan


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def full() -> Iterator[tuple[str, int]]:
    """An address whose backlog is full: it takes no SYN, as that of a pod that is gone."""
    with socket.socket() as server:
        server.bind(("127.0.0.2", 0))
        server.listen(0)
        held = [socket.socket() for _ in range(4)]
        for each in held:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        time.sleep(0.1)
        yield server.getsockname()
        for each in held:
            each.close()


def look_ups_end() -> None:
    """So that the next test's look-up of the same name is one of its own."""
    eventually(lambda: not dialling._lookups, what="no look-up in progress")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Names are not resolved until the test is over; addresses are."""
    over, real = threading.Event(), socket.getaddrinfo

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        if host == "hangs.default.svc":
            over.wait(30)
            return []
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    yield over
    over.set()
    look_ups_end()


def answers(*addresses: tuple[str, int]) -> object:
    """A resolver that gives these, in this order."""
    return lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]


def test_every_address_of_a_name_is_tried_and_a_dead_one_costs_a_second_at_most(
    server: socket.socket, full: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answers(full, full, server.getsockname()))
    began = time.monotonic()
    with dialling.connect("stage.ring.default.svc", 1, 4.0) as connected:
        assert connected.getpeername() == server.getsockname()
        assert connected.gettimeout() < 3
    assert time.monotonic() - began < 2.5


def test_a_refusing_address_costs_nothing(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answers(("127.0.0.1", 1), server.getsockname()))
    with dialling.connect("stage.ring.default.svc", 1, 2.0) as connected:
        assert connected.getpeername() == server.getsockname()


def test_all_addresses_dead_is_said_within_the_time(full: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answers(full, full, full))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        dialling.connect("stage.ring.default.svc", 1, 1.0)
    assert time.monotonic() - began < 1.3


def test_a_resolver_that_hangs_is_left_after_the_time_and_holds_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(30) and [])
    before = threading.active_count()
    for _ in range(5):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"hangs\.default\.svc was not resolved within 0\.1 s"):
            dialling.connect("hangs.default.svc", 1, 0.1)
        assert time.monotonic() - began < 1
    assert threading.active_count() == before + 1
    answered.set()
    look_ups_end()


def test_a_member_whose_successors_name_hangs_gives_up_after_its_time(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, hanging: threading.Event
) -> None:
    end = EndModelCommunicator(
        identity(0), make_plan(stages=1), pki.files(identity(0)), "127.0.0.1:0", "hangs.default.svc:1", timing=FAST
    )
    try:
        began = time.monotonic()
        with pytest.raises(RingDown, match=r"stage 1 \(s1\) at hangs\.default\.svc:1 did not answer within 1\.0 s"):
            end.connect()
        assert time.monotonic() - began < 5
    finally:
        end.close()


def test_a_store_whose_name_hangs_is_away_after_its_time(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, hanging: threading.Event
) -> None:
    monkeypatch.setattr(remote, "_CONNECT_TIMEOUT_SECONDS", 0.5)
    with remote.StoreClient("hangs.default.svc:1", pki.files(identity(1))) as client:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"hangs\.default\.svc was not resolved within 0\.5 s"):
            client.progress()
        assert time.monotonic() - began < 5


def test_a_name_is_looked_up_anew_each_time(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answers(("127.0.0.1", 1)))
    with pytest.raises(ConnectionRefusedError):
        dialling.connect("moves.default.svc", 1, 1.0)
    monkeypatch.setattr(socket, "getaddrinfo", answers(server.getsockname()))
    dialling.connect("moves.default.svc", 1, 1.0).close()


def test_a_name_that_does_not_exist_is_an_error_at_once() -> None:
    with pytest.raises(socket.gaierror):
        dialling.connect("no-such-name.invalid", 1, 5.0)
