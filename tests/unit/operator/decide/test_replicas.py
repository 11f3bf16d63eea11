"""What is known of each replica from its Deployments and pods, and in which order one goes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from languagepipes_api.names import LABEL_REPLICA, LABEL_ROLE
from languagepipes_operator.decide.decide import decide_with_plan
from languagepipes_operator.decide.decision import Decision
from languagepipes_operator.decide.plan_choice import PlanChoice
from languagepipes_operator.decide.replicas import holds_requests
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import content_hash
from support.example_pipes import (
    living,
    of_kind,
    pipe_snapshot,
    pod_of_deployment,
    rendered,
    rolled_out,
    settings,
    stored_plan_of,
    with_pods,
)

LONG_AGO = "2026-11-23T00:00:00Z"
DRAINING = "languagepipes.io/draining"


def made_ready(snapshot: Snapshot, *replicas: int) -> Snapshot:
    """Every Deployment as its controller leaves it; these replicas' pods are ready since long, the others' are not."""
    pods = []
    for deployment in snapshot.children.deployments.values():
        number = deployment["metadata"]["labels"].get(LABEL_REPLICA, "0")
        ready = int(number) in replicas
        deployment["metadata"]["generation"] = 1
        deployment["status"] = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}
        if ready:
            deployment["status"]["conditions"] = [
                {"type": "Available", "status": "True", "lastTransitionTime": LONG_AGO},
                {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
            ]
        if number.isdecimal():
            pod = pod_of_deployment(deployment, ready=ready)
            pod["status"]["conditions"][0]["lastTransitionTime"] = LONG_AGO
            pods.append(pod)
    return with_pods(snapshot, pods)


def running(*, ready: tuple[int, ...] = (0,), replicas: int = 1) -> Snapshot:
    """A pipe that runs its first revision."""
    snapshot = pipe_snapshot(replicas=replicas)
    return made_ready(living(snapshot, json.loads(json.dumps(rendered(snapshot)))), *ready)


def asked_for(live: Snapshot, **spec: object) -> Snapshot:
    """The same pipe with another spec."""
    return replace(pipe_snapshot(**spec), children=live.children)


def decided(snapshot: Snapshot) -> Decision:
    return decide_with_plan(snapshot, settings(), PlanChoice(stored_plan_of(snapshot)))


def carried_out(snapshot: Snapshot) -> Snapshot:
    """With the children that are wanted now, and the pods that were there."""
    after = living(snapshot, json.loads(json.dumps(rendered(snapshot))))
    for name, deployment in after.children.deployments.items():
        before = snapshot.children.deployments.get(name)
        if before is not None:
            deployment["status"] = before.get("status", {})
            deployment["metadata"]["generation"] = before["metadata"].get("generation", 0)
    return with_pods(after, list(snapshot.children.pods.values()))


def without(snapshot: Snapshot, role: str, replica: int) -> Snapshot:
    """The pods of these members have ended, and their Deployments' controller has seen it."""

    def is_it(thing: Manifest) -> bool:
        labels = thing["metadata"]["labels"]
        return labels.get(LABEL_ROLE) == role and labels.get(LABEL_REPLICA) == str(replica)

    for deployment in filter(is_it, snapshot.children.deployments.values()):
        deployment["status"]["replicas"] = 0
    return with_pods(snapshot, [pod for pod in snapshot.children.pods.values() if not is_it(pod)])


def members(snapshot: Snapshot, replica: int) -> list[tuple[str, int]]:
    """Role and pods of every Deployment of a replica."""
    found = [
        (each["metadata"]["labels"][LABEL_ROLE], each["spec"]["replicas"])
        for each in snapshot.children.deployments.values()
        if each["metadata"]["labels"].get(LABEL_REPLICA) == str(replica)
    ]
    return sorted(found)


CHANGES = [
    pytest.param({"server": {"maxConcurrentRequests": 8}}, id="server"),
    pytest.param({"stages": {"count": 2}}, id="split"),
    pytest.param({"model": {"dtype": "float32"}}, id="dtype"),
    pytest.param({"endModel": {"template": {"nodeSelector": {"a": "b"}}}}, id="template"),
    pytest.param({"rollout": {"drainSeconds": 60}}, id="time for answers"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_a_replica_beside_the_old_one_which_stays_as_it_is(change: dict[str, object]) -> None:
    live = running()
    before = {name: each["spec"] for name, each in live.children.deployments.items() if "store" not in name}

    changed = asked_for(live, **change)
    found = decided(changed)
    after = carried_out(changed).children

    assert found.rollout is not None
    assert (found.rollout.updated, found.rollout.outdated) == ((1,), (0,))
    assert {name: after.deployments[name]["spec"] for name in before} == before
    assert {each.identity.replica for each in found.members} == {0, 1}


def test_the_end_model_of_the_old_replica_goes_first_and_its_stages_only_when_its_pod_is_gone() -> None:
    stage, end = ("stage", 1), ("end-model", 1)
    snapshot = carried_out(asked_for(running(), server={"maxConcurrentRequests": 8}))
    snapshot = carried_out(made_ready(snapshot, 0, 1))
    assert members(snapshot, 0) == [("end-model", 0), stage, stage, stage]
    assert members(snapshot, 1) == [end, stage, stage, stage]

    snapshot = carried_out(snapshot)  # its pod completes answers
    assert members(snapshot, 0) == [("end-model", 0), stage, stage, stage]

    snapshot = carried_out(without(snapshot, "end-model", 0))
    assert members(snapshot, 0) == [("end-model", 0), ("stage", 0), ("stage", 0), ("stage", 0)]

    ending = [pod for pod in snapshot.children.pods.values() if pod["metadata"]["labels"].get(LABEL_REPLICA) == "0"]
    for pod in ending:
        pod["metadata"]["deletionTimestamp"] = LONG_AGO
        pod["status"]["phase"] = "Succeeded"
    snapshot = carried_out(snapshot)  # their containers have ended, and the pods are still there
    assert ending
    assert members(snapshot, 0) == [("end-model", 0), ("stage", 0), ("stage", 0), ("stage", 0)]

    snapshot = carried_out(without(snapshot, "stage", 0))
    assert members(snapshot, 0) == []
    assert members(snapshot, 1) == [end, stage, stage, stage]


def test_setting_the_old_spec_again_moves_nothing_but_the_new_replica() -> None:
    live = running()
    begun = made_ready(carried_out(asked_for(live, server={"maxConcurrentRequests": 8})), 0)

    undone = decided(asked_for(begun))

    assert undone.rollout is not None
    assert (undone.rollout.updated, undone.rollout.outdated, undone.rollout.draining) == ((0,), (), (1,))
    assert all(each.last_applied is not None for each in undone.members)


def test_a_replica_that_was_told_to_go_goes_also_if_its_revision_is_asked_for_again() -> None:
    snapshot = carried_out(made_ready(carried_out(asked_for(running(), server={"maxConcurrentRequests": 8})), 0, 1))

    undone = decided(asked_for(snapshot))

    assert undone.rollout is not None
    assert undone.rollout.draining == (0,)
    assert undone.rollout.outdated == (1,)


def test_deployments_of_an_earlier_operator_are_the_revision_that_they_were_rendered_for() -> None:
    live = running()
    assert all(DRAINING not in each["metadata"]["annotations"] for each in live.children.deployments.values())

    same = decided(asked_for(live))
    assert same.rollout is not None
    assert (same.rollout.updated, same.rollout.outdated) == ((0,), ())

    for deployment in live.children.deployments.values():
        deployment["metadata"]["annotations"] = {}  # taken away by hand: repaired, not replaced
    repaired = decided(asked_for(live))
    assert repaired.rollout is not None
    assert repaired.rollout.updated == (0,)


def test_a_deployment_whose_rendering_is_lost_stays_until_it_goes() -> None:
    live = running()
    for deployment in live.children.deployments.values():
        deployment["metadata"]["annotations"]["languagepipes.io/rendered"] = "no base64 !"
    begun = asked_for(live, server={"maxConcurrentRequests": 8})

    assert decided(begun).left_alone == {
        name for name, each in live.children.deployments.items() if LABEL_REPLICA in each["metadata"]["labels"]
    }


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        pytest.param([], False, id="never ready"),
        pytest.param([("Available", "True", 3600), ("Progressing", "True", 0)], True, id="ready"),
        pytest.param([("Available", "False", 60), ("Progressing", "True", 0)], True, id="lost its ring a minute ago"),
        pytest.param([("Available", "False", 301), ("Progressing", "True", 0)], False, id="nobody waits any more"),
    ],
)
def test_a_replica_holds_requests_for_as_long_as_they_wait(conditions: list[tuple[str, str, int]], holds: bool) -> None:
    live = running(ready=())
    for deployment in live.children.deployments.values():
        deployment["status"]["conditions"] = [
            {
                "type": kind,
                "status": status,
                "reason": "NewReplicaSetAvailable" if kind == "Progressing" else "",
                "lastTransitionTime": (live.now - timedelta(seconds=ago)).isoformat(),
            }
            for kind, status, ago in conditions
        ]

    assert holds_requests(live, 0) == holds


def test_the_service_stops_to_lead_to_end_models_that_are_not_ready_before_there_is_a_second_one() -> None:
    live = running()

    assert decided(asked_for(live)).publish_unready
    assert not decided(asked_for(live, server={"maxConcurrentRequests": 8})).publish_unready
    assert not decided(asked_for(live, replicas=2)).publish_unready


def test_the_plan_of_the_old_replica_stays_as_long_as_it_does() -> None:
    live = running()
    old = content_hash(stored_plan_of(live))
    during = asked_for(live, stages={"count": 2})

    done = rolled_out(replace(during, children=replace(during.children, pods={})))

    assert old != content_hash(stored_plan_of(during))
    numbers = {each["metadata"]["labels"].get(LABEL_REPLICA) for each in of_kind(done, "Deployment")}
    assert numbers == {None, "1"}


def test_no_replicas_leave_no_member_and_keep_the_store_the_plan_and_the_services() -> None:
    manifests = rendered(pipe_snapshot(replicas=0))

    assert [item["metadata"]["labels"]["languagepipes.io/role"] for item in of_kind(manifests, "Deployment")] == [
        "store"
    ]
    assert len(of_kind(manifests, "Service")) == 3
    assert len(of_kind(manifests, "ConfigMap")) == 1
