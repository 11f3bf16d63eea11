"""The two real nodes themselves, before anything of ours runs on them. Needs root and the packages of packages.txt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, programs, slots
from support import built_images
from support.paths import ROOT
from support.waiting import eventually

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]
NAMESPACE = "harness"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
SERVE = "open('/data/word', 'w').write('hello'); import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8080)"
FETCH = "import urllib.request as u; print(u.urlopen('http://web.harness.svc.cluster.local/word', timeout=5).read())"


class Kubectl:
    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(programs.kubectl()), f"--kubeconfig={kubeconfig}", f"--namespace={NAMESPACE}"]

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=120
        )

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        result = self.run(*arguments, stdin=stdin)
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(images=[built_images.archives()["client"]]) as cluster:
        cluster.control_plane.api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": RESTRICTED}})
        yield cluster


@pytest.fixture(scope="module")
def image() -> str:
    return built_images.tags()["client"]


@pytest.fixture(scope="module")
def kubectl(cluster: Cluster) -> Kubectl:
    return Kubectl(cluster.kubeconfig)


def pod(name: str, image: str, *command: str, node: str = "", memory: str = "64Mi", claim: str = "") -> str:
    """A pod that meets the restricted profile, as JSON."""
    volume: dict[str, Any] = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "Never",
        "command": list(command),
        "workingDir": "/data",
        "resources": {"limits": {"memory": memory}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "nodeSelector": {"kubernetes.io/hostname": node} if node else {},
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "data", **volume}],
        "containers": [container],
    }
    return json.dumps(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}
    )


def test_a_service_on_one_node_with_a_claim_answers_by_name_to_a_pod_on_the_other(
    cluster: Cluster, kubectl: Kubectl, image: str
) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": spec}
    kubectl("apply", "-f", "-", stdin=json.dumps(claim))
    kubectl("apply", "-f", "-", stdin=pod("web", image, "python", "-uc", SERVE, node="node-2", claim="data"))
    kubectl("expose", "pod", "web", "--port=80", "--target-port=8080")
    kubectl("apply", "-f", "-", stdin=pod("client", image, "sleep", "1000", node="node-1"))
    kubectl("wait", "--for=condition=Ready", "pod/web", "pod/client", "--timeout=60s")

    assert eventually(lambda: "hello" in kubectl.run("exec", "client", "--", "python", "-c", FETCH).stdout, seconds=60)
    assert "GET /word" in kubectl("logs", "web")
    assert kubectl("exec", "web", "--", "id", "-u").strip() == "65532"


def test_a_container_over_its_memory_limit_is_killed_and_its_pod_says_so(kubectl: Kubectl, image: str) -> None:
    kubectl("apply", "-f", "-", stdin=pod("greedy", image, "python", "-c", "bytearray(200 << 20)", memory="32Mi"))

    state = ("get", "pod", "greedy", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.reason}")
    assert eventually(lambda: kubectl(*state) == "OOMKilled", seconds=60)


def test_a_pod_below_the_restricted_profile_is_refused(kubectl: Kubectl, image: str) -> None:
    loose = json.loads(pod("loose", image, "sleep", "1"))
    del loose["spec"]["securityContext"]

    result = kubectl.run("apply", "-f", "-", stdin=json.dumps(loose))

    assert result.returncode != 0
    assert 'violates PodSecurity "restricted' in result.stderr


def test_a_node_that_is_cut_off_turns_not_ready_and_comes_back(cluster: Cluster) -> None:
    cluster.cut("node-2")
    cluster.wait_ready("node-2", ready=False, timeout_seconds=45)
    assert cluster.is_ready("node-1")

    cluster.heal("node-2")
    cluster.wait_ready("node-2", timeout_seconds=45)


def leftovers(name: str, folder: Path) -> list[str]:
    """Links, cgroups, mounts, routes and processes of a cluster that this machine still has."""
    found = [path.name for path in Path("/sys/class/net").iterdir()]
    links = [link for link in found if link == name or link.startswith(f"{name}n")]
    cgroups = [str(top / name) for top in slots.cgroup_hierarchies() if (top / name).exists()]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{folder}/".encode() in path.read_bytes():
                processes.append(str(path))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [*links, *cgroups, *mounts, *processes, *([str(folder)] if folder.exists() else [])]


def test_a_cluster_that_stops_leaves_nothing() -> None:
    with Cluster() as cluster:
        name, folder = cluster.name, cluster.folder
        assert leftovers(name, folder)

    assert leftovers(name, folder) == []


def test_a_cluster_whose_owner_was_killed_is_gone_when_the_next_one_starts(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    command = [sys.executable, str(ROOT / "tests" / "cluster"), "up", f"--kubeconfig={kubeconfig}"]
    owner = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    assert eventually(kubeconfig.is_symlink, seconds=120)
    folder = kubeconfig.readlink().parents[1]
    name = f"lpc{folder.name}"
    assert leftovers(name, folder)

    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    slots.take().release()

    assert leftovers(name, folder) == []
