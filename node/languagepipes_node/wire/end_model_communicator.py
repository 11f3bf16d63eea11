"""The End Model's end of the ring: open an epoch, send frames round, and receive what returns.

What may happen is decided in `epochs.py`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from languagepipes_api.names import Identity
from languagepipes_api.plan import Plan

from languagepipes_node.health import Watchdog
from languagepipes_node.metrics import EPOCH
from languagepipes_node.model.batch import Batch
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.wire.close import Close
from languagepipes_node.wire.communicator import Communicator, CommunicatorState, RingSession, as_bytes, send_frame
from languagepipes_node.wire.epochs import Decision, EndEpochs, validate_hello
from languagepipes_node.wire.errors import FrameError, LinkLost, RingDown, SupersededError
from languagepipes_node.wire.frame import Header, Step, build_step, tensor_offset, tensor_rows, value_count
from languagepipes_node.wire.handshake import dial
from languagepipes_node.wire.hello import Entry, Hello, new_hello, own_entry
from languagepipes_node.wire.link import Timing
from languagepipes_node.wire.ring import NO_EPOCH, Epoch
from languagepipes_node.wire.slots import Slot, SlotPool
from languagepipes_node.wire.transport import Connection, Transport

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True)
class RingInfo:
    """A ring that is complete. members: what each reported of itself in the hello, the End Model first; a `kv_id`
    other than in the last epoch means that this member lost its KV."""

    epoch: Epoch
    members: tuple[Entry, ...]

    @property
    def kv_ids(self) -> tuple[bytes, ...]:
        """Of each stage, in ring order."""
        return tuple(member.kv_id for member in self.members[1:])


class Returned:
    """A frame that returned. hidden: bytes [rows × hidden_size × itemsize], aligned to 64 bytes, in the
    order of Batch.rows (all packed tokens where the plan has tail layers; none of a replay); valid until `release`.
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


class _SessionLost:
    """Stands in the End Model's queue behind the last frame of an epoch that was lost."""

    def __init__(self, session: RingSession) -> None:
        self.session = session


class _HelloReturned:
    """The hello that returned, with the last stage's connection."""

    def __init__(self, session: RingSession, connection: Connection, hello: Hello) -> None:
        self.session = session
        self.connection = connection
        self.hello = hello


class EndModelCommunicator(Communicator):
    """The End Model's end of the ring. `connect`, `send` and `receive` belong to the engine's thread."""

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
        role.
        """
        if identity.role != "end-model":
            raise ValueError(f"{identity} is not an End Model")
        self._epochs = EndEpochs(os.urandom(8), patience_seconds=timing.patience_seconds)
        self._queue: SimpleQueue[Returned | _SessionLost | _HelloReturned] = SimpleQueue()
        super().__init__(
            identity, plan, tls, listen, successor, timing=timing, kv_id=kv_id, transport=transport, watchdog=watchdog
        )
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
            self._last_inbound.wait_until_stopped(self._timing.silence_seconds)
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
            decision = self._epochs.decide(close_reason, opened=epoch, now=time.monotonic())
            if decision is Decision.EXIT:
                raise SupersededError(str(close_reason))
            if decision is Decision.GIVE_UP or time.monotonic() >= deadline:
                break
        raise RingDown(str(close_reason), close_reason.code, close_reason.step or None)

    def _open(self, session: RingSession, deadline: float) -> RingInfo:
        with self._lock:
            self._session = session
        entry = own_entry(self._ring, kv_id=self._kv_id, seen=Epoch(session.epoch.counter - 1, NO_EPOCH.id))
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
            elif isinstance(item, _SessionLost):
                raise LinkLost(session.lost or self._close_reason("lost", "the ring was lost"))
            elif isinstance(item, _HelloReturned):
                self._expected.clear()
                self._attach_inbound(session, item.connection)
                self._last_inbound = session.inbound
                self._epochs.held = True
                EPOCH.set(session.epoch.counter)
                self._joined = session
                return RingInfo(session.epoch, tuple(item.hello.entries))

    def send(self, step: int, batch: Batch, hidden: Buffer, tokens: int, *, last_member: int | None = None) -> None:
        """Send a step round the ring. hidden: bytes [tokens × hidden_size × itemsize], C-contiguous.

        last_member: the last stage that computes, if not all do: a replay, which returns without a tensor.

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
        header = build_step(
            slot.view,
            slot.ints,
            limits=limits,
            epoch=session.epoch,
            step=step,
            batch=batch,
            last_member=last_member,
        )
        tensor = as_bytes(hidden)
        if len(tensor) != (expected := tokens * limits.row_bytes):
            raise FrameError(f"hidden has {len(tensor)} bytes, {tokens} rows of {limits.hidden_size} take {expected}")
        self._expected.append((step, tensor_rows(header, limits, receiver=0)))
        outbound = session.outbound
        assert outbound is not None  # noqa: S101 (set before the hello returned)
        try:
            send_frame(outbound, slot.view, tensor_offset(value_count(header)), tensor)
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
                item = self._next(self._queue, deadline)
            except Empty:
                return None
            if item.session is not session or isinstance(item, _HelloReturned):
                _discard(item)
                continue
            if isinstance(item, _SessionLost):
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
        """Leave the ring, sending the reason to the stages, and stop listening. Any thread."""
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
        if self._epochs.decide(close_reason, opened=session.epoch, now=time.monotonic()) is Decision.EXIT:
            raise SupersededError(str(close_reason))
        raise RingDown(str(close_reason), close_reason.code, close_reason.step or None)

    def _on_lost(self, session: RingSession) -> None:
        self._queue.put(_SessionLost(session))

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
        self._queue.put(_HelloReturned(session, connection, hello))
        return None

    def _deliver(self, session: RingSession, slot: Slot, header: Header, step: Step) -> None:
        self._queue.put(Returned(session, slot, header, step))

    def _drain(self) -> None:
        while True:
            try:
                _discard(self._queue.get_nowait())
            except Empty:
                return


def _discard(item: Returned | _SessionLost | _HelloReturned) -> None:
    if isinstance(item, Returned):
        item.release()
    elif isinstance(item, _HelloReturned):
        item.connection.close(0)
