"""A real node: containerd, kubelet and kube-proxy in namespaces of their own, on a link to the cluster's bridge."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import programs, slots
from cluster.control_plane import ControlPlane
from cluster.images import Ctr, ImageStore, containerd_config
from cluster.namespaces import NodeNamespaces
from cluster.processes import ClusterError, ManagedProcess, ProcessGroup
from cluster.slots import Slot

CNI_PLUGINS = "/usr/lib/cni"
START_SECONDS = 120.0


class Node:
    """Node number `index` (from 1) of the cluster in `slot`. `stop` kills everything in it."""

    def __init__(self, *, slot: Slot, index: int, control_plane: ControlPlane, memory_bytes: int) -> None:
        self.index = index
        self.name = f"node-{index}"
        self.address = slot.node_address(index)
        self.folder = slot.folder / self.name
        self.volumes = self.folder / "volumes"
        self.processes = ProcessGroup(control_plane.logs)
        self._slot = slot
        self._control_plane = control_plane
        self._memory_bytes = memory_bytes
        self._ctr = Ctr(self.folder / "containerd.sock")
        self._namespaces: NodeNamespaces | None = None
        self._kubelet: ManagedProcess | None = None

    def start(self, images: ImageStore) -> None:
        """Start containerd with the kept images and the node's programs; does not wait until the node is Ready."""
        self.volumes.mkdir(parents=True)
        self.volumes.chmod(0o755)
        slots.make_cgroup(self._slot.cgroup(self.index))
        self._namespaces = NodeNamespaces(
            self.processes, name=self.name, ready=self.folder / "namespaces-are-ready", network=True
        )
        self._connect(self._namespaces.process_id)
        images.seed(self.folder / "containerd")
        self._write_configuration()
        containerd = self._start("containerd", ["containerd", "--config", self.folder / "containerd.toml"])
        self.processes.wait_until(
            # Its own client is answered before a kubelet is, and a kubelet that isn't answered ends.
            lambda: b"Start streaming server" in containerd.log.read_bytes() and self._ctr.answers(),
            what=f"containerd of {self.name}",
            timeout_seconds=START_SECONDS,
        )
        self.start_kubelet()
        self._start("kube-proxy", [programs.cluster(), "kube-proxy", f"--config={self.folder / 'kube-proxy.json'}"])

    def stop(self) -> None:
        self.processes.stop()

    def start_kubelet(self) -> None:
        node = [
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            f"--root-dir={self.folder / 'kubelet'}",
        ]
        files = [f"--kubeconfig={self.folder / 'kubelet.kubeconfig'}", f"--config={self.folder / 'kubelet.json'}"]
        self._kubelet = self._start("kubelet", [programs.cluster(), "kubelet", *files, *node])

    def stop_kubelet(self) -> None:
        """Kill the kubelet alone: pods go on, the node turns NotReady."""
        if self._kubelet is not None:
            self._kubelet.stop()
            self.processes.members.remove(self._kubelet)
            self._kubelet = None

    def set_link(self, *, up: bool) -> None:
        """Cut the node off, or connect it again; nothing in it is told."""
        run("ip", "link", "set", self._slot.link(self.index), "up" if up else "down")

    def load_image(self, archive: Path) -> list[str]:
        """Import an archive of images; their names. Raises ClusterError."""
        return self._ctr.load(archive)

    def ctr(self, *arguments: str) -> str:
        """What containerd's own client prints, asked about what Kubernetes runs here. Raises ClusterError."""
        return self._ctr(*arguments)

    def _start(self, name: str, argv: Sequence[str | Path]) -> ManagedProcess:
        assert self._namespaces is not None
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        return self.processes.start(
            f"{self.name}-{name}", argv, prefix=self._namespaces.prefix, environment=environment
        )

    def _connect(self, process_id: int) -> None:
        link = self._slot.link(self.index)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(process_id))
        run("ip", "link", "set", link, "master", self._slot.name, "up")
        inside = ("nsenter", f"--target={process_id}", "--net", "ip")
        run(*inside, "address", "add", f"{self.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "route", "add", "default", "via", self._slot.address)
        run("ip", "route", "add", self._slot.pod_cidr(self.index), "via", self.address)

    def route_to(self, other: Node) -> None:
        """Let pods of this node reach those of another."""
        assert self._namespaces is not None
        inside = ("nsenter", f"--target={self._namespaces.process_id}", "--net", "ip")
        run(*inside, "route", "add", self._slot.pod_cidr(other.index), "via", other.address)

    def _write_configuration(self) -> None:
        networks = self.folder / "cni"
        networks.mkdir()
        (self.folder / "containerd.toml").write_text(
            containerd_config(
                root=self.folder / "containerd",
                state=Path("/run/containerd"),
                socket=self.folder / "containerd.sock",
                cni_folder=networks,
                cni_plugins=CNI_PLUGINS,
            )
        )
        self._write_json(networks / "10-pods.conflist", self._network())
        (self.folder / "resolv.conf").write_text(f"nameserver {self._slot.address}\n")
        control_plane = self._control_plane
        kubelet = control_plane.client(
            f"{self.name}-kubelet", common_name=f"system:node:{self.name}", organization="system:nodes"
        )
        control_plane.write_kubeconfig(self.folder / "kubelet.kubeconfig", kubelet)
        self._write_json(self.folder / "kubelet.json", self._kubelet_configuration())
        proxy = control_plane.client(f"{self.name}-kube-proxy", common_name="system:kube-proxy")
        control_plane.write_kubeconfig(self.folder / "kube-proxy.kubeconfig", proxy)
        self._write_json(self.folder / "kube-proxy.json", self._proxy_configuration())

    def _network(self) -> dict[str, Any]:
        ranges = [[{"subnet": self._slot.pod_cidr(self.index)}]]
        return {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "hairpinMode": True,
                    "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
                }
            ],
        }

    def _kubelet_configuration(self) -> dict[str, Any]:
        control_plane = self._control_plane
        serving = control_plane.client(f"{self.name}-serving", common_name=self.name, hosts=(self.name, self.address))
        machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(control_plane.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self._slot.cgroup(self.index),
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "clusterDNS": [self._slot.address],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.folder / "resolv.conf"),
            "containerRuntimeEndpoint": f"unix://{self.folder / 'containerd.sock'}",
            "podLogsDir": str(self.folder / "pod-logs"),
            "serializeImagePulls": False,
            # Heartbeats fit the control plane's shortened patience for them.
            "nodeStatusUpdateFrequency": "4s",
            "nodeLeaseDurationSeconds": 12,
            # Running pods get a changed Secret's files after 10 to 15 s; the default is six times that.
            "syncFrequency": "10s",
            # Nodes share one machine, each offers its part of the memory; a full disk must not evict pods half-way.
            "systemReserved": {"memory": str(machine_bytes - self._memory_bytes)},
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
        }

    def _proxy_configuration(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self.folder / "kube-proxy.kubeconfig")},
            "hostnameOverride": self.name,
            "mode": "nftables",
            "clusterCIDR": self._slot.pods_cidr,
            "detectLocalMode": "ClusterCIDR",
            "conntrack": {"maxPerCore": 0, "min": 0},
        }

    @staticmethod
    def _write_json(path: Path, value: dict[str, Any]) -> None:
        path.write_text(json.dumps(value, indent=2))


def run(*argv: str) -> None:
    """Run a command of iproute2 or the like. Raises ClusterError with what it said."""
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"{' '.join(argv)}: {result.stderr.strip()}")
