"""A TCP relay that makes a bad network of loopback: slow, far, cut off or silent. No root and no netem needed."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from languagepipes_node.net.addresses import split_address

_CHUNK_BYTES = 16 * 1024
_SOCKET_BUFFER_BYTES = 32 * 1024  # small: what waits does so at the sender, as it would before a slow link
_MOST_CHUNKS = 4096
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets
T = TypeVar("T")


def mbit(rate: float) -> float:
    """Bytes a second of so many Mbit/s."""
    return rate * 1e6 / 8


class RelayedLink:
    """One link of a ring with a bad network in it: dial `address` instead of `target`, both "host:port".

        with RelayedLink(stage.address, bytes_per_second=mbit(20), delay_seconds=0.03) as link:
            EndModelCommunicator(…, successor=link.address)
            link.freeze()    # nothing passes, connections stay: the peer has lost its power
            link.thaw()      # what was held passes now
            link.cut()       # connections are reset, new ones too
            link.mend()      # new connections pass again
            link.bytes_per_second = mbit(2)

    bytes_per_second holds for each direction by itself and for all connections together; None: as fast as it goes.
    It may be set at any time. delay_seconds: one way, so a round trip takes twice that; for connections made from then
    on. Bytes keep their order and none is lost: loss is what TCP would make of it, delay.
    forwarded, returned: bytes that passed so far to the target, and from it. Every method may be called from any
    thread and has taken effect when it returns. All connections and one thread end with the context.
    """

    def __init__(self, target: str, *, bytes_per_second: float | None = None, delay_seconds: float = 0.0) -> None:
        self.bytes_per_second = bytes_per_second
        self.delay_seconds = delay_seconds
        self.forwarded = 0
        self.returned = 0
        self._target = split_address(target)
        self._free_at = [0.0, 0.0]  # when each direction has sent all that it took
        self._cut = False
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._going: asyncio.Event | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
        self._thread = threading.Thread(target=self._loop.run_forever, name="relayed link", daemon=True)

    @property
    def address(self) -> str:
        """host:port to dial."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def freeze(self) -> None:
        """Let nothing pass, either way. Connections stay, new ones are accepted."""
        self._call(lambda: self._event().clear())

    def thaw(self) -> None:
        """End `freeze`."""
        self._call(lambda: self._event().set())

    def cut(self) -> None:
        """Reset all connections, and every new one until `mend`. What was under way is lost."""
        self._cut = True
        self._call(self._end_all)

    def mend(self) -> None:
        """End `cut`."""
        self._cut = False

    def __enter__(self) -> RelayedLink:
        self._thread.start()
        self._server = self._wait(asyncio.start_server(self._accepted, sock=self._listener, limit=_CHUNK_BYTES))
        self.thaw()
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self._server.close()
            self._end_all()
            await asyncio.gather(*self._connections, return_exceptions=True)

        self._wait(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _event(self) -> asyncio.Event:
        if self._going is None:
            self._going = asyncio.Event()
        return self._going

    def _call(self, function: Callable[[], object]) -> None:
        async def call() -> None:
            function()

        self._wait(call())

    def _wait(self, awaitable: Awaitable[T]) -> T:
        async def run() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout=10)

    def _end_all(self) -> None:
        for connection in self._connections:
            connection.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = [writer]
        self._connections.add(task)
        try:
            if self._cut:
                raise ConnectionRefusedError
            plain = socket.socket()
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
            plain.setblocking(False)
            await self._loop.sock_connect(plain, self._target)
            there, back = await asyncio.open_connection(sock=plain, limit=_CHUNK_BYTES)
            writers.append(back)
            await _together(self._pass(reader, back, 0), self._pass(there, writer, 1))
        except (OSError, asyncio.CancelledError):
            # One side is gone, or was taken away: the other learns it the hard way.
            for each in writers:
                with contextlib.suppress(OSError):
                    each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                each.transport.abort()
        finally:
            self._connections.discard(task)
            for each in writers:
                each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: int) -> None:
        writer.transport.set_write_buffer_limits(high=0)
        under_way = self.delay_seconds * (self.bytes_per_second or math.inf) if self.delay_seconds else 0.0
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(
            min(_MOST_CHUNKS, 2 + math.ceil(min(under_way, 1e12) / _CHUNK_BYTES))
        )

        async def read() -> None:
            while data := await reader.read(_CHUNK_BYTES):
                await chunks.put((time.monotonic() + self.delay_seconds, data))
            await chunks.put((time.monotonic() + self.delay_seconds, b""))

        async def write() -> None:
            while True:
                due, data = await chunks.get()
                await self._pace(due, len(data), direction)
                if not data:
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    return
                if direction == 0:
                    self.forwarded += len(data)
                else:
                    self.returned += len(data)
                writer.write(data)
                await writer.drain()

        await _together(read(), write())

    async def _pace(self, due: float, size: int, direction: int) -> None:
        """Wait until this direction has sent what it took before and these bytes too, and is not frozen."""
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self.bytes_per_second is not None:
            begin = max(time.monotonic(), self._free_at[direction])
            self._free_at[direction] = begin + size / self.bytes_per_second
            await asyncio.sleep(self._free_at[direction] - time.monotonic())
        await self._event().wait()


async def _together(*parts: Coroutine[Any, Any, None]) -> None:
    """Until all have ended; if one fails or this is cancelled, no other goes on."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
