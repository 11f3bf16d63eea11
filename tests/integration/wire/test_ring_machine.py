"""Two real stages between a predecessor and a successor that do anything: random hellos, closed links, stale frames,
wild frames. Whatever happens, a frame is computed in its own epoch only, names only blocks of the plan, and a rightful
hello is served. The same machine runs over memory and over sockets.
"""

from __future__ import annotations

import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from languagepipes_node.wire import frame as frames
from languagepipes_node.wire.close import Close
from languagepipes_node.wire.errors import FrameError
from languagepipes_node.wire.frame import HEADER_BYTES, FrameLimits, Kind, control_frame
from languagepipes_node.wire.hello import Hello, new_hello, own_entry, parse_close, parse_hello
from languagepipes_node.wire.link import Timing, read_control, read_exactly
from languagepipes_node.wire.ring import NO_EPOCH, Epoch, Ring
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_node.wire.tls_transport import TlsTransport
from languagepipes_node.wire.transport import Connection, Listener, Transport
from support.memory_network import MemoryNetwork
from support.waiting import eventually
from support.wire_ring import Pki, StageLoop, free_addresses, identity, make_plan, one_token

PLAN = make_plan(stages=2, frames_in_flight=3)
OTHER_PLAN = make_plan(stages=2, frames_in_flight=3, revision="r2")
LIMITS = FrameLimits.from_plan(PLAN)
# Nothing here depends on time: heartbeats are rare and silence is long.
PATIENT = Timing(heartbeat_seconds=5.0, silence_seconds=20.0, handshake_seconds=5.0)
IDS = (b"process1", b"process2")


class Returning:
    """Where the last stage connects to: a hello and its connection at a time."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.hellos: SimpleQueue[tuple[Connection, Hello]] = SimpleQueue()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while (arrival := self.listener.accept()) is not None:
            connection = arrival.establish(5.0)
            _, body = read_control(connection, kinds=(Kind.HELLO,))
            self.hellos.put((connection, parse_hello(body)))


class RingMachine(RuleBasedStateMachine):
    """The predecessor of stage 1 and the successor of stage 2, with a model of what they must do."""

    def transports(self, exits: ExitStack) -> Callable[[int], Transport]:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.exits = ExitStack()
        make = self.transports(self.exits)
        addresses = free_addresses(make(0), 3)
        self.mine = make(0)
        self.returning = Returning(self.mine.listen(addresses[0]))
        self.exits.callback(self.returning.listener.close)
        self.address = addresses[1]
        self.loops = []
        for index in (1, 2):
            communicator = StageCommunicator(
                identity(index), PLAN, None, addresses[index], addresses[(index + 1) % 3],
                timing=PATIENT, transport=make(index),
            )  # fmt: skip
            self.loops.append(StageLoop(communicator, self.judge(communicator)))
            self.exits.callback(self.loops[-1].close)
        self.highest = NO_EPOCH
        self.epoch: Epoch | None = None
        self.older: list[Epoch] = []
        self.links: list[Connection] = []
        self.expected: deque[int] = deque()
        self.step = 0
        self.wrong: list[str] = []

    def judge(self, communicator: StageCommunicator) -> Callable[[np.ndarray], np.ndarray]:
        """What every frame that reaches the layers must satisfy: its tensor says its step and epoch."""

        def compute(hidden: np.ndarray) -> np.ndarray:
            session = communicator._session
            if session is not None and session.epoch.counter < int(hidden[0, 1]):
                self.wrong.append(f"a frame of epoch {hidden[0, 1]} in epoch {session.epoch}")
            if int(hidden[0, 1]) not in {epoch.counter for epoch in [*self.older, self.epoch] if epoch}:
                self.wrong.append(f"a frame of epoch {hidden[0, 1]}, which was never open")
            return hidden.copy()

        return compute

    @rule(above=st.integers(-2, 3), who=st.integers(0, 1), right_plan=st.sampled_from([True, True, True, False]))
    def say_hello(self, above: int, who: int, right_plan: bool) -> None:
        epoch = Epoch(max(1, self.highest.counter + above), IDS[who])
        plan = PLAN if right_plan else OTHER_PLAN
        hello = new_hello(plan, identity(0), epoch).with_entry(
            own_entry(Ring(identity(0), plan), kv_id=b"k" * 8, seen=NO_EPOCH)
        )
        # The member judges by what it has seen when the hello comes, and it adopts within receive().
        connection = self.mine.dial(self.address, 5.0)
        connection.set_timeout(10.0)
        connection.write(control_frame(Kind.HELLO, bytes.fromhex(plan.hash), epoch, hello.pack()))
        if not right_plan or epoch.counter <= self.highest.counter:
            close_reason = self.read_close(connection)
            # Whether the epoch is still open to the other one, the machine does not know.
            assert close_reason.code in (("stale_epoch", "held") if right_plan else ("plan_hash",))
            assert close_reason.code != "held" or epoch.id != self.highest.id
            if right_plan:
                assert close_reason.seen == self.highest
            connection.close(0)
            return
        if self.epoch is not None:
            self.older.append(self.epoch)
        self.highest = self.epoch = epoch
        inbound, returned = self.returning.hellos.get(timeout=10.0)
        inbound.set_timeout(10.0)
        assert returned.epoch == epoch
        assert [entry.index for entry in returned.entries] == [0, 1, 2]
        self.drop_links()
        self.links = [connection, inbound]
        self.expected.clear()

    @precondition(lambda self: self.epoch and len(self.expected) < LIMITS.frames_in_flight)
    @rule(position=st.integers(0, LIMITS.max_context - 1), block=st.integers(0, LIMITS.kv_blocks - 16))
    def send_a_frame(self, position: int, block: int) -> None:
        assert self.epoch is not None
        self.write(self.frame(self.epoch, position, block))
        self.expected.append(self.step)

    @precondition(lambda self: self.epoch and self.older)
    @rule(which=st.integers(0), wild=st.booleans())
    def send_a_frame_of_another_epoch(self, which: int, wild: bool) -> None:
        assert self.epoch is not None
        epoch = self.older[which % len(self.older)]
        if wild:
            epoch = Epoch(self.epoch.counter, b"stranger")
        before = self.loops[0].communicator.state.dropped_frames
        self.write(self.frame(epoch, 0, 0))
        eventually(lambda: self.loops[0].communicator.state.dropped_frames > before, seconds=10.0)

    @precondition(lambda self: self.epoch and len(self.expected) < LIMITS.frames_in_flight)
    @rule(
        # int32 of the frame: 18 of the header, then count, start, run count, first block, blocks, row, busy times.
        place=st.integers(0, 17) | st.integers(18, 23) | st.sampled_from([21, 22, 24, 26, 27]),
        value=st.sampled_from([0, 1, 3, 29, 30, 31, 32, 33, 64, 256, 1000]) | st.integers(-(2**31), 2**31 - 1),
    )
    def send_a_frame_with_a_wild_value(self, place: int, value: int) -> None:
        assert self.epoch is not None
        raw = self.frame(self.epoch, 40, 3)
        end = frames.tensor_offset(frames.value_count(frames.parse_header(raw)))
        np.frombuffer(raw[:end], dtype="<i4")[place] = value
        error = self.error_of(raw)
        self.write(raw)
        if error is not None:
            close_reason = self.read_close(self.links[0])
            assert (close_reason.code, close_reason.message) == ("bad_frame", f"frame from end-model: {error}")
            self.over()
        elif (header := frames.parse_header(raw)).epoch == self.epoch:
            self.expected.append(header.step)

    @precondition(lambda self: self.epoch)
    @rule(which=st.integers(0, 1), abruptly=st.booleans())
    def close_a_link(self, which: int, abruptly: bool) -> None:
        if abruptly:
            self.links[which].abort()
        else:
            self.links[which].close(0)
        self.over()

    @precondition(lambda self: self.epoch and self.expected)
    @rule()
    def receive_what_was_sent(self) -> None:
        inbound = self.links[1]
        while self.expected:
            head = bytearray(HEADER_BYTES)
            read_exactly(inbound, memoryview(head))
            header = frames.parse_header(head)
            if header.kind == Kind.HEARTBEAT:
                continue
            assert header.kind == Kind.STEP
            frames.check_step(header, LIMITS, receiver=0)
            raw = bytearray(head) + bytearray(header.payload_bytes)
            read_exactly(inbound, memoryview(raw)[HEADER_BYTES:])
            contents = frames.parse_step(memoryview(raw), header, LIMITS)
            assert header.epoch == self.epoch
            assert header.step == self.expected.popleft()
            row = np.frombuffer(contents.tensor, dtype=np.float32)
            if len(row):
                assert row[1] == header.epoch.counter
            assert contents.busy.tolist() == [7, 14]

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert not getattr(self, "wrong", None)

    def teardown(self) -> None:
        if not hasattr(self, "exits"):
            return
        self.drop_links()
        for loop in self.loops:
            loop.close()
        for loop in self.loops:
            eventually(lambda loop=loop: loop.communicator._slots.free == LIMITS.frames_in_flight + 1, seconds=10.0)
        self.exits.close()
        assert not self.wrong

    def over(self) -> None:
        """The epoch ended: both stages let go of it."""
        for loop in self.loops:
            eventually(lambda loop=loop: loop.communicator.state.epoch is None, seconds=10.0)
        assert self.epoch is not None
        self.older.append(self.epoch)
        self.epoch = None
        self.expected.clear()
        self.drop_links()

    def drop_links(self) -> None:
        for link in self.links:
            link.abort()
            link.close(0)
        self.links = []

    def frame(self, epoch: Epoch, position: int, block: int) -> memoryview:
        self.step += 1
        raw = np.zeros(LIMITS.max_frame_bytes, dtype=np.uint8)
        ints = raw[HEADER_BYTES:][: (len(raw) - HEADER_BYTES) // 4 * 4].view("<i4")
        batch = one_token(position=position, block=block)
        header = frames.build_step(memoryview(raw), ints, limits=LIMITS, epoch=epoch, step=self.step, batch=batch)
        begin = frames.tensor_offset(frames.value_count(header))
        raw[begin : begin + LIMITS.row_bytes].view(np.float32)[:2] = (self.step, epoch.counter)
        return memoryview(raw)[: HEADER_BYTES + header.payload_bytes]

    def error_of(self, raw: memoryview) -> FrameError | None:
        """What is wrong with a frame. The values of one of another epoch are not looked at."""
        try:
            header = frames.parse_header(raw)
            frames.check_step(header, LIMITS, receiver=1)
            if header.epoch == self.epoch:
                frames.parse_step(raw, header, LIMITS)
        except FrameError as error:
            return error
        return None

    def write(self, raw: memoryview) -> None:
        self.links[0].write(raw)

    @staticmethod
    def read_close(connection: Connection) -> Close:
        return parse_close(read_control(connection, kinds=(Kind.CLOSE,))[1])


class MemoryRingMachine(RingMachine):
    def transports(self, exits: ExitStack) -> Callable[[int], Transport]:
        network = MemoryNetwork(buffer_bytes=512)
        return lambda index: network.transport(identity(index))


class SocketRingMachine(RingMachine):
    pki: Pki | None = None

    def transports(self, exits: ExitStack) -> Callable[[int], Transport]:
        if SocketRingMachine.pki is None:
            SocketRingMachine.pki = Pki(Path(tempfile.mkdtemp(prefix="wire-pki-")))
        pki = SocketRingMachine.pki
        return lambda index: TlsTransport(pki.files(identity(index)))


_QUIETLY = settings(
    deadline=None,
    stateful_step_count=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

TestRingInMemory = MemoryRingMachine.TestCase
TestRingInMemory.settings = settings(_QUIETLY, max_examples=40)

TestRingOverSockets = SocketRingMachine.TestCase
TestRingOverSockets.settings = settings(_QUIETLY, max_examples=8)
