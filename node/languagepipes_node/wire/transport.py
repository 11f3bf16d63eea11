"""Byte connections under the links: TLS over TCP, and one in memory with the same behaviour for tests.

A connection is used by at most one reading and one writing thread, never at the same time (an SSLSocket does
not survive that); `interrupt` and `abort` may come from any thread. This module knows nothing of frames.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from typing import Protocol

from languagepipes_api.names import Identity

from languagepipes_node.net.dialling import connect
from languagepipes_node.net.tls import TlsFiles, peer_identity
from languagepipes_node.wire.errors import TlsError

_BACKLOG = 16
_ALERT_LINGER_SECONDS = 0.2


class Connection(Protocol):
    """An ordered stream of bytes to an authenticated peer. Failures are OSErrors; time-outs are
    TimeoutErrors.
    """

    @property
    def peer(self) -> Identity:
        """Whom the peer's certificate names."""
        ...

    def set_timeout(self, seconds: float) -> None:
        """How long a read or write may make no progress."""
        ...

    def readable(self, timeout_seconds: float) -> bool:
        """Wait until there is something to read (the end of the stream too). False after the time or an
        interrupt.
        """
        ...

    def read_into(self, view: memoryview) -> int:
        """Read at least one byte; 0 at the end of the stream."""
        ...

    def write(self, data: memoryview | bytes) -> None:
        """Write all of it."""
        ...

    def interrupt(self) -> None:
        """Let `readable` return. Any thread; it stays in force."""
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

    def accept(self) -> Arrival | None:
        """Wait for a connection; None once closed."""
        ...

    def close(self) -> None: ...


class Transport(Protocol):
    def listen(self, address: str) -> Listener: ...

    def dial(self, address: str, timeout_seconds: float) -> Connection:
        """Raises OSError or TlsError."""
        ...


def describe(error: Exception) -> str:
    """An OSError, SSLError or TlsError in a few words for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "closed by the peer"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        return f"TLS: {reason.lower().replace('_', ' ')}"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error)


def split_address(address: str) -> tuple[str, int]:
    """host:port; an IPv6 host stands in brackets. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"address {address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


class _Wake:
    """A flag that poll() can wait for."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._lock = threading.Lock()
        self._open = True

    def set(self) -> None:
        with self._lock:
            if self._open:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._writer, b"!")

    def close(self) -> None:
        with self._lock:
            if self._open:
                self._open = False
                os.close(self.reader)
                os.close(self._writer)


class TlsConnection:
    """A Connection over an SSLSocket. Its socket has a time-out, so that no read or write blocks for good."""

    def __init__(self, tls_socket: ssl.SSLSocket, peer: Identity) -> None:
        self._socket = tls_socket
        self._peer = peer
        self._wake = _Wake()
        self._fd = tls_socket.fileno()
        self._closed = False
        self.set_timeout = tls_socket.settimeout
        self.read_into = tls_socket.recv_into
        self._send = tls_socket.send

    @property
    def peer(self) -> Identity:
        return self._peer

    def readable(self, timeout_seconds: float) -> bool:
        if self._socket.pending():
            return True
        # Made for each call: a send that failed listens while another thread does, and no poll object serves two.
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake.reader, select.POLLIN)
        ready = poll.poll(timeout_seconds * 1000)
        return bool(ready) and any(fd == self._fd for fd, _ in ready)

    def write(self, data: memoryview | bytes) -> None:
        # SSLSocket.sendall would do, at twice the cost for a frame that fits into one TLS record.
        sent = self._send(data)
        if sent != len(data):
            view = memoryview(data)
            while len(view := view[sent:]):
                sent = self._send(view)

    def interrupt(self) -> None:
        self._wake.set()

    def abort(self) -> None:
        # Not SSLSocket.shutdown, which takes the TLS state away from under a thread that uses it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self, linger_seconds: float) -> None:
        if self._closed:
            return
        self._closed = True
        _linger(self._socket, linger_seconds)
        self._socket.close()
        self._wake.close()


def _linger(connected: socket.socket, seconds: float) -> None:
    """Send the end of the stream, then drop what still comes until the peer ends it too. Below TLS."""
    deadline = time.monotonic() + seconds
    scratch = bytearray(65_536)
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            connected.settimeout(left)
            if not socket.socket.recv_into(connected, scratch):
                return


class _TlsArrival:
    def __init__(self, accepted: socket.socket, files: TlsFiles) -> None:
        self._socket = accepted
        self._files = files

    def establish(self, timeout_seconds: float) -> TlsConnection:
        return _handshake(self._socket, self._files.server_context, timeout_seconds, server=True)

    def close(self) -> None:
        self._socket.close()


class _TcpListener:
    def __init__(self, address: str, files: TlsFiles, socket_buffer_bytes: int | None) -> None:
        host, port = split_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _set_buffers(self._socket, socket_buffer_bytes)
            self._socket.bind((host, port))
            self._socket.listen(_BACKLOG)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise
        bound = self._socket.getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if family == socket.AF_INET6 else f"{bound[0]}:{bound[1]}"
        self._files = files
        self._wake = _Wake()
        self._closed = False

    def accept(self) -> _TlsArrival | None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake.reader, select.POLLIN)
        while True:
            poll.poll()
            if self._closed:
                self._socket.close()
                self._wake.close()
                return None
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, ConnectionError):
                continue  # it went away before it was accepted
            except OSError:
                time.sleep(0.05)  # out of file descriptors: those that wait must not spin the processor
                continue
            return _TlsArrival(accepted, self._files)

    def close(self) -> None:
        """Ends `accept`, which releases the socket."""
        self._closed = True
        self._wake.set()


class TlsTransport:
    """Links over TCP and TLS 1.3. socket_buffer_bytes: kernel buffers, for tests of narrow ones; None: the
    kernel's.
    """

    def __init__(self, files: TlsFiles, *, socket_buffer_bytes: int | None = None) -> None:
        self._files = files
        self._socket_buffer_bytes = socket_buffer_bytes

    def listen(self, address: str) -> Listener:
        return _TcpListener(address, self._files, self._socket_buffer_bytes)

    def dial(self, address: str, timeout_seconds: float) -> TlsConnection:
        deadline = time.monotonic() + timeout_seconds
        host, port = split_address(address)
        connected = connect(host, port, timeout_seconds)
        _set_buffers(connected, self._socket_buffer_bytes)
        left = max(0.001, deadline - time.monotonic())
        return _handshake(connected, self._files.client_context, left, server=False)


def _handshake(
    connected: socket.socket, context: ContextMaker, timeout_seconds: float, *, server: bool
) -> TlsConnection:
    tls_socket: socket.socket = connected
    try:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(timeout_seconds)
        # Not on connect: a handshake that fails there closes the socket before the linger below.
        wrapped = context().wrap_socket(connected, server_side=server, do_handshake_on_connect=False)
        tls_socket = wrapped
        wrapped.do_handshake()  # its time-out is one deadline for all of the handshake
        return TlsConnection(wrapped, peer_identity(wrapped))
    except (OSError, TlsError):
        # A peer that speaks already must not have our alert, which says why, taken away by a reset.
        _linger(tls_socket, _ALERT_LINGER_SECONDS if server else 0)
        tls_socket.close()
        connected.close()
        raise


class ContextMaker(Protocol):
    def __call__(self) -> ssl.SSLContext: ...


def _set_buffers(plain: socket.socket, size: int | None) -> None:
    if size is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


class _Pipe:
    """One direction in memory: a bounded buffer. All of both directions is guarded by the pair's one
    condition.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.data = bytearray()
        self.ended = False  # the writer writes no more
        self.abandoned = False  # the reader reads no more


class MemoryConnection:
    """One end of a pair in memory, with the blocking, time-outs and ends of a TlsConnection."""

    def __init__(self, peer: Identity, incoming: _Pipe, outgoing: _Pipe, changed: threading.Condition) -> None:
        self._peer = peer
        self._incoming = incoming
        self._outgoing = outgoing
        self._changed = changed
        self._timeout_seconds = 1.0
        self._interrupted = False

    @property
    def peer(self) -> Identity:
        return self._peer

    def set_timeout(self, seconds: float) -> None:
        self._timeout_seconds = seconds

    def readable(self, timeout_seconds: float) -> bool:
        incoming = self._incoming
        with self._changed:
            self._changed.wait_for(lambda: incoming.data or incoming.ended or self._interrupted, timeout_seconds)
            return bool(incoming.data or incoming.ended)

    def read_into(self, view: memoryview) -> int:
        incoming = self._incoming
        with self._changed:
            if not self._changed.wait_for(lambda: incoming.data or incoming.ended, self._timeout_seconds):
                raise TimeoutError("timed out")
            if incoming.abandoned:
                raise ConnectionResetError("connection aborted")
            size = min(len(view), len(incoming.data))
            view[:size] = incoming.data[:size]
            del incoming.data[:size]
            self._changed.notify_all()
            return size

    def write(self, data: memoryview | bytes) -> None:
        outgoing, left = self._outgoing, memoryview(data).cast("B")
        with self._changed:
            while len(left):
                if not self._changed.wait_for(
                    lambda: len(outgoing.data) < outgoing.capacity or outgoing.abandoned or outgoing.ended,
                    self._timeout_seconds,
                ):
                    raise TimeoutError("timed out")
                if outgoing.abandoned or outgoing.ended:
                    raise BrokenPipeError("connection closed")
                size = outgoing.capacity - len(outgoing.data)
                outgoing.data += left[:size]
                left = left[size:]
                self._changed.notify_all()

    def interrupt(self) -> None:
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def abort(self) -> None:
        with self._changed:
            for pipe in (self._incoming, self._outgoing):
                pipe.ended = pipe.abandoned = True
            self._changed.notify_all()

    def close(self, linger_seconds: float) -> None:
        with self._changed:
            self._outgoing.ended = True
            self._incoming.data.clear()
            self._incoming.abandoned = True
            self._changed.notify_all()


class _MemoryArrival:
    def __init__(self, connection: MemoryConnection) -> None:
        self._connection = connection

    def establish(self, timeout_seconds: float) -> MemoryConnection:
        return self._connection

    def close(self) -> None:
        self._connection.abort()


class _MemoryListener:
    def __init__(self, network: MemoryNetwork, address: str, owner: Identity) -> None:
        self.address = address
        self.owner = owner
        self._network = network
        self._waiting: deque[_MemoryArrival] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def offer(self, connection: MemoryConnection) -> None:
        with self._changed:
            self._waiting.append(_MemoryArrival(connection))
            self._changed.notify()

    def accept(self) -> _MemoryArrival | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return None if self._closed else self._waiting.popleft()

    def close(self) -> None:
        self._network.forget(self)
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class MemoryNetwork:
    """All listeners of a ring in one process. Peers are who they say: there are no certificates."""

    def __init__(self, *, buffer_bytes: int = 65_536) -> None:
        self.buffer_bytes = buffer_bytes
        self._lock = threading.Lock()
        self._listeners: dict[str, _MemoryListener] = {}

    def transport(self, identity: Identity) -> MemoryTransport:
        """The transport of one member."""
        return MemoryTransport(self, identity)

    def add(self, address: str, owner: Identity) -> _MemoryListener:
        with self._lock:
            if address in self._listeners:
                raise OSError(f"address {address} is in use")
            listener = self._listeners[address] = _MemoryListener(self, address, owner)
            return listener

    def find(self, address: str) -> _MemoryListener:
        with self._lock:
            listener = self._listeners.get(address)
        if listener is None:
            raise ConnectionRefusedError("Connection refused")
        return listener

    def forget(self, listener: _MemoryListener) -> None:
        with self._lock:
            if self._listeners.get(listener.address) is listener:
                del self._listeners[listener.address]


class MemoryTransport:
    """A member's side of a MemoryNetwork."""

    def __init__(self, network: MemoryNetwork, identity: Identity) -> None:
        self._network = network
        self._identity = identity

    def listen(self, address: str) -> Listener:
        return self._network.add(address, self._identity)

    def dial(self, address: str, timeout_seconds: float) -> MemoryConnection:
        listener = self._network.find(address)
        there, back = _Pipe(self._network.buffer_bytes), _Pipe(self._network.buffer_bytes)
        changed = threading.Condition()
        listener.offer(MemoryConnection(self._identity, there, back, changed))
        return MemoryConnection(listener.owner, back, there, changed)
