"""What both kinds of member have at their end of the ring: the links of one session, and one way to lose it.

What may happen is decided in `epochs.py`; here and in the two communicators it is done. A member holds at most
one `RingSession`, the links of one epoch. If either link fails, both end, the reason being the last frame each
way, and the member waits for the next hello. Links change only between steps: inside
`StageCommunicator.receive`, and in `EndModelCommunicator.connect`.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from languagepipes_api.names import Identity
from languagepipes_api.plan import Plan

from languagepipes_node.health import Watchdog
from languagepipes_node.metrics import FRAMES
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.wire.close import Close, CloseCode, close
from languagepipes_node.wire.frame import FrameLimits, Header, Step
from languagepipes_node.wire.handshake import Acceptor
from languagepipes_node.wire.hello import Hello
from languagepipes_node.wire.link import COALESCED_BYTES, ReceiveLink, SendLink, Timing
from languagepipes_node.wire.ring import NO_EPOCH, Epoch, Ring
from languagepipes_node.wire.slots import Slot, SlotPool
from languagepipes_node.wire.tls_transport import TlsTransport
from languagepipes_node.wire.transport import Connection, Transport

if TYPE_CHECKING:
    from typing_extensions import Buffer

_Item = TypeVar("_Item")

_NOT_JOINED = "no hello has come yet"
CLOSE_SECONDS = 0.5


@dataclass(frozen=True)
class CommunicatorState:
    """What /status shows: the epoch (None while the ring is down), why it is down, the highest epoch seen."""

    epoch: Epoch | None
    highest: Epoch
    reason: str
    dropped_frames: int


class RingSession:
    """The links of one epoch at one member. `lost` is set once, under the member's lock."""

    __slots__ = ("epoch", "hello", "inbound", "lost", "outbound")

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.hello: Hello | None = None
        self.inbound: ReceiveLink | None = None
        self.outbound: SendLink | None = None
        self.lost: Close | None = None


class Communicator:
    """A member's end of the ring: links, slots, and one way to lose an epoch. The name is from NCCL, where a
    communicator is a rank's end of the ring.
    """

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
        watchdog: Watchdog | None,
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
        self._watchdog = watchdog or Watchdog()
        self._kv_id = kv_id or os.urandom(8)
        self._slots = SlotPool(self._limits)
        self._lock = threading.Lock()
        self._session: RingSession | None = None
        self._reason = _NOT_JOINED
        self._dropped = 0
        self._closed = False
        self._last_inbound: ReceiveLink | None = None
        self._dropped_frames = FRAMES.labels("dropped")
        self._acceptor = Acceptor(
            transport.listen(listen), self._ring, timing=timing, offer=self._offer, watchdog=self._watchdog.another()
        )
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
        """Called once when a session has ended, from any thread, without the lock."""

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
        """End the epoch because this process ends: the neighbours learn the reason before the process is gone."""
        self._end(session, self._close_reason("shutdown", "is shutting down"))
        for link in (session.inbound, session.outbound):
            if link is not None:
                link.join(CLOSE_SECONDS)

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
            watchdog=self._watchdog.another(),
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
            watchdog=self._watchdog.another(),
        )
        with self._lock:
            session.outbound, lost = link, session.lost
        if lost is not None:
            link.close(lost)
        link.start()

    def _deliver(self, session: RingSession, slot: Slot, header: Header, step: Step) -> None:
        raise NotImplementedError

    def _next(self, queue: SimpleQueue[_Item], deadline: float) -> _Item:
        """The next item of the member's queue. Raises Empty at the deadline, of time.monotonic().

        The thread that waits here reads the inbound link meanwhile, so that a frame wakes no other thread before it.
        Whoever else puts an item must `nudge` the link of the present session afterwards.
        """
        session = self._session
        link = session.inbound if session is not None else None
        if link is not None and queue.empty() and link.take_turn():
            try:
                while queue.empty():
                    left = max(0.0, deadline - time.monotonic())
                    if not link.read(left) or not left:
                        break
            finally:
                link.pass_turn()
        return queue.get(timeout=max(0.0, deadline - time.monotonic()))

    def _state(self, highest: Epoch) -> CommunicatorState:
        with self._lock:
            session = self._session
            return CommunicatorState(
                epoch=session.epoch if session else None,
                highest=highest,
                reason="" if session else self._reason,
                dropped_frames=self._dropped,
            )


def as_bytes(hidden: Buffer) -> memoryview:
    view = memoryview(hidden)
    return view.cast("B") if view.nbytes else memoryview(b"")  # an empty array cannot be cast


def send_frame(link: SendLink, frame: memoryview, tensor_begin: int, tensor: memoryview) -> None:
    """Send a frame whose header and arrays are in `frame`: a small frame in one write."""
    if len(tensor) <= COALESCED_BYTES:
        end = tensor_begin + len(tensor)
        frame[tensor_begin:end] = tensor
        link.send(frame[:end])
    else:
        link.send(frame[:tensor_begin], tensor)
