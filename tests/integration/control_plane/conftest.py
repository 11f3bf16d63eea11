"""The API server that the operator's tests talk to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import ControlPlane
from support.served_namespace import ServedNamespace, control_plane_with_crd

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make e2e` runs them, and `make test`, which needs no Go, does not."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.control_plane)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One for all; each test takes a namespace of its own."""
    kept = os.environ.get("CONTROL_PLANE_FOLDER")
    with control_plane_with_crd(Path(kept) if kept else None) as control_plane:
        yield control_plane


@pytest.fixture
def served(control_plane: ControlPlane) -> Iterator[ServedNamespace]:
    made = ServedNamespace(control_plane)
    try:
        yield made
    finally:
        made.close()
