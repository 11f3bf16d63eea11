"""A pipe that nobody asks stops its stages, and is woken before anything else happens to its only replica."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from languagepipes_api.names import LABEL_REPLICA, LABEL_ROLE
from languagepipes_operator.children import render
from languagepipes_operator.decide.decide import decide, decide_with_plan
from languagepipes_operator.decide.decision import Decision
from languagepipes_operator.decide.give_way import GaveWay
from languagepipes_operator.decide.idle import idle_from, is_to_idle, woken_until
from languagepipes_operator.decide.plan_choice import PlanChoice
from languagepipes_operator.decide.replicas import holds_requests
from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.names import ANNOTATION_GAVE_WAY
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.planning.nodes import Taint
from support.example_pipes import living, pipe_snapshot, pod_of_deployment, settings, stored_plan_of, with_pods

PATIENCE = timedelta(seconds=300)
HOUR = 3600.0
ONE = Rollout(updated=(0,))
EMPTIED = {"n1": (Taint("node.kubernetes.io/unschedulable"),)}


def pipe(*, least: int = 0, desired: int | None = 0, **spec: Any) -> Snapshot:
    autoscaling = {"minReplicas": least, "maxReplicas": 4}
    return replace(pipe_snapshot(**{"autoscaling": autoscaling, **spec}), desired=desired)


def decided(snapshot: Snapshot) -> Decision:
    return decide_with_plan(snapshot, settings(), PlanChoice(stored_plan_of(snapshot)))


def made(snapshot: Snapshot) -> Snapshot:
    """The children of a pipe that somebody asks, without statuses and pods."""
    asked = replace(snapshot, desired=None if snapshot.desired is None else 1)
    children = render(asked, decided(asked), settings())
    return living(snapshot, json.loads(json.dumps(children)))


def tell(
    snapshot: Snapshot, deployment: Manifest, *, ready: bool, ago: float = HOUR, was: bool = True, replicas: int = 1
) -> Snapshot:
    """What its controller and its pod say. ago: seconds since it turned ready, or was lost."""
    turned = (snapshot.now - timedelta(seconds=ago)).isoformat()
    available = "True" if ready or not replicas else "False"
    deployment["metadata"]["generation"] = 1
    deployment["spec"]["replicas"] = replicas
    deployment["status"] = {
        "observedGeneration": 1,
        "replicas": replicas,
        "updatedReplicas": replicas,
        "conditions": [
            {"type": "Available", "status": available, "lastTransitionTime": turned},
            {"type": "Progressing", "reason": "NewReplicaSetAvailable" if was else "ReplicaSetUpdated"},
        ],
    }
    pod = pod_of_deployment(deployment, ready=ready)
    pod["status"]["conditions"][0]["lastTransitionTime"] = turned
    pod["spec"]["nodeName"] = "n1" if deployment["metadata"]["labels"].get(LABEL_ROLE) == "end-model" else "n2"
    pods = {name: each for name, each in snapshot.children.pods.items() if name != pod["metadata"]["name"]}
    return with_pods(snapshot, [*pods.values(), *([pod] if replicas else [])])


def of_role(snapshot: Snapshot, role: str) -> list[Manifest]:
    return [
        each for each in snapshot.children.deployments.values() if each["metadata"]["labels"].get(LABEL_ROLE) == role
    ]


def members(snapshot: Snapshot, *, end: dict[str, Any], stages: dict[str, Any]) -> Snapshot:
    for role, states in (("end-model", end), ("stage", stages)):
        for each in of_role(snapshot, role):
            snapshot = tell(snapshot, each, **states)
    return snapshot


def serving(snapshot: Snapshot, *, ago: float = HOUR) -> Snapshot:
    return members(made(snapshot), end={"ready": True, "ago": ago}, stages={"ready": True})


def never_ready(snapshot: Snapshot) -> Snapshot:
    return members(made(snapshot), end={"ready": False, "was": False}, stages={"ready": False, "was": False})


def idle(snapshot: Snapshot) -> Snapshot:
    return members(made(snapshot), end={"ready": False}, stages={"ready": False, "replicas": 0})


def waking(snapshot: Snapshot, *, ago: float) -> Snapshot:
    return members(made(snapshot), end={"ready": False}, stages={"ready": False, "ago": ago})


def joining(snapshot: Snapshot, *, ago: float = 2) -> Snapshot:
    """Its stages have just become ready, and its End Model not yet."""
    return members(made(snapshot), end={"ready": False}, stages={"ready": True, "ago": ago})


def unseen(snapshot: Snapshot) -> Snapshot:
    """Its stages are asked for, and their controller has not seen that."""
    snapshot = idle(snapshot)
    for each in of_role(snapshot, "stage"):
        each["spec"]["replicas"], each["metadata"]["generation"] = 1, 2
    return snapshot


def gone(snapshot: Snapshot, *roles: str, ago: float = 60) -> Snapshot:
    """The Deployments of these roles gave way. Without replicas a Deployment is complete."""
    annotation = GaveWay(snapshot.now - timedelta(seconds=ago), 1, "words").annotation()
    for role in roles:
        for each in of_role(snapshot, role):
            snapshot = tell(snapshot, each, ready=False, replicas=0)
            each["metadata"]["annotations"][ANNOTATION_GAVE_WAY] = annotation
    return snapshot


@pytest.mark.parametrize(
    ("snapshot", "idles"),
    [
        pytest.param(serving(pipe()), True, id="nobody asks"),
        pytest.param(idle(pipe()), True, id="it stays idle"),
        pytest.param(serving(pipe(), ago=2), False, id="ready only just now"),
        pytest.param(serving(pipe(desired=1)), False, id="somebody asks"),
        pytest.param(idle(pipe(desired=1)), False, id="somebody asks an idle one"),
        pytest.param(serving(pipe(desired=None, autoscaling=None)), False, id="without autoscaling"),
        pytest.param(serving(pipe(least=1)), False, id="its End Model was not told"),
        pytest.param(never_ready(pipe()), False, id="it never was ready"),
        pytest.param(waking(pipe(), ago=9), False, id="it has just been woken"),
        pytest.param(gone(never_ready(pipe()), "stage", "end-model"), False, id="it never was ready, and gave way"),
        pytest.param(gone(idle(pipe()), "stage"), True, id="it was woken in vain, and its stages gave way"),
        pytest.param(made(pipe(desired=2)), False, id="there is another replica"),
    ],
)
def test_the_stages_of_the_only_replica_go_once_it_was_ready_and_nobody_asks(snapshot: Snapshot, idles: bool) -> None:
    assert is_to_idle(snapshot, ONE) is idles


def test_a_replica_idles_from_when_it_is_available_and_not_while_it_is_leaving() -> None:
    fresh = serving(pipe(), ago=2)

    assert idle_from(fresh, ONE) == fresh.now + timedelta(seconds=1)
    assert idle_from(fresh, replace(ONE, leaving=(0,))) is None


@pytest.mark.parametrize(
    ("make", "left"),
    [
        pytest.param(lambda: idle(pipe()), PATIENCE, id="idle"),
        pytest.param(lambda: unseen(pipe()), PATIENCE, id="woken this moment"),
        pytest.param(lambda: waking(pipe(), ago=100), PATIENCE - timedelta(seconds=100), id="waking"),
        pytest.param(
            lambda: joining(pipe(), ago=100), PATIENCE - timedelta(seconds=100), id="its ring is to be joined"
        ),
        pytest.param(lambda: waking(pipe(), ago=300), None, id="woken in vain"),
        pytest.param(lambda: serving(pipe()), None, id="ready"),
        pytest.param(lambda: never_ready(pipe()), None, id="never ready"),
        pytest.param(lambda: gone(never_ready(pipe()), "stage", "end-model"), None, id="gave way, and never was ready"),
        pytest.param(lambda: waking(pipe(least=1), ago=1), None, id="its End Model was not told"),
        pytest.param(lambda: made(pipe(desired=2)), None, id="there is another replica"),
    ],
)
def test_stages_are_waited_for_as_long_as_requests_wait(make: Callable[[], Snapshot], left: timedelta | None) -> None:
    snapshot = make()
    until = woken_until(snapshot)

    assert (None if until is None else until - snapshot.now) == left


@pytest.mark.parametrize(
    ("snapshot", "holds"),
    [
        pytest.param(idle(pipe()), True, id="idle for an hour"),
        pytest.param(unseen(pipe()), True, id="woken this moment"),
        pytest.param(waking(pipe(), ago=299), True, id="waking"),
        pytest.param(joining(pipe()), True, id="its ring is to be joined"),
        pytest.param(waking(pipe(), ago=301), False, id="woken in vain"),
        pytest.param(waking(pipe(least=1), ago=9), False, id="not told: broken for an hour"),
        pytest.param(gone(idle(pipe()), "stage"), True, id="its stages gave way"),
        pytest.param(gone(never_ready(pipe()), "stage", "end-model"), False, id="all of it gave way"),
    ],
)
def test_requests_may_wait_at_an_idle_replica_however_long_it_was(snapshot: Snapshot, holds: bool) -> None:
    assert holds_requests(snapshot, 0) is holds


def stopped(found: Decision) -> dict[str, set[bool]]:
    """By role, whether members of replica 0 are."""
    result: dict[str, set[bool]] = {}
    for each in found.members:
        if each.identity.replica == 0:
            result.setdefault(each.identity.role, set()).add(each.stopped)
    return result


@pytest.mark.parametrize("make", [idle, joining, lambda snapshot: waking(snapshot, ago=9)])
def test_an_idle_replica_serves_before_another_revision_stands_beside_it(make: Callable[[Snapshot], Snapshot]) -> None:
    changed = pipe(server={"maxConcurrentRequests": 8})
    found = decided(replace(changed, children=make(pipe()).children))

    assert found.rollout is not None
    assert (found.rollout.updated, found.rollout.outdated, found.rollout.draining) == ((), (0,), ())
    assert stopped(found) == {"stage": {False}, "end-model": {False}}
    assert not found.idle


def test_an_idle_replica_is_woken_and_replaced_where_its_end_models_node_is_being_emptied() -> None:
    snapshot = replace(idle(pipe()), emptied=EMPTIED)
    found = decided(snapshot)

    assert found.rollout is not None
    assert (found.rollout.updated, found.rollout.leaving) == ((0,), (0,))
    assert stopped(found) == {"stage": {False}, "end-model": {False}}
    assert not found.idle
    assert found.drains.admitted == {}
    assert (found.drains.budgets[0].end_model, found.drains.budgets[0].keeps_waiting) == (0, True)

    woken = decided(replace(serving(pipe()), emptied=EMPTIED))

    assert woken.rollout is not None
    assert (woken.rollout.updated, woken.rollout.leaving, woken.rollout.beside) == ((0, 1), (0,), (1,))
    assert not woken.idle


@pytest.mark.parametrize("spec", [{"rollout": {"maxSurge": 0, "maxUnavailable": 1}}, {"paused": True}])
def test_an_idle_replica_that_nothing_can_replace_stays_idle_and_its_end_model_may_be_evicted(
    spec: dict[str, Any],
) -> None:
    snapshot = replace(idle(pipe(**spec)), emptied=EMPTIED)
    found = decide(snapshot, settings(), stored_plan_of(snapshot)) if "paused" in spec else decided(snapshot)

    assert found.idle
    assert list(found.drains.admitted) == [0]
    assert found.drains.budgets[0].end_model == 1


def test_a_paused_pipe_is_idle_only_if_its_stages_are_stopped() -> None:
    awake, asleep = serving(pipe(paused=True)), idle(pipe(paused=True))

    assert not decide(awake, settings(), stored_plan_of(awake)).idle
    assert decide(asleep, settings(), stored_plan_of(asleep)).idle


def test_many_who_come_at_once_wait_at_the_idle_replica_and_others_are_made_once_it_serves() -> None:
    first = decided(idle(pipe(desired=3)))
    then = decided(serving(pipe(desired=3)))

    assert first.rollout is not None
    assert then.rollout is not None
    assert first.rollout.updated == (0,)
    assert stopped(first) == {"stage": {False}, "end-model": {False}}
    assert then.rollout.updated == (0, 1, 2)


def test_of_a_ring_that_is_woken_in_vain_the_stages_give_way_and_the_end_model_stays() -> None:
    snapshot = waking(pipe(desired=1), ago=1000)
    pending = next(pod for pod in snapshot.children.pods.values() if pod["metadata"]["labels"][LABEL_ROLE] == "stage")
    del pending["spec"]["nodeName"]
    pending["status"]["conditions"] = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
            "lastTransitionTime": (snapshot.now - timedelta(seconds=1000)).isoformat(),
        }
    ]
    found = decided(snapshot)

    assert stopped(found) == {"stage": {True}, "end-model": {False}}
    assert {bool(each.gave_way) for each in found.members if each.identity.role == "stage"} == {True}
    assert {each.gave_way for each in found.members if each.identity.role == "end-model"} == {""}
    later = decided(gone(idle(pipe(desired=1)), "stage"))
    assert stopped(later) == {"stage": {True}, "end-model": {False}}
    again = decided(gone(idle(pipe(desired=1)), "stage", ago=3 * HOUR))
    assert stopped(again) == {"stage": {False}, "end-model": {False}}


def test_a_spec_that_is_corrected_does_not_wait_for_a_ring_that_never_was_ready() -> None:
    changed = pipe(server={"maxConcurrentRequests": 8}, desired=1)
    found = decided(replace(changed, children=gone(never_ready(pipe()), "stage", "end-model").children))

    assert found.rollout is not None
    assert (found.rollout.updated, found.rollout.draining) == ((1,), (0,))


def two(*, first: dict[str, Any]) -> Snapshot:
    """Replica 1 gave way; `first` is what the End Model of replica 0 says."""
    snapshot = members(made(pipe_snapshot(replicas=2)), end={"ready": False, "was": False}, stages={"ready": True})
    annotation = GaveWay(snapshot.now, 1, "words").annotation()
    for each in snapshot.children.deployments.values():
        labels = each["metadata"]["labels"]
        if labels.get(LABEL_REPLICA) == "1":
            snapshot = tell(snapshot, each, ready=False, replicas=0)
            each["metadata"]["annotations"][ANNOTATION_GAVE_WAY] = annotation
        elif labels.get(LABEL_ROLE) == "end-model":
            snapshot = tell(snapshot, each, **first)
    pods = [pod for pod in snapshot.children.pods.values() if pod["metadata"]["labels"].get(LABEL_REPLICA) != "1"]
    return with_pods(snapshot, pods)


def test_a_replica_that_gave_way_takes_no_requests_from_one_that_recovers() -> None:
    recovering = two(first={"ready": False, "ago": 60})
    found = decided(replace(pipe_snapshot(replicas=1), children=recovering.children))

    assert found.rollout is not None
    assert (found.rollout.updated, found.rollout.draining) == ((0,), (1,))


def test_a_replica_that_gave_way_keeps_no_drain_of_another_waiting() -> None:
    found = decided(replace(two(first={"ready": True}), emptied={"n2": EMPTIED["n1"]}))

    assert [(each.replica, each.stages) for each in found.drains.budgets] == [(0, 3), (1, 0)]


def test_the_service_leads_to_the_only_end_model_that_has_a_pod_also_beside_one_that_gave_way() -> None:
    assert decided(two(first={"ready": True})).publish_unready
