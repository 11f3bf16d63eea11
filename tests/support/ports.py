"""Free ports of this machine for members that a test starts."""

from __future__ import annotations

import socket
from collections import deque

# Held, so that neither port 0 nor an outgoing connection of anybody else gets a port between its choice and its use.
# A socket that is bound with SO_REUSEADDR and never listens keeps no member, which sets it too, from listening there.
_held: deque[socket.socket] = deque(maxlen=512)


def free_port() -> int:
    """Nobody's but the caller's for as long as this process lives, or until hundreds more were asked for."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held.append(holder)
    return int(holder.getsockname()[1])


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"
