"""A real Kubernetes for tests: `ControlPlane` without nodes in seconds, `Cluster` with two real nodes as root.

Everything runs from one program built here (`build.py`), as child processes that end with this one. The names below are
imported when first used, so that the build needs nothing but Python.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.cluster import Cluster
    from cluster.control_plane import ControlPlane
    from cluster.fake_nodes import FakeNode
    from cluster.processes import ClusterError

__all__ = ["Cluster", "ClusterError", "ControlPlane", "FakeNode"]
_HOMES = {"Cluster": "cluster", "ClusterError": "processes", "ControlPlane": "control_plane", "FakeNode": "fake_nodes"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
