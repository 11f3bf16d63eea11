"""Nodes without a kubelet, so that the scheduler's decisions about labels, taints and GPUs can be tested.

One thread keeps their Leases and says that they are ready, so that the node lifecycle controller neither taints them
nor evicts, and lets go of their deleted pods, for which the API server would else wait for a kubelet for ever.
"""

from __future__ import annotations

import datetime
import threading
from dataclasses import dataclass

import httpx

from cluster.api import Api, Object

PERIOD_SECONDS = 0.5
LEASE_PERIOD_SECONDS = 5.0
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


@dataclass(frozen=True)
class FakeNode:
    name: str
    allocatable: dict[str, str]
    labels: dict[str, str]
    taints: tuple[dict[str, str], ...]
    runs_pods: bool


class FakeNodes:
    """The fake nodes of one control plane. `add` and `remove` are for one thread."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._nodes: dict[str, FakeNode] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, node: FakeNode) -> None:
        self._api.create("/api/v1/nodes", _manifest(node))
        self._api.create(LEASES, {"metadata": {"name": node.name}, "spec": _lease(node.name)})
        self._api.merge(f"/api/v1/nodes/{node.name}/status", {"status": _status(node)})
        with self._lock:
            self._nodes[node.name] = node
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep, name="fake nodes", daemon=True)
            self._thread.start()

    def remove(self, name: str) -> None:
        with self._lock:
            del self._nodes[name]
        self._api.delete(f"/api/v1/nodes/{name}")

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _keep(self) -> None:
        since_leases = LEASE_PERIOD_SECONDS
        while not self._stopping.wait(PERIOD_SECONDS):
            since_leases += PERIOD_SECONDS
            with self._lock:
                nodes = dict(self._nodes)
            try:
                if since_leases >= LEASE_PERIOD_SECONDS:
                    since_leases = 0.0
                    for node in nodes.values():
                        self._keep_ready(node)
                self._tend_pods(nodes)
            except httpx.HTTPError:
                continue  # the API server is away in a test of outages: the next period tries again

    def _keep_ready(self, node: FakeNode) -> None:
        self._api.merge(f"{LEASES}/{node.name}", {"spec": _lease(node.name)})
        # Once a Lease came late, the controller calls the node unknown until its kubelet says better.
        live = self._api.get(f"/api/v1/nodes/{node.name}")["status"]["conditions"]
        if any(each["type"] == "Ready" and each["status"] != "True" for each in live):
            self._api.merge(f"/api/v1/nodes/{node.name}/status", {"status": _status(node)})

    def _tend_pods(self, nodes: dict[str, FakeNode]) -> None:
        for pod in self._api.get("/api/v1/pods", fieldSelector="spec.nodeName!=")["items"]:
            node = nodes.get(pod["spec"]["nodeName"])
            if node is None:
                continue
            metadata = pod["metadata"]
            path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
            if metadata.get("deletionTimestamp"):
                self._api.delete(path, gracePeriodSeconds="0")
            elif node.runs_pods and pod["status"].get("phase") == "Pending":
                self._report_running(path, pod)

    def _report_running(self, path: str, pod: Object) -> None:
        now = _now()
        containers = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            }
            for container in pod["spec"]["containers"]
        ]
        conditions = [
            {"type": kind, "status": "True", "lastTransitionTime": now}
            for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ]
        status = {"phase": "Running", "startTime": now, "conditions": conditions, "containerStatuses": containers}
        try:
            self._api.merge(f"{path}/status", {"status": status})
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.NOT_FOUND:  # deleted meanwhile
                raise


def _manifest(node: FakeNode) -> Object:
    labels = {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    return {"metadata": {"name": node.name, "labels": {**labels, **node.labels}}, "spec": {"taints": list(node.taints)}}


def _status(node: FakeNode) -> Object:
    now = _now()
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "a node without a kubelet",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    return {"capacity": node.allocatable, "allocatable": node.allocatable, "conditions": [ready]}


def _lease(name: str) -> Object:
    return {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": _now(microseconds=True)}


def _now(*, microseconds: bool = False) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if microseconds else "%Y-%m-%dT%H:%M:%SZ")
