"""A link is judged by its progress: slow ones serve, silent ones are given up, and both end soon when asked."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import numpy as np
import pytest
from languagepipes_node.wire.close import Close, close
from languagepipes_node.wire.errors import LinkLost
from languagepipes_node.wire.frame import Kind, control_frame
from languagepipes_node.wire.link import SendLink, Timing
from languagepipes_node.wire.ring import Epoch, members
from languagepipes_node.wire.tls_transport import TlsConnection, TlsTransport
from support.relayed_link import RelayedLink, mbit
from support.waiting import eventually
from support.wire_ring import Pki, build_ring, identity, make_plan, one_token, tokens

PLAN = make_plan(stages=1)
EPOCH = Epoch(1, b"endmodel")
PRODUCTION = Timing()
FRAME_BYTES = 8 << 20


class Peer:
    """The other end of a SendLink: reads at a rate until it is told to stop; `close_reasons` is whom the link told."""

    def __init__(self, pki: Pki, stack: ExitStack, *, through: Callable[[str], str] | None = None) -> None:
        buffers = 65_536 if through is None else None
        listener = TlsTransport(pki.files(identity(1)), socket_buffer_bytes=buffers).listen("127.0.0.1:0")
        self.taken = 0
        self.reading = threading.Event()
        self.reading.set()
        self.over = threading.Event()
        self.ended = threading.Event()
        self._rate = float("inf")
        self._listener = listener
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        stack.callback(self._thread.join)
        stack.callback(self.over.set)
        stack.callback(self.reading.set)
        self.dialled = TlsTransport(pki.files(identity(0)), socket_buffer_bytes=buffers).dial(
            through(listener.address) if through else listener.address, 5.0
        )

    def read_at(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second

    def answer(self, close_reason: Close) -> None:
        """Send the close frame and read no further, as a member does that ends the link."""
        self.over.set()
        assert self.ended.wait(10)
        self.connection.set_timeout(1.0)
        self.connection.write(control_frame(Kind.CLOSE, bytes(8), EPOCH, close_reason.pack()))

    def _serve(self) -> None:
        arrival = self._listener.accept()
        assert arrival is not None
        self.connection: TlsConnection = arrival.establish(5.0)  # type: ignore[assignment]
        self._listener.close()
        self._listener.accept()
        self.connection.set_timeout(0.2)
        view = memoryview(bytearray(4096))
        began, since = time.monotonic(), 0
        while not self.over.is_set():
            self.reading.wait()
            try:
                got = self.connection.read_into(view)
            except OSError:
                continue
            if got == 0:
                break
            self.taken += got
            since += got
            ahead = since / self._rate - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)
        self.ended.set()


@pytest.fixture
def link_to(stack: ExitStack) -> Callable[[Peer], SendLink]:
    def make(peer: Peer) -> SendLink:
        me, successor = members(PLAN)
        link = SendLink(
            peer.dialled, me=me, successor=successor, plan_hash=bytes(8), epoch=EPOCH, timing=PRODUCTION,
            lost=lambda close_reason: None,
        )  # fmt: skip
        link.start()

        def end() -> None:
            link.close(close(me, "shutdown", "the test is over"))
            link.join(5.0)

        stack.callback(end)
        return link

    return make


def sending(link: SendLink, size: int, stack: ExitStack) -> tuple[threading.Thread, list[Close]]:
    """Send in a thread; the reason why it failed, once it has."""
    failed: list[Close] = []

    def send() -> None:
        try:
            link.send(memoryview(bytearray(size)))
        except LinkLost as lost:
            failed.append(lost.close_reason)

    thread = threading.Thread(target=send)
    thread.start()
    stack.callback(thread.join)
    return thread, failed


def test_a_frame_that_takes_four_times_the_silence_is_sent_to_a_peer_that_reads_steadily(
    pki: Pki, stack: ExitStack, link_to: Callable[[Peer], SendLink]
) -> None:
    peer = Peer(pki, stack)
    peer.read_at(2 << 20)
    link = link_to(peer)
    began = time.monotonic()
    link.send(memoryview(bytearray(FRAME_BYTES)))
    assert time.monotonic() - began > 3 * PRODUCTION.silence_seconds
    eventually(lambda: peer.taken >= FRAME_BYTES, seconds=20)


def test_a_frame_does_not_pile_up_in_the_kernel_before_a_slow_link(
    pki: Pki, stack: ExitStack, link_to: Callable[[Peer], SendLink]
) -> None:
    relay: list[RelayedLink] = []

    def through(address: str) -> str:
        relay.append(stack.enter_context(RelayedLink(address, bytes_per_second=mbit(8))))
        return relay[0].address

    peer = Peer(pki, stack, through=through)
    # As large as the kernel makes it by itself for a connection that was fast.
    peer.dialled._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    link_to(peer).send(memoryview(bytearray(4 << 20)))
    assert relay[0].forwarded > 3 << 20


def test_a_peer_that_read_for_a_while_and_then_stops_is_given_up(
    pki: Pki, stack: ExitStack, link_to: Callable[[Peer], SendLink]
) -> None:
    peer = Peer(pki, stack)
    peer.read_at(16 << 20)
    link = link_to(peer)
    thread, failed = sending(link, 64 << 20, stack)
    eventually(lambda: peer.taken > 1 << 20)
    peer.reading.clear()
    began = time.monotonic()
    thread.join(10)
    assert [(reason.code, reason.message) for reason in failed] == [
        ("silence", "stage 1 (s1) has taken no bytes for 1.0 s")
    ]
    assert time.monotonic() - began < 4


def test_closing_in_the_middle_of_a_long_frame_ends_it_soon(
    pki: Pki, stack: ExitStack, link_to: Callable[[Peer], SendLink]
) -> None:
    peer = Peer(pki, stack)
    peer.read_at(1 << 20)
    link = link_to(peer)
    thread, failed = sending(link, 64 << 20, stack)  # a minute of it
    eventually(lambda: peer.taken > 1 << 20)
    reason = close(members(PLAN)[0], "deadline", "step 4 is over its deadline")
    began = time.monotonic()
    link.close(reason)
    thread.join(10)
    link.join(10)
    assert failed == [reason]
    assert time.monotonic() - began < 4


def test_the_peers_close_frame_in_the_middle_of_a_long_frame_is_its_reason(
    pki: Pki, stack: ExitStack, link_to: Callable[[Peer], SendLink]
) -> None:
    peer = Peer(pki, stack)
    peer.read_at(1 << 20)
    thread, failed = sending(link_to(peer), 64 << 20, stack)
    eventually(lambda: peer.taken > 1 << 20)
    reason = close(members(PLAN)[1], "lost", "link from elsewhere broke")
    began = time.monotonic()
    peer.answer(reason)
    thread.join(10)
    assert failed == [reason]
    assert time.monotonic() - began < 4


@pytest.mark.slow
def test_a_ring_over_20_mbit_passes_512_tokens_of_a_70b_model_in_one_epoch(pki: Pki, stack: ExitStack) -> None:
    frames, hidden_size = 2, 8192  # a third prompt, and the engine, go round in ring/test_slow_ring.py
    # With a tail layer all rows return: every hop carries 8 MiB, which take 3.4 s.
    plan = make_plan(
        stages=2, hidden_size=hidden_size, dtype="bfloat16", frame_tokens=512, max_context=512, kv_blocks=32,
        frames_in_flight=frames, tail=True,
    )  # fmt: skip
    relays: list[RelayedLink] = []

    def through(address: str) -> str:
        relay = RelayedLink(address, bytes_per_second=mbit(20), delay_seconds=0.02)
        relays.append(stack.enter_context(relay))
        return relay.address

    # These stages read float32: two numbers of bfloat16 are handed on as one.
    ring = build_ring(
        plan, lambda index: TlsTransport(pki.files(identity(index))), stack, timing=PRODUCTION, through=through,
        compute=lambda hidden: hidden,
    )  # fmt: skip
    epoch = ring.end.connect().epoch
    hidden = np.zeros((512, hidden_size), dtype=np.uint16)
    began = time.monotonic()
    for step in range(1, frames + 1):
        hidden[-1, -1] = step
        ring.end.send(step, tokens(512), hidden, 512)
    for step in range(1, frames + 1):
        returned = ring.end.receive(60.0)
        assert returned is not None
        assert (returned.step, returned.rows) == (step, 512)
        assert np.frombuffer(returned.hidden, dtype=np.uint16)[-1] == step
        returned.release()
    assert time.monotonic() - began > (frames + 2) * FRAME_BYTES / mbit(20) * 0.9  # it was as slow as said
    before = [relay.forwarded for relay in relays]
    assert ring.end.receive(2 * PRODUCTION.silence_seconds) is None
    # A heartbeat is 72 bytes and its TLS record's 22.
    assert all(relay.forwarded - was >= 3 * 94 for relay, was in zip(relays, before, strict=True))
    ring.end.send(frames + 1, one_token(), hidden[:1], 1)
    assert ring.end.receive(10.0) is not None
    assert ring.end.state.epoch == epoch
    assert [loop.communicator.state.epoch for loop in ring.loops] == [epoch, epoch]


def test_a_relayed_link_is_as_slow_as_far_and_as_broken_as_it_is_told(stack: ExitStack) -> None:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def echo() -> None:
        with suppress(OSError):
            while True:
                connected, _ = server.accept()
                with connected, suppress(OSError):
                    while data := connected.recv(65_536):
                        connected.sendall(data)

    threading.Thread(target=echo, daemon=True).start()
    host, port = server.getsockname()
    relay = stack.enter_context(RelayedLink(f"{host}:{port}", bytes_per_second=1e6, delay_seconds=0.1))

    def dial() -> socket.socket:
        there, port = relay.address.split(":")
        return stack.enter_context(socket.create_connection((there, int(port)), 5.0))

    def round_trip(connected: socket.socket, size: int) -> float:
        began, left = time.monotonic(), size
        threading.Thread(target=connected.sendall, args=(bytes(size),)).start()
        while left:
            got = len(connected.recv(65_536))
            assert got
            left -= got
        return time.monotonic() - began

    connected = dial()
    assert round_trip(connected, 1) >= 0.2
    assert round_trip(connected, 500_000) >= 0.6
    assert (relay.forwarded, relay.returned) == (500_001, 500_001)
    relay.bytes_per_second = None
    relay.freeze()
    connected.sendall(b"held")
    connected.settimeout(0.5)
    with pytest.raises(TimeoutError):
        connected.recv(4)
    relay.thaw()
    connected.settimeout(5.0)
    assert connected.recv(4) == b"held"
    relay.cut()
    with pytest.raises(ConnectionResetError):
        connected.recv(1)
    with pytest.raises(ConnectionResetError):
        dial().recv(1)  # the reset may come before the dial is through
    relay.mend()
    assert round_trip(dial(), 10) >= 0.2
    eventually(lambda: relay.connections == 1)
