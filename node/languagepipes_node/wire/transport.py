"""What a link needs of the bytes under it: connections, listeners, and a transport that makes them.

A connection is used by at most one reading and one writing thread, never at the same time (an SSLSocket does
not survive that); `interrupt`, `nudge` and `abort` may come from any thread. Two threads may take turns in reading it:
one waits in `readable`, the other one in `stand_in`, and arriving bytes wake one of them. This module knows neither
TLS nor frames.
"""

from __future__ import annotations

from typing import Protocol

from languagepipes_api.names import Identity


class Connection(Protocol):
    """An ordered stream of bytes to an authenticated peer. Failures are OSErrors; time-outs are
    TimeoutErrors.
    """

    @property
    def peer(self) -> Identity:
        """Whom the peer's certificate names."""
        ...

    def set_timeout(self, seconds: float) -> None:
        """How long a read, or one write, may take. Over TLS a read is one record, of at most 16 KiB."""
        ...

    def readable(self, timeout_seconds: float) -> bool:
        """Wait until there is something to read (the end of the stream too). False after the time, an interrupt or a
        nudge.
        """
        ...

    def stand_in(self, timeout_seconds: float) -> bool:
        """Wait until there is something to read that `call_stand_in` left to this thread. False after the time or an
        interrupt.
        """
        ...

    def call_stand_in(self, called: bool) -> None:
        """Whether `stand_in` returns when there is something to read; it does so once for a call. At first it does
        not. For the thread whose turn it is to read.
        """
        ...

    def read_into(self, view: memoryview) -> int:
        """Read at least one byte; 0 at the end of the stream."""
        ...

    def write(self, data: memoryview | bytes) -> None:
        """Write all of it, within the time-out: whoever has much to write does so in pieces."""
        ...

    def interrupt(self) -> None:
        """Let `readable` and `stand_in` return. Any thread; it stays in force."""
        ...

    def nudge(self) -> None:
        """Let one `readable` return: the one that waits, or the next. Any thread."""
        ...

    def abort(self) -> None:
        """Make reads and writes in progress fail. Any thread."""
        ...

    def close(self, linger_seconds: float) -> None:
        """Say that no more comes, wait for the peer to do the same, and release everything.

        Without the wait a byte that arrives late would reset the connection, and the peer would lose our last
        frame.
        """
        ...


class Arrival(Protocol):
    """A connection that was accepted and not authenticated yet."""

    def establish(self, timeout_seconds: float) -> Connection:
        """Authenticate. Raises OSError or TlsError; the connection is closed then."""
        ...

    def close(self) -> None: ...


class Listener(Protocol):
    @property
    def address(self) -> str: ...

    def accept(self, timeout_seconds: float | None = None) -> Arrival | None:
        """Wait for a connection; None once closed. Raises TimeoutError after the time, if one is given."""
        ...

    def close(self) -> None: ...


class Transport(Protocol):
    def listen(self, address: str) -> Listener: ...

    def dial(self, address: str, timeout_seconds: float) -> Connection:
        """Raises OSError or TlsError."""
        ...
