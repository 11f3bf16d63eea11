"""Loopback ports for the members, held from before the first member starts until `up` ends.

A held port is bound with SO_REUSEADDR and never listens. Linux then lets a member with SO_REUSEADDR bind and
listen on the same port, while port 0 and outgoing connections of other programs keep away from it
(inet_csk_get_port): nobody gets it by chance between two lives of a member. (Other systems refuse the second bind;
the node runs on Linux.)
"""

from __future__ import annotations

import errno
import socket
from types import TracebackType

LOOPBACK = "127.0.0.1"


class PortTaken(Exception):
    """Somebody listens on the wanted port already."""


class HeldPorts:
    """A context that hands out `127.0.0.1:port` addresses and lets go of them at its end."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def hold(self, port: int = 0) -> str:
        """Hold `port`, or a free one for 0.

        Raises PortTaken if somebody listens there, OSError if it may not be bound.
        """
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((LOOPBACK, port))
        except OSError as error:
            holder.close()
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(
                    f"port {port} on {LOOPBACK} is taken by another program: stop it, or choose another with --port"
                ) from error
            raise
        self._sockets.append(holder)
        return f"{LOOPBACK}:{holder.getsockname()[1]}"

    def release(self) -> None:
        """Let go of every port."""
        while self._sockets:
            self._sockets.pop().close()

    def __enter__(self) -> HeldPorts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
