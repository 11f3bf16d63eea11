"""Fixtures of the wire's tests; what they are made of is in wire_ring.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from languagepipes_node.wire.tls_transport import TlsTransport
from support.memory_network import MemoryNetwork
from support.wire_ring import Pki, TransportMaker, identity


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(params=["memory", "sockets"])
def transports(request: pytest.FixtureRequest, pki: Pki) -> TransportMaker:
    """A transport for each member, of either kind."""
    if request.param == "memory":
        network = MemoryNetwork(buffer_bytes=4096)
        return lambda index: network.transport(identity(index))
    return lambda index: TlsTransport(pki.files(identity(index)))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as exits:
        yield exits
