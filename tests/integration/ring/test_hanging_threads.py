"""/healthz fails if a thread hangs that a member cannot do without, and not because one has nothing to do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from languagepipes_node.end_model.openai import server
from languagepipes_node.end_model.openai.server import ApiServer
from languagepipes_node.health import MemberState
from languagepipes_node.net.addresses import split_address
from languagepipes_node.wire import handshake, link
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.errors import RingDown
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_node.wire.tls_transport import TlsTransport
from support.ports import free_address
from support.waiting import eventually
from support.wire_ring import Pki, StageLoop, identity, make_plan, one_token

WAITING_SECONDS = 3.0  # above what a loaded machine takes for a look


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (handshake, link, server):
        monkeypatch.setattr(module, "WAITING_SECONDS", WAITING_SECONDS)
    monkeypatch.setattr(handshake, "_IDLE_SECONDS", 0.2)


@pytest.fixture
def going_on() -> Iterator[threading.Event]:
    """What hangs waits for this."""
    event = threading.Event()
    yield event
    event.set()


class OneStage:
    """A ring of an End Model and one stage, whose health `state` is."""

    def __init__(self, pki: Pki, stack: ExitStack) -> None:
        plan, addresses = make_plan(stages=1), (free_address(), free_address())
        self.state = MemberState("stage", state="ready")
        self.end = EndModelCommunicator(
            identity(0), plan, None, *addresses, transport=TlsTransport(pki.files(identity(0)))
        )
        stack.callback(self.end.close)
        self.stage = StageCommunicator(
            identity(1), plan, None, addresses[1], addresses[0],
            transport=TlsTransport(pki.files(identity(1))), watchdog=self.state.watchdog,
        )  # fmt: skip
        stack.callback(StageLoop(self.stage).close)

    def send(self, step: int) -> None:
        self.end.send(step, one_token(), np.zeros((1, 8), np.float32), 1)

    def hangs(self, what: str) -> None:
        eventually(lambda: self.state.error.startswith(f"{what} makes no progress"), seconds=30, what=what)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def ring(pki: Pki) -> Iterator[OneStage]:
    with ExitStack() as stack:
        yield OneStage(pki, stack)


def test_a_ring_that_has_nothing_to_do_is_healthy_in_and_between_epochs(ring: OneStage) -> None:
    for _ in range(3):
        ring.end.connect()
    until = time.monotonic() + 1.5 * WAITING_SECONDS
    while time.monotonic() < until:
        assert ring.end.receive(0.1) is None
        assert ring.state.alive
    ring.end.drop("enough")
    until = time.monotonic() + 1.5 * WAITING_SECONDS
    while time.monotonic() < until:
        assert ring.state.alive
        time.sleep(0.1)


def test_a_reader_that_hangs(ring: OneStage, monkeypatch: pytest.MonkeyPatch, going_on: threading.Event) -> None:
    monkeypatch.setattr(ring.stage, "_deliver", lambda *_: going_on.wait(60))
    ring.end.connect()
    ring.send(1)
    ring.hangs("the link from end-model")


def test_a_keeper_that_hangs(ring: OneStage, going_on: threading.Event) -> None:
    ring.end.connect()
    outbound = ring.stage._session.outbound  # type: ignore[union-attr]
    assert outbound is not None
    outbound._connection.readable = lambda seconds: going_on.wait(60)  # type: ignore[method-assign]
    ring.hangs("the link to end-model")


def test_an_acceptor_that_hangs(ring: OneStage, monkeypatch: pytest.MonkeyPatch, going_on: threading.Event) -> None:
    monkeypatch.setattr(ring.stage._acceptor, "_take", lambda arrival: going_on.wait(60))
    with pytest.raises(RingDown):
        ring.end.connect()
    ring.hangs("accepting the predecessor")


def test_a_reader_that_fails_for_a_reason_nobody_thought_of_ends_the_epoch_and_the_next_one_serves(
    ring: OneStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    ring.end.connect()
    with monkeypatch.context() as broken:
        broken.setattr(ring.stage, "_deliver", fail)
        ring.send(1)
        with pytest.raises(RingDown, match=r"stage 1 \(s1\): reading from end-model failed: MemoryError"):
            ring.end.receive(5.0)
    ring.end.connect()
    ring.send(2)
    assert ring.end.receive(5.0) is not None


def test_an_acceptor_without_a_thread_to_spare_accepts_once_there_is_one(
    ring: OneStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = threading.Thread.start, threading.Event()

    def start(thread: threading.Thread) -> None:
        if thread.name == "ring-handshake" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    host, port = split_address(ring.stage.address)
    socket.create_connection((host, port), timeout=5).close()
    assert refused.wait(10)
    ring.end.connect()
    ring.send(1)
    assert ring.end.receive(5.0) is not None


def test_an_event_loop_that_hangs(going_on: threading.Event) -> None:
    app, state = FastAPI(), MemberState("end-model", state="ready")

    @app.get("/hang")
    async def hang() -> None:
        going_on.wait(60)

    api = ApiServer(app, "127.0.0.1:0", watchdog=state.watchdog.another())
    ended: list[BaseException | None] = []
    api.start(on_end=ended.append)
    asking: Callable[[], object] = lambda: httpx.get(f"http://{api.address}/hang", timeout=90)  # noqa: E731
    try:
        until = time.monotonic() + 1.5 * WAITING_SECONDS
        while time.monotonic() < until:
            assert state.alive
            time.sleep(0.1)
        client = threading.Thread(target=asking)
        client.start()
        eventually(lambda: state.error.startswith("the API's event loop makes no progress"), seconds=30)
        going_on.set()
        client.join(10)
        eventually(lambda: state.alive)
    finally:
        going_on.set()
        api.stop()
    assert ended == [None]
    time.sleep(1.2 * WAITING_SECONDS)
    assert state.alive  # a server that was stopped is not one that hangs
