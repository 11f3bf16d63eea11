"""The two halves of a link: `SendLink` at the predecessor, `ReceiveLink` at the successor.

Frames flow one way. The other way carries one frame at most: the close frame that says why the receiving side
ends the link. So that no connection is read and written at the same time, the sending side reads that frame
under its send lock, and the receiving side writes it once nobody reads any more. A link belongs to one epoch.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from languagepipes_node.health import WAITING_SECONDS, Watchdog
from languagepipes_node.metrics import FRAMES, WIRE_BYTES
from languagepipes_node.net.errors import describe
from languagepipes_node.wire.close import Close, close
from languagepipes_node.wire.errors import FrameError, HelloError, LinkLost
from languagepipes_node.wire.frame import (
    HEADER_BYTES,
    FrameLimits,
    Header,
    Kind,
    Step,
    check_step,
    control_frame,
    parse_header,
    parse_step,
)
from languagepipes_node.wire.hello import parse_close
from languagepipes_node.wire.ring import Epoch, RingMember
from languagepipes_node.wire.slots import Slot, SlotPool
from languagepipes_node.wire.transport import Connection

log = logging.getLogger(__name__)

# Frames up to so many bytes are one write; a copy of them costs less than a second write.
COALESCED_BYTES = 64 * 1024
# A larger buffer is written in pieces, each with the time-out of its own, so that a link is judged by its progress
# and not by the size of its frames: 2 Mbit/s take a quarter of a second for a piece. Four TLS records; measured on
# loopback, it costs no more processor time than one write of everything.
PIECE_BYTES = 64 * 1024
_CLOSE_WRITE_SECONDS = 0.2
_LINGER_SECONDS = 0.3


@dataclass(frozen=True)
class Timing:
    """When a link is given up, in seconds. Tests scale them down.

    silence_seconds: no byte for so long, or no piece of PIECE_BYTES taken within so long, ends a link; how large a
    frame is does not matter. handshake_seconds: for TCP, TLS and hello of one link. connect_seconds: until the End
    Model's hello must have returned. patience_seconds: how long a new End Model leaves the ring to another one that
    lives: as long as that may take to complete what it has begun, after it was told to end (its pod's 45 s).
    """

    heartbeat_seconds: float = 0.2
    silence_seconds: float = 1.0
    handshake_seconds: float = 2.0
    connect_seconds: float = 5.0
    patience_seconds: float = 45.0


class SendLink:
    """The sending half. `send` belongs to one thread; a keeper thread of its own sends heartbeats and waits for
    the peer's close frame.

    lost: called once, from the keeper, with the close reason; not if `close` ended the link or `send` raised.
    watchdog: of the keeper.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        me: RingMember,
        successor: RingMember,
        plan_hash: bytes,
        epoch: Epoch,
        timing: Timing,
        lost: Callable[[Close], None],
        watchdog: Watchdog | None = None,
    ) -> None:
        self._watchdog = watchdog or Watchdog()
        self._connection = connection
        self._me = me
        self._successor = successor
        self._plan_hash = plan_hash
        self._epoch = epoch
        self._timing = timing
        self._lost = lost
        self._lock = threading.Lock()
        self._ended: Close | None = None
        self._answered = False  # the peer has sent its close frame, or is gone: it reads no further
        self._broken = False  # no further frame would be understood
        self._heartbeat = control_frame(Kind.HEARTBEAT, plan_hash, epoch)
        self._frames = FRAMES.labels("sent")
        self._bytes = WIRE_BYTES.labels("sent")
        connection.set_timeout(timing.silence_seconds)
        self._keeper = threading.Thread(target=self._keep, name=f"send-{successor.index}", daemon=True)

    def start(self) -> None:
        self._keeper.start()

    def join(self, timeout_seconds: float) -> None:
        """Wait until the link, closed before, has sent the close reason and is gone."""
        self._keeper.join(timeout_seconds)

    def send(self, head: memoryview, tensor: memoryview | None = None) -> None:
        """Write one frame: all of it in `head`, or its tensor apart. Raises LinkLost with the close reason."""
        with self._lock:
            if self._ended is not None:
                raise LinkLost(self._ended)
            try:
                self._write(head)
                if tensor is not None:
                    self._write(tensor)
            except OSError as error:
                self._broken = True
                # Once closed from here, the failure is our own doing, and not the reason.
                self._ended = self._ended or self._close_reason_of(error)
                raise LinkLost(self._ended) from error
        self._frames.inc()
        self._bytes.inc(len(head) if tensor is None else len(head) + len(tensor))

    def _write(self, data: memoryview) -> None:
        """Raises OSError, also if the link ended meanwhile: the rest of a frame that nobody reads is not written."""
        size = len(data)
        if size <= PIECE_BYTES:
            self._connection.write(data)
            return
        for begin in range(0, size, PIECE_BYTES):
            if self._answered or self._ended is not None:
                raise ConnectionAbortedError("the link ended during the frame")
            self._connection.write(data[begin : begin + PIECE_BYTES])

    def close(self, close_reason: Close) -> None:
        """End the link with a close frame. Any thread; returns soon even in the middle of a frame, which is cut off
        then: the peer sees the end of the stream and no reason.
        """
        if self._ended is None:
            self._ended = close_reason
        if self._lock.acquire(timeout=_CLOSE_WRITE_SECONDS):
            try:
                if not self._broken:
                    self._broken = True
                    self._connection.set_timeout(_CLOSE_WRITE_SECONDS)
                    self._connection.write(control_frame(Kind.CLOSE, self._plan_hash, self._epoch, close_reason.pack()))
            except OSError:
                pass  # the peer is gone too
            finally:
                self._lock.release()
        else:
            self._connection.abort()
        self._connection.interrupt()

    def _keep(self) -> None:
        try:
            self._send_heartbeats()
        finally:
            self._watchdog.rest()

    def _send_heartbeats(self) -> None:
        connection, lock = self._connection, self._lock
        what = f"the link to {self._successor}"
        while not self._over():
            self._watchdog.expect(what, WAITING_SECONDS)
            close_reason: Close | None = None
            if connection.readable(self._timing.heartbeat_seconds):
                self._answered = True  # a send in progress gives the lock up after its piece
                with lock:
                    if self._over():
                        break
                    close_reason = self._read_close_reason()
                    self._broken, self._ended = True, close_reason
            # A send in progress moves bytes, so no heartbeat is needed then.
            elif lock.acquire(blocking=False):
                try:
                    if self._over():
                        break
                    connection.write(self._heartbeat)
                except OSError as error:
                    close_reason = self._close_reason_of(error)
                    self._broken, self._ended = True, close_reason
                finally:
                    lock.release()
            if close_reason is not None:
                self._lost(close_reason)
        with lock:
            connection.close(_LINGER_SECONDS)

    def _over(self) -> bool:
        return self._ended is not None

    def _close_reason_of(self, error: OSError) -> Close:
        """Why a write failed: what the peer reported before it closed, or what is seen from here."""
        try:
            if self._connection.readable(0.05):
                close_reason = self._read_close_reason()
                if close_reason.member != str(self._me):
                    return close_reason
        except OSError:
            pass
        if isinstance(error, TimeoutError):
            seconds = self._timing.silence_seconds
            return close(self._me, "silence", f"{self._successor} has taken no bytes for {seconds:.1f} s")
        return close(self._me, "lost", f"link to {self._successor} broke: {describe(error)}")

    def _read_close_reason(self) -> Close:
        try:
            header, body = read_control(self._connection, kinds=(Kind.CLOSE,))
            del header
            return parse_close(body)
        except (FrameError, HelloError) as error:
            return close(self._me, "bad_frame", f"{self._successor} answered wrongly: {error}")
        except EOFError:
            return close(self._me, "lost", f"{self._successor} closed the link")
        except OSError as error:
            return close(self._me, "lost", f"link to {self._successor} broke: {describe(error)}")


class ReceiveLink:
    """The receiving half: always read, each frame into a slot of its own.

    The thread that waits for a frame reads it itself: so a frame wakes one thread, the one that computes on it. While
    that thread computes, a thread of the link's own reads in its place, the stand-in, which also ends the link. Only
    who has the turn reads; while nobody has it, arriving bytes wake the stand-in.

    deliver: called with each good frame's slot, header and contents, by the thread that read it; whoever gets them
    releases the slot. dropped: called for each frame of another epoch. lost: called once with the close reason, from
    the stand-in, unless `close` ended the link. watchdog: of whoever has the turn.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        me: RingMember,
        predecessor: RingMember,
        limits: FrameLimits,
        epoch: Epoch,
        slots: SlotPool,
        timing: Timing,
        deliver: Callable[[Slot, Header, Step], None],
        dropped: Callable[[], None],
        lost: Callable[[Close], None],
        watchdog: Watchdog | None = None,
    ) -> None:
        self._watchdog = watchdog or Watchdog()
        self._connection = connection
        self._me = me
        self._predecessor = predecessor
        self._limits = limits
        self._epoch = epoch
        self._slots = slots
        self._timing = timing
        self._deliver = deliver
        self._dropped = dropped
        self._lost = lost
        self._ended: Close | None = None  # by `close`
        self._found: Close | None = None  # why whoever read cannot go on
        self._stopped = threading.Event()
        self._frames = FRAMES.labels("received")
        self._bytes = WIRE_BYTES.labels("received")
        self._what = f"the link from {predecessor}"
        self._header = bytearray(HEADER_BYTES)
        self._header_view = memoryview(self._header)
        self._heard_at = time.monotonic()
        connection.set_timeout(timing.silence_seconds)
        connection.call_stand_in(True)
        # At the end it stays with the stand-in.
        self._turn = threading.Lock()
        self._stand_in = threading.Thread(target=self._run, name=f"receive-{predecessor.index}", daemon=True)

    def start(self) -> None:
        self._stand_in.start()

    def take_turn(self) -> bool:
        """Begin to wait for frames. For one thread, which calls `read` then, and `pass_turn` when it has other work.
        False where frames are not to be waited for here: the stand-in reads at this moment, or the link has ended.
        """
        if not self._turn.acquire(blocking=False):
            return False
        self._connection.call_stand_in(False)
        return True

    def read(self, timeout_seconds: float) -> bool:
        """With the turn: wait for bytes, for the time or until a `nudge`, and read what they begin; a frame is
        delivered, one at most. False if the link has ended.
        """
        if not self._is_over:
            self._read_or_find(timeout_seconds)
        return not self._is_over

    def pass_turn(self) -> None:
        """The stand-in reads from now on."""
        if self._is_over:
            self._connection.interrupt()  # it ends the link
        else:
            self._connection.call_stand_in(True)
        self._turn.release()

    def nudge(self) -> None:
        """Let one `read` return: the one that waits, or the next. Any thread."""
        self._connection.nudge()

    def close(self, close_reason: Close) -> None:
        """End the link, a close frame being its only one the other way. Any thread; does not wait."""
        if self._ended is None:
            self._ended = close_reason
        self._connection.interrupt()

    def join(self, timeout_seconds: float) -> None:
        """Wait until the link, closed before, has sent the close reason and is gone."""
        self._stand_in.join(timeout_seconds)

    def wait_until_stopped(self, timeout_seconds: float) -> bool:
        """Wait until the link, closed before, uses no slot any more. Not inside `read`."""
        if not self._stopped.wait(timeout_seconds):
            self._connection.abort()  # it waits for the rest of a frame
            return self._stopped.wait(timeout_seconds)
        return True

    @property
    def _is_over(self) -> bool:
        return self._ended is not None or self._found is not None

    def _run(self) -> None:
        try:
            self._read_in_turns()
            self._end()
        finally:
            self._watchdog.rest()

    def _read_in_turns(self) -> None:
        """Until the link is over. Returns with the turn, and keeps it: nobody reads any more."""
        while True:
            left = self._silent_in()
            # Over its time while the other thread has the turn, which then judges the silence.
            called = self._connection.stand_in(left if left > 0 else self._timing.heartbeat_seconds)
            # Whoever called it is about to release the turn, and nobody calls it a second time for these bytes.
            if not self._turn.acquire(blocking=called or self._is_over):
                continue
            if not self._is_over:
                self._read_or_find(0.0)
            if self._is_over:
                return
            self.pass_turn()

    def _end(self) -> None:
        self._stopped.set()
        if self._ended is None:
            self._ended = self._found or self._silence()
            self._lost(self._ended)
        try:
            self._connection.set_timeout(_CLOSE_WRITE_SECONDS)
            self._connection.write(control_frame(Kind.CLOSE, self._limits.plan_hash, self._epoch, self._ended.pack()))
        except OSError:
            pass  # the peer is gone
        self._connection.close(_LINGER_SECONDS)

    def _read_or_find(self, timeout_seconds: float) -> None:
        """Read, or find why that cannot go on. With the turn."""
        try:
            self._found = self._read(timeout_seconds)
        except (FrameError, HelloError) as error:
            self._found = close(self._me, "bad_frame", f"frame from {self._predecessor}: {error}")
        except EOFError:
            self._found = close(self._me, "lost", f"{self._predecessor} closed the link")
        except TimeoutError:
            self._found = self._silence()
        except _Ended as ended:
            self._found = ended.close_reason
        except OSError as error:
            self._found = close(self._me, "lost", f"link from {self._predecessor} broke: {describe(error)}")
        except Exception as error:
            # No memory, or a fault of ours: a link that nobody reads must not look as if it were in order.
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("reading from %s failed: %s\n%s", self._predecessor, type(error).__name__, place)
            self._found = close(self._me, "lost", f"reading from {self._predecessor} failed: {type(error).__name__}")

    def _silence(self) -> Close:
        seconds = self._timing.silence_seconds
        return close(self._me, "silence", f"no bytes from {self._predecessor} for {seconds:.1f} s")

    def _silent_in(self) -> float:
        """Seconds until the predecessor has been silent for too long."""
        return self._heard_at + self._timing.silence_seconds - time.monotonic()

    def _read(self, timeout_seconds: float) -> Close | None:
        """Read one frame if it begins within the time. Returns why the link is to end, if it is; raises what
        `_read_or_find` makes a close reason of.
        """
        connection, limits = self._connection, self._limits
        self._watchdog.expect(self._what, WAITING_SECONDS)
        if not connection.readable(max(0.0, min(timeout_seconds, self._silent_in()))):
            # Looked at once more: a process that was frozen finds its time over although bytes have arrived.
            if self._ended is None and self._silent_in() <= 0 and not connection.readable(0):
                return self._silence()
            return None
        if self._ended is not None:
            return None
        self._fill(self._header_view)
        header = parse_header(self._header)
        if header.kind in (Kind.STEP, Kind.REPLAY):
            check_step(header, limits, receiver=self._me.index)
            self._read_step(header)
        elif header.kind == Kind.CLOSE:
            body = bytearray(header.payload_bytes)
            self._fill(memoryview(body))
            return parse_close(body)
        elif header.kind != Kind.HEARTBEAT:
            raise FrameError(f"{Kind(header.kind).name.lower()} frame in the middle of an epoch")
        self._heard_at = time.monotonic()
        return None

    def _read_step(self, header: Header) -> None:
        slot = self._slots.take()
        if slot is None:
            raise FrameError(f"more than {self._limits.frames_in_flight} frames in flight")
        try:
            size = HEADER_BYTES + header.payload_bytes
            slot.view[:HEADER_BYTES] = self._header_view
            self._fill(slot.view[HEADER_BYTES:size])
            if header[5:7] != self._epoch:
                slot.release()
                self._dropped()
                return
            step = parse_step(slot.view, header, self._limits)
        except BaseException:
            slot.release()
            raise
        self._deliver(slot, header, step)
        self._frames.inc()
        self._bytes.inc(size)

    def _fill(self, view: memoryview) -> None:
        """As `read_exactly`, but raises _Ended once the link was closed: over a slow link the rest of a frame that
        nobody wants would hold the close frame, and the next epoch, up for seconds.
        """
        while size := len(view):
            got = self._connection.read_into(view)
            if got == size:
                return
            if got == 0:
                raise EOFError
            if self._ended is not None:
                raise _Ended(self._ended)
            view = view[got:]


class _Ended(Exception):
    def __init__(self, close_reason: Close) -> None:
        super().__init__(str(close_reason))
        self.close_reason = close_reason


def read_exactly(connection: Connection, view: memoryview) -> None:
    """Fill the view. Raises EOFError if the stream ends first, OSError."""
    while size := len(view):
        got = connection.read_into(view)
        if got == size:
            return
        if got == 0:
            raise EOFError
        view = view[got:]


def read_control(connection: Connection, *, kinds: tuple[Kind, ...]) -> tuple[Header, bytearray]:
    """Read one frame that must be of these kinds, none of them a step: header and body.

    Raises FrameError, EOFError, OSError.
    """
    head = bytearray(HEADER_BYTES)
    read_exactly(connection, memoryview(head))
    header = parse_header(head)
    if header.kind not in kinds:
        expected = " or ".join(kind.name.lower() for kind in kinds)
        raise FrameError(f"{Kind(header.kind).name.lower()} frame where a {expected} frame must come")
    body = bytearray(header.payload_bytes)
    read_exactly(connection, memoryview(body))
    return header, body
