"""What is told of a rollout: what goes on, what is awaited, and since when in vain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from languagepipes_operator.status.events import events_of
from support.changing_pipes import rollout, status_before_rollout
from support.cluster_state import ClusterState, at, ended, later, triple, unready, unscheduled, waiting

NO_ROOM = "0/2 nodes are available: 2 Insufficient memory. preemption: 0/2 nodes are available."


def test_what_starts_and_what_serves_meanwhile_are_told() -> None:
    status = rollout().status(status_before_rollout())

    assert triple(status, "Progressing") == (
        "True",
        "RollingOut",
        "replica 1 of the new revision is not ready yet; replica 0 serves with the revision before until replicas of "
        "the new one do",
    )
    assert triple(status, "EndpointReady")[0] == "True"
    assert (status["replicas"], status["updatedReplicas"], status["readyReplicas"]) == (2, 1, 1)


def test_a_replica_that_goes_is_told_until_it_is_gone() -> None:
    cluster = rollout(ready=True)
    cluster.outdated, cluster.draining = (), (0,)

    status = cluster.status(status_before_rollout())

    assert triple(status, "Ready")[0] == "True"
    assert triple(status, "Progressing")[1:] == (
        "RollingOut",
        "replica 0 completes the answers begun there, for at most 300 s, and then goes",
    )


def test_the_current_revision_is_the_old_one_until_all_run_the_new_one_and_nothing_else_is_left() -> None:
    old = {**status_before_rollout(), "currentRevision": "old", "updatedRevision": "old"}
    during = rollout().status(old)
    done = ClusterState.ready(generation=2).status(during)

    assert (during["currentRevision"], during["updatedRevision"]) == ("old", "0123456789abcdef")
    assert (done["currentRevision"], done["updatedRevision"]) == ("0123456789abcdef", "0123456789abcdef")


@pytest.mark.parametrize(("age_seconds", "late"), [(899, False), (900, True)])
def test_past_the_deadline_progressing_turns_false_with_the_pods_own_reason(age_seconds: float, late: bool) -> None:
    cluster = rollout(age_seconds=age_seconds)
    waiting(cluster.pod("stage", 1, 2), "ImagePullBackOff", 'Back-off pulling image "no/such:1"')

    last = later(rollout(), seconds=-800).status(status_before_rollout())
    status = cluster.status(last)

    turned, reason, message = triple(status, "Progressing")
    assert turned == "False"
    assert reason == ("ProgressDeadlineExceeded" if late else "ImagePullBackOff")
    assert "stage stage-2 of replica 1: the image" in message
    if late:
        assert message.startswith(
            "replica 1 of the new revision was not ready within 900 s (spec.rollout.progressDeadlineSeconds), and "
            "replica 0 goes on serving with the revision before: correct the spec, or set the old one again. Cause: "
        )
        assert ("Warning", "ProgressDeadlineExceeded") in {(each.type, each.reason) for each in events_of(last, status)}
    assert triple(status, "EndpointReady")[0] == "True"


def test_the_deadline_begins_when_the_weights_are_there() -> None:
    cluster = rollout(age_seconds=5000)
    since = {"type": "WeightsAvailable", "status": "True", "reason": "WeightsAvailable", "message": ""}
    told = status_before_rollout()
    told["conditions"] = [each for each in told["conditions"] if each["type"] != "WeightsAvailable"]

    recently = {**told, "conditions": [*told["conditions"], {**since, "lastTransitionTime": at(seconds=100)}]}
    fetching = {
        **told,
        "conditions": [
            *told["conditions"],
            {**since, "status": "False", "reason": "Downloading", "lastTransitionTime": at(seconds=5000)},
        ],
    }

    assert triple(cluster.status(recently), "Progressing")[1] == "RollingOut"
    assert triple(cluster.status(fetching), "Progressing")[1] == "RollingOut"
    assert triple(cluster.status(told), "Progressing")[1] == "ProgressDeadlineExceeded"


def test_where_there_is_no_room_for_both_the_way_out_is_told() -> None:
    cluster = rollout(age_seconds=1000)
    for stage in (1, 2, 3):
        unscheduled(cluster.pod("stage", 1, stage), NO_ROOM)

    message = triple(cluster.status(status_before_rollout()), "Progressing")[2]

    assert "spec.rollout.maxSurge: 0 with maxUnavailable: 1 stops the old first" in message


def test_a_first_start_has_no_deadline() -> None:
    cluster = ClusterState.ready()
    for pod in cluster.pods.values():
        unready(pod)

    assert triple(replace(cluster).status(), "Progressing")[:2] == ("True", "StagesStarting")


def test_fewer_new_replicas_than_asked_for_are_not_all_stages() -> None:
    cluster = ClusterState.ready(generation=2)
    cluster.updated, cluster.draining = (), (0,)

    status = cluster.status(status_before_rollout())

    assert triple(status, "StagesReady")[:2] == ("False", "RollingOut")
    assert triple(status, "Ready")[:2] == ("False", "RollingOut")


@pytest.mark.parametrize("planned", [True, False])
def test_a_member_of_the_revision_before_that_cannot_load_its_model_again_is_told(planned: bool) -> None:
    cluster = rollout()
    ended(cluster.pod("stage", 0, 2), code=1, message="FileNotFoundAtSource: model.gguf", restarts=3, back_off=True)
    cluster.planned = planned

    status = cluster.status(status_before_rollout())

    message = triple(status, "Progressing")[2]
    assert "of the revision before: stage stage-2 of replica 0" in message
    assert "FileNotFoundAtSource" in message
