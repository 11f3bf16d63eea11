"""Drains, against the real eviction API and disruption controller: an operator that serves the whole cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cluster import ControlPlane
from support.served_namespace import Object, ServedNamespace, eventually

CHAIN, ROLE = "languagepipes.io/chain", "languagepipes.io/role"
NODE = "/api/v1/nodes/{name}"


def members(served: ServedNamespace, role: str, node: str = "") -> list[Object]:
    """Pods of rings that are not ending, of that role and on that node."""
    found = served.list("Pod", labels=f"languagepipes.io/pipe=pipe,{ROLE}={role}")
    return [
        each
        for each in found
        if "deletionTimestamp" not in each["metadata"] and node in ("", each["spec"].get("nodeName"))
    ]


def evict(served: ServedNamespace, pod: Object) -> int:
    """The status of the answer: 201, or 429 where a budget refuses it."""
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": served.namespace}}
    try:
        served.api.create(f"{served.path('Pod', name)}/eviction", body)
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 201


def replicas(served: ServedNamespace) -> set[str]:
    found = served.list("Deployment")
    return {each["metadata"]["labels"][CHAIN] for each in found if CHAIN in each["metadata"]["labels"]}


def cordon(served: ServedNamespace, node: str, on: bool = True) -> None:
    served.api.merge(NODE.format(name=node), {"spec": {"unschedulable": on or None}})


@pytest.fixture
def two_nodes(control_plane: ControlPlane, served: ServedNamespace) -> Iterator[str]:
    """Another node, gone afterwards."""
    control_plane.add_node("node-2", runs_pods=True)
    yield "node-2"
    cordon(served, "node-1", on=False)
    control_plane.api.delete(NODE.format(name="node-2"))


def miscounted(served: ServedNamespace) -> list[str]:
    events = served.api.get(f"/api/v1/namespaces/{served.namespace}/events")["items"]
    return [each["message"] for each in events if each["reason"] == "CalculateExpectedPodCountFailed"]


def test_a_cordoned_nodes_members_are_replaced_and_evicted_in_that_order(
    served: ServedNamespace, two_nodes: str, tiny_llama: Path
) -> None:
    served.started(NAMESPACES="")
    served.apply_pipe(stages={"count": 2})
    served.play_store(tiny_llama)
    eventually(lambda: served.condition("Progressing")["reason"] == "Complete", what="a pipe that is Ready")
    (end,) = members(served, "end-model")
    node = end["spec"]["nodeName"]
    budgets = eventually(lambda: served.list("PodDisruptionBudget"), what="budgets")
    assert len(budgets) == 2
    assert evict(served, end) == 429
    assert all(evict(served, stage) == 429 for stage in members(served, "stage"))

    cordon(served, node)
    eventually(lambda: replicas(served) == {"1"}, what="another replica in its place")
    assert not members(served, "end-model", node)
    eventually(lambda: served.condition("Progressing")["reason"] == "Complete", what="the end of it")
    eventually(lambda: len(served.list("PodDisruptionBudget")) == 2, what="the old budgets are gone")
    cordon(served, node, on=False)
    assert miscounted(served) == []
