"""Streams in a loop through the pipe's Service while something is done to it, and what is there of it meanwhile."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.greedy import QUESTIONS
from support.kubectl import Kubectl, wait_for
from support.serving import wait_condition, wait_ready

STREAMS = 8
REPLICA = "languagepipes.io/chain"
MEMBERS = f"languagepipes.io/pipe=smollm2,{REPLICA}"
# Half of the clients keep their connections, the others come with a new one each time. A file ends them.
LOAD = """
import json, pathlib, sys, threading, openai
asked, stop, printing = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), threading.Lock()
def client():
    return openai.OpenAI(base_url=asked["url"], api_key="none", max_retries=0, timeout=120)
def ask(number):
    kept, turn = client(), number
    while not stop.exists():
        question = asked["questions"][turn % len(asked["questions"])]
        turn += 1
        said = {"question": question, "text": "", "finish": None}
        try:
            with (kept if number % 2 else client()).chat.completions.create(
                model="smollm2", stream=True, temperature=0, max_tokens=40,
                messages=[{"role": "user", "content": question}],
            ) as stream:
                for chunk in stream:
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
def streams(kubectl: Kubectl, url: str, name: str) -> Iterator[None]:
    """Loops of streams from the client's pod, until the end; then each must have been answered, as unsplit
    transformers answers.
    """
    asked = {"url": url, "questions": QUESTIONS, "streams": STREAMS}
    stop = f"/tmp/stop-{name}"
    running = kubectl.start("exec", "client", "--", "python", "-c", LOAD, json.dumps(asked), stop)
    try:
        yield
    finally:
        kubectl("exec", "client", "--", "python", "-c", f"open('{stop}', 'w')")
        output, _ = running.communicate(timeout=120)
    answers = [json.loads(line) for line in output.splitlines()]
    assert len(answers) >= STREAMS
    failed = [each for each in answers if "error" in each or each["finish"] is None]
    assert failed == [], f"{len(failed)} of {len(answers)}"
    texts = collections.defaultdict(set)
    for each in answers:
        texts[each["question"]].add(each["text"])
    assert {question: len(said) for question, said in texts.items()} == dict.fromkeys(texts, 1), texts
    print(f"{name}: {len(answers)} streams, {len(failed)} failed")


def replicas(kubectl: Kubectl) -> set[str]:
    return {each["metadata"]["labels"][REPLICA] for each in kubectl.list("deployments", MEMBERS)}


def members(kubectl: Kubectl) -> dict[str, str]:
    """Pods of stages and End Models that are not ending, and their UIDs."""
    pods = [pod["metadata"] for pod in kubectl.list("pods", MEMBERS)]
    return {each["name"]: each["uid"] for each in pods if "deletionTimestamp" not in each}


def rolled_out(kubectl: Kubectl, count: int = 1) -> dict[str, Any]:
    """The status once nothing is left to do."""
    status: dict[str, Any] = wait_ready(kubectl)["status"]
    wait_condition(kubectl, "Progressing", "False", reason="Complete")
    wait_for(f"{count} replicas", lambda: len(replicas(kubectl)) == count)
    return status


def miscounted(kubectl: Kubectl) -> dict[str, int]:
    """What the disruption controller did not understand, and how often."""
    events = kubectl.list("events")
    return {
        each["metadata"]["name"]: each.get("count", 1)
        for each in events
        if each["reason"] == "CalculateExpectedPodCountFailed"
    }
