"""Where the real scheduler puts the stages: on nodes with GPUs, off tainted nodes, as templates say."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from cluster import Cluster
from installation import Installation
from kubectl import Kubectl, wait_for
from serving import Images, fill_claim, pipe, wait_for_reason

pytestmark = pytest.mark.kubernetes

TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def gpu_nodes(our_cluster: Cluster) -> Iterator[list[str]]:
    """Two nodes with two GPUs each and no kubelet: what is scheduled there is seen and never runs."""
    names = ["gpu-1", "gpu-2"]
    labels = {"nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.present": "true"}
    for name in names:
        our_cluster.control_plane.add_node(name, allocatable={"nvidia.com/gpu": "2"}, labels=labels, taints=[TAINT])
    yield names
    for name in names:
        our_cluster.control_plane.remove_node(name)


@pytest.fixture(scope="module")
def kubectl(operator: Installation, new_namespace: Callable[[str], Kubectl], images: Images) -> Kubectl:
    made = new_namespace("scheduling")
    fill_claim(made, images)
    return made


def nodes_of(kubectl: Kubectl, name: str, role: str, count: int) -> list[str]:
    """Where the pods of this role were put, once there are `count` of them and each has a node."""

    def placed() -> list[str] | None:
        pods = kubectl.list("pods", f"languagepipes.io/pipe={name},languagepipes.io/role={role}")
        found = [pod["spec"]["nodeName"] for pod in pods if "nodeName" in pod["spec"]]
        return found if len(found) == count else None

    return wait_for(f"{count} placed pods of {role}", placed, timeout_seconds=120)


def test_gpu_stages_land_on_gpu_nodes_and_spread(kubectl: Kubectl, gpu_nodes: list[str]) -> None:
    template = {"tolerations": [TOLERATION]}
    kubectl.apply(pipe("gpus", stages={"count": 2, "device": "GPU", "template": template}))
    assert sorted(nodes_of(kubectl, "gpus", "stage", 2)) == gpu_nodes
    assert not set(nodes_of(kubectl, "gpus", "end-model", 1)) & set(gpu_nodes)
    for pod in kubectl.list("pods", "languagepipes.io/pipe=gpus,languagepipes.io/role=stage"):
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    kubectl("delete", "lp", "gpus", "--wait=true", "--timeout=60s")


def test_taints_hold(kubectl: Kubectl, gpu_nodes: list[str]) -> None:
    kubectl.apply(pipe("plain"))
    assert not set(nodes_of(kubectl, "plain", "stage", 3)) & set(gpu_nodes)
    kubectl("delete", "lp", "plain", "--wait=true", "--timeout=60s")


def test_a_template_sends_a_stage_to_its_node(kubectl: Kubectl, gpu_nodes: list[str]) -> None:
    template = {"tolerations": [TOLERATION], "nodeSelector": {"kubernetes.io/hostname": "gpu-2"}}
    kubectl.apply(pipe("chosen", stages={"count": 1, "template": template}))
    assert nodes_of(kubectl, "chosen", "stage", 1) == ["gpu-2"]
    kubectl("delete", "lp", "chosen", "--wait=true", "--timeout=60s")


def test_a_pipe_that_wants_more_gpus_than_there_are_says_by_how_many(kubectl: Kubectl, gpu_nodes: list[str]) -> None:
    template = {"tolerations": [TOLERATION]}
    kubectl.apply(pipe("greedy", stages={"count": 5, "device": "GPU", "template": template}))
    wait_for_reason(kubectl, "greedy", r"\w+", r"5.*4|4.*5|1 (GPU )?short|short.*1")
    kubectl("delete", "lp", "greedy", "--wait=true", "--timeout=60s")
