"""The transport of a running ring: TLS 1.3 over TCP. This module knows nothing of frames."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from typing import Protocol

from languagepipes_api.names import Identity

from languagepipes_node.net.addresses import address_family, split_address
from languagepipes_node.net.dialling import connect
from languagepipes_node.net.errors import TlsError
from languagepipes_node.net.tls import TlsFiles, peer_identity
from languagepipes_node.wire.transport import Listener

_BACKLOG = 16
_ALERT_LINGER_SECONDS = 0.2
# How much the kernel keeps that is not under way yet; its own choice is megabytes. Over a slow link those would be
# sent before the close frame, hold up the bytes of the next epoch after this one was given up, and let a socket be
# written to again only once a third of them has gone, which may be later than the time-out.
_UNSENT_BYTES = 128 * 1024


class _Wake:
    """A flag that poll() can wait for."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)
        self._lock = threading.Lock()
        self._open = True

    def set(self) -> None:
        with self._lock:
            if self._open:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._writer, b"!")

    def clear(self) -> None:
        with self._lock:
            if self._open:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.reader, 4096)

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
        self._nudged = _Wake()
        self._fd = tls_socket.fileno()
        self._closed = False
        self._stand_in = select.epoll()
        self._stand_in.register(self._wake.reader, select.EPOLLIN)
        self._stand_in.register(self._fd, select.EPOLLONESHOT)
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
        poll.register(self._nudged.reader, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(timeout_seconds * 1000)]
        if self._nudged.reader in ready:
            self._nudged.clear()
        return self._fd in ready

    def stand_in(self, timeout_seconds: float) -> bool:
        return any(fd == self._fd for fd, _ in self._stand_in.poll(timeout_seconds, 2))

    def call_stand_in(self, called: bool) -> None:
        events = select.EPOLLONESHOT
        if called:
            events |= select.EPOLLIN
            if self._socket.pending():
                # What was decrypted is not in the kernel any more: that the socket can be written to is reported
                # at once instead.
                events |= select.EPOLLOUT
        self._stand_in.modify(self._fd, events)

    def write(self, data: memoryview | bytes) -> None:
        # SSLSocket.sendall would do, at twice the cost for a frame that fits into one TLS record.
        sent = self._send(data)
        if sent != len(data):
            view = memoryview(data)
            while len(view := view[sent:]):
                sent = self._send(view)

    def interrupt(self) -> None:
        self._wake.set()

    def nudge(self) -> None:
        self._nudged.set()

    def abort(self) -> None:
        # Not SSLSocket.shutdown, which takes the TLS state away from under a thread that uses it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self, linger_seconds: float) -> None:
        if self._closed:
            return
        self._closed = True
        _linger(self._socket, linger_seconds)
        self._stand_in.close()
        self._socket.close()
        self._wake.close()
        self._nudged.close()


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
        family = address_family(host)
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

    def accept(self, timeout_seconds: float | None = None) -> _TlsArrival | None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake.reader, select.POLLIN)
        while True:
            ready = poll.poll(None if timeout_seconds is None else timeout_seconds * 1000)
            if self._closed:
                self._socket.close()
                self._wake.close()
                return None
            if not ready:
                raise TimeoutError("timed out")
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
        with contextlib.suppress(OSError):  # a sandbox's own network stack may not have it
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
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
