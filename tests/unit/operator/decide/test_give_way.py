"""Half a ring gives way after the deadline, and is tried again later; more replicas are made only where they fit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from languagepipes_api.names import LABEL_PLAN, LABEL_REPLICA, LABEL_ROLE
from languagepipes_api.spec import RolloutSpec
from languagepipes_operator.decide.decide import decide_with_plan
from languagepipes_operator.decide.give_way import GaveWay, Standing, gave_way, retry_at, standing
from languagepipes_operator.decide.plan_choice import PlanChoice
from languagepipes_operator.decide.rollout import Replica, next_step
from languagepipes_operator.names import ANNOTATION_GAVE_WAY
from languagepipes_operator.observe.snapshot import Children, Snapshot
from languagepipes_operator.planning import Node, PlanError, plan
from languagepipes_operator.planning.plan import how_many_fit
from support.example_pipes import pipe_snapshot, settings, stored_plan_of
from support.smollm2_facts import FACTS

NOW = datetime(2026, 11, 24, tzinfo=UTC)
GIB = 2**30
DEADLINE = timedelta(seconds=900)


def deployment(name: str, role: str, way: GaveWay | None = None, *, replicas: int = 1, was: bool = False) -> Any:
    annotations = {} if way is None else {ANNOTATION_GAVE_WAY: way.annotation()}
    conditions = [
        {"type": "Available", "status": "True" if was else "False"},
        {"type": "Progressing", "reason": "NewReplicaSetAvailable" if was else "ReplicaSetUpdated"},
    ]
    labels = {LABEL_REPLICA: "0", LABEL_ROLE: role, LABEL_PLAN: "p"}
    return {
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {"replicas": replicas},
        "status": {"conditions": conditions},
    }


def pod(name: str, role: str, node: str, *, unschedulable_for: timedelta | None = None) -> Any:
    conditions = []
    if unschedulable_for is not None:
        conditions = [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
                "lastTransitionTime": (NOW - unschedulable_for).isoformat(),
            }
        ]
    labels = {LABEL_REPLICA: "0", LABEL_ROLE: role, LABEL_PLAN: "p"}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node} if node else {},
        "status": {"conditions": conditions},
    }


def snapshot(deployments: list[Any], pods: list[Any]) -> Snapshot:
    children = Children(
        deployments={each["metadata"]["name"]: each for each in deployments},
        pods={each["metadata"]["name"]: each for each in pods},
    )
    return replace(pipe_snapshot(), children=children, now=NOW)


def half(since: timedelta, *, way: GaveWay | None = None, was: bool = False) -> Snapshot:
    return snapshot(
        [deployment("end", "end-model", way, was=was), deployment("stage", "stage", way)],
        [pod("e", "end-model", "n1"), pod("s", "stage", "", unschedulable_for=since)],
    )


def test_half_a_ring_waits_until_the_deadline() -> None:
    since = timedelta(seconds=100)

    assert standing(half(since), 0, room=True) == Standing(due=NOW - since + DEADLINE)


def test_half_a_ring_gives_way_at_the_deadline_with_the_schedulers_words() -> None:
    found = standing(half(DEADLINE), 0, room=True)

    assert found.stopped
    assert found.gave_way is not None
    assert (found.gave_way.at, found.gave_way.attempts) == (NOW, 1)
    assert "Insufficient nvidia.com/gpu" in found.gave_way.why
    assert found.due is not None
    assert NOW + DEADLINE <= found.due <= NOW + 2 * DEADLINE


def test_a_ring_that_holds_requests_never_gives_way() -> None:
    assert not standing(half(DEADLINE * 9, was=True), 0, room=True).stopped


def test_a_ring_of_which_no_pod_has_a_node_holds_nothing_and_waits() -> None:
    waiting = snapshot([deployment("end", "end-model")], [pod("e", "end-model", "", unschedulable_for=DEADLINE * 2)])

    assert standing(waiting, 0, room=True) == Standing()


@pytest.mark.parametrize(("room", "stopped"), [(True, False), (False, True)])
def test_it_is_tried_again_when_its_time_has_come_and_there_is_room(room: bool, stopped: bool) -> None:
    way = GaveWay(NOW - 3 * DEADLINE, 1, "words")
    later = snapshot([deployment("end", "end-model", way, replicas=0)], [])

    found = standing(later, 0, room=room)

    assert found.stopped == stopped
    assert found.gave_way == way


def test_it_stays_away_until_its_time_has_come() -> None:
    way = GaveWay(NOW, 1, "words")
    stopped = snapshot([deployment("end", "end-model", way, replicas=0)], [])

    assert standing(stopped, 0, room=True) == Standing(way, stopped=True, due=retry_at(way, stopped, 0))


def test_each_attempt_waits_longer_and_pipes_do_not_wait_alike() -> None:
    here = half(DEADLINE)
    waits = [retry_at(GaveWay(NOW, attempt, ""), here, 0) - NOW for attempt in range(1, 12)]
    uids = [replace(here, raw={"metadata": {"uid": f"pipe {number}"}}) for number in range(10)]

    assert waits[0] < waits[2] < timedelta(hours=2)
    assert all(wait <= timedelta(hours=2) for wait in waits)
    assert len({retry_at(GaveWay(NOW, 1, ""), each, 0) for each in uids}) > 5


def test_the_second_time_counts_on() -> None:
    found = standing(half(DEADLINE, way=GaveWay(NOW - 3 * DEADLINE, 1, "words")), 0, room=True)

    assert found.gave_way is not None
    assert found.gave_way.attempts == 2


@pytest.mark.parametrize("text", ["", "{}", "no JSON", "[]", '{"at": "2026-11-24T00:00:00", "attempts": 1}'])
def test_an_annotation_that_people_have_edited_is_none(text: str) -> None:
    edited = deployment("end", "end-model", replicas=0)
    edited["metadata"]["annotations"][ANNOTATION_GAVE_WAY] = text

    assert gave_way(snapshot([edited], []).children, 0) is None


def test_as_many_replicas_are_made_as_there_is_room_for() -> None:
    short = PlanError("InsufficientGPUs", "1 short")
    live = [Replica(0, updated=True, ready_since=NOW - DEADLINE, holds_requests=True)]

    step = next_step(live, wanted=4, limits=RolloutSpec(), now=NOW, fits=lambda more: (more - 2, short))

    assert (step.updated, step.short) == ((0, 1), short)


def test_a_replica_that_takes_anothers_place_is_made_whatever_is_free() -> None:
    live = [Replica(0, updated=False, ready_since=NOW - DEADLINE, holds_requests=True)]

    step = next_step(
        live, wanted=1, limits=RolloutSpec(), now=NOW, fits=lambda more: (0, PlanError("InsufficientMemory", ""))
    )

    assert (step.updated, step.short) == ((1,), None)


def test_a_new_plan_of_an_autoscaled_pipe_has_room_for_the_fewest_and_more_are_made_where_they_fit() -> None:
    autoscaling = {"minReplicas": 2, "maxReplicas": 9}
    here = pipe_snapshot(stages={"count": 2}, replicas=7, autoscaling=autoscaling)
    planned = stored_plan_of(here)
    parts = (planned.plan.end_model, *planned.plan.stages)
    node = Node("n", 7 * sum(each.weight_bytes + each.kv_bytes + each.overhead_bytes for each in parts) // 2)
    node = replace(node, kubernetes=True)
    made = plan(here.pipe.spec, FACTS, [node])
    growing = replace(here, desired=5, nodes=(node,), occupied_nodes=(node,))

    found = decide_with_plan(growing, settings(), PlanChoice(replace(planned, plan=made), is_new=True)).rollout

    assert found is not None
    assert found.updated == (0, 1, 2)
    assert found.short is not None
    assert found.short.reason == "InsufficientMemory"


def test_how_many_more_fit_is_counted_on_what_is_free_and_what_is_short_is_said() -> None:
    spec = pipe_snapshot(stages={"count": 2}).pipe.spec
    planned = plan(spec, FACTS)
    each = sum(part.weight_bytes + part.kv_bytes + part.overhead_bytes for part in (planned.end_model, *planned.stages))
    node = Node("n", 5 * each // 2, kubernetes=True)

    count, short = how_many_fit(planned, spec, [node], more=4)

    assert count == 2
    assert short is not None
    assert short.reason == "InsufficientMemory"
    assert "short" in short.message
    assert how_many_fit(planned, spec, [], more=4) == (4, None)


def test_pods_may_wait_for_nodes_where_the_spec_says_so() -> None:
    nodes = [Node("small", GIB, kubernetes=True)]
    refusing = pipe_snapshot(stages={"count": 2}).pipe.spec
    waiting = pipe_snapshot(stages={"count": 2}, placement={"allowPending": True}).pipe.spec

    with pytest.raises(PlanError) as refused:
        plan(refusing, FACTS, nodes)
    made = plan(waiting, FACTS, nodes)

    assert made.hash == plan(waiting, FACTS).hash
    assert refused.value.message in made.reasons[-1]
