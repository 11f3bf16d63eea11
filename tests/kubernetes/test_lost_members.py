"""Pods, containers and nodes are lost for real: Ready says so within seconds, and the ring comes back."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kubectl import Kubectl, wait_for
from serving import Client, condition, wait_condition, wait_ready

pytestmark = pytest.mark.kubernetes

STAGES = "languagepipes.io/pipe=smollm2,languagepipes.io/role=stage"


def stage_pods(kubectl: Kubectl) -> list[dict[str, Any]]:
    return kubectl.list("pods", STAGES)


def assert_lost_and_back(kubectl: Kubectl, client: Client, since: float, *, back_within_seconds: float = 60) -> None:
    wait_condition(kubectl, "Ready", "False", timeout_seconds=max(1.0, 10 - (time.monotonic() - since)))
    reason = condition(kubectl, "Ready")
    assert reason is not None
    assert reason["message"]
    wait_condition(kubectl, "Ready", "True", timeout_seconds=back_within_seconds)
    url = kubectl.get("languagepipe", "smollm2")["status"]["url"]
    assert "Paris" in "".join(client.ask(url, "What is the capital of France?"))


def test_a_killed_stage_pod_turns_ready_false_and_comes_back(smollm2: Kubectl, client: Client) -> None:
    wait_ready(smollm2)
    killed = stage_pods(smollm2)[1]["metadata"]["name"]
    smollm2("delete", "pod", killed, "--grace-period=0", "--force")
    assert_lost_and_back(smollm2, client, time.monotonic())


def test_a_killed_container_is_started_again_and_counted(smollm2: Kubectl, client: Client) -> None:
    wait_ready(smollm2)
    killed = stage_pods(smollm2)[0]["metadata"]["name"]
    since = time.monotonic()
    smollm2.run("exec", killed, "--", "python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
    assert_lost_and_back(smollm2, client, since)
    restarted = smollm2.get("pod", killed)["status"]["containerStatuses"][0]
    assert restarted["restartCount"] >= 1
    stages = smollm2.get("languagepipe", "smollm2")["status"]["stages"]
    assert sum(stage["restarts"] for stage in stages) >= 1


def test_a_killed_operator_changes_nothing_for_the_ring(smollm2: Kubectl, client: Client, operator: Any) -> None:
    wait_ready(smollm2)
    url = smollm2.get("languagepipe", "smollm2")["status"]["url"]
    operator.kubectl("scale", "deployment/languagepipes", "--replicas=0")
    try:
        killed = stage_pods(smollm2)[2]["metadata"]["name"]
        smollm2("delete", "pod", killed, "--grace-period=0", "--force")

        def answers() -> bool:
            try:
                return "Paris" in "".join(client.ask(url, "What is the capital of France?"))
            except AssertionError:
                return False

        wait_for("an answer without an operator", answers, timeout_seconds=90, every_seconds=2)
    finally:
        operator.kubectl("scale", "deployment/languagepipes", "--replicas=1")
        operator.kubectl("rollout", "status", "deployment/languagepipes", "--timeout=90s")
    wait_ready(smollm2)
