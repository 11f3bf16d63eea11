"""Streams in a loop through the pipe's Service while something is done to it, and what is there of it meanwhile."""

from __future__ import annotations

import collections
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.greedy import QUESTIONS
from support.kubectl import Kubectl, wait_for
from support.serving import wait_condition, wait_ready
from support.waiting import PATIENCE_SECONDS

STREAMS = 8
REPLICA = "languagepipes.io/chain"
MEMBERS = f"languagepipes.io/pipe=smollm2,{REPLICA}"
STORES = "languagepipes.io/pipe=smollm2,languagepipes.io/role in (store,weights-store)"
# Half of the clients keep their connections, the others come with a new one each time. A file ends them. gap: the
# longest time in seconds in which a stream got no text, from its request on.
LOAD = """
import json, pathlib, sys, threading, time, openai
asked, stop, printing = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), threading.Lock()
def client():
    return openai.OpenAI(base_url=asked["url"], api_key="none", max_retries=0, timeout=240)
def ask(number):
    kept, turn = client(), number
    while not stop.exists():
        question = asked["questions"][turn % len(asked["questions"])]
        turn += 1
        said = {"question": question, "text": "", "finish": None, "gap": 0.0}
        last = time.monotonic()
        try:
            with (kept if number % 2 else client()).chat.completions.create(
                model="smollm2", stream=True, temperature=0, max_tokens=40,
                messages=[{"role": "user", "content": question}],
            ) as stream:
                for chunk in stream:
                    now = time.monotonic()
                    said["gap"], last = max(said["gap"], now - last), now
                    for choice in chunk.choices:
                        said["text"] += choice.delta.content or ""
                        said["finish"] = choice.finish_reason or said["finish"]
        except Exception as error:
            said["error"] = repr(error)
        with printing:
            print(json.dumps(said), flush=True)
threads = [threading.Thread(target=ask, args=(number,)) for number in range(asked["streams"])]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@contextmanager
def streams(
    kubectl: Kubectl, url: str, name: str, *, count: int = STREAMS, texts: int = 1
) -> Iterator[list[dict[str, Any]]]:
    """Loops of so many streams at a time from the client's pod, until the end; what they said arrives meanwhile. In the
    end each must have been answered, each question with at most so many different texts.
    """
    asked = {"url": url, "questions": QUESTIONS, "streams": count}
    stop = f"/tmp/stop-{name}"
    running = kubectl.start("exec", "client", "--", "python", "-c", LOAD, json.dumps(asked), stop)
    answers: list[dict[str, Any]] = []

    def read() -> None:
        assert running.stdout is not None
        answers.extend(json.loads(line) for line in running.stdout)

    # Read all the time: who prints into a full pipe asks no more.
    reading = threading.Thread(target=read)
    reading.start()
    try:
        yield answers
    finally:
        kubectl("exec", "client", "--", "python", "-c", f"open('{stop}', 'w')")
        reading.join(timeout=240)
        running.kill()
        running.wait()
    assert not reading.is_alive(), f"{count} streams did not end within 240 s; {len(answers)} did before"
    assert len(answers) >= count
    failed = failures(answers)
    assert failed == [], f"{len(failed)} of {len(answers)}"
    said = said_to(answers)
    assert {question: len(found) for question, found in said.items() if len(found) > texts} == {}, said
    print(f"{name}: {len(answers)} streams, {len(failed)} failed")


def failures(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in answers if "error" in each or each["finish"] is None]


def said_to(answers: list[dict[str, Any]]) -> dict[str, set[str]]:
    """The texts by question, of streams that ended."""
    texts = collections.defaultdict(set)
    for each in answers:
        if each["finish"] is not None:
            texts[each["question"]].add(each["text"])
    return dict(texts)


def replicas(kubectl: Kubectl) -> set[str]:
    return {each["metadata"]["labels"][REPLICA] for each in kubectl.list("deployments", MEMBERS)}


def stores(kubectl: Kubectl) -> set[str]:
    """Names of the Deployments of weights stores."""
    return {each["metadata"]["name"] for each in kubectl.list("deployments", STORES)}


def members(kubectl: Kubectl) -> dict[str, str]:
    """Pods of stages and End Models that are not ending, and their UIDs."""
    pods = [pod["metadata"] for pod in kubectl.list("pods", MEMBERS)]
    return {each["name"]: each["uid"] for each in pods if "deletionTimestamp" not in each}


def rolled_out(kubectl: Kubectl, count: int = 1, *, timeout_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
    """The status once nothing is left to do."""
    status: dict[str, Any] = wait_ready(kubectl, timeout_seconds=timeout_seconds)["status"]
    wait_condition(kubectl, "Progressing", "False", reason="Complete", timeout_seconds=timeout_seconds)
    wait_for(f"{count} replicas", lambda: len(replicas(kubectl)) == count, timeout_seconds=timeout_seconds)
    return status


def miscounted(kubectl: Kubectl) -> dict[str, int]:
    """What the disruption controller did not understand, and how often."""
    events = kubectl.list("events")
    return {
        each["metadata"]["name"]: each.get("count", 1)
        for each in events
        if each["reason"] == "CalculateExpectedPodCountFailed"
    }
