"""Members as a pod's containers run them: on all addresses, no home directory, a termination message, and probes that
tell the truth about the ring.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import openai
import pytest
from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.plan import EndModelAssignment, LayerRange, Plan, StageAssignment
from languagepipes_api.spec import ModelSpec
from languagepipes_operator.certificates.authority import KeyPair, issue, new_ca, write_tls_dir
from languagepipes_operator.cli.model_facts import read_facts
from support.llama_files import TINY_LLAMA, write_tiny_llama
from support.ports import free_port
from support.waiting import eventually

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

PLAN = Plan(
    model_revision="test",
    family="llama",
    layer_count=TINY_LLAMA.layers,
    hidden_size=64,
    dtype="float32",
    end_model=EndModelAssignment(
        LayerRange(0, 1), LayerRange(TINY_LLAMA.layers, TINY_LLAMA.layers), "CPU", 0, 0, 0, 0, "test"
    ),
    stages=(StageAssignment("s1", LayerRange(1, TINY_LLAMA.layers), "CPU", 0, 0, 0, 0, None, "test"),),
    max_context_length=512,
    kv_block_tokens=64,
    kv_blocks=32,
    kv_limited_by="s1",
    max_sequences=2,
    frame_tokens=128,
    frames_in_flight=4,
    slowest_station="s1",
)


@dataclass
class Pods:
    """One store, one stage and one End Model. Each has a directory that it may not leave files in."""

    root: Path
    ca: KeyPair = field(default_factory=lambda: new_ca("default", "p"))
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    telemetry: dict[str, int] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = {name: free_port() for name in ("store", "stage", "end-model", "api")}
        write_tiny_llama(self.root / "model")
        source = {"source": f"file://{self.root}/model", "dtype": "float32"}
        facts = read_facts(ModelSpec.model_validate(source, context={"local": True}), cache_dir=self.root / "facts")
        plan = replace(PLAN, model_revision=facts.revision)  # members wait for a store of the planned revision
        (self.root / "plan.json").write_text(json.dumps(plan.to_json()))

    def settings(self, role: str, **changes: Any) -> MemberSettings:
        self.telemetry[role] = free_port()
        shared: dict[str, Any] = {
            "role": role,
            "pipe": "p",
            "tls_dir": self.root / f"tls-{role}",
            "telemetry_listen": f"0.0.0.0:{self.telemetry[role]}",
            "termination_log": self.log(role),
        }
        if role == "store":
            own: dict[str, Any] = {
                "store_listen": f"0.0.0.0:{self.ports['store']}",
                "source": f"file://{self.root}/model",
                "cache_dir": self.root / "cache",
            }
        else:
            own = {
                "threads": 1,
                "plan_file": self.root / "plan.json",
                "store_address": f"localhost:{self.ports['store']}",
                "ring_listen": f"0.0.0.0:{self.ports[role]}",
            }
        if role == "stage":
            own |= {"stage": 1, "successor": f"localhost:{self.ports['end-model']}"}
        if role == "end-model":
            own |= {"successor": f"localhost:{self.ports['stage']}", "api_listen": f"0.0.0.0:{self.ports['api']}"}
        return MemberSettings(**{**shared, **own, **changes})

    def log(self, role: str) -> Path:
        return self.root / f"termination-log-{role}"

    def start(self, role: str, **changes: Any) -> None:
        settings = self.settings(role, **changes)
        write_tls_dir(settings.tls_dir, self.ca, issue(self.ca, settings.identity))
        self.log(role).write_text("")  # a kubelet makes it
        (self.root / "empty").mkdir(exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
        self.running[role] = subprocess.Popen(
            [sys.executable, "-m", "languagepipes_node"],
            env={**environment, **settings.to_environment(), "HOME": "/nonexistent"},
            cwd=self.root / "empty",
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, role: str, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.telemetry[role]}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def ready(self, role: str) -> bool:
        return self.ask(role, "/readyz")[0] == 200

    def refuses_connections(self) -> bool:
        """Whether the API takes no new connection any more."""
        try:
            self.client.models.list()
        except openai.APIConnectionError:
            return True
        return False

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.ports['api']}/v1", api_key="-", max_retries=0)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.communicate()


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    pods = Pods(tmp_path)
    try:
        yield pods
    finally:
        pods.close()


def test_probes_tell_the_truth_from_the_first_start_to_the_last_answer(pods: Pods) -> None:
    # A stage is ready when it is loaded and listens, whatever the ring does; the store when it serves facts.
    pods.start("store")
    pods.start("stage")
    eventually(lambda: pods.ready("store"), seconds=60)
    eventually(lambda: pods.ready("stage"), seconds=60)
    # The End Model is ready when the ring health check has passed.
    pods.start("end-model")
    eventually(lambda: pods.ready("end-model"), seconds=60)
    for role in pods.running:
        status = json.loads(pods.ask(role, "/status")[1])
        assert len(status["bundle"]) == 64
        assert status["leaf_not_after"]
        assert "languagepipes_certificate_expiry_timestamp_seconds 1." in pods.ask(role, "/metrics")[1]

    # An idle ring that is lost is noticed at once: by silence, and when it is whole again.
    os.kill(pods.running["stage"].pid, signal.SIGSTOP)
    stopped = time.monotonic()
    eventually(lambda: not pods.ready("end-model"), seconds=10)
    assert time.monotonic() - stopped < 3
    assert pods.ask("end-model", "/healthz")[0] == 200  # no fault of its own
    os.kill(pods.running["stage"].pid, signal.SIGCONT)
    eventually(lambda: pods.ready("end-model"), seconds=20)
    pods.running["stage"].kill()
    killed = time.monotonic()
    eventually(lambda: not pods.ready("end-model"), seconds=10)
    assert time.monotonic() - killed < 2
    pods.start("stage")
    eventually(lambda: pods.ready("end-model"), seconds=60)

    # At SIGTERM it is ready no longer, an answer that is under way ends whole, and then the process ends.
    stream = pods.client.completions.create(model="p", prompt="a", max_tokens=400, stream=True, seed=1)
    pieces = [next(stream)]
    pods.running["end-model"].send_signal(signal.SIGTERM)
    eventually(lambda: not pods.ready("end-model"), seconds=10)
    # New requests are let in until the listener is closed, a moment later.
    eventually(pods.refuses_connections, seconds=10)
    pieces += list(stream)
    assert pieces[-1].choices[0].finish_reason in ("length", "stop")
    assert pods.running["end-model"].wait(timeout=30) == 0
    for role in ("stage", "store"):
        pods.running[role].send_signal(signal.SIGTERM)
        assert pods.running[role].wait(timeout=10) == 0
    assert all(pods.log(role).read_text() == "" for role in pods.running)
    assert list((pods.root / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("role", "changes", "words"),
    [
        ("stage", {"plan_file": Path("/nonexistent")}, "InvalidSettings: LANGUAGEPIPES_PLAN_FILE: /nonexistent"),
        ("end-model", {"plan_file": Path("/nonexistent")}, "InvalidSettings: LANGUAGEPIPES_PLAN_FILE: /nonexistent"),
        ("stage", {"stage": 2}, "InvalidSettings: LANGUAGEPIPES_STAGE: 2 is outside"),
        ("stage", {"ring_listen": "192.0.2.1:1"}, "CannotListen: "),
        ("end-model", {"api_listen": "192.0.2.1:1"}, "CannotListen: "),
    ],
)
def test_a_member_that_cannot_serve_leaves_a_code_and_a_sentence(
    pods: Pods, role: str, changes: dict[str, Any], words: str
) -> None:
    pods.start("store")
    pods.start(role, **changes)
    assert pods.running[role].wait(timeout=60) == 1
    assert pods.log(role).read_text().startswith(words)
    assert pods.log(role).stat().st_size < 2048


def test_wrong_variables_are_termination_message_too(pods: Pods) -> None:
    pods.log("stage").write_text("")
    process = subprocess.run(
        [sys.executable, "-m", "languagepipes_node"],
        env={
            **os.environ,
            "LANGUAGEPIPES_ROLE": "stage",
            "LANGUAGEPIPES_STAGE": "x",
            "LANGUAGEPIPES_TERMINATION_LOG": str(pods.log("stage")),
        },
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert process.returncode == 2
    assert pods.log("stage").read_text().startswith("InvalidSettings: ")
    assert "LANGUAGEPIPES_STAGE" in pods.log("stage").read_text()


def test_a_failed_store_ends_a_stage_with_the_stores_own_reason(pods: Pods) -> None:
    pods.start("store", source=f"file://{pods.root}/none")
    pods.start("stage")
    assert pods.running["stage"].wait(timeout=60) == 1
    assert pods.log("stage").read_text().startswith("FileNotFoundAtSource: ")
    assert pods.running["store"].poll() is None
