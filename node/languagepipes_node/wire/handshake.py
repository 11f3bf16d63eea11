"""How links begin: the acceptor of a member, and dialling a successor.

A peer has `handshake_seconds` for TLS and its hello, away from the accept loop, and only so many may try at
once. A refusal is sent to the peer in a close frame before the connection ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from languagepipes_node.health import WAITING_SECONDS, Watchdog
from languagepipes_node.metrics import REFUSED_HELLOS
from languagepipes_node.net.errors import TlsError, describe
from languagepipes_node.wire.close import Close, CloseCode, close
from languagepipes_node.wire.errors import FrameError, HelloError, LinkLost, VersionError
from languagepipes_node.wire.frame import HEADER_BYTES, Kind, control_frame, parse_header
from languagepipes_node.wire.hello import Hello, parse_hello
from languagepipes_node.wire.link import Timing
from languagepipes_node.wire.ring import NO_EPOCH, Ring
from languagepipes_node.wire.transport import Arrival, Connection, Listener, Transport

MAX_PENDING_HANDSHAKES = 8
# How often an acceptor that nobody dials shows its watchdog that it lives.
_IDLE_SECONDS = 5.0
_LINGER_SECONDS = 0.3

log = logging.getLogger(__name__)


class Acceptor:
    """Accepts the predecessor's connections and no other's.

    offer: decides on a well-formed hello from the predecessor. None: it took the connection over; a Close: the
    refusal. Called from handshake threads, several at once. watchdog: of the accepting thread.
    """

    def __init__(
        self,
        listener: Listener,
        ring: Ring,
        *,
        timing: Timing,
        offer: Callable[[Connection, Hello], Close | None],
        watchdog: Watchdog,
    ) -> None:
        self._listener = listener
        self._ring = ring
        self._timing = timing
        self._offer = offer
        self._watchdog = watchdog
        self._free = threading.BoundedSemaphore(MAX_PENDING_HANDSHAKES)
        self._thread = threading.Thread(target=self._accept, name="ring-accept", daemon=True)

    @property
    def address(self) -> str:
        return self._listener.address

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Handshakes in progress end by their own deadline."""
        self._listener.close()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def _accept(self) -> None:
        while True:
            self._watchdog.expect("accepting the predecessor", WAITING_SECONDS)
            try:
                arrival = self._listener.accept(_IDLE_SECONDS)
            except TimeoutError:
                continue
            if arrival is None:
                self._watchdog.rest()
                return
            self._take(arrival)

    def _take(self, arrival: Arrival) -> None:
        if not self._free.acquire(blocking=False):
            REFUSED_HELLOS.labels("busy").inc()
            arrival.close()
            return
        try:
            threading.Thread(target=self._shake, args=(arrival,), name="ring-handshake", daemon=True).start()
        except RuntimeError as error:  # no more threads: this one must live on to accept once there are again
            self._free.release()
            REFUSED_HELLOS.labels("busy").inc()
            log.warning("%s: a connection was refused: %s", self._ring.me, error)
            arrival.close()

    def _shake(self, arrival: Arrival) -> None:
        try:
            self._shake_hands(arrival)
        finally:
            self._free.release()

    def _shake_hands(self, arrival: Arrival) -> None:
        deadline = time.monotonic() + self._timing.handshake_seconds
        try:
            connection = arrival.establish(self._timing.handshake_seconds)
        except (OSError, TlsError) as error:
            REFUSED_HELLOS.labels("tls").inc()
            log.warning("%s: a connection was refused: %s", self._ring.me, describe(error))
            return
        try:
            refusal = self._decide(connection, deadline)
        except (EOFError, OSError) as error:
            REFUSED_HELLOS.labels("no_hello").inc()
            why = "closed by the peer" if isinstance(error, EOFError) else describe(error)
            log.warning("%s: no hello from %s: %s", self._ring.me, connection.peer, why)
            connection.close(0)
            return
        if refusal is None:
            return
        REFUSED_HELLOS.labels(refusal.code).inc()
        log.warning("%s (from %s)", refusal, connection.peer)
        try:
            connection.set_timeout(_LINGER_SECONDS)
            connection.write(control_frame(Kind.CLOSE, bytes.fromhex(self._ring.plan.hash), NO_EPOCH, refusal.pack()))
        except OSError:
            pass  # it went away by itself
        connection.close(_LINGER_SECONDS)

    def _decide(self, connection: Connection, deadline: float) -> Close | None:
        ring = self._ring
        expected = ring.identity_of(ring.predecessor)
        if connection.peer != expected:
            return self._refuse("not_predecessor", f"{connection.peer} is not the predecessor {expected}")
        try:
            head = _read_by(connection, HEADER_BYTES, deadline)
            header = parse_header(head)
            if header.kind != Kind.HELLO:
                return self._refuse("malformed", f"a {Kind(header.kind).name.lower()} frame came where a hello must")
            hello = parse_hello(_read_by(connection, header.payload_bytes, deadline))
        except VersionError as error:
            return self._refuse("wire_version", str(error))
        except (FrameError, HelloError) as error:
            return self._refuse("malformed", str(error))
        return self._offer(connection, hello)

    def _refuse(self, code: CloseCode, message: str) -> Close:
        return close(self._ring.me, code, f"refused: {message}")


def _read_by(connection: Connection, size: int, deadline: float) -> bytearray:
    """Read so many bytes before the deadline. Raises EOFError, OSError (TimeoutError)."""
    data = bytearray(size)
    view = memoryview(data)
    while len(view):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        connection.set_timeout(left)
        got = connection.read_into(view)
        if got == 0:
            raise EOFError
        view = view[got:]
    return data


def dial(transport: Transport, address: str, ring: Ring, hello: Hello, timing: Timing) -> Connection:
    """Connect to the successor, check its identity and send the hello. Raises LinkLost with the close reason."""
    seconds = timing.handshake_seconds
    try:
        connection = transport.dial(address, seconds)
    except TimeoutError as error:
        close_reason = close(
            ring.me, "unreachable", f"{ring.successor} at {address} did not answer within {seconds:.1f} s"
        )
        raise LinkLost(close_reason) from error
    except (OSError, TlsError) as error:
        close_reason = close(
            ring.me, "unreachable", f"{ring.successor} at {address} cannot be reached: {describe(error)}"
        )
        raise LinkLost(close_reason) from error
    expected = ring.identity_of(ring.successor)
    if connection.peer != expected:
        connection.close(0)
        raise LinkLost(close(ring.me, "unreachable", f"{address} is {connection.peer}, not the successor {expected}"))
    try:
        connection.set_timeout(seconds)
        connection.write(control_frame(Kind.HELLO, bytes.fromhex(hello.plan), hello.epoch, hello.pack()))
    except OSError as error:
        close_reason = close(ring.me, "unreachable", f"{ring.successor} took no hello: {_reason_of(connection, error)}")
        connection.close(0)
        raise LinkLost(close_reason) from error
    return connection


def _reason_of(connection: Connection, failed_write: OSError) -> str:
    """With TLS 1.3 a client learns only by reading that its certificate was refused."""
    try:
        connection.set_timeout(_LINGER_SECONDS)
        connection.read_into(memoryview(bytearray(1)))
    except OSError as error:
        return describe(error)
    return describe(failed_write)
