"""A real Kubernetes for tests: `ControlPlane` without nodes in seconds, `Cluster` with two real nodes as root.

Everything runs from one program built here (`programs.py`), as child processes that end with this one.
"""

from __future__ import annotations

from cluster.cluster import Cluster
from cluster.control_plane import ControlPlane
from cluster.fake_nodes import FakeNode
from cluster.parts import ClusterError

__all__ = ["Cluster", "ClusterError", "ControlPlane", "FakeNode"]
