"""Replicas follow the requests: stages go while nobody asks and come back for the first request, and none fails."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from support.greedy import QUESTIONS
from support.kubectl import Kubectl, wait_for
from support.serving import SMALL, Client, pipe, wait_condition, wait_ready
from support.streams import replicas, streams

pytestmark = pytest.mark.kubernetes

AT_ONCE = 20
STAGES = "languagepipes.io/pipe=smollm2,languagepipes.io/role=stage"
# Times are seconds since the epoch: the client's pod, the nodes and this process share a clock.
BURST = """
import json, sys, threading, time, openai
asked, printing = json.loads(sys.argv[1]), threading.Lock()
def ask(number):
    said = {"asked": time.time(), "first": None, "finish": None}
    try:
        client = openai.OpenAI(base_url=asked["url"], api_key="none", max_retries=0, timeout=300)
        with client.chat.completions.create(
            model="smollm2", stream=True, temperature=0, max_tokens=asked["tokens"],
            messages=[{"role": "user", "content": asked["questions"][number % len(asked["questions"])]}],
        ) as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    if choice.delta.content and said["first"] is None:
                        said["first"] = time.time()
                    said["finish"] = choice.finish_reason or said["finish"]
    except Exception as error:
        said["error"] = repr(error)
    with printing:
        print(json.dumps(said), flush=True)
threads = [threading.Thread(target=ask, args=(number,)) for number in range(asked["count"])]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.fixture(scope="module")
def shared(home: Kubectl) -> Iterator[Kubectl]:
    """The pipe that tests share, and as it was afterwards."""
    wait_ready(home)
    wait_condition(home, "Progressing", "False", reason="Complete")
    yield home
    home.apply(pipe())
    wait_ready(home)


def autoscaled(minimum: int, maximum: int, target: int) -> dict[str, Any]:
    limits = {"minReplicas": minimum, "maxReplicas": maximum, "scaleDownDelaySeconds": 5}
    return pipe(autoscaling={**limits, "targetRequestsPerReplica": target}, stages={"count": 2, "template": SMALL})


def status(kubectl: Kubectl) -> dict[str, Any]:
    found: dict[str, Any] = kubectl.get("languagepipe", "smollm2")["status"]
    return found


def burst(kubectl: Kubectl, *, count: int, tokens: int) -> Any:
    asked = {"url": status(kubectl)["url"], "questions": QUESTIONS, "count": count, "tokens": tokens}
    return kubectl.start("exec", "client", "--", "python", "-c", BURST, json.dumps(asked))


def answered(running: Any, count: int) -> list[dict[str, Any]]:
    output, _ = running.communicate(timeout=400)
    answers = [json.loads(line) for line in output.splitlines()]
    assert len(answers) == count
    assert [each for each in answers if "error" in each or each["finish"] is None] == []
    return answers


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def wait_idle(kubectl: Kubectl) -> None:
    wait_condition(kubectl, "Ready", "True", reason="Idle")
    wait_for("no stage", lambda: kubectl.list("pods", STAGES) == [])


def test_an_idle_pipe_answers_everybody_who_comes_at_once(shared: Kubectl, client: Client) -> None:
    kubectl = shared
    kubectl.apply(autoscaled(0, 1, 64))
    wait_idle(kubectl)
    wait_condition(kubectl, "EndpointReady", "True", reason="Idle")
    found = status(kubectl)
    assert (found["phase"], found["desiredReplicas"], found["replicas"], found["readyReplicas"]) == ("Idle", 0, 1, 0)

    running = burst(kubectl, count=AT_ONCE, tokens=8)
    wait_for("the stages", lambda: len(kubectl.list("pods", STAGES)) == 2)
    wait_for("a ring", lambda: status(kubectl).get("readyReplicas") == 1)
    pods = kubectl.list("pods", STAGES)
    answers = answered(running, AT_ONCE)

    asked, first = min(each["asked"] for each in answers), min(each["first"] for each in answers)
    created = max(seconds(pod["metadata"]["creationTimestamp"]) for pod in pods)
    ready = max(
        seconds(each["lastTransitionTime"])
        for pod in pods
        for each in pod["status"]["conditions"]
        if each["type"] == "Ready"
    )
    # Kubernetes' times are whole seconds.
    print(
        f"first request to first token {first - asked:.1f} s: pods made {created - asked:.0f} s, stages started "
        f"{ready - created:.0f} s, ring joined and prompts computed {first - ready:.0f} s"
    )
    wait_idle(kubectl)


def test_replicas_come_and_go_with_the_requests(shared: Kubectl, client: Client) -> None:
    kubectl = shared
    kubectl.apply(autoscaled(0, 2, 4))
    began = time.monotonic()
    with streams(kubectl, status(kubectl)["url"], "autoscaling"):
        wait_for("two asked for", lambda: status(kubectl).get("desiredReplicas") == 2)
        print(f"asked for after {time.monotonic() - began:.1f} s")
        wait_for("two that answer", lambda: status(kubectl).get("readyReplicas") == 2)
    wait_idle(kubectl)
    wait_for("one replica", lambda: len(replicas(kubectl)) == 1)
    assert kubectl.get("languagepipe", "smollm2")["spec"].get("replicas", 1) == 1
    wait_condition(kubectl, "ScalingActive", "True", reason="Autoscaling")
