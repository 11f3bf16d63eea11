"""Requests to a store as no client of ours makes them."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager

from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.store.server import StoreServer


@contextmanager
def raw_connection(server: StoreServer, tls: TlsFiles) -> Iterator[http.client.HTTPSConnection]:
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=tls.client_context(), timeout=10)
    try:
        yield connection
    finally:
        connection.close()
