"""Which replicas a pipe has: a replica keeps its number, and one that does not answer goes first."""

from __future__ import annotations

import json

import pytest
from languagepipes_operator.decide.replicas import replica_numbers
from languagepipes_operator.observe.snapshot import Snapshot
from support.example_pipes import living, of_kind, pipe_snapshot, rendered


def with_live(there: dict[int, bool]) -> Snapshot:
    """A pipe whose live replicas answer or do not."""
    manifests = json.loads(json.dumps(rendered(pipe_snapshot(replicas=16))))
    kept = []
    for deployment in of_kind(manifests, "Deployment"):
        labels = deployment["metadata"]["labels"]
        replica = int(labels.get("languagepipes.io/chain", -1))
        if replica in there:
            ready = there[replica] and labels["languagepipes.io/role"] == "end-model"
            kept.append({**deployment, "status": {"readyReplicas": 1} if ready else {}})
    return living(pipe_snapshot(), kept)


@pytest.mark.parametrize(
    ("there", "replicas", "left"),
    [
        ({}, 0, ()),
        ({}, 1, (0,)),
        ({}, 3, (0, 1, 2)),
        ({0: True}, 2, (0, 1)),
        ({0: True, 1: True}, 1, (0,)),
        ({0: False, 1: True}, 1, (1,)),
        ({1: True}, 1, (1,)),
        ({1: True}, 2, (0, 1)),
        ({0: False, 1: False}, 1, (0,)),
        ({0: True, 1: False, 2: True, 3: False}, 3, (0, 1, 2)),
        ({0: True, 1: True}, 0, ()),
        ({5: False, 9: True}, 16, tuple(range(16))),
    ],
)
def test_replicas_that_answer_stay_and_new_ones_take_the_lowest_free_numbers(
    there: dict[int, bool], replicas: int, left: tuple[int, ...]
) -> None:
    assert replica_numbers(with_live(there).children, replicas) == left


def test_a_replica_that_is_being_deleted_counts_no_more() -> None:
    snapshot = with_live({0: True, 1: True})
    for deployment in snapshot.children.deployments.values():
        if deployment["metadata"]["labels"]["languagepipes.io/chain"] == "0":
            deployment["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"

    assert replica_numbers(snapshot.children, 1) == (1,)


def test_no_replicas_leave_no_member_and_keep_the_store_the_plan_and_the_services() -> None:
    manifests = rendered(pipe_snapshot(replicas=0))

    assert [item["metadata"]["labels"]["languagepipes.io/role"] for item in of_kind(manifests, "Deployment")] == [
        "store"
    ]
    assert len(of_kind(manifests, "Service")) == 3
    assert len(of_kind(manifests, "ConfigMap")) == 1


def test_a_replica_that_lets_requests_wait_goes_before_one_that_is_whole_and_after_one_that_is_not_there() -> None:
    """All End Models are ready; replica 0 has lost a stage, and 2 has no member that is ready."""
    snapshot = with_live({0: True, 1: True, 2: False})
    for deployment in snapshot.children.deployments.values():
        labels = deployment["metadata"]["labels"]
        lost = labels.get("languagepipes.io/chain") == "0" and labels.get("languagepipes.io/stage") == "2"
        if labels.get("languagepipes.io/chain") in ("0", "1") and not lost:
            deployment["status"] = {"readyReplicas": 1}

    assert replica_numbers(snapshot.children, 1) == (1,)
    assert replica_numbers(snapshot.children, 2) == (0, 1)
