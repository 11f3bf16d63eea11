"""`host:port` in text, and the address family that a host needs. It opens no sockets and resolves no names."""

from __future__ import annotations

import socket


def split_address(address: str) -> tuple[str, int]:
    """host:port; an IPv6 host stands in brackets. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"address {address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def address_family(host: str) -> socket.AddressFamily:
    """The family of a literal address to listen on; IPv4 for a name."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
