"""A member goes away or falls silent: the others notice within seconds, say so, and answers go on by themselves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.up import Up, pipe
from support.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running_up(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    resource = pipe(
        f"file://{model_file}",
        name="smollm2",
        model={"maxContextLength": 1024, "dtype": "float32"},
        stages={"count": 2},
    )
    with Up(resource, tmp_path_factory.mktemp("up")) as up:
        yield up


@pytest.fixture
def up(running_up: Up) -> Up:
    """The one of the last test, whole again."""
    running_up.wait_ready()
    return running_up


@pytest.fixture(scope="module")
def undisturbed(running_up: Up) -> str:
    """What `LongAnswer` gets where nothing is lost."""
    return LongAnswer(running_up).text()


def ask(up: Up, tokens: int = 4) -> str:
    answer = up.client().completions.create(model="smollm2", prompt="The sea is", max_tokens=tokens, temperature=0)
    return answer.choices[0].text


class LongAnswer:
    """A stream that goes on for a while, read in a thread: what it got, and what ended it early."""

    def __init__(self, up: Up) -> None:
        self.chunks: list[str] = []
        self.finish: str | None = None
        self.error: Exception | None = None
        self._up = up
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        while len(self.chunks) < 5 and self._thread.is_alive():
            time.sleep(0.01)

    def _read(self) -> None:
        try:
            stream = self._up.client().completions.create(
                model="smollm2", prompt="Once upon a time", max_tokens=300, temperature=0, stream=True
            )
            for chunk in stream:
                self.chunks.append(chunk.choices[0].text)
                self.finish = chunk.choices[0].finish_reason
        except openai.APIError as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(timeout=120)
        assert not self._thread.is_alive()

    def text(self) -> str:
        """All of it, once it has ended by itself."""
        self.join()
        assert self.error is None
        assert self.finish == "length"
        return "".join(self.chunks)


def others(ready: dict[str, Any], lost: str) -> list[int]:
    members = [*ready["stages"], ready["end_model"], ready["store"]]
    return [member["pid"] for member in members if member["name"] != lost]


def test_a_killed_stage_costs_running_answers_a_pause(up: Up, undisturbed: str) -> None:
    before = up.ready
    stage = before["stages"][1]
    replays = up.metric(before["end_model"], "languagepipes_replays_total")
    running = LongAnswer(up)

    os.kill(stage["pid"], signal.SIGKILL)

    assert running.text() == undisturbed
    after = up.wait_ready(before=before)
    assert others(after, stage["name"]) == others(before, stage["name"])
    assert after["stages"][1]["pid"] != stage["pid"]
    assert up.metric(after["end_model"], "languagepipes_replays_total") == replays + 1


def test_a_stage_that_falls_silent_is_noticed_and_answers_go_on_when_it_speaks_again(up: Up, undisturbed: str) -> None:
    first = ask(up)
    before = up.ready
    replays = up.metric(before["end_model"], "languagepipes_replays_total")
    stage = before["stages"][0]
    running = LongAnswer(up)

    stopped_at = time.monotonic()
    os.kill(stage["pid"], signal.SIGSTOP)
    try:
        eventually(lambda: httpx.get(f"http://127.0.0.1:{up.port}/readyz").status_code == 503, seconds=10)
        got = len(running.chunks)
        waiting = threading.Thread(target=lambda: answers.append(ask(up)))
        answers: list[str] = []
        waiting.start()
        time.sleep(max(0.0, stopped_at + 4 - time.monotonic()))
        assert (len(running.chunks), answers) == (got, [])
    finally:
        os.kill(stage["pid"], signal.SIGCONT)

    assert running.text() == undisturbed
    waiting.join(timeout=60)
    assert answers == [first]
    assert up.metric(before["end_model"], "languagepipes_replays_total") == replays
    after = up.wait_ready()
    assert others(after, "") == others(before, "")


def test_a_client_that_goes_away_stops_costing_compute(up: Up) -> None:
    end_model = up.ready["end_model"]
    with httpx.stream(
        "POST",
        f"http://127.0.0.1:{up.port}/v1/completions",
        json={"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 900, "stream": True},
        timeout=60,
    ) as response:
        next(response.iter_lines())
    time.sleep(0.5)
    sampled = up.metric(end_model, "languagepipes_generated_tokens_total")
    time.sleep(0.5)
    assert up.metric(end_model, "languagepipes_generated_tokens_total") == sampled
    assert up.metric(end_model, "languagepipes_kv_blocks_used") == 0


def test_an_end_model_that_is_to_end_refuses_what_comes_and_ends_late_answers_with_an_error(up: Up) -> None:
    before = up.ready
    running = LongAnswer(up)

    os.kill(before["end_model"]["pid"], signal.SIGTERM)

    refused: list[httpx.Response] = []

    def is_refused() -> bool:
        answer = httpx.post(
            f"http://127.0.0.1:{up.port}/v1/completions", json={"model": "smollm2", "prompt": "Hi", "max_tokens": 1}
        )
        refused.append(answer)
        return answer.status_code == 503

    eventually(is_refused)
    assert refused[-1].json()["error"]["code"] == "shutting_down"
    running.join()
    assert running.finish is None
    assert "this answer was not complete in time" in str(running.error)
    after = up.wait_ready(before=before)
    assert others(after, "end-model") == others(before, "end-model")
    assert ask(up)


def test_ctrl_c_leaves_nothing_behind(model_file: Path, tmp_path: Path) -> None:
    up = Up(pipe(f"file://{model_file}", name="smollm2", stages={"count": 1}), tmp_path)
    with up:
        pids = up.pids()
        assert len(pids) >= 4  # up, store, stage, End Model
    assert up.process.returncode == 0
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert not up.ready_file.exists()


def test_ctrl_c_ends_running_answers_with_an_error(model_file: Path, tmp_path: Path) -> None:
    resource = pipe(f"file://{model_file}", name="smollm2", model={"maxContextLength": 1024}, stages={"count": 1})
    with Up(resource, tmp_path) as up:
        running = LongAnswer(up)
        os.kill(up.process.pid, signal.SIGINT)
        running.join()
    assert "this answer was not complete in time" in str(running.error)
    assert up.process.returncode == 0
