"""The API server that the operator's tests talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import ControlPlane


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """etcd, API server, scheduler and controller manager, without nodes; each test takes a namespace of its own."""
    with ControlPlane() as control_plane:
        yield control_plane
