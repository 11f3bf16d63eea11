"""A transport in memory with the blocking, time-outs and ends of the one over TLS, for rings inside one process."""

from __future__ import annotations

import threading
from collections import deque

from languagepipes_api.names import Identity
from languagepipes_node.wire.transport import Listener


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
        self._nudged = False
        self._stand_in_called = False

    @property
    def peer(self) -> Identity:
        return self._peer

    def set_timeout(self, seconds: float) -> None:
        self._timeout_seconds = seconds

    def readable(self, timeout_seconds: float) -> bool:
        incoming = self._incoming
        with self._changed:
            self._changed.wait_for(
                lambda: incoming.data or incoming.ended or self._interrupted or self._nudged, timeout_seconds
            )
            self._nudged = False
            return bool(incoming.data or incoming.ended)

    def stand_in(self, timeout_seconds: float) -> bool:
        incoming = self._incoming

        def called() -> bool:
            return self._stand_in_called and bool(incoming.data or incoming.ended)

        with self._changed:
            self._changed.wait_for(lambda: self._interrupted or called(), timeout_seconds)
            if found := called():
                self._stand_in_called = False
            return found

    def call_stand_in(self, called: bool) -> None:
        with self._changed:
            self._stand_in_called = called
            self._changed.notify_all()

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

    def nudge(self) -> None:
        with self._changed:
            self._nudged = True
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

    def accept(self, timeout_seconds: float | None = None) -> _MemoryArrival | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self._closed, timeout_seconds):
                raise TimeoutError("timed out")
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
