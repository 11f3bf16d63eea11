"""A whole Kubernetes cluster of two real nodes on this machine: what tests/e2e runs on.

Needs root and the Debian packages in packages.txt. The nodes are namespaces of this machine (`namespaces.py`), joined
by a bridge that is reachable from here, as are pods and Services. DNS and the provisioner of volumes run beside the
control plane, outside the nodes. Pods have no way to the internet, and no CNI plugin enforces NetworkPolicies.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from cluster import programs, slots
from cluster.api import Object
from cluster.control_plane import ControlPlane
from cluster.images import PAUSE, ImageStore
from cluster.node import Node, run
from cluster.processes import ClusterError, ProcessGroup

READY_SECONDS = 120.0
VOLUMES_NAMESPACE = "local-path-storage"
PROVISIONER = "rancher.io/local-path"
BRIDGE_MAC = "02:00:c6:12:00:{number:02x}"  # fixed: a bridge else changes it with its links, and neighbours lose it


class Cluster:
    """A context manager; inside it `kubeconfig` is an administrator's and the nodes are Ready.

    `images` are archives that every node has from the start (`load_image` adds others later). Logs of all processes are
    in `logs`, which is removed with the rest unless `keep_logs` names a folder for them.
    """

    def __init__(self, *, nodes: int = 2, images: Sequence[Path] = (), keep_logs: Path | None = None) -> None:
        self._images = tuple(images)
        self._keep_logs = keep_logs
        self._slot = slots.take()
        self._processes: ProcessGroup | None = None
        try:
            run("ip", "link", "add", self._slot.name, "address", self._mac, "type", "bridge")
            run("ip", "address", "add", f"{self._slot.address}/24", "dev", self._slot.name)
            run("ip", "link", "set", self._slot.name, "up")
            self.control_plane = ControlPlane(
                address=self._slot.address, folder=self._slot.folder / "control", service_cidr=self._slot.service_cidr
            )
            self.kubeconfig = self.control_plane.kubeconfig
            self.logs = self.control_plane.logs
            self._processes = ProcessGroup(self.logs)
            memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // nodes
            self.nodes = tuple(
                Node(slot=self._slot, index=index, control_plane=self.control_plane, memory_bytes=memory_bytes)
                for index in range(1, nodes + 1)
            )
        except BaseException:
            self._slot.clean()
            self._slot.release()
            raise

    @property
    def _mac(self) -> str:
        return BRIDGE_MAC.format(number=self._slot.number)

    @property
    def name(self) -> str:
        """Its bridge and cgroup are called so, its links begin so."""
        return self._slot.name

    @property
    def folder(self) -> Path:
        return self._slot.folder

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return when all nodes are Ready and DNS answers. Raises ClusterError with the log of what failed."""
        store = ImageStore()
        store.hold(self._images)
        self.control_plane.start()
        for node in self.nodes:
            node.start(store)
        for node in self.nodes:
            for other in self.nodes:
                if node is not other:
                    node.route_to(other)
        run("ip", "route", "add", self._slot.service_cidr, "via", self.nodes[0].address)
        self._start_dns()
        self._start_provisioner()
        for node in self.nodes:
            self.wait_ready(node.name)

    def stop(self) -> None:
        """Kill and remove everything. Raises ClusterError if something stays."""
        for node in self.nodes:
            node.stop()
        if self._processes is not None:
            self._processes.stop()
        self.control_plane.stop()
        if self._keep_logs is not None and self.logs.exists():
            shutil.copytree(self.logs, self._keep_logs, dirs_exist_ok=True)
        self._slot.clean()
        self._slot.release()

    def load_image(self, archive: Path) -> list[str]:
        """Import an archive of images into every node; their names."""
        for node in self.nodes:
            images = node.load_image(archive)
        return images

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def cut(self, name: str) -> None:
        """Cut a node off the network. Its pods run on; the API server calls it NotReady after 20 s."""
        self.node(name).set_link(up=False)

    def heal(self, name: str) -> None:
        self.node(name).set_link(up=True)

    def is_ready(self, name: str) -> bool:
        path = f"/api/v1/nodes/{name}"
        if not self.control_plane.api.exists(path):
            return False
        node = self.control_plane.api.get(path)
        ready = any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in node.get("status", {}).get("conditions", ())
        )
        return ready and not node["spec"].get("taints")

    def wait_ready(self, name: str, *, ready: bool = True, timeout_seconds: float = READY_SECONDS) -> None:
        """Wait until a node is Ready (and untainted) or, with ready=False, until it isn't. Raises ClusterError."""
        deadline = time.monotonic() + timeout_seconds
        while self.is_ready(name) is not ready:
            for group in (self.node(name).processes, self.control_plane.processes):
                for process in group.members:
                    if not process.running:
                        raise ClusterError(f"{process.name} ended:\n{process.log_tail()}")
            if time.monotonic() > deadline:
                logs = "\n".join(process.log_tail() for process in self.node(name).processes.members)
                raise ClusterError(f"{name} is not {'Ready' if ready else 'NotReady'}:\n{logs}")
            time.sleep(0.2)

    def _start_dns(self) -> None:
        kubeconfig = self._kubeconfig_for("coredns")
        corefile = self.control_plane.folder / "Corefile"
        resolv = Path("/etc/resolv.conf")
        has_resolver = resolv.exists() and "nameserver" in resolv.read_text()
        corefile.write_text(
            f""".:53 {{
    bind {self._slot.address}
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        ttl 1
    }}
    {f"forward . {resolv}" if has_resolver else ""}
}}
"""
        )
        assert self._processes is not None
        self._processes.start("coredns", [programs.coredns(), "-conf", corefile])

    def _start_provisioner(self) -> None:
        api, folder = self.control_plane.api, self.control_plane.folder
        api.create("/api/v1/namespaces", {"metadata": {"name": VOLUMES_NAMESPACE}})
        api.create("/apis/storage.k8s.io/v1/storageclasses", _storage_class())
        paths = [{"node": node.name, "paths": [str(node.volumes)]} for node in self.nodes]
        config = {"nodePathMap": paths, "setupCommand": "/pause", "teardownCommand": "/pause"}
        (folder / "volumes.json").write_text(json.dumps(config))
        (folder / "helper-pod.json").write_text(json.dumps(_helper_pod()))
        assert self._processes is not None
        self._processes.start(
            "local-path-provisioner",
            [
                programs.local_path_provisioner(),
                "start",
                f"--kubeconfig={self._kubeconfig_for('local-path-provisioner')}",
                f"--config={folder / 'volumes.json'}",
                f"--helper-pod-file={folder / 'helper-pod.json'}",
                f"--helper-image={PAUSE}",
                f"--provisioner-name={PROVISIONER}",
                f"--namespace={VOLUMES_NAMESPACE}",
                "--service-account-name=default",
            ],
        )

    def _kubeconfig_for(self, name: str) -> Path:
        leaf = self.control_plane.client(name, common_name=name, organization="system:masters")
        return self.control_plane.write_kubeconfig(self.control_plane.folder / f"{name}.kubeconfig", leaf)


def _storage_class() -> Object:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"}
    return {
        "metadata": {"name": "local-path", "annotations": annotations},
        "provisioner": PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }


def _helper_pod() -> Object:
    container = {
        "name": "helper-pod",
        "image": PAUSE,
        "imagePullPolicy": "Never",
        "command": ["/pause"],
        "securityContext": {"runAsUser": 0},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper-pod"},
        "spec": {"containers": [container], "priorityClassName": "system-node-critical"},
    }
