"""Members that are killed, stopped or cut off: the others notice within two seconds and serve again when it is back.

Stage 2 is a process; the others live here, with the timing of production.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from languagepipes_node.wire.close import close
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator, RingInfo
from languagepipes_node.wire.errors import LinkLost, RingDown
from languagepipes_node.wire.link import SendLink
from languagepipes_node.wire.ring import Epoch, members
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_node.wire.tls_transport import TlsTransport
from languagepipes_node.wire.transport import Connection
from support.waiting import eventually
from support.wire_ring import (
    FAST,
    Pki,
    RunningRing,
    StageLoop,
    free_addresses,
    identity,
    make_plan,
    one_token,
    tokens,
)

NOTICED_SECONDS = 2.0


class StageTwo:
    """The process, which can be started again."""

    def __init__(self, addresses: list[str], pki: Pki, options: dict[str, Any]) -> None:
        directory = pki.files(identity(2)).directory
        module = (sys.executable, "-m", "support.stage_process")
        self._command = [*module, "2", json.dumps(addresses), str(directory), json.dumps(options)]
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(self._command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "listening\n"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def ring_around_a_process(pki: Pki, **options: Any) -> Iterator[tuple[RunningRing, StageTwo]]:
    buffers = options.get("socket_buffer_bytes")
    plan = make_plan(**{name: value for name, value in options.items() if name != "socket_buffer_bytes"})

    def transport(index: int) -> TlsTransport:
        return TlsTransport(pki.files(identity(index)), socket_buffer_bytes=buffers)

    with ExitStack() as stack:
        addresses = free_addresses(transport(0), 4)
        two = StageTwo(addresses, pki, options)
        stack.callback(two.end)
        end = EndModelCommunicator(identity(0), plan, None, addresses[0], addresses[1], transport=transport(0))
        stack.callback(end.close)
        loops = []
        for index in (1, 3):
            communicator = StageCommunicator(
                identity(index), plan, None, addresses[index], addresses[(index + 1) % 4], transport=transport(index)
            )
            loops.append(StageLoop(communicator, lambda hidden: hidden))
            stack.callback(loops[-1].close)
        yield RunningRing(end, loops), two


def serve_one(end: EndModelCommunicator, step: int = 1) -> None:
    end.send(step, one_token(), np.zeros((1, 8), np.float32), 1)
    returned = end.receive(2.0)
    assert returned is not None
    returned.release()


def send_and_receive(end: EndModelCommunicator, hidden: np.ndarray) -> None:
    for step in range(4):
        end.send(step, tokens(128), hidden, 128)
    for _ in range(10):
        assert end.receive(0.5) is None


def connect_again(end: EndModelCommunicator, *, seconds: float = 10.0) -> RingInfo:
    """As the engine does: until it works."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return end.connect()
        except RingDown:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def loss_of(ring: RunningRing) -> str:
    """Wait until everyone has noticed, at most two seconds; the End Model's reason."""
    begin = time.monotonic()
    with pytest.raises(RingDown) as raised:
        assert ring.end.receive(NOTICED_SECONDS) is not None, "the End Model did not notice"
    left = NOTICED_SECONDS - (time.monotonic() - begin)
    eventually(lambda: all(loop.communicator.state.epoch is None for loop in ring.loops), seconds=max(left, 0.05))
    return raised.value.reason


def test_a_killed_stage_is_noticed_and_served_again_after_its_restart(pki: Pki) -> None:
    with ring_around_a_process(pki) as (ring, two):
        before = ring.end.connect()
        serve_one(ring.end)
        two.end()
        assert "stage 2 (s2)" in loss_of(ring)
        two.start()
        after = connect_again(ring.end)
        serve_one(ring.end)
        changed = [new.name for old, new in zip(before.members, after.members, strict=True) if old.kv_id != new.kv_id]
        assert changed == ["s2"]


def test_a_stopped_stage_is_noticed_by_its_silence_and_served_again_when_it_goes_on(pki: Pki) -> None:
    with ring_around_a_process(pki) as (ring, two):
        before = ring.end.connect()
        serve_one(ring.end)
        two.signal(signal.SIGSTOP)
        try:
            assert loss_of(ring) == "stage 3 (s3): no bytes from stage 2 (s2) for 1.0 s"
        finally:
            two.signal(signal.SIGCONT)
        after = connect_again(ring.end)
        serve_one(ring.end)
        assert [entry.kv_id for entry in before.members] == [entry.kv_id for entry in after.members]


def test_a_stage_stopped_under_a_blocked_send_blocks_nobody_for_good(pki: Pki) -> None:
    options = {"socket_buffer_bytes": 4096, "hidden_size": 4096, "frame_tokens": 128, "frames_in_flight": 4}
    with ring_around_a_process(pki, **options) as (ring, two):
        ring.end.connect()
        two.signal(signal.SIGSTOP)
        try:
            hidden = np.zeros((128, 4096), np.float32)  # 2 MiB, which the buffers cannot hold
            begin = time.monotonic()
            with pytest.raises(RingDown):
                send_and_receive(ring.end, hidden)
            assert time.monotonic() - begin < 4
            eventually(lambda: all(loop.communicator.state.epoch is None for loop in ring.loops))
        finally:
            two.signal(signal.SIGCONT)
        connect_again(ring.end)
        ring.end.send(1, tokens(128, wanted=(127,)), hidden, 128)
        assert ring.end.receive(5.0) is not None


def test_a_stopped_end_model_is_noticed_by_the_stages(pki: Pki) -> None:
    """A process cannot stop itself in a test, so its heartbeats are: the connection stays and says nothing."""
    with ring_around_a_process(pki) as (ring, _):
        ring.end.connect()
        link = ring.end._session.outbound  # type: ignore[union-attr]
        assert link is not None
        with link._lock:  # heartbeats and sends go under this lock
            eventually(lambda: ring.loops[0].communicator.state.epoch is None, seconds=NOTICED_SECONDS)
            assert ring.loops[0].communicator.state.reason == "stage 1 (s1): no bytes from end-model for 1.0 s"
        connect_again(ring.end)
        serve_one(ring.end)


def test_a_frame_that_the_successor_does_not_take_ends_the_link_by_name(pki: Pki) -> None:
    listener = TlsTransport(pki.files(identity(1))).listen("127.0.0.1:0")
    taken: list[Connection] = []

    def accept() -> None:
        arrival = listener.accept()
        assert arrival is not None
        taken.append(arrival.establish(2.0))

    accepting = threading.Thread(target=accept)
    accepting.start()
    connection = TlsTransport(pki.files(identity(0))).dial(listener.address, 2.0)
    accepting.join()
    me, successor = members(make_plan(stages=1))
    link = SendLink(
        connection, me=me, successor=successor, plan_hash=bytes(8), epoch=Epoch(1, b"endmodel"), timing=FAST,
        lost=lambda close_reason: None,
    )  # fmt: skip
    link.start()
    try:
        with pytest.raises(LinkLost, match=r"stage 1 \(s1\) has taken no bytes for 0\.4 s"):
            link.send(memoryview(bytearray(64 << 20)))
    finally:
        link.close(close(me, "shutdown", "the test is over"))
        link.join(2.0)
        taken[0].close(0)
        listener.close()
        listener.accept()
