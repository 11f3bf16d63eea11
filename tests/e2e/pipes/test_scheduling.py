"""Where the real scheduler puts the stages: on nodes with GPUs, off tainted nodes, as templates say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from cluster import Cluster
from support.installation import Installation
from support.kubectl import Kubectl, wait_for
from support.serving import Images, fill_claim, pipe, wait_for_reason

pytestmark = pytest.mark.kubernetes

GPU = "nvidia.com/gpu"
TAINT = {"key": GPU, "value": "present", "effect": "NoSchedule"}
TOLERATION = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
# So that many pipes find room on two small nodes: it is not CPUs that are short here.
LIGHT = {"resources": {"requests": {"cpu": "10m"}}}
TOLERANT = {**LIGHT, "tolerations": [TOLERATION]}


@pytest.fixture(scope="module")
def gpu_nodes(our_cluster: Cluster) -> Iterator[list[str]]:
    """Two nodes with two GPUs each and no kubelet: what is scheduled there is seen and never runs."""
    names = ["gpu-1", "gpu-2"]
    labels = {"nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.present": "true"}
    for name in names:
        our_cluster.control_plane.add_node(name, allocatable={GPU: "2"}, labels=labels, taints=[TAINT])
    yield names
    for name in names:
        our_cluster.control_plane.remove_node(name)


@pytest.fixture(scope="module")
def kubectl(
    operator: Installation, namespace: Callable[[str], AbstractContextManager[Kubectl]], images: Images
) -> Iterator[Kubectl]:
    with namespace("scheduling") as made:
        fill_claim(made, images)
        yield made


@pytest.fixture
def apply(kubectl: Kubectl) -> Iterator[Callable[..., None]]:
    """Applies a pipe, and removes it and its pods afterwards, so that their GPUs are free again."""
    names = []

    def applied(name: str, stages: dict[str, Any], **spec: Any) -> None:
        names.append(name)
        kubectl.apply(pipe(name, stages=stages, **{"endModel": {"template": LIGHT}, **spec}))

    yield applied
    for name in names:
        kubectl("delete", "lp", name, "--wait=true", "--timeout=110s")
    gone = f"languagepipes.io/pipe in ({','.join(names)})"
    wait_for("no pods of them", lambda: not kubectl.list("pods", gone))


def pods_of(kubectl: Kubectl, name: str, role: str, count: int) -> list[dict[str, Any]]:
    """The pods of this role, once there are `count` of them and each has a node."""

    def placed() -> list[dict[str, Any]] | None:
        pods = kubectl.list("pods", f"languagepipes.io/pipe={name},languagepipes.io/role={role}")
        return pods if len(pods) == count and all("nodeName" in pod["spec"] for pod in pods) else None

    return wait_for(f"{count} placed pods of {role}", placed)


def nodes_of(kubectl: Kubectl, name: str, role: str, count: int) -> list[str]:
    return [pod["spec"]["nodeName"] for pod in pods_of(kubectl, name, role, count)]


def preferred_node(pod: dict[str, Any]) -> str:
    """The node that the plan prefers for it."""
    terms = pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    return str(terms[0]["preference"]["matchFields"][0]["values"][0])


def test_gpu_stages_land_on_gpu_nodes_and_spread(
    kubectl: Kubectl, gpu_nodes: list[str], apply: Callable[..., None]
) -> None:
    apply("gpus", {"count": 2, "device": "GPU", "template": TOLERANT})
    stages = pods_of(kubectl, "gpus", "stage", 2)
    assert sorted(pod["spec"]["nodeName"] for pod in stages) == gpu_nodes
    assert [pod["spec"]["containers"][0]["resources"]["limits"][GPU] for pod in stages] == ["1", "1"]
    assert not set(nodes_of(kubectl, "gpus", "end-model", 1)) & set(gpu_nodes)


def test_two_replicas_prefer_different_nodes_and_land_there(
    kubectl: Kubectl, gpu_nodes: list[str], apply: Callable[..., None]
) -> None:
    apply("twice", {"count": 1, "device": "GPU", "template": TOLERANT}, replicas=2)
    stages = pods_of(kubectl, "twice", "stage", 2)
    assert sorted(pod["metadata"]["labels"]["languagepipes.io/chain"] for pod in stages) == ["0", "1"]
    assert sorted(preferred_node(pod) for pod in stages) == gpu_nodes
    assert [pod["spec"]["nodeName"] for pod in stages] == [preferred_node(pod) for pod in stages]
    ends = pods_of(kubectl, "twice", "end-model", 2)
    assert len({preferred_node(pod) for pod in ends}) == 2
    assert [pod["spec"]["nodeName"] for pod in ends] == [preferred_node(pod) for pod in ends]


def test_taints_hold(kubectl: Kubectl, gpu_nodes: list[str], apply: Callable[..., None]) -> None:
    apply("plain", {"count": 3, "template": LIGHT})
    nodes = nodes_of(kubectl, "plain", "stage", 3)
    assert not set(nodes) & set(gpu_nodes)
    assert len(set(nodes)) == 2


def test_a_template_sends_a_stage_to_its_node(
    kubectl: Kubectl, gpu_nodes: list[str], apply: Callable[..., None]
) -> None:
    selector = {"kubernetes.io/hostname": "gpu-2"}
    apply("chosen", {"count": 1, "template": {**TOLERANT, "nodeSelector": selector}})
    assert nodes_of(kubectl, "chosen", "stage", 1) == ["gpu-2"]


def test_a_pipe_that_cannot_be_placed_says_what_is_short_and_by_how_much(
    kubectl: Kubectl, gpu_nodes: list[str], apply: Callable[..., None]
) -> None:
    """Four ways not to fit, side by side."""
    apply("greedy", {"count": 5, "device": "GPU", "template": TOLERANT})
    apply("intolerant", {"count": 1, "template": {**LIGHT, "nodeSelector": {"nvidia.com/gpu.present": "true"}}})
    apply("huge", {"count": 1, "template": {"resources": {"requests": {"memory": "1Ti"}}}})
    apply("busy", {"count": 1, "template": {"resources": {"requests": {"cpu": "100"}}}})
    expected = {
        "greedy": (
            "InsufficientGPUs",
            r"5 members ask for 5 GPUs, and 4 are free \(.*gpu-1: 2; gpu-2: 2.*\): 1 short: use fewer stages on GPUs, "
            r"fewer replicas, or add GPUs",
        ),
        "intolerant": (
            "NoEligibleNode",
            r"stage stage-1 may run on none of 4 nodes \(gpu-1: taint nvidia\.com/gpu=present:NoSchedule; .*\): "
            r"correct its template's nodeSelector, affinity or tolerations, or the nodes",
        ),
        "huge": (
            "StageTooLarge",
            r"stage stage-1 asks for 1 TiB of memory, and the most that is free on a node that it may run on is "
            r"[\d.]+ GiB \(node-\d\): [\d.]+ GiB short: lower memory in its template, or leave it out",
        ),
        "busy": (
            "InsufficientCPU",
            r"stage stage-1 asks for 100 CPUs, and the most that are free on a node that it may run on are [\d.]+ "
            r"\(node-\d\): [\d.]+ short: lower its template's requests",
        ),
    }
    for name, (reason, message) in expected.items():
        wait_for_reason(kubectl, name, reason, rf"\A{message}\Z")
