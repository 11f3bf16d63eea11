"""What a pipe says while all goes well, from the first apply until it is Ready, and what it does not write again."""

from __future__ import annotations

from languagepipes_operator.status.events import events_of
from support.cluster_state import ClusterState, at, later, triple, turns


def test_a_ready_pipe_says_everything_a_user_asks_for() -> None:
    cluster = ClusterState.ready()

    status = cluster.status()

    assert turns(status) == {
        "Ready": "True",
        "Planned": "True",
        "WeightsAvailable": "True",
        "StagesReady": "True",
        "EndpointReady": "True",
        "Progressing": "False",
        "Degraded": "False",
    }
    assert {
        key: value for key, value in status.items() if key not in ("conditions", "stages", "planHash", "history")
    } == {
        "observedGeneration": 1,
        "phase": "Ready",
        "url": "http://smol.models.svc/v1",
        "resolvedRevision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
        "stagesReady": "3/3",
        "replicas": 1,
        "readyReplicas": 1,
        "updatedReplicas": 1,
        "currentRevision": "0123456789abcdef",
        "updatedRevision": "0123456789abcdef",
        "selector": "languagepipes.io/pipe=smol,languagepipes.io/role=end-model",
    }
    assert [(stage["layers"], stage["nodes"], stage["readyReplicas"]) for stage in status["stages"]] == [
        ("1-10", ["n2"], 1),
        ("11-20", ["n1"], 1),
        ("21-29", ["n2"], 1),
    ]


def test_an_idle_pipe_says_the_same_to_the_letter_an_hour_later() -> None:
    cluster = ClusterState.ready()
    status = cluster.status()

    again = later(cluster, seconds=3600).status(status)

    assert again == status
    assert events_of(status, again) == []


def test_a_condition_that_does_not_turn_keeps_its_time() -> None:
    cluster = ClusterState.ready()
    first = cluster.status()
    assert {condition["lastTransitionTime"] for condition in first["conditions"]} == {at()}
    cluster.drop("end-model")

    second = later(cluster, seconds=30).status(first)

    moved = {c["type"]: c["lastTransitionTime"] != at() for c in second["conditions"]}
    assert moved == {
        "Ready": True,
        "Planned": False,
        "WeightsAvailable": False,
        "StagesReady": False,
        "EndpointReady": True,
        "Progressing": True,
        "Degraded": True,
    }
    assert triple(second, "Ready")[1] == "JoiningRing"
