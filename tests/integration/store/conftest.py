"""Fixtures of the store's tests: a stand-in hub that HF_ENDPOINT names, and certificates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from languagepipes_api.names import Identity
from languagepipes_node.net.tls import TlsFiles
from languagepipes_operator.certificates.authority import KeyPair, issue, new_ca, write_tls_dir
from support.stand_in_hub import StandIn, stand_in_hub
from support.store_members import TlsFor


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture(scope="session")
def ca() -> KeyPair:
    return new_ca("default", "pipe")


@pytest.fixture(scope="session")
def tls_for(ca: KeyPair, tmp_path_factory: pytest.TempPathFactory) -> TlsFor:
    """Certificates of an identity; `authority` and `trust` default to the pipe's CA."""

    def make(identity: Identity, *, authority: KeyPair = ca, trust: KeyPair = ca) -> TlsFiles:
        directory: Path = tmp_path_factory.mktemp("tls")
        write_tls_dir(directory, trust, issue(authority, identity))
        return TlsFiles(directory)

    return make
