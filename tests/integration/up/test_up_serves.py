"""The real command from a YAML file to an answer, a lost stage and Ctrl-C, with a model of a few kilobytes."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.llama_files import write_tiny_llama
from support.ports import free_port
from support.waiting import alive, eventually

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

PIPE = """\
apiVersion: languagepipes.io/v1alpha1
kind: LanguagePipe
metadata: {name: tiny}
spec:
  model: {source: "file://model", servedName: tiny-llama, dtype: float32, maxContextLength: 256}
  stages: {count: 2}
  server: {apiKeysSecretRef: {name: keys}}
"""


class Running:
    """`languagepipes up` as a user's shell runs it, with a private TMPDIR."""

    def __init__(self, directory: Path, source: str = "file://model") -> None:
        self.temporary = directory / "tmp"
        self.ready_file = directory / "ready.json"
        self.temporary.mkdir()
        write_tiny_llama(directory / "model")
        (directory / "secrets/keys").mkdir(parents=True)
        (directory / "secrets/keys/someone").write_text("secret-key\n")
        (directory / "pipe.yaml").write_text(PIPE.replace("file://model", source))
        self.port = free_port()
        self.output = directory / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "languagepipes_operator.cli", "up", str(directory / "pipe.yaml")),
                    *("--port", str(self.port), "--cache-dir", str(directory / "cache")),
                    *("--ready-file", str(self.ready_file), "--secrets-dir", str(directory / "secrets")),
                ],
                env={**os.environ, "TMPDIR": str(self.temporary)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self) -> dict[str, Any]:
        eventually(lambda: self.ready_file.exists() or self.process.poll() is not None, seconds=120)
        assert self.process.poll() is None, self.output.read_text()
        ready: dict[str, Any] = json.loads(self.ready_file.read_text())
        return ready

    def pids(self) -> list[int]:
        ready = self.wait_ready()
        return [member["pid"] for member in (*ready["stages"], ready["end_model"], ready["store"])]

    def ask(self) -> str:
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="secret-key", max_retries=0, timeout=30
        )
        answer = client.completions.create(model="tiny-llama", prompt="Hello", max_tokens=8, temperature=0)
        return answer.choices[0].text

    def everything_is_gone(self, pids: list[int]) -> None:
        eventually(lambda: not any(alive(pid) for pid in pids))
        eventually(lambda: list(self.temporary.iterdir()) == [])
        # A killed process is a zombie before the last of its threads has closed its sockets.
        eventually(self.port_is_free)

    def port_is_free(self) -> bool:
        try:
            socket.create_server(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


def test_up_serves_survives_a_lost_stage_and_leaves_nothing_after_ctrl_c(up: Running) -> None:
    ready = up.wait_ready()
    assert ready["url"] == f"http://127.0.0.1:{up.port}/v1"
    assert ready["model"] == "tiny-llama"
    assert [stage["layers"] for stage in ready["stages"]] == ["1-2", "3-4"]
    first = up.ask()

    (private,) = up.temporary.iterdir()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700

    stage = ready["stages"][1]
    os.kill(stage["pid"], signal.SIGKILL)
    eventually(lambda: stage["pid"] not in (up.pids() if up.ready_file.exists() else [stage["pid"]]), seconds=60)
    assert up.ask() == first
    output = up.output.read_text()
    assert f"{stage['name']} killed by SIGKILL after" in output
    assert "it starts again now" in output
    assert f"tiny is ready at http://127.0.0.1:{up.port}/v1" in output
    assert '"model": "tiny-llama"' in output
    assert "secret-key" not in output

    pids = up.pids()
    started = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=20) == 0
    assert time.monotonic() - started < 8
    up.everything_is_gone(pids)
    assert not up.ready_file.exists()


def test_kill_9_of_up_leaves_neither_members_nor_keys(up: Running) -> None:
    pids = up.pids()
    up.process.kill()
    up.process.wait()
    up.everything_is_gone(pids)


def test_a_mirror_that_is_away_is_shown_and_waited_for(tmp_path: Path) -> None:
    up = Running(tmp_path, source="https://127.0.0.1:1/model")
    try:
        eventually(lambda: "weights: resolving (" in up.output.read_text(), seconds=60)
        assert up.process.poll() is None
    finally:
        up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(timeout=20) == 0
    up.everything_is_gone([])
    assert "127.0.0.1:1" in up.output.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_while_it_starts_leaves_nothing(up: Running, number: signal.Signals) -> None:
    eventually(lambda: "end-model: starting" in up.output.read_text(), seconds=60)
    up.process.send_signal(number)
    assert up.process.wait(timeout=20) == 0
    up.everything_is_gone([])
