"""Who reads a link: the thread that waits for its frames, and while that one computes the link's own, the stand-in."""

from __future__ import annotations

import contextlib
import threading
from contextlib import ExitStack
from queue import SimpleQueue

import numpy as np
import pytest
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.errors import RingDown
from languagepipes_node.wire.frame import build_step, tensor_offset, value_count
from languagepipes_node.wire.link import Timing
from languagepipes_node.wire.slots import SlotPool
from languagepipes_node.wire.stage_communicator import Inbound, StageCommunicator
from languagepipes_node.wire.tls_transport import TlsTransport
from support.waiting import eventually
from support.wire_ring import FAST, Pki, TransportMaker, free_addresses, identity, make_plan, one_token

# Longer than any test: what ends such a wait earlier woke the thread.
LONG_SECONDS = 60.0
HIDDEN = np.zeros((1, 8), np.float32)
# Frames alone: no heartbeat comes between them.
QUIET = Timing(heartbeat_seconds=90.0, silence_seconds=90.0, handshake_seconds=5.0, connect_seconds=10.0)


class _Ended(Exception):
    """Ends the ring thread."""


class Ring:
    """An End Model, whose engine is the test, and one stage: its ring thread receives with a wait that is longer than
    the test, and computes on a frame until it `may_forward`. readers: of each frame, at either member.
    """

    def __init__(
        self, transports: TransportMaker, stack: ExitStack, *, end_timing: Timing = QUIET, stage_timing: Timing = QUIET
    ) -> None:
        plan = make_plan(stages=1)
        addresses = free_addresses(transports(0), 2)
        self.end = EndModelCommunicator(
            identity(0), plan, None, addresses[0], addresses[1], timing=end_timing, transport=transports(0)
        )
        self.stage = StageCommunicator(
            identity(1), plan, None, addresses[1], addresses[0], timing=stage_timing, transport=transports(1)
        )
        self.readers: dict[int, list[str]] = {0: [], 1: []}
        for place, member in ((0, self.end), (1, self.stage)):
            self._note_readers(place, member)
        self.may_forward: SimpleQueue[bool] = SimpleQueue()
        self.received: SimpleQueue[Inbound] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="ring thread", daemon=True)
        stack.callback(self._close)
        self.stage.start()
        self._thread.start()
        self.end.connect()

    def _note_readers(self, place: int, member: EndModelCommunicator | StageCommunicator) -> None:
        deliver = member._deliver

        def noted(*arguments: object) -> None:
            self.readers[place].append(threading.current_thread().name)
            deliver(*arguments)  # type: ignore[arg-type]

        member._deliver = noted  # type: ignore[method-assign]

    def _serve(self) -> None:
        with contextlib.suppress(_Ended):
            while True:
                inbound = self.stage.receive(LONG_SECONDS)
                if inbound is not None:
                    self.received.put(inbound)
                    if self.may_forward.get():
                        self.stage.forward(inbound, inbound.hidden, 0)

    def _end_thread(self) -> None:
        raise _Ended

    def send(self, step: int) -> None:
        self.end.send(step, one_token(), HIDDEN, 1)

    def stage_waits(self) -> None:
        """Until the ring thread waits for a frame."""
        session = self.stage._session
        assert session is not None
        assert session.inbound is not None
        eventually(session.inbound._turn.locked, what="the ring thread's turn")

    def _close(self) -> None:
        self.end.close()
        self.may_forward.put(False)
        # As if a hello had been offered, which ends the long wait; adopting it ends the thread.
        self.stage._adopt = self._end_thread  # type: ignore[method-assign]
        self.stage._pending = object()  # type: ignore[assignment]
        self.stage._queue.put(None)
        self._thread.join(LONG_SECONDS)
        assert not self._thread.is_alive()
        self.stage._pending = None
        self.stage.close()


@pytest.fixture
def ring(transports: TransportMaker, stack: ExitStack) -> Ring:
    return Ring(transports, stack)


def test_the_thread_that_waits_for_a_frame_reads_it(ring: Ring) -> None:
    for step in range(1, 21):
        ring.stage_waits()
        ring.send(step)
        ring.may_forward.put(True)
        returned = ring.end.receive(LONG_SECONDS)
        assert returned is not None
        assert returned.step == step
        returned.release()
    assert ring.readers[1] == ["ring thread"] * 20
    # The last frame may come before the engine waits: then its stand-in reads it.
    assert set(ring.readers[0]) <= {threading.current_thread().name, "receive-1"}


def test_frames_that_come_while_the_ring_thread_computes_are_read_meanwhile_and_served_in_order(ring: Ring) -> None:
    ring.stage_waits()
    for step in (1, 2, 3, 4):
        ring.send(step)
        if step == 1:
            ring.received.get(timeout=LONG_SECONDS)
    slots = ring.stage._slots
    eventually(lambda: slots.free == slots.count - 4, what="four frames in their slots")
    assert ring.readers[1] == ["ring thread", *["receive-0"] * 3]
    for step in (1, 2, 3, 4):
        ring.may_forward.put(True)
        returned = ring.end.receive(LONG_SECONDS)
        assert returned is not None
        assert returned.step == step
        returned.release()
    ring.stage_waits()
    assert slots.free == slots.count


def test_a_second_frame_in_the_same_tls_record_is_read_although_no_more_bytes_come(pki: Pki, stack: ExitStack) -> None:
    ring = Ring(lambda index: TlsTransport(pki.files(identity(index))), stack)
    session = ring.end._session
    assert session is not None
    assert session.outbound is not None
    record, limits = bytearray(), ring.end.limits
    for step in (1, 2):
        slot = SlotPool(limits).take()
        assert slot is not None
        header = build_step(slot.view, slot.ints, limits=limits, epoch=session.epoch, step=step, batch=one_token())
        begin = tensor_offset(value_count(header))
        slot.view[begin : begin + HIDDEN.nbytes] = HIDDEN.tobytes()
        record += slot.view[: begin + HIDDEN.nbytes]
        ring.end._expected.append((step, 0))
    ring.stage_waits()
    session.outbound._connection.write(bytes(record))
    ring.received.get(timeout=LONG_SECONDS)
    eventually(lambda: len(ring.readers[1]) == 2, what="the second frame")
    assert ring.readers[1] == ["ring thread", "receive-0"]


def test_a_hello_wakes_a_ring_thread_that_waits_for_a_frame(ring: Ring) -> None:
    for _ in range(3):
        ring.stage_waits()
        before = ring.stage.state.epoch
        ring.end.connect()
        assert ring.stage.state.epoch != before


def test_the_end_of_an_epoch_wakes_an_engine_that_waits_for_a_frame(ring: Ring) -> None:
    ring.send(1)
    ring.received.get(timeout=LONG_SECONDS)
    session = ring.end._session
    assert session is not None
    assert session.inbound is not None

    def drop() -> None:
        assert session.inbound is not None
        eventually(session.inbound._turn.locked, what="the engine's turn")
        ring.end.drop("step 1 is over its deadline")

    dropping = threading.Thread(target=drop)
    dropping.start()
    with pytest.raises(RingDown, match="step 1 is over its deadline"):
        ring.end.receive(LONG_SECONDS)
    dropping.join()


@pytest.mark.parametrize("busy", [False, True], ids=["waits", "computes"])
def test_silence_is_noticed_whatever_the_ring_thread_does(
    transports: TransportMaker, stack: ExitStack, busy: bool
) -> None:
    ring = Ring(transports, stack, stage_timing=FAST)  # its predecessor sends no heartbeat in time
    if busy:
        ring.send(1)
        ring.received.get(timeout=LONG_SECONDS)
    with pytest.raises(RingDown, match=r"no bytes from end-model for 0\.4 s") as raised:
        ring.end.receive(LONG_SECONDS)
    assert raised.value.code == "silence"
