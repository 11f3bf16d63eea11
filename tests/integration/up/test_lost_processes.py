"""A member goes away or falls silent: the others notice within seconds, say so, and serve again by themselves."""

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

pytestmark = pytest.mark.slow


@pytest.fixture
def up(model_file: Path, tmp_path: Path) -> Iterator[Up]:
    resource = pipe(f"file://{model_file}", name="smollm2", model={"maxContextLength": 1024}, stages={"count": 2})
    with Up(resource, tmp_path) as up:
        yield up


def ask(up: Up, tokens: int = 4) -> str:
    answer = up.client().completions.create(model="smollm2", prompt="The sea is", max_tokens=tokens, temperature=0)
    return answer.choices[0].text


def ask_until_answered(up: Up, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask(up)
        except (openai.APIStatusError, openai.APIConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class LongAnswer:
    """A stream that would go on for a long while, read in a thread: what it got and how it ended."""

    def __init__(self, up: Up) -> None:
        self.chunks = 0
        self.error: Exception | None = None
        self.ended_at = 0.0
        self._up = up
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        while self.chunks < 5 and self._thread.is_alive():
            time.sleep(0.01)

    def _read(self) -> None:
        try:
            stream = self._up.client().completions.create(
                model="smollm2", prompt="Once upon a time", max_tokens=900, temperature=0, stream=True
            )
            for _ in stream:
                self.chunks += 1
        except openai.APIError as error:
            self.error = error
        self.ended_at = time.monotonic()

    def join(self) -> None:
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()


def others(ready: dict[str, Any], lost: str) -> list[int]:
    members = [*ready["stages"], ready["end_model"], ready["store"]]
    return [member["pid"] for member in members if member["name"] != lost]


def test_a_killed_stage_ends_running_answers_with_an_error_and_the_ring_serves_again(up: Up) -> None:
    first = ask(up)
    before = up.ready
    stage = before["stages"][1]
    running = LongAnswer(up)

    killed_at = time.monotonic()
    os.kill(stage["pid"], signal.SIGKILL)
    running.join()

    assert running.ended_at - killed_at < 2.0
    assert isinstance(running.error, openai.APIError)
    assert "ring" in str(running.error).lower()
    assert ask_until_answered(up, 60) == first
    after = up.wait_ready(before=before)
    assert others(after, stage["name"]) == others(before, stage["name"])
    assert after["stages"][1]["pid"] != stage["pid"]


def test_a_stage_that_falls_silent_is_noticed_and_serves_on_when_it_speaks_again(up: Up) -> None:
    first = ask(up)
    before = up.ready
    stage = before["stages"][0]
    running = LongAnswer(up)

    stopped_at = time.monotonic()
    os.kill(stage["pid"], signal.SIGSTOP)
    try:
        running.join()
        assert running.ended_at - stopped_at < 3.0
        assert running.error is not None
        with pytest.raises(openai.InternalServerError) as refused:
            ask(up)
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"]
        ready = httpx.get(f"http://127.0.0.1:{up.port}/readyz")
        assert ready.status_code == 503
    finally:
        os.kill(stage["pid"], signal.SIGCONT)

    assert ask_until_answered(up, 20) == first
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


def test_ctrl_c_leaves_nothing_behind(model_file: Path, tmp_path: Path) -> None:
    up = Up(pipe(f"file://{model_file}", name="smollm2", stages={"count": 1}), tmp_path)
    with up:
        pids = up.pids()
        assert len(pids) >= 4  # up, store, stage, End Model
    assert up.process.returncode == 0
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert not up.ready_file.exists()
