"""Stages are lost in every way that a cluster has, under streams that never stop: no request fails, no answer differs.

Each request is a connection of its own to the pipe's Service, without retries, so one that was refused would count.
tests/integration/chaos does the same to processes: more faults, more streams, wires that are slow or cut.
"""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cluster import Cluster, ClusterError
from support.kubectl import Kubectl, closed, wait_for
from support.members import alive, container_of, fetch
from support.metrics_page import metric
from support.serving import Client, wait_condition, wait_ready

pytestmark = pytest.mark.kubernetes

OF_PIPE = "languagepipes.io/pipe=smollm2"
STREAMS = 8
MAX_TOKENS = 48
QUESTIONS = [
    "What is the capital of France?",
    "Count from one to thirty.",
    "Tell me about the sea.",
    "Why is the sky blue?",
    "Write a short story about a dog.",
    "How do I boil an egg?",
    "What is a prime number?",
    "Name ten animals.",
]
# Streams in threads until /tmp/stop is there; one line of JSON for each answer, or for what came instead.
LOAD = """
import json, pathlib, sys, threading, time, openai
task = json.loads(sys.argv[1])
stop = pathlib.Path("/tmp/stop")
stop.unlink(missing_ok=True)
lock = threading.Lock()

def ask(question):
    answer = {"question": question, "text": "", "finish": None, "error": None, "pause": 0.0}
    last = time.monotonic()
    try:
        with openai.OpenAI(base_url=task["url"], api_key="none", max_retries=0, timeout=240) as client:
            for chunk in client.chat.completions.create(
                model="smollm2", messages=[{"role": "user", "content": question}], stream=True, temperature=0,
                max_tokens=task["max_tokens"], extra_body={"ignore_eos": task["ignore_eos"]},
            ):
                now = time.monotonic()
                answer["pause"], last = max(answer["pause"], now - last), now
                answer["text"] += chunk.choices[0].delta.content or ""
                answer["finish"] = chunk.choices[0].finish_reason or answer["finish"]
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    with lock:
        print(json.dumps(answer), flush=True)

def stream(number):
    while True:
        ask(task["questions"][number % len(task["questions"])])
        number += 1
        if task["streams"] == 1 and number == len(task["questions"]) or stop.exists():
            return

threads = [threading.Thread(target=stream, args=(number,)) for number in range(task["streams"])]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


class Load:
    """Streams from the client's pod. answers: those that are complete, or failed, so far."""

    def __init__(
        self, kubectl: Kubectl, url: str, *, streams: int, max_tokens: int = MAX_TOKENS, ignore_eos: bool = False
    ) -> None:
        task = {
            "url": url,
            "streams": streams,
            "questions": QUESTIONS,
            "max_tokens": max_tokens,
            "ignore_eos": ignore_eos,
        }
        self.answers: list[dict[str, Any]] = []
        self._kubectl = kubectl
        self._process = kubectl.start("exec", "client", "--", "python", "-c", LOAD, json.dumps(task))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.answers.extend(map(json.loads, self._process.stdout))

    def wait(self, seconds: float) -> None:
        """Until every stream has come to its end."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        self._reader.join()
        assert self._process.returncode == 0

    def stop(self) -> None:
        self._kubectl("exec", "client", "--", "touch", "/tmp/stop")
        self.wait(300)


@contextmanager
def load(kubectl: Kubectl, url: str) -> Iterator[Load]:
    running = Load(kubectl, url, streams=STREAMS)
    try:
        wait_for("first answers", lambda: len(running.answers) >= STREAMS)
        yield running
    finally:
        running.stop()


class Faults:
    """What befalls stages, by name; for evictions see test_drain. Each returns once it is done, and not mended yet."""

    def __init__(self, kubectl: Kubectl, cluster: Cluster, draw: random.Random) -> None:
        self._kubectl, self._cluster, self._draw = kubectl, cluster, draw

    def stages(self) -> list[dict[str, Any]]:
        return alive(self._kubectl, "stage")

    def force_delete(self) -> None:
        """`kubectl delete pod --force`."""
        self._delete(self._draw.choice(self.stages()), "--grace-period=0", "--force")

    def two_at_once(self) -> None:
        for pod in self._draw.sample(self.stages(), 2):
            self._delete(pod, "--grace-period=0", "--force")

    def kill(self) -> None:
        """SIGKILL, as from the kernel when memory is short; the kubelet starts the container again."""
        pod = self._draw.choice(self.stages())
        self._node(pod).ctr("tasks", "kill", "--signal", "SIGKILL", container_of(pod))

    def freeze(self) -> None:
        """Silent for so long that the ring is given up, and back with its KV."""
        pod = self._draw.choice(self.stages())
        wait_for("a frozen stage", lambda: self._frozen(pod))
        time.sleep(3)
        self._node(pod).ctr("tasks", "resume", container_of(pod))

    def _frozen(self, pod: dict[str, Any]) -> bool:
        """Whether all of its threads stopped in time: the runtime gives up and thaws it where that takes long."""
        try:
            self._node(pod).ctr("tasks", "pause", container_of(pod))
        except ClusterError as error:
            if "unable to freeze" in str(error):
                return False
            raise
        return True

    def move(self) -> None:
        """To the other node."""
        pod = self._draw.choice(self.stages())
        node, stage = pod["spec"]["nodeName"], pod["metadata"]["labels"]["languagepipes.io/stage"]
        with closed(self._kubectl, node):
            self._delete(pod, "--grace-period=0", "--force")
            wait_for("the stage on the other node", lambda: self._is_elsewhere(stage, node))

    def _is_elsewhere(self, stage: str, node: str) -> bool:
        pods = [pod for pod in self.stages() if pod["metadata"]["labels"]["languagepipes.io/stage"] == stage]
        return any(pod["spec"].get("nodeName") not in (None, node) for pod in pods)

    def _delete(self, pod: dict[str, Any], *how: str) -> None:
        self._kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false", *how)

    def _node(self, pod: dict[str, Any]) -> Any:
        return self._cluster.node(pod["spec"]["nodeName"])


def end_model_metric(kubectl: Kubectl, name: str) -> float:
    (pod,) = alive(kubectl, "end-model")
    return metric(fetch(kubectl, pod["metadata"]["name"], "/metrics"), name)


def test_streams_outlive_every_loss_of_a_stage(
    smollm2: Kubectl, client: Client, our_cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    url = smollm2.get("languagepipe", "smollm2")["status"]["url"]
    end_models = smollm2.list("pods", f"{OF_PIPE},languagepipes.io/role=end-model")
    undisturbed = Load(smollm2, url, streams=1)
    undisturbed.wait(300)
    expected = {answer["question"]: answer["text"] for answer in undisturbed.answers}
    assert [answer["error"] for answer in undisturbed.answers] == [None] * len(QUESTIONS)

    faults = Faults(smollm2, our_cluster, random.Random(9))
    kinds: list[Callable[[], None]] = [
        faults.force_delete,
        faults.kill,
        faults.freeze,
        faults.move,
        faults.two_at_once,
    ]
    with load(smollm2, url) as running:
        for fault in kinds:
            epoch = end_model_metric(smollm2, "languagepipes_epoch")
            fault()
            wait_for(
                f"another ring after {fault.__name__}",
                lambda epoch=epoch: end_model_metric(smollm2, "languagepipes_epoch") > epoch,  # type: ignore[misc]
                every_seconds=1,
            )
            wait_condition(smollm2, "Ready", "True")
            seen = len(running.answers)
            wait_for("answers", lambda seen=seen: len(running.answers) >= seen + 2)  # type: ignore[misc]

    answers = running.answers
    assert [answer["error"] for answer in answers if answer["error"]] == []
    different = [answer for answer in answers if answer["text"] != expected[answer["question"]]]
    assert different == []
    assert {answer["finish"] for answer in answers} <= {"stop", "length"}
    assert len(answers) >= STREAMS + 2 * len(kinds)
    # It is the same process all the time, which holds nothing any more.
    after = smollm2.list("pods", f"{OF_PIPE},languagepipes.io/role=end-model")
    assert [pod["metadata"]["uid"] for pod in after] == [pod["metadata"]["uid"] for pod in end_models]
    assert (
        after[0]["status"]["containerStatuses"][0]["restartCount"]
        == (end_models[0]["status"]["containerStatuses"][0]["restartCount"])
    )
    assert end_model_metric(smollm2, "languagepipes_replays_total") > 0
    for name in ("kv_blocks_used", "running_sequences", "waiting_sequences"):
        wait_for(f"no {name}", lambda name=name: end_model_metric(smollm2, f"languagepipes_{name}") == 0)  # type: ignore[misc]
    wait_ready(smollm2)
    with capsys.disabled():
        pauses = sorted(answer["pause"] for answer in answers)
        print(f"\n{len(answers)} answers over {len(kinds)} faults, longest pause {pauses[-1]:.1f} s", end=" ")


def test_an_end_model_that_is_deleted_completes_what_it_has_begun(smollm2: Kubectl, client: Client) -> None:
    """As at an eviction, or when its node is drained: a new End Model starts beside the one that ends, and leaves the
    ring to it until then.
    """
    url = smollm2.get("languagepipe", "smollm2")["status"]["url"]
    (before,) = smollm2.list("pods", f"{OF_PIPE},languagepipes.io/role=end-model")
    # A new End Model leaves the ring to one that lives for at most 45 s (docs/recovery.md): also on a machine that is
    # busy with other tests these answers are complete by then.
    running = Load(smollm2, url, streams=2, max_tokens=120, ignore_eos=True)
    wait_for(
        "two sequences that run",
        lambda: end_model_metric(smollm2, "languagepipes_running_sequences") == 2,
        every_seconds=0.2,
    )

    smollm2("exec", "client", "--", "touch", "/tmp/stop")
    smollm2("delete", "pod", before["metadata"]["name"], "--wait=false")
    running.wait(300)

    assert [(answer["error"], answer["finish"]) for answer in running.answers] == [(None, "length")] * 2
    wait_for(
        "another End Model",
        lambda: (
            [pod["metadata"]["uid"] for pod in smollm2.list("pods", f"{OF_PIPE},languagepipes.io/role=end-model")]
            not in ([], [before["metadata"]["uid"]])
        ),
    )
    wait_ready(smollm2)
