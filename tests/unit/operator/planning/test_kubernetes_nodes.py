"""What the planner reads out of Nodes and pods as the API server gives them, and where templates let pods go."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import yaml
from languagepipes_api.template import PodTemplate
from languagepipes_operator.planning import Node, Taint, node_of
from languagepipes_operator.planning.kubernetes_nodes import pod_request
from languagepipes_operator.planning.selection import matches, selects, why_not

GIB = 2**30
GPU_NODE = yaml.safe_load("""
metadata:
  name: g1
  labels: {nvidia.com/gpu.memory: "16384", nvidia.com/gpu.count: "2", zone: a}
spec:
  taints: [{key: nvidia.com/gpu, effect: NoSchedule}, {key: slow, value: "yes", effect: PreferNoSchedule}]
status:
  allocatable: {cpu: 7910m, memory: 64Gi, nvidia.com/gpu: "2", pods: "110"}
  conditions: [{type: MemoryPressure, status: "False"}, {type: Ready, status: "True"}]
""")
PODS = yaml.safe_load("""
- spec: {nodeName: g1, containers: [{resources: {requests: {cpu: 500m, memory: 1Gi}}}, {resources: {limits: {cpu: 1}}}]}
- spec: {nodeName: g1, containers: [{resources: {limits: {nvidia.com/gpu: 1}, requests: {nvidia.com/gpu: "1"}}}, {}]}
- spec: {nodeName: g2, containers: [{resources: {requests: {memory: 9Gi}}}]}
- spec: {containers: [{resources: {requests: {memory: 9Gi}}}]}
- {spec: {nodeName: g1, containers: [{resources: {requests: {memory: 9Gi}}}]}, status: {phase: Succeeded}}
""")


def test_a_node_is_read_with_its_gpus_and_what_its_pods_ask_for() -> None:
    assert node_of(GPU_NODE, PODS) == Node(
        name="g1",
        memory_bytes=64 * GIB,
        gpu_memory_bytes=(16 * GIB, 16 * GIB),
        kubernetes=True,
        gpus=2,
        cpus=Fraction(791, 100),
        requested_bytes=GIB,
        requested_cpus=Fraction(3, 2),
        requested_gpus=1,
        labels={"nvidia.com/gpu.memory": "16384", "nvidia.com/gpu.count": "2", "zone": "a"},
        taints=(Taint("nvidia.com/gpu"), Taint("slow", "yes", "PreferNoSchedule")),
    )


def test_a_bare_node_is_read_without_gpus() -> None:
    read = node_of({"metadata": {"name": "n"}, "status": {"capacity": {"memory": "1024000Ki"}}})

    assert (read.memory_bytes, read.gpus, read.gpu_memory_bytes, read.cpus) == (1_048_576_000, 0, (), None)
    assert read.schedulable


@pytest.mark.parametrize(
    "change", [{"spec": {"unschedulable": True}}, {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}]
)
def test_a_node_that_is_cordoned_or_not_ready_takes_no_pods(change: dict[str, Any]) -> None:
    assert not node_of({**GPU_NODE, **change}).schedulable


def test_gpus_without_a_memory_label_have_unknown_memory() -> None:
    node = {**GPU_NODE, "metadata": {"name": "g1"}}

    assert (node_of(node).gpus, node_of(node).gpu_memory_bytes) == (2, ())


@pytest.mark.parametrize(
    ("pod", "gibibytes"),
    [
        ("{}", 0),
        ("{containers: [{resources: {requests: {memory: 1Gi}}}, {resources: {requests: {memory: 2Gi}}}]}", 3),
        ("{containers: [{resources: {limits: {memory: 2Gi}}}]}", 2),
        ("{initContainers: [{resources: {requests: {memory: 5Gi}}}], containers: [{}]}", 5),
        (
            "{initContainers: [{restartPolicy: Always, resources: {requests: {memory: 1Gi}}}, "
            "{resources: {requests: {memory: 3Gi}}}], containers: [{resources: {requests: {memory: 2Gi}}}]}",
            4,
        ),
        ("{overhead: {memory: 1Gi}, containers: [{resources: {requests: {memory: 2Gi}}}]}", 3),
        ("{resources: {requests: {memory: 4Gi}}, containers: [{resources: {requests: {memory: 2Gi}}}]}", 4),
        ("{containers: [{resources: {requests: {memory: nonsense}}}]}", 0),
    ],
)  # fmt: skip
def test_a_pod_asks_for_what_the_scheduler_sets_aside(pod: str, gibibytes: int) -> None:
    assert pod_request({"spec": yaml.safe_load(pod)}, "memory") == gibibytes * GIB


NODE = Node(
    "n1", GIB, kubernetes=True, labels={"disk": "ssd", "cores": "16"}, taints=(Taint("team", "a", "NoExecute"),)
)
OPEN = Node("n1", GIB, kubernetes=True, labels={"disk": "ssd", "cores": "16"})


def required(*expressions: str, fields: bool = False) -> str:
    kind = "matchFields" if fields else "matchExpressions"
    terms = ", ".join(f"{{{kind}: [{{{expression}}}]}}" for expression in expressions)
    name = "requiredDuringSchedulingIgnoredDuringExecution"
    return f"{{affinity: {{nodeAffinity: {{{name}: {{nodeSelectorTerms: [{terms}]}}}}}}}}"


def read(template: str) -> PodTemplate:
    return PodTemplate.model_validate(yaml.safe_load(template), by_alias=True, by_name=False)


@pytest.mark.parametrize(
    ("template", "node", "reason"),
    [
        ("{}", OPEN, ""),
        ("{nodeSelector: {disk: ssd}}", OPEN, ""),
        ("{nodeSelector: {disk: hdd}}", OPEN, "no label disk=hdd"),
        (required("key: disk, operator: In, values: [hdd, ssd]"), OPEN, ""),
        (required("key: disk, operator: NotIn, values: [ssd]"), OPEN, "node affinity"),
        (required("key: gone, operator: NotIn, values: [ssd]"), OPEN, ""),
        (required("key: disk, operator: DoesNotExist", "key: cores, operator: Gt, values: ['8']"), OPEN, ""),
        (required("key: cores, operator: Lt, values: ['16']"), OPEN, "node affinity"),
        (required("key: disk, operator: Gt, values: ['1']"), OPEN, "node affinity"),
        (required("key: metadata.name, operator: In, values: [n1]", fields=True), OPEN, ""),
        (required("key: metadata.name, operator: In, values: [n2]", fields=True), OPEN, "node affinity"),
        ("{}", NODE, "taint team=a:NoExecute"),
        ("{tolerations: [{key: team, value: a}]}", NODE, ""),
        ("{tolerations: [{key: team, value: b}]}", NODE, "taint team=a:NoExecute"),
        ("{tolerations: [{key: team, operator: Exists, effect: NoSchedule}]}", NODE, "taint team=a:NoExecute"),
        ("{tolerations: [{operator: Exists}]}", NODE, ""),
    ],
)
def test_a_template_lets_a_pod_go_where_the_scheduler_would(template: str, node: Node, reason: str) -> None:
    assert why_not(read(template), node) == reason


def test_a_taint_is_no_matter_of_what_a_template_selects() -> None:
    selector = read("{nodeSelector: {disk: ssd}}")

    assert selects(selector)
    assert matches(selector, NODE)
    assert why_not(selector, NODE) == "taint team=a:NoExecute"
    assert not selects(read("{tolerations: [{operator: Exists}]}"))
