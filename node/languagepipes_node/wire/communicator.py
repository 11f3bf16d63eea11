"""A member's place in the ring: `StageCommunicator` for stages, `EndModelCommunicator` for the End Model.

What may happen is decided in `epochs.py`; here it is done. A member holds at most one `RingSession`, the
links of one epoch. If either link fails, both end, the reason being the last frame each way, and the member
waits for the next hello. Links change only between steps: inside `StageCommunicator.receive`, and in
`EndModelCommunicator.connect`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from languagepipes_api.names import Identity
from languagepipes_api.plan import Plan

from languagepipes_node.metrics import EPOCH, FRAMES
from languagepipes_node.model.batch import Batch
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.wire.epochs import Decision, EndEpochs, Ring, validate_hello
from languagepipes_node.wire.errors import FrameError, LinkLost, RingDown, SupersededError
from languagepipes_node.wire.frame import (
    FrameLimits,
    Header,
    Step,
    build_step,
    tensor_offset,
    value_count,
    with_tensor_rows,
    write_header,
)
from languagepipes_node.wire.handshake import Acceptor, dial
from languagepipes_node.wire.hello import NO_EPOCH, Close, CloseCode, Entry, Epoch, Hello, close, new_hello
from languagepipes_node.wire.link import COALESCED_BYTES, ReceiveLink, SendLink, Slot, SlotPool, Timing
from languagepipes_node.wire.tls_transport import TlsTransport
from languagepipes_node.wire.transport import Connection, Transport

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "EndModelCommunicator",
    "Inbound",
    "Returned",
    "RingInfo",
    "StageCommunicator",
    "CommunicatorState",
    "Timing",
]

_NOT_JOINED = "no hello has come yet"
_MAX_BUSY = 2**31 - 1
_GOODBYE_SECONDS = 0.5


@dataclass(frozen=True)
class CommunicatorState:
    """What /status tells: the epoch (None while the ring is down), why it is down, the highest epoch seen."""

    epoch: Epoch | None
    highest: Epoch
    reason: str
    dropped_frames: int


@dataclass(frozen=True)
class RingInfo:
    """A ring that is whole. members: what each said of itself in the hello, the End Model first; a `kv_id`
    other than in the last epoch means that this member lost its KV."""

    epoch: Epoch
    communicators: tuple[Entry, ...]


class RingSession:
    """The links of one epoch at one member. `lost` is set once, under the member's lock."""

    __slots__ = ("epoch", "hello", "inbound", "lost", "outbound")

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.hello: Hello | None = None
        self.inbound: ReceiveLink | None = None
        self.outbound: SendLink | None = None
        self.lost: Close | None = None


class Inbound:
    """A frame at a stage. It lies in a receive slot: valid until `StageCommunicator.forward`, or `release`.

    step: the End Model's number. batch: views into the slot. hidden: writable bytes
    [batch.tokens × hidden_size × itemsize] in the plan's dtype, aligned to 64 bytes.
    """

    __slots__ = ("_held", "batch", "epoch", "header", "hidden", "session", "slot", "step")

    def __init__(self, session: RingSession, slot: Slot, header: Header, contents: Step) -> None:
        self.session = session
        self.slot = slot
        self.header = header
        self.epoch = session.epoch
        self.step = header.step
        self.batch = contents.batch
        self.hidden = contents.tensor
        self._held = True

    @property
    def busy_microseconds(self) -> list[int]:
        """One per stage of the ring; those that the frame has not passed yet are 0."""
        return _busy(self.slot, self.header)

    def release(self) -> None:
        """Give the slot back without forwarding."""
        if self._held:
            self._held = False
            self.slot.release()


class Returned:
    """A frame that returned. hidden: bytes [rows × hidden_size × itemsize], aligned to 64 bytes, in the
    order of Batch.rows (all packed tokens where the plan has tail layers); valid until `release`.
    busy_microseconds: one per stage.
    """

    __slots__ = ("_held", "busy_microseconds", "hidden", "rows", "session", "slot", "step")

    def __init__(self, session: RingSession, slot: Slot, header: Header, contents: Step) -> None:
        self.session = session
        self.slot = slot
        self.step = header.step
        self.rows = header.tensor_rows
        self.hidden = contents.tensor
        self.busy_microseconds: list[int] = contents.busy.tolist()
        self._held = True

    def release(self) -> None:
        """Give the slot back; `hidden` must not be read after it."""
        if self._held:
            self._held = False
            self.slot.release()


def _busy(slot: Slot, header: Header) -> list[int]:
    values = value_count(header)
    busy: list[int] = slot.ints[values - header.stages : values].tolist()
    return busy


class _Communicator:
    """What both kinds of member have: links, slots, and one way to lose an epoch."""

    def __init__(
        self,
        identity: Identity,
        plan: Plan,
        tls: TlsFiles | None,
        listen: str,
        successor: str,
        *,
        timing: Timing,
        kv_id: bytes | None,
        transport: Transport | None,
    ) -> None:
        self._ring = Ring(identity, plan)
        self._limits = FrameLimits.from_plan(plan)
        self._timing = timing
        self._successor_address = successor
        if transport is None:
            if tls is None:
                raise ValueError("a member needs TLS files, or a transport")
            transport = TlsTransport(tls)
        self._transport = transport
        self._kv_id = kv_id or os.urandom(8)
        self._slots = SlotPool(self._limits)
        self._lock = threading.Lock()
        self._session: RingSession | None = None
        self._reason = _NOT_JOINED
        self._dropped = 0
        self._closed = False
        self._last_inbound: ReceiveLink | None = None
        self._dropped_frames = FRAMES.labels("dropped")
        self._acceptor = Acceptor(transport.listen(listen), self._ring, timing=timing, offer=self._offer)
        self._started = False

    @property
    def address(self) -> str:
        """host:port that it listens on; the real port where 0 was asked for."""
        return self._acceptor.address

    @property
    def limits(self) -> FrameLimits:
        """What a frame of this ring may hold."""
        return self._limits

    def start(self) -> None:
        """Begin to accept the predecessor."""
        if not self._started:
            self._started = True
            self._acceptor.start()

    def _offer(self, connection: Connection, hello: Hello) -> Close | None:
        raise NotImplementedError

    def _on_lost(self, session: RingSession) -> None:
        """The session just ended; called once, from any thread, without the lock."""

    def _close_reason(self, code: CloseCode, message: str, seen: Epoch = NO_EPOCH) -> Close:
        return close(self._ring.me, code, message, seen)

    def _count_dropped(self) -> None:
        self._dropped += 1
        self._dropped_frames.inc()

    def _end(self, session: RingSession, close_reason: Close) -> None:
        """Lose an epoch: the first reason stays, both links end with it. Any thread."""
        with self._lock:
            if session.lost is not None:
                return
            session.lost = close_reason
            if self._session is session:
                self._session = None
                self._reason = str(close_reason)
            inbound, outbound = session.inbound, session.outbound
        self._on_lost(session)
        if inbound is not None:
            inbound.close(close_reason)
        if outbound is not None:
            outbound.close(close_reason)

    def _leave(self, session: RingSession) -> None:
        """End the epoch because this process ends: the neighbours hear it before the process is gone."""
        self._end(session, self._close_reason("shutdown", "is shutting down"))
        for link in (session.inbound, session.outbound):
            if link is not None:
                link.join(_GOODBYE_SECONDS)

    def _attach_inbound(self, session: RingSession, connection: Connection) -> None:
        link = ReceiveLink(
            connection,
            me=self._ring.me,
            predecessor=self._ring.predecessor,
            limits=self._limits,
            epoch=session.epoch,
            slots=self._slots,
            timing=self._timing,
            deliver=lambda slot, header, step: self._deliver(session, slot, header, step),
            dropped=self._count_dropped,
            lost=lambda close_reason: self._end(session, close_reason),
        )
        with self._lock:
            session.inbound, lost = link, session.lost
        if lost is not None:
            link.close(lost)
        link.start()

    def _attach_outbound(self, session: RingSession, connection: Connection) -> None:
        link = SendLink(
            connection,
            me=self._ring.me,
            successor=self._ring.successor,
            plan_hash=self._limits.plan_hash,
            epoch=session.epoch,
            timing=self._timing,
            lost=lambda close_reason: self._end(session, close_reason),
        )
        with self._lock:
            session.outbound, lost = link, session.lost
        if lost is not None:
            link.close(lost)
        link.start()

    def _deliver(self, session: RingSession, slot: Slot, header: Header, step: Step) -> None:
        raise NotImplementedError

    def _state(self, highest: Epoch) -> CommunicatorState:
        with self._lock:
            session = self._session
            return CommunicatorState(
                epoch=session.epoch if session else None,
                highest=highest,
                reason="" if session else self._reason,
                dropped_frames=self._dropped,
            )


class StageCommunicator(_Communicator):
    """A stage's place in the ring. `receive` and `forward` belong to one thread, the ring thread.

    It serves one epoch after another: when the ring is down, `receive` just waits for the next hello. `kv_id`
    (8 bytes) names this KV allocation; by default it is drawn anew.
    """

    def __init__(
        self,
        identity: Identity,
        plan: Plan,
        tls: TlsFiles | None,
        listen: str,
        successor: str,
        *,
        timing: Timing = Timing(),  # noqa: B008 (frozen)
        kv_id: bytes | None = None,
        transport: Transport | None = None,
    ) -> None:
        """Listens at once; accepts after `start`. Raises OSError if it cannot listen, ValueError for a wrong
        stage.
        """
        if identity.role != "stage" or not 1 <= identity.index <= len(plan.stages):
            raise ValueError(f"{identity} is no stage of a plan with {len(plan.stages)} stages")
        self._highest = NO_EPOCH
        self._pending: tuple[Connection, Hello, Epoch] | None = None
        self._queue: SimpleQueue[Inbound | None] = SimpleQueue()
        super().__init__(identity, plan, tls, listen, successor, timing=timing, kv_id=kv_id, transport=transport)
        self._index = identity.index
        self._is_last = identity.index == len(plan.stages)

    @property
    def is_last(self) -> bool:
        """Whether the successor is the End Model."""
        return self._is_last

    @property
    def state(self) -> CommunicatorState:
        return self._state(self._highest)

    def rows_forward(self, batch: Batch) -> int:
        """How many rows `forward` takes: all tokens; at the last stage the wanted rows, `hidden[batch.rows]`,
        unless the plan has tail layers."""
        tokens = batch.tokens
        return self._limits.home_rows(tokens=tokens, rows=len(batch.rows)) if self._is_last else tokens

    def receive(self, timeout_seconds: float) -> Inbound | None:
        """The next frame of the present epoch, or None after the time. Adopts a new epoch first if one was
        offered, which closes the old links and dials the successor (at most handshake_seconds)."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            while self._pending is not None:
                self._adopt()
            try:
                inbound = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return None
            if inbound is None:
                continue  # a hello was offered
            if inbound.session is self._session:
                return inbound
            inbound.release()
            self._count_dropped()

    def forward(self, inbound: Inbound, hidden: Buffer, busy_microseconds: int) -> None:
        """Send the step on and release its slot. hidden: `rows_forward(inbound.batch)` rows, C-contiguous; it
        may be `inbound.hidden` itself. A lost link raises nothing: it ends the epoch. Raises ValueError for a
        wrong size.
        """
        try:
            session = inbound.session
            outbound = session.outbound
            if session is not self._session or outbound is None:
                self._count_dropped()
                return
            limits, slot, header = self._limits, inbound.slot, inbound.header
            tensor = _as_bytes(hidden)
            if self._is_last:
                header = with_tensor_rows(header, limits.home_rows(tokens=header.tokens, rows=header.rows), limits)
                write_header(slot.view, header)
            expected = header.tensor_rows * limits.row_bytes
            if len(tensor) != expected:
                raise ValueError(
                    f"hidden has {len(tensor)} bytes, {header.tensor_rows} rows of {limits.hidden_size} take {expected}"
                )
            values = value_count(header)
            slot.ints[values - limits.stages + self._index - 1] = min(max(busy_microseconds, 0), _MAX_BUSY)
            begin = tensor_offset(values)
            try:
                _send(outbound, slot.view, begin, tensor)
            except LinkLost as lost:
                self._end(session, lost.close_reason)
        finally:
            inbound.release()

    def close(self) -> None:
        """Leave the ring, telling both neighbours, and stop listening. Call it when the ring thread is done."""
        self._closed = True
        self._acceptor.close()
        with self._lock:
            session, pending, self._pending = self._session, self._pending, None
        if pending is not None:
            pending[0].close(0)
        if session is not None:
            self._leave(session)
        self._queue.put(None)

    def _offer(self, connection: Connection, hello: Hello) -> Close | None:
        with self._lock:
            if self._closed:
                return self._close_reason("shutdown", "is shutting down")
            seen = self._highest
            refusal = validate_hello(self._ring, hello, seen)
            if refusal is not None:
                return refusal
            self._highest = hello.epoch
            overtaken, self._pending = self._pending, (connection, hello, seen)
        self._queue.put(None)
        if overtaken is not None:
            overtaken[0].close(0)
        return None

    def _adopt(self) -> None:
        """Between steps: end the old epoch, begin the one that was offered, say hello to the successor."""
        with self._lock:
            pending, self._pending = self._pending, None
            old = self._session
        if pending is None:
            return
        connection, hello, seen = pending
        if old is not None:
            self._end(old, self._close_reason("superseded", f"epoch {hello.epoch} replaces {old.epoch}", hello.epoch))
        # The slots of the old epoch come back: from its reader, then from the queue.
        if self._last_inbound is not None:
            self._last_inbound.wait_quiet(self._timing.silence_seconds)
        self._drain()
        session = RingSession(hello.epoch)
        with self._lock:
            self._session = session
        EPOCH.set(hello.counter)
        self._attach_inbound(session, connection)
        self._last_inbound = session.inbound
        entry = self._ring.own_entry(kv_id=self._kv_id, seen=seen)
        try:
            onward = dial(self._transport, self._successor_address, self._ring, hello.with_entry(entry), self._timing)
        except LinkLost as lost:
            self._end(session, lost.close_reason)
            return
        self._attach_outbound(session, onward)

    def _drain(self) -> None:
        while True:
            try:
                inbound = self._queue.get_nowait()
            except Empty:
                return
            if inbound is not None:
                inbound.release()
                self._count_dropped()

    def _deliver(self, session: RingSession, slot: Slot, header: Header, step: Step) -> None:
        self._queue.put(Inbound(session, slot, header, step))


class _Lost:
    """Stands in the End Model's queue behind the last frame of an epoch that was lost."""

    def __init__(self, session: RingSession) -> None:
        self.session = session


class _Home:
    """The hello that returned, with the last stage's connection."""

    def __init__(self, session: RingSession, connection: Connection, hello: Hello) -> None:
        self.session = session
        self.connection = connection
        self.hello = hello


class EndModelCommunicator(_Communicator):
    """The End Model's place in the ring. `connect`, `send` and `receive` belong to the engine's thread."""

    def __init__(
        self,
        identity: Identity,
        plan: Plan,
        tls: TlsFiles | None,
        listen: str,
        successor: str,
        *,
        timing: Timing = Timing(),  # noqa: B008 (frozen)
        kv_id: bytes | None = None,
        transport: Transport | None = None,
    ) -> None:
        """Listens at once; accepts after `start`. Raises OSError if it cannot listen, ValueError for a wrong
        role.
        """
        if identity.role != "end-model":
            raise ValueError(f"{identity} is not an End Model")
        self._epochs = EndEpochs(os.urandom(8))
        self._queue: SimpleQueue[Returned | _Lost | _Home] = SimpleQueue()
        super().__init__(identity, plan, tls, listen, successor, timing=timing, kv_id=kv_id, transport=transport)
        self._frame = SlotPool(self._limits).take() or Slot(self._slots, self._limits.max_frame_bytes)
        self._expected: deque[tuple[int, int]] = deque()  # (step, rows) of frames that are out
        self._unreleased: list[Returned] = []
        self._joined: RingSession | None = None  # the epoch that send and receive belong to

    @property
    def state(self) -> CommunicatorState:
        return self._state(Epoch(self._epochs.highest, self._epochs.id))

    @property
    def frames_out(self) -> int:
        """Frames that were sent and have not returned."""
        return len(self._expected)

    def connect(self) -> RingInfo:
        """Open an epoch: one attempt, which goes above any higher counter that stages report.

        Returns when the hello has returned. Raises RingDown(reason, code) with the root cause within
        connect_seconds, SupersededError if another End Model has the replica and this process must exit.
        """
        self.start()
        self._joined = None
        deadline = time.monotonic() + self._timing.connect_seconds
        with self._lock:
            old = self._session
        if old is not None:
            self._end(
                old,
                self._close_reason("superseded", "opens a new epoch", Epoch(self._epochs.highest + 1, self._epochs.id)),
            )
        if self._last_inbound is not None:
            self._last_inbound.wait_quiet(self._timing.silence_seconds)
        self._drain()
        # Each stage can be behind once by what another one has seen; beyond that two End Models race.
        for _ in range(len(self._ring.members) + 1):
            epoch = self._epochs.next()
            session = RingSession(epoch)
            try:
                return self._open(session, deadline)
            except LinkLost as lost:
                self._end(session, lost.close_reason)
                close_reason = session.lost or lost.close_reason
            decision = self._epochs.decide(close_reason, opened=epoch)
            if decision is Decision.EXIT:
                raise SupersededError(str(close_reason))
            if decision is Decision.GIVE_UP or time.monotonic() >= deadline:
                break
        raise RingDown(str(close_reason), close_reason.code)

    def _open(self, session: RingSession, deadline: float) -> RingInfo:
        with self._lock:
            self._session = session
        entry = self._ring.own_entry(kv_id=self._kv_id, seen=Epoch(session.epoch.counter - 1, NO_EPOCH.id))
        hello = new_hello(self._ring.plan, self._ring.identity, session.epoch).with_entry(entry)
        self._attach_outbound(session, dial(self._transport, self._successor_address, self._ring, hello, self._timing))
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                seconds = self._timing.connect_seconds
                close_reason = self._close_reason("unreachable", f"the hello did not return within {seconds:.1f} s")
                raise LinkLost(close_reason) from None
            if item.session is not session:
                _discard(item)
            elif isinstance(item, _Lost):
                raise LinkLost(session.lost or self._close_reason("lost", "the ring was lost"))
            elif isinstance(item, _Home):
                self._expected.clear()
                self._attach_inbound(session, item.connection)
                self._last_inbound = session.inbound
                self._epochs.held = True
                EPOCH.set(session.epoch.counter)
                self._joined = session
                return RingInfo(session.epoch, tuple(item.hello.entries))

    def send(self, step: int, batch: Batch, hidden: Buffer, tokens: int) -> None:
        """Send a step round the ring. hidden: bytes [tokens × hidden_size × itemsize], C-contiguous.

        Raises RingDown or SupersededError if the ring is lost; FrameError, and nothing is sent, if the batch
        breaks the plan's limits, or if more than `frames_in_flight` frames would be out.
        """
        session = self._require()
        limits, slot = self._limits, self._frame
        self._unreleased = [returned for returned in self._unreleased if returned._held]
        if len(self._expected) >= limits.frames_in_flight or len(self._unreleased) > 1:
            raise FrameError(
                f"{len(self._expected)} frames are out and {len(self._unreleased)} are unreleased, at most "
                f"{limits.frames_in_flight} and 1 may be: receive and release before sending"
            )
        if tokens != batch.tokens:
            raise FrameError(f"hidden has {tokens} rows, the batch has {batch.tokens} tokens")
        header = build_step(slot.view, slot.ints, limits=limits, epoch=session.epoch, step=step, batch=batch)
        tensor = _as_bytes(hidden)
        if len(tensor) != (expected := tokens * limits.row_bytes):
            raise FrameError(f"hidden has {len(tensor)} bytes, {tokens} rows of {limits.hidden_size} take {expected}")
        self._expected.append((step, limits.home_rows(tokens=tokens, rows=header.rows)))
        outbound = session.outbound
        assert outbound is not None  # noqa: S101 (set before the hello returned)
        try:
            _send(outbound, slot.view, tensor_offset(value_count(header)), tensor)
        except LinkLost as lost:
            self._end(session, lost.close_reason)
            self._raise(session)

    def receive(self, timeout_seconds: float) -> Returned | None:
        """The next frame that returned, in the order sent; None after the time.

        Raises RingDown, or SupersededError, once the ring is lost and all frames that returned before were
        received.
        """
        session = self._joined
        if session is None:
            raise RingDown(self._reason)
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return None
            if item.session is not session or isinstance(item, _Home):
                _discard(item)
                continue
            if isinstance(item, _Lost):
                self._raise(session)
            expected = self._expected.popleft() if self._expected else None
            if expected != (item.step, item.rows):
                item.release()
                self._end(
                    session,
                    self._close_reason(
                        "bad_frame",
                        f"step {item.step} with {item.rows} rows returned, step and rows {expected} were due",
                    ),
                )
                self._raise(session)
            self._unreleased.append(item)
            return item

    def drop(self, reason: str) -> None:
        """End the epoch, e.g. because a step is over its deadline. Any thread; `receive` raises RingDown with
        it.
        """
        with self._lock:
            session = self._session
        if session is not None:
            self._end(session, self._close_reason("deadline", reason))

    def close(self) -> None:
        """Leave the ring, telling the stages, and stop listening. Any thread."""
        self._closed = True
        self._acceptor.close()
        with self._lock:
            session = self._session
        if session is not None:
            self._leave(session)

    def _require(self) -> RingSession:
        session = self._joined
        if session is None:
            raise RingDown(self._reason)
        if session.lost is not None:
            self._raise(session)
        return session

    def _raise(self, session: RingSession) -> NoReturn:
        self._joined = None
        close_reason = session.lost or self._close_reason("lost", "the ring was lost")
        if self._epochs.decide(close_reason, opened=session.epoch) is Decision.EXIT:
            raise SupersededError(str(close_reason))
        raise RingDown(str(close_reason), close_reason.code)

    def _on_lost(self, session: RingSession) -> None:
        self._queue.put(_Lost(session))

    def _offer(self, connection: Connection, hello: Hello) -> Close | None:
        with self._lock:
            session = self._session
            if self._closed or session is None:
                return self._close_reason("stale_epoch", f"refused: epoch {hello.epoch} is over")
            refusal = validate_hello(self._ring, hello, session.epoch)
            if refusal is None and session.hello is not None:
                refusal = self._close_reason("stale_epoch", f"refused: epoch {hello.epoch} is open already")
            if refusal is not None:
                return refusal
            session.hello = hello
        self._queue.put(_Home(session, connection, hello))
        return None

    def _deliver(self, session: RingSession, slot: Slot, header: Header, step: Step) -> None:
        self._queue.put(Returned(session, slot, header, step))

    def _drain(self) -> None:
        while True:
            try:
                _discard(self._queue.get_nowait())
            except Empty:
                return


def _discard(item: Returned | _Lost | _Home) -> None:
    if isinstance(item, Returned):
        item.release()
    elif isinstance(item, _Home):
        item.connection.close(0)


def _as_bytes(hidden: Buffer) -> memoryview:
    view = memoryview(hidden)
    return view.cast("B") if view.nbytes else memoryview(b"")  # an empty array cannot be cast


def _send(link: SendLink, frame: memoryview, tensor_begin: int, tensor: memoryview) -> None:
    """Send a frame whose header and arrays lie in `frame`: small ones in one write."""
    if len(tensor) <= COALESCED_BYTES:
        end = tensor_begin + len(tensor)
        frame[tensor_begin:end] = tensor
        link.send(frame[:end])
    else:
        link.send(frame[:tensor_begin], tensor)
