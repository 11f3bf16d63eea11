"""etcd, API server, scheduler and controller manager of a test cluster, as child processes on their own address.

Without nodes it needs no root: the default address is a random one of 127.0.0.0/8, so that clusters side by
side never meet and the well-known ports can be used as they are. What a kubelet does for a pod is not done here, except
through `add_node`.
"""

from __future__ import annotations

import ipaddress
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from cluster import programs
from cluster.api import Api
from cluster.certificates import Authority, Leaf
from cluster.fake_nodes import FakeNode, FakeNodes
from cluster.processes import ManagedProcess, ProcessGroup

API_PORT = 6443
ETCD_PORT = 2379
ETCD_PEER_PORT = 2380
CONTROLLER_MANAGER_PORT = 10257
SCHEDULER_PORT = 10259
FRONT_PROXY = "front-proxy-client"
SERVICE_CIDR = "198.18.248.0/22"
START_SECONDS = 90.0
ALLOCATABLE = {"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"}
NODE_LIFECYCLE_FLAGS = {
    # A node is NotReady after so long without a heartbeat: 40 % of the default, to keep tests of lost nodes short.
    "node-monitor-grace-period": "20s",
    "node-monitor-period": "2s",
}


class ControlPlane:
    """A context manager; inside it, `kubeconfig` is the path of an administrator's kubeconfig.

    `folder` keeps data, certificates and logs; without one a temporary folder is used and removed at the end.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        folder: Path | None = None,
        scheduler: bool = True,
        controller_manager: bool = True,
        service_cidr: str = SERVICE_CIDR,
        api_server_flags: Sequence[str] = (),
    ) -> None:
        self.address = address or _loopback_address()
        self.url = f"https://{self.address}:{API_PORT}"
        self._on_loopback = ipaddress.ip_address(self.address).is_loopback
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="languagepipes-control-plane-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.kubeconfig = self.folder / "kubeconfig"
        self.logs = self.folder / "logs"
        self.processes = ProcessGroup(self.logs)
        self.service_cidr = service_cidr
        self._scheduler = scheduler
        self._controller_manager = controller_manager
        self._api_server_flags = tuple(api_server_flags)
        self.authority = Authority(self.folder / "pki")
        self._service_account_key = self.authority.service_account_key()
        self._admin = self.client("admin", common_name="admin", organization="system:masters")
        self.api = Api(self.url, self.authority, self._admin)
        self._program = programs.cluster()
        self._api_server: ManagedProcess | None = None
        self._fake_nodes = FakeNodes(self.api)

    def __enter__(self) -> ControlPlane:
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
        """Start the programs; return when the API answers and every namespace has its service account.

        Raises ClusterError, with the log of the one that failed.
        """
        self.write_kubeconfig(self.kubeconfig, self._admin)
        self._start_etcd()
        self.start_api_server()
        if self._controller_manager:
            self._start_controller_manager()
            self._wait(lambda: self.api.exists("/api/v1/namespaces/default/serviceaccounts/default"), "service account")
        if self._scheduler:
            self._start_scheduler()

    def stop(self) -> None:
        self._fake_nodes.stop()
        self.api.close()
        self.processes.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def add_node(
        self,
        name: str,
        *,
        allocatable: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
        runs_pods: bool = False,
    ) -> FakeNode:
        """A node without a kubelet: the scheduler binds pods to it, a deleted pod goes at once, its Lease is kept.

        With `runs_pods` its pods are reported as Running and Ready; nothing runs.
        """
        node = FakeNode(
            name=name,
            allocatable={**ALLOCATABLE, **(allocatable or {})},
            labels=dict(labels or {}),
            taints=tuple(dict(taint) for taint in taints),
            runs_pods=runs_pods,
        )
        self._fake_nodes.add(node)
        if not self._controller_manager:
            self.api.merge(f"/api/v1/nodes/{name}", {"spec": {"taints": list(node.taints)}})
        self._wait(lambda: self._untainted(node), f"node {name} as ready")
        return node

    def remove_node(self, name: str) -> None:
        self._fake_nodes.remove(name)

    def client(self, name: str, *, common_name: str, organization: str = "", hosts: tuple[str, ...] = ()) -> Leaf:
        """A client certificate; `organization` is its group."""
        return self.authority.issue(name, common_name=common_name, organization=organization, hosts=hosts)

    def write_kubeconfig(self, path: Path, leaf: Leaf) -> Path:
        """Write a kubeconfig (JSON, which is YAML) for this client certificate; files are named, not embedded."""
        path.touch(mode=0o600)
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "test",
                            "cluster": {
                                "server": self.url,
                                "certificate-authority": str(self.authority.certificate.resolve()),
                            },
                        }
                    ],
                    "users": [
                        {
                            "name": "user",
                            "user": {
                                "client-certificate": str(leaf.certificate.resolve()),
                                "client-key": str(leaf.key.resolve()),
                            },
                        }
                    ],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
                    "current-context": "test",
                },
                indent=2,
            )
        )
        return path

    def start_api_server(self) -> None:
        """Start the API server and wait until it is ready: for tests of its outages, after `stop_api_server`."""
        first = _first_address(self.service_cidr)
        hosts = (self.address, first, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        serving = self.authority.issue("kube-apiserver", common_name="kube-apiserver", hosts=hosts)
        kubelet_client = self.client("kubelet-client", common_name="kubelet-client", organization="system:masters")
        front_proxy = self.client("front-proxy", common_name=FRONT_PROXY)
        self._api_server = self.processes.start(
            "kube-apiserver",
            [
                self._program,
                "kube-apiserver",
                f"--bind-address={self.address}",
                f"--advertise-address={self.address}",
                f"--secure-port={API_PORT}",
                f"--etcd-servers=http://{self.address}:{ETCD_PORT}",
                f"--tls-cert-file={serving.certificate}",
                f"--tls-private-key-file={serving.key}",
                f"--client-ca-file={self.authority.certificate}",
                f"--kubelet-client-certificate={kubelet_client.certificate}",
                f"--kubelet-client-key={kubelet_client.key}",
                f"--kubelet-certificate-authority={self.authority.certificate}",
                # Who asks is told to API servers behind this one (metrics-server) in headers that they take from it.
                f"--proxy-client-cert-file={front_proxy.certificate}",
                f"--proxy-client-key-file={front_proxy.key}",
                f"--requestheader-client-ca-file={self.authority.certificate}",
                f"--requestheader-allowed-names={FRONT_PROXY}",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                "--kubelet-preferred-address-types=InternalIP",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-signing-key-file={self._service_account_key}",
                f"--service-account-key-file={self._service_account_key}",
                f"--service-cluster-ip-range={self.service_cidr}",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                *(["--endpoint-reconciler-type=none"] if self._on_loopback else []),  # loopback is no endpoint
                "--allow-privileged=true",
                "--profiling=false",
                *self._api_server_flags,
            ],
        )
        self._wait(self.api.ready, "the API server", blame=self._api_server)

    def stop_api_server(self) -> None:
        """Stop the API server alone; etcd keeps everything."""
        if self._api_server is not None:
            self._api_server.stop()
            self.processes.members.remove(self._api_server)
            self._api_server = None

    def _start_etcd(self) -> None:
        self.processes.start(
            "etcd",
            [
                self._program,
                "etcd",
                f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-url=http://{self.address}:{ETCD_PORT}",
                f"--listen-peer-url=http://{self.address}:{ETCD_PEER_PORT}",
            ],
        )

    def _start_controller_manager(self) -> None:
        leaf = self.client("kube-controller-manager", common_name="system:kube-controller-manager")
        kubeconfig = self.write_kubeconfig(self.folder / "kube-controller-manager.kubeconfig", leaf)
        self.processes.start(
            "kube-controller-manager",
            [
                self._program,
                "kube-controller-manager",
                f"--kubeconfig={kubeconfig}",
                f"--authentication-kubeconfig={kubeconfig}",
                f"--authorization-kubeconfig={kubeconfig}",
                f"--bind-address={self.address}",
                f"--secure-port={CONTROLLER_MANAGER_PORT}",
                f"--service-account-private-key-file={self._service_account_key}",
                f"--root-ca-file={self.authority.certificate}",
                f"--cluster-signing-cert-file={self.authority.certificate}",
                f"--cluster-signing-key-file={self.authority.key}",
                "--use-service-account-credentials=true",
                "--leader-elect=false",
                "--profiling=false",
                *(f"--{name}={value}" for name, value in NODE_LIFECYCLE_FLAGS.items()),
                "--allocate-node-cidrs=false",
            ],
        )

    def _start_scheduler(self) -> None:
        leaf = self.client("kube-scheduler", common_name="system:kube-scheduler")
        kubeconfig = self.write_kubeconfig(self.folder / "kube-scheduler.kubeconfig", leaf)
        self.processes.start(
            "kube-scheduler",
            [
                self._program,
                "kube-scheduler",
                f"--kubeconfig={kubeconfig}",
                f"--authentication-kubeconfig={kubeconfig}",
                f"--authorization-kubeconfig={kubeconfig}",
                f"--bind-address={self.address}",
                f"--secure-port={SCHEDULER_PORT}",
                "--leader-elect=false",
                "--profiling=false",
            ],
        )

    def _wait(self, ready: Callable[[], bool], what: str, *, blame: ManagedProcess | None = None) -> None:
        self.processes.wait_until(ready, what=what, timeout_seconds=START_SECONDS, blame=blame)

    def _untainted(self, node: FakeNode) -> bool:
        """Whether the node has the taints that it was given and no other, such as not-ready."""
        live = self.api.get(f"/api/v1/nodes/{node.name}")
        return {taint["key"] for taint in live["spec"].get("taints", ())} == {taint["key"] for taint in node.taints}


def _loopback_address() -> str:
    """A random address of 127.0.0.0/8: all of them are this machine, and two tests hardly ever draw the same."""
    return f"127.{random.randint(16, 254)}.{random.randint(0, 254)}.{random.randint(2, 254)}"


def _first_address(cidr: str) -> str:
    """The address of the `kubernetes` Service."""
    return str(ipaddress.ip_network(cidr)[1])
