"""Replicas follow what End Models report, as an API server and its controllers have it; pods are played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.served_namespace import ServedNamespace, eventually, settled
from support.telemetry import member_that_says

ROLE, REPLICA = "languagepipes.io/role", "languagepipes.io/chain"


def replicas_of_stages(served: ServedNamespace) -> list[int]:
    found = [each for each in served.list("Deployment") if each["metadata"]["labels"][ROLE] == "stage"]
    return [each["spec"]["replicas"] for each in found]


def answers_at(served: ServedNamespace, host: str) -> None:
    """The pipe's End Model's pod has that address from now on."""
    pod = eventually(lambda: served.child("Pod", "end-model"))
    path = f"{served.path('Pod', pod['metadata']['name'])}/status"
    served.api.merge(path, {"status": {"podIP": host, "podIPs": [{"ip": host}]}})


def is_turned(served: ServedNamespace, kind: str, status: str, reason: str) -> bool:
    found = served.condition(kind)
    return (found["status"], found["reason"]) == (status, reason)


def test_stages_go_while_nobody_asks_and_come_back_for_the_first_request(
    served: ServedNamespace, tiny_llama: Path
) -> None:
    operator = served.started()
    limits = {"minReplicas": 0, "maxReplicas": 2, "targetRequestsPerReplica": 4, "scaleDownDelaySeconds": 1}
    served.apply_pipe(autoscaling=limits)
    served.play_store(tiny_llama)
    eventually(lambda: is_turned(served, "StagesReady", "True", "StagesReady"), what="stages")
    generation = served.pipe()["metadata"]["generation"]
    says: dict[str, Any] = {"state": "ready", "ring_ready": True, "recovering": False, "running": 0, "waiting": 0}

    with member_that_says(says) as host:
        answers_at(served, host)
        eventually(lambda: is_turned(served, "Ready", "True", "Idle"), what="an idle pipe")
        assert set(replicas_of_stages(served)) == {0}
        says |= {"ring_ready": False, "recovering": True, "ring_error": "no stage"}
        settled(operator)
        before = operator.writes()
        settled(operator)
        assert operator.writes() == before
        assert served.pipe()["status"]["desiredReplicas"] == 0

        says["waiting"] = 3
        eventually(lambda: set(replicas_of_stages(served)) == {1}, what="stages again")
        # The status is written after the children.
        eventually(lambda: served.pipe()["status"]["desiredReplicas"] == 1, what="the status says so")

        says |= {"ring_ready": True, "recovering": False, "waiting": 0, "running": 7}
        eventually(lambda: served.pipe()["status"]["desiredReplicas"] == 2, what="a second replica")
        eventually(
            lambda: {each["metadata"]["labels"].get(REPLICA) for each in served.list("Deployment")} >= {"0", "1"},
            what="its Deployments",
        )

        # Somebody else's hand on the scale changes nothing, and is told.
        path = served.path("LanguagePipe", "pipe")
        served.api.merge(f"{path}/scale", {"spec": {"replicas": 5}})
        eventually(lambda: is_turned(served, "ScalingActive", "True", "ReplicasIgnored"), what="told")
        assert served.pipe()["status"]["desiredReplicas"] == 2
    assert served.pipe()["metadata"]["generation"] == generation + 1
