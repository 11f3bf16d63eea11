"""A replica that has lost a stage, or its ring, lets requests wait: its pipe is not Ready, says what is awaited, and
keeps its endpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from typing import Any

import pytest
from languagepipes_api.member_status import MemberStatus
from languagepipes_operator.status.condition_state import condition_in
from languagepipes_operator.status.events import Event, events_of
from support.cluster_state import (
    NOW,
    ClusterState,
    ended,
    later,
    member_name,
    never_ready,
    triple,
    turns,
    unready,
    unscheduled,
    waiting,
)
from support.failure_cases import END_MODEL, STAGE_2

GIB = 2**30
URL = "http://smol.models.svc/v1"
UP = MemberStatus(state="ready", ring_ready=True, epoch=4)
DOWN = MemberStatus(
    state="ready", ring_ready=False, ring_error="stage 2 closed the link: no bytes for 1.0 s", recovering=True
)


def loading(done: float, total: float = 4.2) -> MemberStatus:
    return MemberStatus(role="stage", state="loading", loaded_bytes=int(done * GIB), total_bytes=int(total * GIB))


def test_a_lost_stage_under_waiting_requests_reads_well_at_every_moment() -> None:
    """As `kubectl get lp -w` and the Events show it."""
    whole = ClusterState.ready().status()
    shown: list[tuple[Any, ...]] = []
    told: list[tuple[str, str]] = []
    status = whole

    def look(cluster: ClusterState, *, seconds: float) -> dict[str, Any]:
        nonlocal status
        before, status = status, later(cluster, seconds=seconds).status(status)
        told.extend((event.type, event.reason) for event in events_of(before, status))
        shown.append((status["phase"], *triple(status, "Ready")[:2], status["stagesReady"], status["readyReplicas"]))
        return status

    cluster = ClusterState.ready()
    cluster.drop("stage", stage=2)
    look(cluster, seconds=1)
    cluster = ClusterState.ready()
    being_made(cluster.pod("stage", stage=2))
    cluster.members[END_MODEL] = DOWN
    look(cluster, seconds=2)
    cluster = ClusterState.ready()
    unready(cluster.pod("stage", stage=2))
    cluster.members |= {END_MODEL: DOWN, STAGE_2: loading(3.1)}
    status = look(cluster, seconds=7)
    assert triple(status, "Ready")[2] == (
        "replica 0 is recovering: waiting for stage stage-2 to load its weights (2.9/4.2 GiB); requests wait up to "
        "300 s"
    )
    assert triple(status, "EndpointReady") == (
        "True",
        "EndpointReady",
        f"requests are accepted at {URL}, and wait: {triple(status, 'Ready')[2]}",
    )
    assert turns(status) == {
        "Ready": "False",
        "Planned": "True",
        "WeightsAvailable": "True",
        "StagesReady": "False",
        "EndpointReady": "True",
        "Progressing": "True",
        "Degraded": "True",
    }
    cluster = ClusterState.ready()
    cluster.members[END_MODEL] = DOWN
    look(cluster, seconds=12)
    look(ClusterState.ready(), seconds=13)

    assert shown == [
        ("Recovering", "False", "Recovering", "2/3", 0),
        ("Recovering", "False", "Recovering", "2/3", 0),
        ("Recovering", "False", "Recovering", "2/3", 0),
        ("Recovering", "False", "Recovering", "3/3", 0),
        ("Ready", "True", "Ready", "3/3", 1),
    ]
    assert told == [
        ("Normal", "StagesStarting"),
        ("Warning", "Recovering"),
        ("Warning", "FewerReplicas"),
        ("Normal", "StagesReady"),
        ("Normal", "Recovered"),
    ]


def test_the_last_event_says_how_long_it_took() -> None:
    whole = ClusterState.ready().status()
    cluster = ClusterState.ready()
    unready(cluster.pod("stage", stage=2))
    lost = later(cluster, seconds=1).status(whole)

    back = later(ClusterState.ready(), seconds=13).status(lost)

    ready = triple(back, "Ready")
    assert events_of(lost, back)[-1] == Event("Normal", "Recovered", f"recovered after 12 s: {ready[2]}")
    assert ready[:2] == ("True", "Ready")


def test_the_last_event_of_a_first_start_is_ready() -> None:
    starting = ClusterState.ready()
    unready(starting.pod("end-model"))

    first = starting.status()

    assert events_of(first, ClusterState.ready().status(first))[-1].reason == "Ready"


def test_another_spec_is_no_recovery_unless_the_pipe_was_degraded_before() -> None:
    lost = ClusterState.ready()
    unready(lost.pod("end-model"))
    changed = ClusterState.ready(generation=2)
    unready(changed.pod("end-model"))

    def ends_with(before: dict[str, Any]) -> tuple[str, str]:
        rolling = later(changed, seconds=10).status(before)
        after = later(ClusterState.ready(generation=2), seconds=20).status(rolling)
        return turns(rolling)["Degraded"], events_of(rolling, after)[-1].reason

    assert ends_with(ClusterState.ready().status()) == ("False", "Ready")
    assert ends_with(later(lost, seconds=5).status(ClusterState.ready().status())) == ("True", "Recovered")


def test_a_cut_between_healthy_pods_is_a_recovery_that_waits_for_the_ring() -> None:
    whole = ClusterState.ready().status()
    cluster = ClusterState.ready()
    cluster.members[END_MODEL] = DOWN

    status = later(cluster, seconds=6).status(whole)

    assert triple(status, "Ready") == (
        "False",
        "Recovering",
        "replica 0 is recovering: waiting for the ring health check to pass (stage 2 closed the link: no bytes for "
        "1.0 s); requests wait up to 300 s",
    )
    assert (turns(status)["StagesReady"], turns(status)["EndpointReady"], status["phase"]) == (
        "True",
        "True",
        "Recovering",
    )
    assert later(cluster, seconds=66).status(status) == status


def test_a_ring_of_which_the_end_model_says_that_it_is_up_is_ready() -> None:
    cluster = ClusterState.ready()
    before = cluster.status()
    cluster.members[END_MODEL] = UP

    assert cluster.status(before) == before


def test_a_late_or_failed_probe_of_a_stage_is_no_recovery_while_the_end_model_says_that_the_ring_is_up() -> None:
    """At a first start the End Model may be Ready before the kubelet has asked the last stage."""
    cluster = ClusterState.ready()
    unready(cluster.pod("stage", stage=2))
    cluster.members[END_MODEL] = UP

    first, again = cluster.status(), cluster.status(ClusterState.ready().status())

    assert [triple(each, "Ready")[:2] for each in (first, again)] == [("True", "Ready")] * 2
    assert [turns(each)["StagesReady"] for each in (first, again)] == ["False", "False"]


def test_a_stage_that_is_being_replaced_is_awaited_although_the_ring_is_up_through_the_pod_that_ends() -> None:
    shown = []
    before = ClusterState.ready().status()
    for replacement in ("none", "starting", "alone", "alone, ring lost"):
        cluster = ClusterState.ready()
        old = cluster.pod("stage", stage=2)
        old["metadata"]["deletionTimestamp"] = NOW.isoformat()
        if replacement != "none":
            new = deepcopy(old)
            del new["metadata"]["deletionTimestamp"]
            new["metadata"] |= {"name": "new", "creationTimestamp": (NOW + timedelta(seconds=1)).isoformat()}
            cluster.pods["new"] = unready(new)
        if replacement.startswith("alone"):
            cluster.drop("stage", stage=2)
        cluster.members[END_MODEL] = DOWN if replacement.endswith("lost") else UP
        shown.append(triple(later(cluster, seconds=6).status(before), "Ready")[1])

    assert shown == ["Recovering", "Recovering", "Ready", "Recovering"]


def test_a_changed_stage_is_awaited_although_the_old_ring_is_still_up() -> None:
    cluster = ClusterState.ready()
    cluster.deployment("stage", stage=2)["metadata"]["generation"] = 2
    cluster.members[END_MODEL] = UP

    assert triple(cluster.status(ClusterState.ready().status()), "Ready")[1] == "Recovering"


def lost_node(cluster: ClusterState) -> None:
    pod = unready(cluster.pod("stage", stage=2))
    del next(each for each in pod["status"]["conditions"] if each["type"] == "Ready")["reason"]


def no_node(cluster: ClusterState) -> None:
    del cluster.pod("stage", stage=2)["spec"]["nodeName"]
    cluster.pod("stage", stage=2)["status"] = {"phase": "Pending", "conditions": []}


def being_made(pod: dict[str, Any]) -> None:
    waiting(pod, "ContainerCreating")
    pod["status"]["conditions"] = []
    pod["metadata"]["creationTimestamp"] = NOW.isoformat()


def says(**status: Any) -> Callable[[ClusterState], None]:
    def spoil(cluster: ClusterState) -> None:
        unready(cluster.pod("stage", stage=2))
        cluster.members[STAGE_2] = MemberStatus(role="stage", **status)

    return spoil


AWAITED: dict[str, tuple[Callable[[ClusterState], Any], str]] = {
    "no pod": (lambda cluster: cluster.drop("stage", stage=2), "to get a new pod"),
    "an old pod": (
        lambda cluster: cluster.deployment("stage", stage=2)["metadata"].update(generation=2),
        "to get a new pod",
    ),
    "no node": (no_node, "to be scheduled"),
    "no container": (lambda cluster: being_made(cluster.pod("stage", stage=2)), "to start"),
    "no report": (lambda cluster: unready(cluster.pod("stage", stage=2)), "to become ready"),
    "imports": (says(state="starting", message="importing torch"), "to become ready"),
    "waits for the store": (
        says(state="waiting", message="waiting for the store: connection refused"),
        "(waiting for the store: connection refused)",
    ),
    "loads": (says(state="loading", loaded_bytes=1, total_bytes=10 * GIB), "to load its weights (0/10 GiB)"),
    "loads without a size": (says(state="loading"), "to load its weights"),
    "has loaded": (says(state="ready", message="listening"), "to become ready"),
}


@pytest.mark.parametrize("case", AWAITED)
def test_what_is_awaited_of_a_lost_stage_is_told(case: str) -> None:
    spoil, words = AWAITED[case]
    cluster = ClusterState.ready()
    before = cluster.status()
    spoil(cluster)

    ready = triple(later(cluster, seconds=6).status(before), "Ready")

    assert ready == (
        "False",
        "Recovering",
        f"replica 0 is recovering: waiting for stage stage-2 {words}; requests wait up to 300 s",
    )


def test_a_cause_that_passes_is_told_beside_what_is_awaited() -> None:
    cluster = ClusterState.ready()
    before = cluster.status()
    ended(cluster.pod("stage", stage=2), code=137, reason="Error")

    status = later(cluster, seconds=6).status(before)

    assert triple(status, "Ready")[1] == "Recovering"
    assert "requests wait up to 300 s. Cause: stage stage-2: its container ended" in triple(status, "Ready")[2]
    assert triple(status, "StagesReady")[1] == "ContainerFailed"
    assert turns(status)["Progressing"] == "True"


def test_a_lost_node_is_told_as_the_cause() -> None:
    cluster = ClusterState.ready()
    before = cluster.status()
    lost_node(cluster)

    status = later(cluster, seconds=6).status(before)

    assert triple(status, "Ready")[1] == "Recovering"
    assert "Cause: stage stage-2: node n1 does not answer" in triple(status, "Ready")[2]
    assert triple(status, "StagesReady")[1] == "NodeLost"


def test_what_needs_a_person_is_told_in_place_of_recovery_while_requests_wait() -> None:
    cluster = ClusterState.ready()
    before = cluster.status()
    unscheduled(cluster.pod("stage", stage=2), "0/2 nodes are available: 2 Insufficient memory. preemption: no.")

    status = later(cluster, seconds=6).status(before)

    assert triple(status, "Ready")[1] == "Unschedulable"
    assert turns(status)["EndpointReady"] == "True"
    assert triple(status, "EndpointReady")[2].startswith(f"requests are accepted at {URL}, and wait: stage stage-2")
    assert status["phase"] == "Degraded"


def test_a_store_that_needs_a_person_matters_only_to_a_stage_that_must_load() -> None:
    def told(*, lost: bool) -> str:
        cluster = ClusterState.ready()
        before = cluster.status()
        unscheduled(cluster.pod("store"), "0/2 nodes are available: 2 Insufficient cpu. preemption: no.")
        cluster.members[END_MODEL] = DOWN
        if lost:
            unready(cluster.pod("stage", stage=2))
        return triple(later(cluster, seconds=6).status(before), "Ready")[1]

    assert (told(lost=False), told(lost=True)) == ("Recovering", "Unschedulable")


def test_an_end_model_that_lets_nobody_wait_any_more_is_told_as_before() -> None:
    """After `maxWaitSeconds` the Service does not lead to it."""
    cluster = ClusterState.ready()
    cluster.publish_unready()
    before = cluster.status()
    unready(cluster.pod("end-model"))
    cluster.members[END_MODEL] = DOWN.model_copy(update={"recovering": False})

    status = later(cluster, seconds=400).status(before)

    assert triple(status, "Ready")[1] == "RingDown"
    assert turns(status)["EndpointReady"] == "False"


def test_the_only_end_model_recovers_although_its_pod_is_not_ready() -> None:
    """Its readiness follows the ring, and the Service leads to it all the same."""
    cluster = ClusterState.ready()
    cluster.publish_unready()
    before = cluster.status()
    unready(cluster.pod("end-model"))
    cluster.members[END_MODEL] = DOWN

    status = later(cluster, seconds=6).status(before)

    assert triple(status, "Ready")[:2] == ("False", "Recovering")
    assert triple(status, "EndpointReady")[0] == "True"
    assert triple(status, "EndpointReady")[2].startswith(f"requests are accepted at {URL}, and wait: replica 0 is")
    assert (status["phase"], status["readyReplicas"]) == ("Recovering", 0)


def test_it_recovers_until_the_probe_of_the_only_end_model_passes_again() -> None:
    """Its ring is up, and the kubelets have not looked yet."""
    cluster = ClusterState.ready()
    cluster.publish_unready()
    before = cluster.status()
    unready(cluster.pod("end-model"))
    unready(cluster.pod("stage", stage=2))
    cluster.members[END_MODEL] = UP

    status = later(cluster, seconds=6).status(before)

    assert triple(status, "Ready")[:2] == ("False", "Recovering")
    assert triple(status, "Ready")[2] == "replica 0 is recovering: waiting for the End Model's readiness probe to pass"
    assert triple(status, "EndpointReady")[::2] == ("True", f"1 replica answers at {URL}")


def test_a_first_start_is_no_recovery() -> None:
    cluster = ClusterState.ready()
    cluster.publish_unready()
    never_ready(unready(cluster.pod("end-model")))
    cluster.members[END_MODEL] = UP

    assert triple(cluster.status(), "Ready")[1] == "JoiningRing"


def test_a_stage_that_was_never_ready_is_awaited_although_the_ring_is_up() -> None:
    """The one before it was deleted by force: it is not seen ending, and still computes."""
    cluster = ClusterState.ready()
    before = cluster.status()
    never_ready(unready(cluster.pod("stage", stage=2)))
    cluster.members[END_MODEL] = UP

    status = later(cluster, seconds=2).status(before)

    assert triple(status, "Ready")[1] == "Recovering"
    assert "stage stage-2 to become ready" in triple(status, "Ready")[2]


@pytest.mark.parametrize("published", [True, False])
def test_requests_are_accepted_only_where_the_service_leads(published: bool) -> None:
    """While the pipe is paused, nothing is written to it."""
    cluster = ClusterState.ready()
    before = cluster.status()
    unready(cluster.pod("end-model"))
    cluster.members[END_MODEL] = DOWN
    cluster.publish_unready(published)

    status = later(cluster, seconds=6).status(before)

    assert turns(status)["EndpointReady"] == str(published)


def test_without_a_plan_for_the_spec_a_replica_of_the_old_one_that_waits_does_not_answer() -> None:
    cluster = ClusterState.ready()
    cluster.publish_unready()
    before = cluster.status()
    cluster.planned = False
    unready(cluster.pod("end-model"))
    cluster.members[END_MODEL] = DOWN

    status = later(cluster, seconds=6).status(before)

    assert triple(status, "EndpointReady")[2].startswith(f"requests are accepted at {URL}, and wait")
    assert status["readyReplicas"] == 0


def test_beside_another_replica_an_end_model_that_is_not_ready_takes_no_requests() -> None:
    cluster = ClusterState.ready({"replicas": 2})
    before = cluster.status()
    unready(cluster.pod("end-model", replica=1))
    cluster.members[member_name("end-model", 1)] = DOWN

    status = later(cluster, seconds=6).status(before)

    assert triple(status, "Ready")[1] != "Recovering"
    assert triple(status, "EndpointReady")[2] == f"1 replica answers at {URL}"
    assert status["readyReplicas"] == 1


def test_how_long_requests_wait_is_as_the_spec_has_it() -> None:
    def told(seconds: int) -> str:
        cluster = ClusterState.ready({"recovery": {"maxWaitSeconds": seconds}})
        before = cluster.status()
        cluster.drop("stage", stage=2)
        return triple(later(cluster, seconds=6).status(before), "Ready")[2]

    assert told(20).endswith("; requests wait up to 20 s")
    assert told(0).endswith("; requests do not wait for it")


def test_of_two_replicas_one_recovers_and_the_other_answers() -> None:
    cluster = ClusterState.ready({"replicas": 2})
    before = cluster.status()
    cluster.drop("stage", replica=1, stage=3)

    status = later(cluster, seconds=6).status(before)

    assert triple(status, "Ready")[:2] == ("False", "Recovering")
    assert triple(status, "Ready")[2].startswith("replica 1 is recovering: waiting for stage stage-3 to get a new pod;")
    assert triple(status, "EndpointReady")[2] == f"1 replica answers at {URL}"
    assert (status["readyReplicas"], turns(status)["Degraded"]) == (1, "True")
    assert triple(status, "Degraded")[2].startswith("1 of 2 replicas is ready: replica 1 is recovering")


def test_both_replicas_recover_and_each_is_named() -> None:
    cluster = ClusterState.ready({"replicas": 2})
    before = cluster.status()
    cluster.drop("stage", replica=1, stage=3)
    cluster.drop("stage", replica=0, stage=1)

    message = triple(later(cluster, seconds=6).status(before), "Ready")[2]

    assert message == (
        "replica 0 is recovering: waiting for stage stage-1 to get a new pod; replica 1 is recovering: waiting for "
        "stage stage-3 to get a new pod; requests wait up to 300 s"
    )


def test_a_stage_that_loads_changes_the_status_at_most_ten_times() -> None:
    before = ClusterState.ready().status()
    messages = set()
    for done in range(101):
        cluster = ClusterState.ready()
        unready(cluster.pod("stage", stage=2))
        cluster.members[STAGE_2] = loading(done / 100 * 4.2)
        messages.add(triple(later(cluster, seconds=6).status(before), "Ready")[2])

    assert 10 <= len(messages) <= 11


def test_the_time_of_the_loss_stays_while_what_is_awaited_changes() -> None:
    before = ClusterState.ready().status()
    cluster = ClusterState.ready()
    cluster.drop("stage", stage=2)
    first = later(cluster, seconds=1).status(before)
    cluster = ClusterState.ready()
    unready(cluster.pod("stage", stage=2))

    second = later(cluster, seconds=9).status(first)

    since = (NOW + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert [condition_in(each, "Ready")["lastTransitionTime"] for each in (first, second)] == [since, since]
    assert events_of(first, second) == []
