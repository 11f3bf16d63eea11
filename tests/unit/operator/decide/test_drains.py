"""What a drain may evict: stages of one node together, an End Model only after its replica was replaced."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from languagepipes_operator.decide.drains import Budget, Drains, decide_drains, is_leaving
from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.observe.drains import drain_taints
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.planning.nodes import Taint
from support.cluster_state import NOW, ClusterState, unready

CORDONED = (Taint("node.kubernetes.io/unschedulable"),)


def cordoned(cluster: ClusterState, *nodes: str) -> Snapshot:
    """Of each replica stages 1 and 3 and the End Model are on n2, stage 2 is on n1."""
    return replace(cluster.snapshot, emptied=dict.fromkeys(nodes, CORDONED))


def drains(cluster: ClusterState, *nodes: str, **rollout: Any) -> Drains:
    count = cluster.raw["spec"].get("replicas", 1)
    return decide_drains(cordoned(cluster, *nodes), Rollout(**{"updated": tuple(range(count)), **rollout}))


def move(cluster: ClusterState, role: str, node: str, *, replica: int = 0, stage: int = 0) -> None:
    cluster.pod(role, replica, stage)["spec"]["nodeName"] = node


def stages_of(found: Drains) -> list[int]:
    return [each.stages for each in found.budgets]


@pytest.mark.parametrize(
    ("spec", "emptied"),
    [
        ({}, False),
        ({"unschedulable": True}, True),
        ({"taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}, True),
        ({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}]}, True),
        ({"taints": [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]}, True),
        ({"taints": [{"key": "DeletionCandidateOfClusterAutoscaler", "effect": "PreferNoSchedule"}]}, False),
        ({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}, False),
        ({"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}, False),
    ],
)
def test_a_node_that_is_being_emptied_is_known_by_its_mark(spec: dict[str, Any], emptied: bool) -> None:
    assert bool(drain_taints({"metadata": {"name": "n1"}, "spec": spec})) is emptied


def test_no_node_is_emptied_and_nothing_may_be_evicted() -> None:
    assert drains(ClusterState.ready()).budgets == (Budget(0, stages=0, end_model=0, keeps_waiting=True),)


def test_where_nodes_are_not_read_one_member_of_each_kind_may_go() -> None:
    assert decide_drains(ClusterState.ready().snapshot, Rollout(updated=(0,))).budgets == (Budget(0),)


def test_stages_that_share_a_node_go_together_and_are_counted_until_they_are_back() -> None:
    cluster = ClusterState.ready()
    move(cluster, "end-model", "n1")
    assert stages_of(drains(cluster, "n2")) == [2]

    # One went, its pod on another node is not ready: the disruption controller takes it from the two.
    move(cluster, "stage", "n1", stage=1)
    unready(cluster.pod("stage", 0, 1))
    unready(cluster.pod("end-model"))
    assert stages_of(drains(cluster, "n2")) == [2]

    move(cluster, "stage", "n1", stage=3)
    assert stages_of(drains(cluster, "n2")) == [0]


def test_an_end_model_stays_and_its_stages_with_it_until_the_replica_is_replaced() -> None:
    cluster = ClusterState.ready()
    found = drains(cluster, "n2", updated=(0, 1), leaving=(0,), beside=(1,))

    assert is_leaving(cordoned(cluster, "n2"), 0)
    assert not is_leaving(cordoned(cluster, "n1"), 0)
    assert found.budgets[0] == Budget(0, stages=0, end_model=0, keeps_waiting=True)
    assert found.admitted == {}
    assert found.due == NOW + timedelta(seconds=900)


def test_of_two_replicas_one_pauses_at_a_time() -> None:
    cluster = ClusterState.ready({"replicas": 2})
    assert stages_of(drains(cluster, "n1")) == [1, 0]

    # The one that is down already pauses no second time.
    unready(cluster.pod("stage", 1, 3))
    assert stages_of(drains(cluster, "n1")) == [0, 2]


def test_a_replica_that_goes_keeps_its_stages_until_its_answers_are_complete() -> None:
    assert stages_of(drains(ClusterState.ready(), "n1", updated=(), draining=(0,))) == [0]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"rollout": {"maxSurge": 0, "maxUnavailable": 1}}, "maxSurge is 0"),
        ({"paused": True}, "spec.paused is true"),
        ({"endModel": {"template": {"tolerations": [{"operator": "Exists"}]}}}, "tolerates"),
    ],
)
def test_an_end_model_that_nothing_can_replace_may_be_evicted(spec: dict[str, Any], words: str) -> None:
    found = drains(ClusterState.ready(spec), "n2")

    assert words in found.admitted[0]
    assert (found.budgets[0].end_model, found.budgets[0].stages) == (1, 2)


def test_an_end_model_may_be_evicted_once_its_replacement_is_late() -> None:
    cluster = ClusterState.ready({"rollout": {"progressDeadlineSeconds": 600}})
    cluster.add_replica(1)
    for role, stage in (("stage", 1), ("stage", 2), ("stage", 3), ("end-model", 0)):
        move(cluster, role, "n1", replica=1, stage=stage)
        unready(cluster.pod(role, 1, stage))
    rollout: dict[str, Any] = {"updated": (0, 1), "leaving": (0,), "beside": (1,)}

    cluster.now = NOW - timedelta(seconds=1)
    assert drains(cluster, "n2", **rollout).due == NOW
    cluster.now = NOW
    late = drains(cluster, "n2", **rollout)
    assert "replica 1 was not ready within 600 s" in late.admitted[0]
    assert late.budgets[0].end_model == 1
