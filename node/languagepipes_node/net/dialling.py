"""TCP to a name: resolved each time, under a deadline, and every address tried.

A pod's name outlives its pod: for a moment it resolves to the old address beside the new one, or to the old one alone.
And the system's resolver takes no deadline: it waits 5 s for each server that does not answer.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Any

# How long one address may take while others are left to try.
ADDRESS_SECONDS = 1.0

_lock = threading.Lock()
# Look-ups in progress, so that a resolver that hangs holds one thread a name and not one an attempt.
_lookups: dict[tuple[str, int], Future[list[tuple[int, Any]]]] = {}


def connect(host: str, port: int, timeout_seconds: float) -> socket.socket:
    """A connected TCP socket whose time-out is what is left. Raises OSError (TimeoutError, socket.gaierror)."""
    deadline = time.monotonic() + timeout_seconds
    addresses = resolve(host, port, timeout_seconds)
    failure: OSError = socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
    for place, (family, address) in enumerate(addresses, start=1):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            if place < len(addresses):
                left = min(ADDRESS_SECONDS, left / 2)
            connected.settimeout(left)
            connected.connect(address)
        except OSError as error:
            failure = error
            connected.close()
            continue
        connected.settimeout(max(0.001, deadline - time.monotonic()))
        return connected
    raise failure


def resolve(host: str, port: int, timeout_seconds: float) -> list[tuple[int, Any]]:
    """(family, address) of each address of a name, as the system orders them. Raises socket.gaierror, TimeoutError."""
    if _is_literal(host):
        return _ask(host, port)
    with _lock:
        lookup = _lookups.get((host, port))
        if lookup is None:
            lookup = _lookups[host, port] = Future()
            threading.Thread(target=_look_up, args=(host, port, lookup), name=f"resolve {host}", daemon=True).start()
    try:
        return lookup.result(timeout_seconds)
    except NotYet:
        raise TimeoutError(f"the name {host} was not resolved within {timeout_seconds:.1f} s") from None


def _look_up(host: str, port: int, lookup: Future[list[tuple[int, Any]]]) -> None:
    found: list[tuple[int, Any]] = []
    failure: Exception | None = None
    try:
        found = _ask(host, port)
    except Exception as error:  # passed on to the waiting caller
        failure = error
    with _lock:  # before the result is set: a caller that comes later starts a new look-up
        del _lookups[host, port]
    if failure is None:
        lookup.set_result(found)
    else:
        lookup.set_exception(failure)


def _ask(host: str, port: int) -> list[tuple[int, Any]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
