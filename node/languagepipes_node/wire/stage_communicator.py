"""A stage's end of the ring: receive a frame, and forward it. What may happen is decided in `epochs.py`."""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from languagepipes_api.names import Identity
from languagepipes_api.plan import Plan

from languagepipes_node.health import Watchdog
from languagepipes_node.metrics import EPOCH
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.wire.close import Close, close
from languagepipes_node.wire.communicator import (
    CLOSE_SECONDS,
    Communicator,
    CommunicatorState,
    RingSession,
    as_bytes,
    send_frame,
)
from languagepipes_node.wire.epochs import validate_hello
from languagepipes_node.wire.errors import LinkLost
from languagepipes_node.wire.frame import (
    Header,
    Kind,
    Step,
    tensor_offset,
    tensor_rows,
    value_count,
    with_tensor_rows,
    write_header,
)
from languagepipes_node.wire.handshake import dial
from languagepipes_node.wire.hello import Hello, own_entry
from languagepipes_node.wire.link import Timing
from languagepipes_node.wire.ring import NO_EPOCH, Epoch
from languagepipes_node.wire.slots import Slot
from languagepipes_node.wire.transport import Connection, Transport

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MAX_BUSY = 2**31 - 1


class Inbound:
    """A frame at a stage, in a receive slot: valid until `StageCommunicator.forward`, or `release`.

    step: the End Model's number. batch: views into the slot. hidden: writable bytes
    [batch.tokens × hidden_size × itemsize] in the plan's dtype, aligned to 64 bytes; empty where `computes` is false.
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
    def replay(self) -> bool:
        """Whether it writes lost KV again: no row is wanted, and nobody samples from it."""
        return self.header.kind == Kind.REPLAY

    @property
    def last_member(self) -> int:
        """The place of the last stage that computes; those after it pass the frame on."""
        return self.header.last_member

    @property
    def busy_microseconds(self) -> list[int]:
        """One per stage of the ring; those that the frame has not passed yet are 0."""
        return _busy(self.slot, self.header)

    def release(self) -> None:
        """Give the slot back without forwarding."""
        if self._held:
            self._held = False
            self.slot.release()


class StageCommunicator(Communicator):
    """A stage's end of the ring. `receive` and `forward` belong to one thread, the ring thread.

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
        watchdog: Watchdog | None = None,
    ) -> None:
        """Listens at once; accepts after `start`. Raises OSError if it cannot listen, ValueError for a wrong
        stage.
        """
        if identity.role != "stage" or not 1 <= identity.index <= len(plan.stages):
            raise ValueError(f"{identity} is no stage of a plan with {len(plan.stages)} stages")
        self._highest = NO_EPOCH
        self._leaving = False
        self._pending: tuple[Connection, Hello, Epoch] | None = None
        self._queue: SimpleQueue[Inbound | None] = SimpleQueue()
        super().__init__(
            identity, plan, tls, listen, successor, timing=timing, kv_id=kv_id, transport=transport, watchdog=watchdog
        )
        self._index = identity.index
        self._is_last = identity.index == len(plan.stages)

    @property
    def is_last(self) -> bool:
        """Whether the successor is the End Model."""
        return self._is_last

    @property
    def state(self) -> CommunicatorState:
        return self._state(self._highest)

    def computes(self, inbound: Inbound) -> bool:
        """Whether this stage's layers run over the frame; otherwise it is passed on as it came."""
        return self._index <= inbound.last_member

    def rows_forward(self, inbound: Inbound) -> int:
        """How many rows `forward` takes: all tokens; at the last stage the wanted rows, `hidden[batch.rows]`, unless
        the plan has tail layers; from a replay's last member on none."""
        return tensor_rows(inbound.header, self._limits, receiver=0 if self._is_last else self._index + 1)

    def receive(self, timeout_seconds: float) -> Inbound | None:
        """The next frame of the present epoch, or None after the time. Adopts a new epoch first if one was
        offered, which closes the old links and dials the successor (at most handshake_seconds)."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            while self._pending is not None:
                self._adopt()
            try:
                inbound = self._next(self._queue, deadline)
            except Empty:
                return None
            if inbound is None:
                continue  # a hello was offered
            if inbound.session is self._session:
                return inbound
            inbound.release()
            self._count_dropped()

    def forward(self, inbound: Inbound, hidden: Buffer, busy_microseconds: int) -> None:
        """Send the frame on and release its slot. hidden: `rows_forward(inbound)` rows, C-contiguous; it
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
            tensor = as_bytes(hidden)
            rows = self.rows_forward(inbound)
            if rows != header.tensor_rows:
                header = with_tensor_rows(header, rows, limits)
                write_header(slot.view, header)
            expected = rows * limits.row_bytes
            if len(tensor) != expected:
                raise ValueError(f"hidden has {len(tensor)} bytes, {rows} rows of {limits.hidden_size} take {expected}")
            values = value_count(header)
            slot.ints[values - limits.stages + self._index - 1] = min(max(busy_microseconds, 0), _MAX_BUSY)
            begin = tensor_offset(values)
            try:
                send_frame(outbound, slot.view, begin, tensor)
            except LinkLost as lost:
                self._end(session, lost.close_reason)
        finally:
            inbound.release()

    def fail(self, inbound: Inbound, message: str) -> None:
        """End the epoch because this member cannot compute the step, and release its slot. The End Model learns which
        step it was. message: no text, no hidden state. This member goes on with the next epoch.
        """
        self._end(inbound.session, close(self._ring.me, "step_failed", message, step=inbound.step))
        inbound.release()

    def leave(self) -> None:
        """Accept no hello any more, and stop listening; the present epoch goes on. `close` ends it."""
        self._leaving = True
        self._acceptor.close()

    def close(self) -> None:
        """Leave the ring, with a reason to both neighbours, and stop listening. Only once the ring thread ended."""
        self._closed = True
        self._acceptor.close()
        with self._lock:
            session, pending, self._pending = self._session, self._pending, None
        if pending is not None:
            pending[0].close(0)
        if session is not None:
            self._leave(session)
        if self._last_inbound is not None:
            self._last_inbound.wait_until_stopped(CLOSE_SECONDS)
        self._drain()
        self._queue.put(None)

    def _offer(self, connection: Connection, hello: Hello) -> Close | None:
        with self._lock:
            if self._closed or self._leaving:
                return self._close_reason("shutdown", "is shutting down")
            seen = self._highest
            refusal = validate_hello(self._ring, hello, seen)
            if refusal is not None and refusal.code == "stale_epoch" and self._is_open_to_another(hello):
                return self._close_reason("held", f"refused: epoch {seen} of another End Model is open", seen)
            if refusal is not None:
                return refusal
            self._highest = hello.epoch
            replaced, self._pending = self._pending, (connection, hello, seen)
        self._queue.put(None)
        # Read after the item was put: a session that the ring thread enters later finds the item before it waits.
        session = self._session
        if session is not None and session.inbound is not None:
            session.inbound.nudge()
        if replaced is not None:
            replaced[0].close(0)
        return None

    def _is_open_to_another(self, hello: Hello) -> bool:
        session = self._session
        return session is not None and session.lost is None and session.epoch.id != hello.epoch.id

    def _adopt(self) -> None:
        """Between steps: end the old epoch, begin the one that was offered, send its hello to the successor."""
        with self._lock:
            pending, self._pending = self._pending, None
            old = self._session
        if pending is None:
            return
        connection, hello, seen = pending
        if old is not None:
            self._end(old, self._close_reason("superseded", f"epoch {hello.epoch} replaces {old.epoch}", hello.epoch))
        # The slots of the old epoch are released: by its reader, then from the queue.
        if self._last_inbound is not None:
            self._last_inbound.wait_until_stopped(self._timing.silence_seconds)
        self._drain()
        session = RingSession(hello.epoch)
        with self._lock:
            self._session = session
        EPOCH.set(hello.counter)
        self._attach_inbound(session, connection)
        self._last_inbound = session.inbound
        entry = own_entry(self._ring, kv_id=self._kv_id, seen=seen)
        try:
            successor = dial(
                self._transport, self._successor_address, self._ring, hello.with_entry(entry), self._timing
            )
        except LinkLost as lost:
            self._end(session, lost.close_reason)
            return
        self._attach_outbound(session, successor)

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


def _busy(slot: Slot, header: Header) -> list[int]:
    values = value_count(header)
    busy: list[int] = slot.ints[values - header.stages : values].tolist()
    return busy
