"""What nodes have free: sums that follow the pods, and reservations of members without a pod on a node."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_api.names import LABEL_MANAGED_BY, LABEL_PIPE, LABEL_ROLE, MANAGED_BY
from languagepipes_operator.kube.informer import ObjectKey, key_of
from languagepipes_operator.observe.cluster_nodes import ClusterNodes, PodSums, Reservation, summed_pod
from languagepipes_operator.observe.reservations import Reservations
from languagepipes_operator.planning import node_of
from languagepipes_operator.planning.kubernetes_nodes import Requested

GIB = 2**30
NODES = [
    {"metadata": {"name": name}, "status": {"allocatable": {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "2"}}}
    for name in ("a", "b", "c")
]


def pod(name: str, node: str, memory_gib: int, pipe: str = "", phase: str = "Running", gpus: int = 0) -> dict[str, Any]:
    labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_PIPE: pipe, LABEL_ROLE: "stage"} if pipe else {}
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    container = {"resources": {"requests": {"memory": f"{memory_gib}Gi", "cpu": "1"}, "limits": limits}}
    return {
        "metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion": "1", "labels": labels},
        "spec": {"nodeName": node, "containers": [container]},
        "status": {"phase": phase},
    }


pods_strategy = st.builds(
    pod,
    st.sampled_from("pqrst"),
    st.sampled_from(["", "a", "b", "gone"]),
    st.integers(0, 3),
    st.sampled_from(["", "one", "two"]),
    st.sampled_from(["Pending", "Running", "Succeeded"]),
    st.integers(0, 2),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(pods_strategy, st.booleans()), max_size=12), st.booleans())
def test_a_look_equals_the_count_of_all_pods_from_the_start(
    changes: list[tuple[dict[str, Any], bool]], look_between: bool
) -> None:
    sums, nodes = PodSums(), ClusterNodes()
    for item in NODES:
        nodes.put(item["metadata"]["name"], item)
    there: dict[ObjectKey, dict[str, Any]] = {}
    one = ObjectKey("n", "one")
    for item, stays in changes:
        key = key_of(item)
        there.pop(key, None)
        if stays:
            there[key] = item
        sums.put(key, summed_pod(item) if stays else None)
        if look_between:
            nodes.look(sums, without=None).nodes()

    looked = nodes.look(sums, without=one).nodes()

    others = [each for each in there.values() if each["metadata"]["labels"].get(LABEL_PIPE) != "one"]
    assert looked == tuple(node_of(item, others) for item in NODES)
    assert nodes.look(sums, without=None).nodes() == tuple(node_of(item, there.values()) for item in NODES)


def test_what_is_reserved_counts_and_a_node_that_is_gone_does_not() -> None:
    sums, nodes = PodSums(), ClusterNodes()
    for item in NODES:
        nodes.put(item["metadata"]["name"], item)
    nodes.put("c", None)
    asks = Requested(Fraction(GIB), Fraction(1), (("nvidia.com/gpu", Fraction(1)),))

    looked = nodes.look(sums, without=None, reserved=[Reservation("a", asks), Reservation("c", asks)]).nodes()

    assert [(node.name, node.free_gpus, node.requested_bytes) for node in looked] == [("a", 1, GIB), ("b", 2, 0)]


def test_a_look_is_of_its_moment_whatever_changes_before_it_is_built() -> None:
    sums, nodes = PodSums(), ClusterNodes()
    for item in NODES:
        nodes.put(item["metadata"]["name"], item)
    one = pod("p", "a", 1, pipe="one")
    sums.put(key_of(one), one)
    looked, without = nodes.look(sums, without=None), nodes.look(sums, without=ObjectKey("n", "one"))

    sums.put(key_of(one), None)
    later = pod("q", "b", 2)
    sums.put(key_of(later), later)
    nodes.put("c", None)
    after = nodes.look(sums, without=None).nodes()

    assert [node.requested_bytes // GIB for node in looked.nodes()] == [1, 0, 0]
    assert [node.requested_bytes // GIB for node in without.nodes()] == [0, 0, 0]
    assert [node.requested_bytes // GIB for node in after] == [0, 2]


def deployment(name: str, node: str | None, *, replicas: int = 1) -> dict[str, Any]:
    labels = {LABEL_ROLE: "stage", "member": name}
    term = {
        "weight": 100,
        "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]},
    }
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}} if node else {}
    container = {"resources": {"requests": {"memory": "1Gi"}}}
    return {
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "n", "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"affinity": affinity, "containers": [container]}},
        },
    }


def test_a_member_reserves_its_place_from_its_decision_until_its_pod_has_a_node() -> None:
    pipe = ObjectKey("n", "p")
    deployments: list[dict[str, Any]] = []
    pods: list[dict[str, Any]] = []
    reservations = Reservations(lambda key: deployments if key == pipe else [], lambda key: pods if key == pipe else [])

    reservations.book(pipe, [deployment("d", "a"), deployment("anywhere", None)])
    assert [each.node for each in reservations.all()] == ["a"]
    assert reservations.all(without=pipe) == []

    deployments.append(deployment("d", "a"))
    reservations.release(pipe)
    assert [each.node for each in reservations.all()] == ["a"]

    pods.append({"metadata": {"labels": {LABEL_ROLE: "stage", "member": "d"}}, "spec": {}})
    reservations.changed(pipe)
    assert [each.node for each in reservations.all()] == ["a"]

    pods[0]["spec"]["nodeName"] = "b"
    reservations.changed(pipe)
    assert reservations.all() == []


def test_a_member_that_gave_way_reserves_nothing() -> None:
    pipe = ObjectKey("n", "p")
    reservations = Reservations(lambda _: [deployment("d", "a", replicas=0)], lambda _: [])
    reservations.changed(pipe)

    assert reservations.all() == []
