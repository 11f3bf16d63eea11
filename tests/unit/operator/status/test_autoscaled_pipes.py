"""What a pipe says whose replicas follow the requests: idle, woken, growing, and with somebody else at its scale."""

from __future__ import annotations

from dataclasses import replace

from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.status.condition_state import condition_in
from languagepipes_operator.status.events import events_of
from languagepipes_operator.status.status import status_of
from support.changing_pipes import autoscaled, idle, without_stages
from support.cluster_state import ClusterState, later, triple, turns


def test_an_idle_pipe_is_ready_and_takes_requests() -> None:
    status = idle().status(autoscaled(0).status())

    assert (status["phase"], status["desiredReplicas"], status["replicas"], status["readyReplicas"]) == (
        "Idle",
        0,
        1,
        0,
    )
    assert triple(status, "Ready")[:2] == ("True", "Idle")
    assert triple(status, "EndpointReady")[:2] == ("True", "Idle")
    assert triple(status, "StagesReady")[:2] == ("False", "Idle")
    assert triple(status, "Progressing")[:2] == ("False", "Complete")
    assert turns(status)["Degraded"] == "False"
    assert [event.type for event in events_of(autoscaled(0).status(), status)] == ["Normal"]


def test_an_idle_pipe_says_the_same_an_hour_later() -> None:
    status = idle().status()

    assert later(idle(), seconds=3600).status(status) == status


def test_an_idle_pipe_whose_end_model_is_away_is_not_ready() -> None:
    cluster = idle()
    cluster.drop("end-model")

    status = cluster.status()

    assert turns(status)["Ready"] == turns(status)["EndpointReady"] == "False"


def test_a_pipe_that_wakes_is_not_degraded_and_names_what_it_awaits() -> None:
    waking = without_stages(autoscaled(0))
    first = waking.status(idle().status())
    second = later(waking, seconds=5).status(first)

    for status in (first, second):
        assert triple(status, "Ready")[:2] == ("False", "Waking")
        assert "stage stage-1 to get a new pod" in triple(status, "Ready")[2]
        assert triple(status, "EndpointReady")[0] == "True"
        assert turns(status)["Degraded"] == "False"
    assert all(event.type == "Normal" for event in events_of(idle().status(), first))


def test_a_lost_stage_of_a_pipe_that_scales_to_zero_is_a_recovery() -> None:
    status = without_stages(autoscaled(0)).status(autoscaled(0).status())

    assert triple(status, "Ready")[1] == "Recovering"
    assert turns(status)["Degraded"] == "True"


def test_a_replica_that_autoscaling_adds_leaves_the_pipe_ready() -> None:
    before = autoscaled().status()
    growing = autoscaled(desired=2)

    status = growing.status(before)

    assert triple(status, "Ready")[:2] == ("True", "ScalingUp")
    assert triple(status, "Progressing")[:2] == ("True", "ScalingUp")
    assert turns(status)["Degraded"] == "False"


def test_a_pipe_stays_ready_where_there_is_no_room_for_one_more_and_says_what_is_short() -> None:
    growing = autoscaled(desired=3)
    short = Rollout((0,), short=PlanError("InsufficientGPUs", "1 GPU is short"))

    status = status_of(growing.snapshot, replace(growing.outcome, rollout=short), autoscaled().status())

    assert triple(status, "Ready")[:2] == ("True", "ScalingUp")
    assert triple(status, "Progressing")[:2] == ("False", "InsufficientGPUs")
    assert "only 1 of 3 replicas" in triple(status, "Progressing")[2]
    assert turns(status)["Degraded"] == "False"


def test_a_replica_that_is_lost_is_missed() -> None:
    before = autoscaled(desired=2)
    before.add_replica(1)
    lost = autoscaled(desired=2)
    lost.add_replica(1)
    lost.drop("end-model", 1)

    status = lost.status(before.status())

    assert turns(status)["Ready"] == "False"
    assert turns(status)["Degraded"] == "True"


def test_who_sets_replicas_beside_autoscaling_is_told() -> None:
    cluster = autoscaled()
    cluster.raw["metadata"]["managedFields"] = [
        {
            "manager": "kube-controller-manager",
            "subresource": "scale",
            "time": "2026-11-24T10:00:00Z",
            "fieldsV1": {"f:spec": {"f:replicas": {}}},
        }
    ]

    status = cluster.status()

    assert triple(status, "ScalingActive")[:2] == ("True", "ReplicasIgnored")
    assert "kube-controller-manager" in triple(status, "ScalingActive")[2]
    assert turns(status)["Ready"] == "True"
    assert [event.type for event in events_of(autoscaled().status(), status)] == ["Warning"]


def test_an_end_model_that_cannot_be_asked_is_told() -> None:
    assert triple(autoscaled(load_unknown=True).status(), "ScalingActive")[:2] == ("False", "LoadUnknown")


def test_without_autoscaling_nothing_of_it_is_said() -> None:
    status = ClusterState.ready().status(autoscaled().status())

    assert "desiredReplicas" not in status
    assert not condition_in(status, "ScalingActive")
