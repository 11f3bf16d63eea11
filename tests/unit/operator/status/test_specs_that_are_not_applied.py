"""A spec that is not carried out (paused, refused, its facts awaited) is not what runs, and the status shows both."""

from __future__ import annotations

from typing import Any

import pytest
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.status.conditions import condition_in
from support.cluster_state import ClusterState, ended, later, triple, turns, unready

REFUSED = PlanError("TooManyStages", "31 stages cannot hold 30 layers: ask for at most 30")


def edited(spec: dict[str, Any] | None = None, *, running: bool = True) -> ClusterState:
    """A pipe that ran, whose spec was edited since and has no plan."""
    cluster = ClusterState.ready(spec, generation=2)
    cluster.planned, cluster.running = False, running
    return cluster


def test_a_paused_pipe_whose_spec_runs_is_ready_and_shows_the_pause() -> None:
    cluster = ClusterState.ready()
    cluster.paused = True

    status = cluster.status()

    assert triple(status, "Ready")[:2] == ("True", "Ready")
    assert status["phase"] == "Paused"
    assert triple(status, "Progressing")[:2] == ("False", "Paused")


def test_a_paused_pipe_whose_spec_was_edited_is_not_ready_and_names_what_would_change() -> None:
    before = ClusterState.ready().status()
    cluster = edited()
    cluster.paused, cluster.held_back = True, ("a new plan is made", "4 members are created", "4 members are removed")

    status = cluster.status(before)

    assert triple(status, "Ready") == (
        "False",
        "Paused",
        "spec.paused is true, and the spec is not applied. Once spec.paused is false: a new plan is made, "
        "4 members are created, 4 members are removed",
    )
    assert condition_in(status, "Ready")["observedGeneration"] == 2
    assert triple(status, "Planned")[:2] == ("Unknown", "Paused")
    assert triple(status, "StagesReady")[:2] == ("True", "StagesReady")
    assert triple(status, "EndpointReady")[:2] == ("True", "EndpointReady")
    assert (status["phase"], status["stagesReady"], status["readyReplicas"]) == ("Paused", "3/3", 1)
    assert turns(status)["Degraded"] == "False"


@pytest.mark.parametrize("replicas", [0, 2])
def test_a_paused_pipe_that_was_scaled_shows_the_replicas_that_there_are(replicas: int) -> None:
    cluster = ClusterState.ready(generation=2)
    cluster.raw["spec"] |= {"replicas": replicas, "paused": True}
    cluster.updated = (0,)
    cluster.paused, cluster.held_back = True, ("4 members are created" if replicas else "4 members are removed",)

    status = cluster.status(ClusterState.ready().status())

    assert triple(status, "Ready")[:2] == ("False", "Paused")
    assert triple(status, "StagesReady")[:2] == ("True", "StagesReady")
    assert triple(status, "EndpointReady")[:2] == ("True", "EndpointReady")
    assert (status["phase"], status["replicas"], status["readyReplicas"]) == ("Paused", 1, 1)


def test_a_refused_spec_leaves_the_stages_of_the_plan_that_runs_in_the_status() -> None:
    before = ClusterState.ready().status()
    cluster = edited()
    cluster.refusal = REFUSED

    status = cluster.status(before)

    assert triple(status, "Ready")[:2] == ("False", "TooManyStages")
    assert triple(status, "Planned")[:2] == ("False", "TooManyStages")
    assert triple(status, "StagesReady")[:2] == ("True", "StagesReady")
    assert triple(status, "EndpointReady")[:2] == ("True", "EndpointReady")
    assert (status["planHash"], status["stages"]) == (before["planHash"], before["stages"])
    assert turns(status)["Degraded"] == "False"


def test_no_spec_is_ready_before_it_has_a_plan() -> None:
    cluster = edited()

    status = cluster.status(ClusterState.ready().status())

    assert triple(status, "Ready")[0] == "False"
    assert triple(status, "Planned")[0] == "Unknown"


def test_replicas_that_are_not_asked_for_any_more_are_reported_while_they_are_there() -> None:
    cluster = ClusterState.ready()
    cluster.raw["spec"]["replicas"] = 0

    status = cluster.status()

    assert triple(status, "Ready") == ("False", "ScaledToZero", "spec.replicas is 0: 1 replica is being stopped")
    assert triple(status, "EndpointReady")[0] == "True"


def test_a_degraded_pipe_stays_degraded_when_its_spec_is_edited() -> None:
    lost = ClusterState.ready()
    ended(lost.pod("stage", stage=2), code=137, reason="OOMKilled")
    unready(lost.pod("end-model"))
    degraded = later(lost, seconds=5).status(ClusterState.ready().status())
    assert turns(degraded)["Degraded"] == "True"
    edit = edited()
    edit.pods, edit.refusal = lost.pods, REFUSED
    mended = edited()
    mended.refusal = REFUSED

    after = later(edit, seconds=10).status(degraded)
    later_still = later(edit, seconds=15).status(after)
    whole = later(mended, seconds=20).status(later_still)

    assert [turns(status)["Degraded"] for status in (after, later_still, whole)] == ["True", "True", "False"]
    assert (
        condition_in(later_still, "Degraded")["lastTransitionTime"]
        == (condition_in(degraded, "Degraded")["lastTransitionTime"])
    )


def test_a_replica_that_is_lost_after_an_edit_that_has_no_plan_is_a_degradation() -> None:
    before = ClusterState.ready().status()
    cluster = edited()
    cluster.refusal = REFUSED
    for deployment in cluster.deployments.values():
        conditions = [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]
        deployment["status"]["conditions"] = conditions
    unedited = later(cluster, seconds=5).status(before)
    unready(cluster.pod("stage", stage=2))
    unready(cluster.pod("end-model"))

    status = later(cluster, seconds=10).status(unedited)

    assert turns(unedited)["Degraded"] == "False"
    assert triple(status, "Degraded")[:2] == ("True", "FewerReplicas")
