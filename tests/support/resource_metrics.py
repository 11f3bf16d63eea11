"""A real metrics-server beside the test cluster: what HorizontalPodAutoscalers read of pods.

It runs outside of the nodes, as DNS does, behind a Service that the API server's aggregation layer reaches.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from cluster import Cluster, programs
from cluster.processes import ProcessGroup

from support.kubectl import Kubectl
from support.ports import free_port

NAMESPACE = "kube-system"
NAME = "metrics-server"
_API = "v1beta1.metrics.k8s.io"


class ResourceMetrics:
    """A context manager; inside it `kubectl top pods` and HorizontalPodAutoscalers have figures."""

    def __init__(self, admin: Kubectl, cluster: Cluster, folder: Path) -> None:
        self._kubectl = admin.within(NAMESPACE)
        self._control_plane = cluster.control_plane
        self._folder = folder
        self._processes = ProcessGroup(cluster.logs)

    def __enter__(self) -> ResourceMetrics:
        try:
            self._start()
        except BaseException:
            self._processes.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kubectl("delete", "apiservice", _API)
        self._processes.stop()

    def _start(self) -> None:
        leaf = self._control_plane.client(NAME, common_name=NAME, organization="system:masters")
        kubeconfig = self._control_plane.write_kubeconfig(self._folder / f"{NAME}.kubeconfig", leaf)
        address, port = self._control_plane.address, free_port()
        server = self._processes.start(
            NAME,
            [
                programs.metrics_server(),
                *(f"--{kind}kubeconfig={kubeconfig}" for kind in ("", "authentication-", "authorization-")),
                f"--bind-address={address}",
                f"--secure-port={port}",
                f"--cert-dir={self._folder}",
                f"--kubelet-certificate-authority={self._control_plane.authority.certificate}",
                "--kubelet-preferred-address-types=InternalIP",
                "--metric-resolution=10s",
                "--kubelet-request-timeout=5s",
            ],
        )
        metadata = {"name": NAME, "namespace": NAMESPACE}
        self._kubectl.apply(
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 443}]}},
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {**metadata, "labels": {"kubernetes.io/service-name": NAME}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": [address]}],
                "ports": [{"port": port}],
            },
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": _API},
                "spec": {
                    "group": "metrics.k8s.io",
                    "version": "v1beta1",
                    "service": metadata,
                    "insecureSkipTLSVerify": True,  # its certificate is its own
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                },
            },
        )
        path = "/apis/metrics.k8s.io/v1beta1/nodes"
        self._processes.wait_until(
            lambda: '"cpu"' in self._kubectl.run("get", "--raw", path).stdout,
            what="figures of nodes",
            timeout_seconds=120,
            blame=server,
        )
